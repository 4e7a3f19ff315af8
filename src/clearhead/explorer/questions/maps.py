"""Questions about maps: overviews, tiles, the difference of two, single rows and columns, and margins."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clearhead.errors import InputError
from clearhead.explorer import blocks
from clearhead.explorer.blocks import MAX_EXACT_WEIGHTS, Blocks, Mode
from clearhead.explorer.kept import Base
from clearhead.explorer.questions.place import KEY, MODE, OF_HEAD, OF_LAYER, QUERY, Place, place
from clearhead.explorer.table import Answer, Parameter, Question
from clearhead.seeing.maps import formula, pyramid, statistics

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

OVERVIEW = 32  # blocks a side of an overview
TILE = 256  # pixels a side of a tile
ROWS_OF_OVERVIEW, ROWS_OF_TILE = 8, 4  # queries of each block that a first estimate is made from
N_SAMPLED = 512  # queries that margins and head statistics of a long text are estimated from
MAX_SCALE = 23  # 2**31 positions in a tile

TO = Parameter("integer", "the last of a span of queries or keys, included; one where not given", low=0, high=2**31 - 1)
SCALE = Parameter("integer", "one pixel is 2**s x 2**s positions", 0, low=0, high=MAX_SCALE)
DOWN = Parameter("integer", "the number of the tile's row", 0, low=0, high=2**23)
ACROSS = Parameter("integer", "the number of the tile's column", 0, low=0, high=2**23)
OF_TILE = {**OF_HEAD, "mode": MODE, "s": SCALE, "ty": DOWN, "tx": ACROSS}


def overview(exploration: "Exploration", scene: str | None, call: int, batch: int, layer: int, mode: Mode) -> Answer:
    """Answer `overview`."""
    at = place(exploration, scene, layer, call, batch)
    rows, cols = (pyramid.edges(n, OVERVIEW) for n in (at.call.n_all, at.call.n_keys))
    found = exploration.kept.get((*at.key, "overview", mode))
    if found is None:
        found = _blocks(at, at.heads, rows, cols, mode, ROWS_OF_OVERVIEW, 2 * MAX_EXACT_WEIGHTS)
        if found.error is None:
            exploration.kept[(*at.key, "overview", mode)] = found
    meta = {
        "heads": list(at.call.heads),
        "rows": len(rows) - 1,
        "cols": len(cols) - 1,
        "row_cuts": rows,
        "col_cuts": cols,
        **_exactness(found),
    }
    return Answer(meta, found.to_bytes())


def tile(exploration: "Exploration", **address: Any) -> Answer:
    """Answer `tile`."""
    found = _tile(exploration, **address)
    share = found.share
    meta = {
        "rows": share.shape[1],
        "cols": share.shape[2],
        "max": float(share.max()) if share.numel() else 0.0,
        "mass": float(found.mass.sum()) if found.mode == "sum" else None,
        **_exactness(found),
    }
    return Answer(meta, found.to_bytes())


def difference(exploration: "Exploration", other: str, scene: str | None, **address: Any) -> Answer:
    """Answer `difference`: the tile of `other` less that of `scene`."""
    first, second = (_tile(exploration, scene=each, **address) for each in (scene, other))
    if first.share.shape != second.share.shape:
        raise InputError("the two scenes differ in length: only maps of one size have a difference")
    change = second.share[0] - first.share[0]
    meta = {
        "rows": change.shape[0],
        "cols": change.shape[1],
        "largest": float(change.abs().max()) if change.numel() else 0.0,
        "exact": first.error is None and second.error is None,
    }
    return Answer(meta, blocks.signed_bytes(change))


def row(
    exploration: "Exploration",
    scene: str | None,
    call: int,
    batch: int,
    layer: int,
    head: int,
    query: int,
    to: int | None,
) -> Answer:
    """Answer `row`: what a query, or the mean of a span of them, gives to every key."""
    at = place(exploration, scene, layer, call, batch, head)
    first, last = at.require_query(query), at.require_query(query if to is None else to, "to")
    _require_order(query, to)
    if first == last:
        return _floats(at.scene.seen.row(layer, head, query, batch=batch, call=call), "n_keys")
    _require_few((last - first + 1) * at.call.n_keys, "queries")
    part = blocks.subset(at.call, torch.arange(first, last + 1, device=at.call.q.device))
    return _floats(statistics.received(part, batch, at.heads)[0] / part.n_queries, "n_keys")


def column(
    exploration: "Exploration",
    scene: str | None,
    call: int,
    batch: int,
    layer: int,
    head: int,
    key: int,
    to: int | None,
) -> Answer:
    """Answer `column`: what every query gives to a key, or to all keys of a span."""
    at = place(exploration, scene, layer, call, batch, head)
    first, last = at.require_key(key), at.require_key(key if to is None else to, "to")
    _require_order(key, to)
    _require_few((last - first + 1) * at.call.n_queries, "keys")
    found = formula.window(at.call, batch, at.heads[0], slice(0, at.call.n_queries), slice(first, last + 1)).sum(1)
    if at.call.rule.rows is not None:  # NaN for a query that was not kept: nothing is known of it
        found = found.new_full((at.call.n_all,), math.nan).index_copy(0, at.call.rows, found)
    return _floats(found, "n_queries")


def margins(exploration: "Exploration", scene: str | None, call: int, batch: int, layer: int, head: int) -> Answer:
    """Answer `margins`: what each key receives, then how spread each query's row is.

    Of a long text both are of a sample: what keys receive is scaled up, and queries that were left out are NaN.
    """
    at = place(exploration, scene, layer, call, batch, head)
    one, counted, rows = at.call, at.counted, at.call.rows
    sampled = one.n_queries * one.n_keys > MAX_EXACT_WEIGHTS
    factor = 1.0
    if sampled:
        some = blocks.spread_rows(one, pyramid.edges(one.n_all, N_SAMPLED), 1, counted)
        n_counted = one.n_queries if counted is None else int(counted.sum())
        one, counted, rows = blocks.subset(one, some), None, rows[some]
        factor = n_counted / max(len(some), 1)
    weights = None if counted is None else counted[None].to(one.exact)
    received = factor * statistics.received(one, batch, at.heads, weights)[0]
    entropy = statistics.entropy(one, batch, at.heads)[0]
    entropy = entropy.new_full((at.call.n_all,), math.nan).index_copy(0, rows, entropy)
    meta = {"n_keys": len(received), "n_queries": len(entropy), "exact": not sampled}
    return Answer(meta | ({"sampled": len(rows)} if sampled else {}), _bytes(torch.cat([received, entropy])))


def _tile(
    exploration: "Exploration",
    scene: str | None,
    call: int,
    batch: int,
    layer: int,
    head: int,
    mode: Mode,
    s: int,
    ty: int,
    tx: int,
) -> Blocks:
    """Return the blocks of a tile; InputError where there is none."""
    at = place(exploration, scene, layer, call, batch, head)
    top = scales(max(at.call.n_all, at.call.n_keys)) - 1
    if s > top:
        raise InputError(f"s= expects a scale from 0 to {top} for this map, got {s}")
    cuts = []
    for name, number, n in (("ty", ty, at.call.n_all), ("tx", tx, at.call.n_keys)):
        side = TILE << s
        if number * side >= n:
            raise InputError(f"{name}= expects a tile from 0 to {(n - 1) // side} at scale {s}, got {number}")
        stop = min((number + 1) * side, n)
        cuts.append([*range(number * side, stop, 1 << s), stop])
    base: Base | None = exploration.kept.get((*at.key, at.heads[0], "base", mode))
    if base is not None and s >= base.scale:
        covered = [range(cut[0] >> base.scale, -(-cut[-1] // (1 << base.scale))) for cut in cuts]
        if (known := base.tile(s, *covered)) is not None:
            return known
    return _blocks(at, at.heads, cuts[0], cuts[1], mode, ROWS_OF_TILE, MAX_EXACT_WEIGHTS)


def scales(n: int) -> int:
    """Return how many scales a map of `n` positions has: the last shows all of it in one tile."""
    return 1 + max(0, (math.ceil(n / TILE) - 1).bit_length())


def _blocks(
    at: Place, heads: list[int], rows: Sequence[int], cols: Sequence[int], mode: Mode, each: int, limit: int
) -> Blocks:
    """Return blocks exactly where that is at most `limit` weights, else estimated from `each` queries a block."""
    n_rows = blocks.kept_cuts(at.call, [rows[0], rows[-1]])
    if len(heads) * (n_rows[1] - n_rows[0]) * (cols[-1] - cols[0]) <= limit:
        return blocks.blocks(at.call, at.batch, heads, rows, cols, mode, at.counted)
    return blocks.sampled(at.call, at.batch, heads, rows, cols, mode, at.counted, each)


def _exactness(found: Blocks) -> dict[str, Any]:
    """Return whether blocks are exact, and if not the largest standard error of a share where it is known."""
    if found.error is None:
        return {"exact": True, "error": None}
    known = found.error[~found.error.isnan()]
    return {"exact": False, "error": float(known.max()) if len(known) else None}


def _floats(values: Tensor, name: str) -> Answer:
    return Answer({name: len(values)}, _bytes(values))


def _bytes(values: Tensor) -> bytes:
    """Return numbers as float32, little-endian."""
    return values.float().cpu().numpy().astype("<f4").tobytes()


def _require_order(first: int, last: int | None) -> None:
    if last is not None and last < first:
        raise InputError(f"to= expects the last position of a span that begins at {first}, got {last}")


def _require_few(n: int, what: str) -> None:
    if n > MAX_EXACT_WEIGHTS:
        raise InputError(f"that span covers {n:,} weights, at most {MAX_EXACT_WEIGHTS:,} at once: ask for fewer {what}")


QUESTIONS = (
    Question(
        "overview",
        "All heads of a layer in at most 32 x 32 blocks each, one byte a block.",
        overview,
        {**OF_LAYER, "mode": MODE},
        gives="bytes",
    ),
    Question("tile", "Up to 256 x 256 blocks of one head's map, one byte a block.", tile, OF_TILE, gives="bytes"),
    Question(
        "difference",
        "A tile of another scene less that of this one, one byte a block, 128 for none.",
        difference,
        {**OF_TILE, "other": Parameter("string", "the id of the other scene", required=True, low=1, high=40)},
        gives="bytes",
    ),
    Question(
        "row",
        "What a query, or a span of queries on average, gives to every key: float32, little-endian.",
        row,
        {**OF_HEAD, "query": QUERY, "to": TO},
        gives="bytes",
    ),
    Question(
        "column",
        "What every query gives to a key, or to a span of keys together: float32, little-endian.",
        column,
        {**OF_HEAD, "key": KEY, "to": TO},
        gives="bytes",
    ),
    Question(
        "margins",
        "What every key receives, then the entropy of every query's row in nats: float32, little-endian.",
        margins,
        OF_HEAD,
        gives="bytes",
    ),
)
