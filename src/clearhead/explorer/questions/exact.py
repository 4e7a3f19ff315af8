"""The question `exact`: what was estimated of a long text, computed to the end, block by block.

Of one head it is the map, from which tiles of every scale follow; without a head the overviews of a layer. What is
done is kept: asked a second time, it is there.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clearhead.explorer import blocks
from clearhead.explorer.blocks import MAX_EXACT_WEIGHTS, Blocks, Mode
from clearhead.explorer.jobs import Events, Report
from clearhead.explorer.kept import Base, save_overviews
from clearhead.explorer.questions.maps import OVERVIEW, TILE
from clearhead.explorer.questions.place import BATCH, CALL, LAYER, MAX_POSITIONS, MODE, SCENE, Place, place
from clearhead.explorer.table import Parameter, Question
from clearhead.seeing.maps import pyramid

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

MAX_BASES = 16  # maps that are kept, up to some 20 MB each; the oldest is dropped for a new one


def exact(
    exploration: "Exploration", scene: str | None, call: int, batch: int, layer: int, head: int | None, mode: Mode
) -> Events:
    """Answer `exact`."""
    at = place(exploration, scene, layer, call, batch, head)

    def work(report: Report) -> None:
        steps = overviews(exploration, at, mode, report) if head is None else base(exploration, at, mode)
        for event in steps:
            report("block", **event)
        report("done", exact=True)

    return Events(work)


def overviews(exploration: "Exploration", at: Place, mode: Mode, report: Report) -> Iterator[dict[str, object]]:
    """Compute the overviews of a layer row by row of blocks, and keep them; yield the bytes of each."""
    rows, cols = (pyramid.edges(n, OVERVIEW) for n in (at.call.n_all, at.call.n_keys))
    key, parts, n_rows = (*at.key, "overview", mode), list[Blocks](), len(rows) - 1
    known: Blocks | None = exploration.kept.get(key)
    for row in range(n_rows):
        if known is None:
            some = []
            for i in at.heads:
                report.check()
                with exploration.lock:
                    some.append(blocks.blocks(at.call, at.batch, [i], rows[row : row + 2], cols, mode, at.counted))
            part = joined(some, 0)
            parts.append(part)
        else:
            here = slice(row, row + 1)
            part = Blocks(known.share[:, here], known.visible[:, here], known.n_rows[here], mode=mode)
        yield {
            "row": row,
            "rows": n_rows,
            "cols": len(cols) - 1,
            "heads": list(at.call.heads),
            "bytes": base64.b64encode(part.to_bytes()).decode(),
            "done": row + 1,
            "of": n_rows,
        }
    if known is None:
        with exploration.lock:
            exploration.kept[key] = joined(parts, 1)
            _save(exploration, at)


def _save(exploration: "Exploration", at: Place) -> None:
    """Write the overviews of a recording that was opened beside it, so that they are there when it is opened again."""
    if at.scene.origin.kind != "recording":
        return
    mine = {key: value for key, value in exploration.kept.items() if key[0] == at.id}
    try:
        save_overviews(Path(at.scene.origin.text), mine)
    except OSError as error:
        remark = f"overviews cannot be kept beside the recording: {error.strerror or error}"
        at.scene.notes = tuple(dict.fromkeys((*at.scene.notes, remark)))


def joined(parts: list[Blocks], axis: int) -> Blocks:
    """Return blocks of several heads (axis 0) or rows of blocks (axis 1) as one."""
    share = torch.cat([part.share for part in parts], axis)
    every = torch.cat([part.visible.expand_as(part.share) for part in parts], axis)
    n_rows = parts[0].n_rows if axis == 0 else torch.cat([part.n_rows for part in parts])
    return Blocks(share, every, n_rows, mode=parts[0].mode)


def base_scale(n_queries: int, n_keys: int) -> int:
    """Return the finest scale whose tiles may be too large to be computed when they are asked for."""
    scale = 0
    while min(n_queries, TILE << scale) * min(n_keys, TILE << scale) <= MAX_EXACT_WEIGHTS and TILE << scale < max(
        n_queries, n_keys
    ):
        scale += 1
    return scale


def base(exploration: "Exploration", at: Place, mode: Mode) -> Iterator[dict[str, object]]:
    """Compute a head's map at the scale from which all coarser ones follow, in bands, and keep it; yield how far."""
    call = at.call
    scale = base_scale(call.n_all, call.n_keys)
    side = 1 << scale
    rows, cols = ([*range(0, n, side), n] for n in (call.n_all, call.n_keys))
    key = (*at.key, at.heads[0], "base", mode)
    with exploration.lock:
        found: Base | None = exploration.kept.get(key)
        if found is None:
            size = len(rows) - 1, len(cols) - 1
            device = call.q.device
            blank = torch.zeros(size, dtype=torch.bool, device=device)
            n_rows = blocks.counts(call, blocks.kept_cuts(call, rows), at.counted)
            found = Base(scale, mode, torch.zeros(size, dtype=call.exact, device=device), blank, n_rows)
            bases = [each for each in exploration.kept if "base" in each]
            if len(bases) >= MAX_BASES:
                del exploration.kept[bases[0]]
            exploration.kept[key] = found
    height = max(1, MAX_EXACT_WEIGHTS // (side * call.n_keys))
    while found.done < len(rows) - 1:
        stop = min(found.done + height, len(rows) - 1)
        with exploration.lock:
            here = slice(found.done, stop)
            cuts = rows[found.done : stop + 1]
            some = blocks.blocks(call, at.batch, at.heads, cuts, cols, mode, at.counted)
            found.total[here] = some.share[0] if mode == "max" else some.mass[0]
            found.visible[here] = some.visible[0]
            found.done = stop
        yield {"done": stop, "of": len(rows) - 1}
    yield {"done": found.done, "of": len(rows) - 1}


QUESTIONS = (
    Question(
        "exact",
        "Compute exactly what was estimated of a long text: a head's map, or without a head a layer's overviews.",
        exact,
        {
            "scene": SCENE,
            "call": CALL,
            "batch": BATCH,
            "layer": LAYER,
            "head": Parameter("integer", "the head", low=0, high=MAX_POSITIONS, nullable=True),
            "mode": MODE,
        },
        method="POST",
        slow=True,
    ),
)
