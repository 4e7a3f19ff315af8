"""`clearhead derive` and `clearhead see`: texts or pictures in, and of each what attention did.

`see` shows every head as a small map and what one word looks at; `derive` takes one head apart in eight steps. The
model is opened once, however many texts there are.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.cli.inputs import are_pictures, arriving
from clearhead.cli.output import console, dump, one_line

if TYPE_CHECKING:  # torch: an input that is not there need not wait for it
    from rich.console import Console

    from clearhead.cli.reading import Reading


def see(texts: Sequence[str], files: Sequence[Path], *, asked: Any, model: str | None, as_json: bool) -> None:
    """Show every text from one word."""

    def fields(reading: "Reading") -> dict[str, Any]:
        from clearhead.explorer.view import to_json

        return to_json(reading.view)

    def draw(reading: "Reading", page: "Console") -> None:
        from clearhead.explorer.terminal import show

        show(reading.view, page)

    each("see", texts, files, asked, model, fields if as_json else None, draw)


def derive(
    texts: Sequence[str], files: Sequence[Path], *, asked: Any, model: str | None, as_json: bool, source: bool
) -> None:
    """Derive attention for one word and head of every text."""

    def fields(reading: "Reading") -> dict[str, Any]:
        found = reading.derive().to_json()
        if not source:
            for step in found["steps"]:
                del step["source"]
        return {"tokens": found.pop("tokens"), "layer": reading.view.layer, **found}

    def draw(reading: "Reading", page: "Console") -> None:
        from clearhead.derivation.words import label
        from clearhead.explorer.derivation_view import show

        view = reading.view
        heading = f"layer {view.layer}, head {view.head}"
        if asked["layer"] is None or asked["head"] is None:
            heading += f", which looks hardest at {view.another}, {label(view.keys, view.strongest[0].key)}"
        show(reading.derive(), page, source=source, heading=heading)

    each("derive", texts, files, asked, model, fields if as_json else None, draw)


def each(
    verb: str,
    texts: Sequence[str],
    files: Sequence[Path],
    asked: dict[str, Any],
    model: str | None,
    fields: "Callable[[Reading], dict[str, Any]] | None",
    draw: "Callable[[Reading, Console], None]",
) -> None:
    """Read every text and print what `fields` says of it, one object a line, or what `draw` draws."""
    arrivals = arriving(texts, files, example=f'clearhead {verb} "attention is not too shabby"')
    first = next(arrivals)
    from clearhead.cli.reading import Asked, open_watched

    usual = "pictures" if are_pictures(texts, first) else "pronounce" if asked["target"] is not None else "sentiment"
    watched = open_watched(verb, model or usual)
    page = None if fields else console()
    several = len(texts) != 1 or bool(files)
    n_read = 0
    for some in chain([first], arrivals):
        for text in watched.inputs(some):
            reading = watched.read(text, Asked(**asked))
            if fields is not None:
                written = {} if reading.target is None else {"target": reading.target}
                print(dump({watched.reads: text, **written, **fields(reading)}))
            else:
                assert page is not None
                if n_read:
                    print()
                if several or reading.target is not None:
                    written_of = "" if reading.target is None else f" -> {reading.target}"
                    print(one_line(text + written_of) + "\n")
                    sys.stdout.flush()
                draw(reading, page)
            n_read += 1
        sys.stdout.flush()
