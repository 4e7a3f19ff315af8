"""One HTML file that is the explorer of one scene: it needs no program, no network and no other file.

    export(exploration, "page.html")

The file holds the page's modules joined into one, and the answers to the questions that the page asks: the overviews
of all heads, tiles at every zoom, and the exact weights of whole heads, strongest heads first, as far as a budget of
bytes goes. What is left out is said when the file is written, and again on the page where somebody asks for it. A
policy in the file forbids it every connection.
"""

import base64
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from math import ceil, log2
from pathlib import Path
from typing import Any

from clearhead.errors import InputError
from clearhead.explorer import joining
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.questions.maps import TILE
from clearhead.explorer.table import Answer

BUDGET = 20_000_000  # bytes of a file, where no other number is given
LARGEST_MAP = 2**22  # weights of one head that are kept exactly: 2,048 x 2,048, 16 MiB before they are packed
N_STRONGEST = 20  # links in the table of a head's page
N_LESSONS = 16  # queries, at most, for which the lesson of the head that the page begins with is kept
N_HARDEST = 64  # queries, at most, for each of which the strongest head is kept
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="generator" content="clearhead">
<title>{title}</title>
<style>body {{ margin: 0 }} @media (prefers-color-scheme: dark) {{ body {{ background: #121417 }} }}</style>
<main id="explorer"></main>
<noscript><p>This page draws attention maps with JavaScript, which is switched off here.</p></noscript>
<script type="application/json" id="answers">{answers}</script>
<script type="module">
{modules}
const held = JSON.parse(document.getElementById("answers").textContent);
const view = {{ style: held.style, hash: true }};
if (location.hash.length < 2 && held.view) history.replaceState(null, "", "#" + held.view);
mount(embeddedSource(held.answers, held.maps), document.getElementById("explorer"), view);
</script>
</html>
"""


@dataclass(frozen=True)
class Exported:
    """What a file holds.

    Attributes:
        nbytes: Its size.
        n_heads: How many heads the scene has.
        n_zoomed: How many of them can be looked at, at every zoom.
        n_exact: How many of them are held exactly, weight by weight.
    """

    nbytes: int
    n_heads: int
    n_zoomed: int
    n_exact: int

    def __str__(self) -> str:
        size = f"{self.nbytes / 1e6:.1f} MB"
        if self.n_exact == self.n_heads:
            return f"{size}, all {self.n_heads} heads exactly"
        return (
            f"{size}: all {self.n_heads} heads in small, {self.n_zoomed} of them at every zoom, {self.n_exact} weight "
            f"by weight; a larger budget= of clearhead.explorer.export.export holds more"
        )


class _Held:
    """The answers that go into a file, while there is room."""

    def __init__(self, exploration: Exploration, budget: int) -> None:
        self.exploration, self.room = exploration, budget
        self.answers: dict[str, dict[str, Any]] = {}
        self.maps: dict[str, dict[str, Any]] = {}

    def ask(self, name: str, *, must: bool = False, **given: Any) -> bool:
        """Hold the answer to a question, and return whether there was room for it."""
        asked = {key: value for key, value in given.items() if value is not None and value != ""}
        return self.hold(key_of(name, asked), self.exploration.ask(name, **asked), must=must)

    def hold(self, key: str, answer: Answer, *, must: bool = False) -> bool:
        """Hold an answer under a key."""
        entry: dict[str, Any] = {"meta": answer.meta}
        if answer.body is not None:
            entry["bytes"] = _packed(answer.body)
        if not self.take(len(key) + len(json.dumps(entry)), must=must):
            return False
        self.answers[key] = entry
        return True

    def take(self, nbytes: int, *, must: bool = False) -> bool:
        """Take room, and return whether there was enough."""
        if nbytes > self.room and not must:
            return False
        self.room -= nbytes
        return True


def export(
    exploration: Exploration,
    path: "str | os.PathLike[str]",
    *,
    scene: str | None = None,
    budget: int = BUDGET,
    view: str = "",
) -> Exported:
    """Write the explorer of one scene into one HTML file, which appears whole or not at all.

    Args:
        exploration: What is explored.
        path: The file; one that is there is replaced.
        scene: Which scene, by its id; the first where not given.
        budget: How many bytes the file may have. The overviews of all heads are always held.
        view: Where to begin: what stands behind the `#` of an explorer's address, unless the reader's has a `#`.

    Returns:
        What the file holds.

    Raises:
        InputError: The path cannot be written to, or the budget is not a positive number.
    """
    if budget <= 0:
        raise InputError(f"budget= is how many bytes the file may have, got {budget}")
    meta = exploration.ask("meta", scene=scene).meta
    fixed = len(joining.joined()) + len(joining.style())
    held = _Held(exploration, budget - fixed)
    name = meta["id"]
    alone = {**meta, "can": dict.fromkeys(meta["can"], False), "models": [], "scenes": []}
    held.hold("meta?", Answer(alone), must=True)
    held.hold(key_of("meta", {"scene": name}), Answer(alone), must=True)
    place = {"scene": name, "call": -1, "batch": 0}
    _hold_front(held, meta, place)
    heads = _by_strength(exploration, meta, place)
    _hold_lesson(held, meta, {**place, "layer": heads[0][0], "head": heads[0][1]})
    n_zoomed = n_exact = 0
    for layer, head in heads:  # a few heads whole rather than all in part: the page asks for rows, too
        address = {**place, "layer": layer, "head": head}
        n_zoomed += _hold_zoom(held, meta, address)
        n_exact += _hold_map(held, address)
    text = _page(meta, {"answers": held.answers, "maps": held.maps, "style": joining.style(), "view": view})
    _write(Path(path), text)
    return Exported(len(text.encode()), len(heads), n_zoomed, n_exact)


def key_of(name: str, asked: dict[str, Any]) -> str:
    """Return a question as the page writes it: its parameters in alphabetical order."""
    return f"{name}?" + "&".join(sorted(f"{key}={value}" for key, value in asked.items()))


def _hold_front(held: _Held, meta: dict[str, Any], place: dict[str, Any]) -> None:
    """Hold what the page of all heads asks."""
    for layer in meta["layers"]:
        if layer["empty"] is None:
            held.ask("overview", must=True, **place, layer=layer["index"], mode="sum")
    held.ask("heads", must=True, **place)
    for image in filter(None, (axis["image"] for axis in meta["axes"])):
        found = held.exploration.ask("image", scene=place["scene"], id=image["id"])
        held.hold(key_of("image", {"id": image["id"]}), found, must=True)
        held.hold(key_of("image", {"id": image["id"], "scene": place["scene"]}), found, must=True)
    n_queries = max(layer["n_queries"] for layer in meta["layers"])
    for query in range(min(n_queries, N_HARDEST)):
        held.ask("hardest", **place, query=query)


def _hold_lesson(held: _Held, meta: dict[str, Any], head: dict[str, Any]) -> None:
    """Hold the lesson of one head, for the first words."""
    layer = next(layer for layer in meta["layers"] if layer["index"] == head["layer"])
    for query in range(min(layer["n_queries"], N_LESSONS)):
        held.ask("lesson", **head, query=query, seed=0)


def _by_strength(exploration: Exploration, meta: dict[str, Any], place: dict[str, Any]) -> list[tuple[int, int]]:
    """Return all heads, the one that the page begins with first, then those that look hardest at one other place."""
    numbers = exploration.ask("heads", **place).meta["heads"]
    begins = meta["strongest"] and (meta["strongest"]["layer"], meta["strongest"]["head"])
    order = sorted(numbers, key=lambda one: (one["entropy"] is None, one["entropy"] or 0.0))
    found = [(one["layer"], one["head"]) for one in order]
    return sorted(found, key=lambda head: head != begins)


def _tiles(n_queries: int, n_keys: int) -> Iterator[dict[str, Any]]:
    """Yield the addresses of all tiles of a map, the coarsest first."""
    coarsest = max(0, ceil(log2(ceil(max(n_queries, n_keys) / TILE))))
    for scale in range(coarsest, -1, -1):
        side = TILE * 2**scale
        yield from (
            {"s": scale, "ty": down, "tx": across}
            for down in range(ceil(n_queries / side))
            for across in range(ceil(n_keys / side))
        )


def _hold_zoom(held: _Held, meta: dict[str, Any], head: dict[str, Any]) -> bool:
    """Hold what the page of one head asks but for its rows, and return whether all of it had room."""
    layer = next(layer for layer in meta["layers"] if layer["index"] == head["layer"])
    size = layer["n_queries"], layer["n_keys"]
    whole = all(held.ask("tile", **head, mode=mode, **tile) for mode in ("sum", "max") for tile in _tiles(*size))
    whole = held.ask("margins", **head) and whole
    held.ask("strongest", **head, count=N_STRONGEST)
    return whole


def _hold_map(held: _Held, head: dict[str, Any]) -> bool:
    """Hold all weights of a head, if they are not too many, and return whether they were held."""
    _, scene = held.exploration.scene(head["scene"])
    call = scene.seen.call(head["layer"], head["call"])
    if call.rule.rows is not None or call.n_all * call.n_keys > LARGEST_MAP or held.room <= 0:
        return False
    weights = scene.seen.map(head["layer"], head["head"], batch=head["batch"], call=head["call"])
    packed = _packed(weights.float().numpy(force=True).astype("<f4").tobytes())
    if not held.take(len(packed) + 100):
        return False
    key = "/".join(str(head[part]) for part in ("scene", "call", "batch", "layer", "head"))
    held.maps[key] = {"rows": call.n_all, "cols": call.n_keys, "bytes": packed}
    query, key_place = divmod(int(weights.argmax()), call.n_keys)
    held.ask("why", **head, query=query, key=key_place)
    return True


def _packed(body: bytes) -> str:
    return base64.b64encode(zlib.compress(body, 9)).decode()


def _page(meta: dict[str, Any], held: dict[str, Any]) -> str:
    """Return the HTML; nothing in it that comes from a model or a text can end its element."""
    answers = json.dumps(held, separators=(",", ":")).replace("<", "\\u003c")
    modules = joining.joined().replace("</script", "<\\/script").replace("export { embeddedSource, mount };", "")
    modules = modules.replace("export default { render };", "")
    title = escape(" · ".join(filter(None, (meta["title"][:120], meta["model"], "clearhead"))))
    return PAGE.format(policy=POLICY, title=title, answers=answers, modules=modules)


def _write(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)
