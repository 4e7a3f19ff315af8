"""`clearhead derive` and `clearhead see`: texts or pictures in, and of each what attention did.

`see` shows every head as a small map and what one word looks at; `derive` takes one head apart in eight steps. The
model is opened once, however many texts there are.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.cli.arguments import at_least_1
from clearhead.cli.inputs import are_pictures, arriving, is_recording
from clearhead.cli.output import console, dump, one_line
from clearhead.errors import InputError

if TYPE_CHECKING:  # torch: an input that is not there need not wait for it
    from rich.console import Console

    from clearhead.cli.reading import Reading


def see(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    asked: Any,
    model: str | None,
    as_json: bool,
    max_pixels: int | None,
) -> None:
    """Show every text, picture or recording from one word."""

    def fields(reading: "Reading") -> dict[str, Any]:
        from clearhead.explorer.view import to_json

        return to_json(reading.view)

    def draw(reading: "Reading", page: "Console") -> None:
        from clearhead.explorer.terminal import show

        show(reading.view, page)

    each("see", texts, files, asked, Opening(model, max_pixels), fields if as_json else None, draw)


def derive(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    asked: Any,
    model: str | None,
    as_json: bool,
    source: bool,
    max_pixels: int | None,
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

    each("derive", texts, files, asked, Opening(model, max_pixels), fields if as_json else None, draw)


@dataclass(frozen=True)
class Opening:
    """What reads: the model, chosen by what is read where None, and the largest picture, as usual where None."""

    model: str | None
    max_pixels: int | None


def each(
    verb: str,
    texts: Sequence[str],
    files: Sequence[Path],
    asked: dict[str, Any],
    opening: Opening,
    fields: "Callable[[Reading], dict[str, Any]] | None",
    draw: "Callable[[Reading, Console], None]",
) -> None:
    """Read every text and print what `fields` says of it, one object a line, or what `draw` draws."""
    at_least_1(max_pixels=opening.max_pixels)
    arrivals = arriving(texts, files, example=f'clearhead {verb} "attention is not too shabby"')
    first = next(arrivals)
    from clearhead.cli.reading import Asked, Recorded, Watched, open_watched

    watched: Watched | Recorded
    if any(map(is_recording, texts)):
        require_recordings(verb, texts, opening.model)
        watched = Recorded()
    else:
        usual = "pronounce" if asked["target"] is not None else "sentiment"
        usual = "pictures" if are_pictures(texts, first) else usual
        watched = open_watched(verb, opening.model or usual, opening.max_pixels)
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


def require_recordings(verb: str, texts: Sequence[str], model: str | None) -> None:
    """Raise InputError unless `verb` can look at these arguments, some of which are recordings, without a model."""
    recording = next(filter(is_recording, texts))
    if verb != "see":
        raise InputError(
            f"{recording} is a recording, without the weights of the model that `clearhead {verb}` computes with: "
            f"`clearhead see {recording}` and `clearhead explore {recording}` show it"
        )
    if others := [text for text in texts if not is_recording(text)]:
        raise InputError(f"{recording} is a recording and {others[0]!r} is none: give one kind at a time")
    if model is not None:
        raise InputError(f"{recording} is a recording, and --model {model} reads texts: leave --model out")
