"""Overviews: how much weight lies in each block of queries x keys, exactly, at any zoom.

A block is a sum, never a mean, so four blocks of one zoom level add up to one of the next, and a whole map to its
number of queries. The second mode, "max", holds the largest single weight of each block: it finds lone strong links
that a sum drowns, and four blocks have the largest of them as their next.

Queries that are padding by what the mask says (`tiles.counted`) are left out: they would add as much as real ones.

On a GPU one kernel makes an overview (`kernels.py`); what is here is its reference, and runs everywhere.

Pooling attention maps block by block, and serving large matrices as tiles of a pyramid, is done elsewhere (flash-colsum
and SeerAttention for block statistics, HiGlass for genomics). Next: `statistics.py`.
"""

import bisect
import importlib.util
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing import arguments
from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula, products, sight, tiles

Mode = Literal["sum", "max"]

WIDEST = 512  # bytes of a query that the kernel can hold: 128 numbers in float32, 256 in bfloat16
RUN = 16  # blocks summed by one product: every number is multiplied that often, so few
# The ways in which the kernel was compiled in this process, and why one is not to be used, or nothing where it was
# found to say what tiles say. A GPU that nobody tried may compile it wrongly, and a picture would not show it.
PROVED: dict[tuple[object, ...], str] = {}
AGREES = 1e-3  # of the largest block: rounding is a thousand times smaller, and what is wrong much larger
LONG = 32  # keys of a block from which a sum along them costs less than one across queries


@dataclass(frozen=True, eq=False)
class Pyramid:
    """One head's map at every zoom: level z has 2**z x 2**z blocks, and each is the sum (or max) of its four.

    row_cuts, col_cuts: where the blocks of the finest level begin and end; blocks of level z are every 2**(finest - z)
    of these. In a text shorter than the finest level some blocks hold no position, and 0.
    """

    levels: tuple[Float[Tensor, "_ _"], ...]
    row_cuts: tuple[int, ...]
    col_cuts: tuple[int, ...]
    mode: Mode


def edges(n: int, size: int) -> list[int]:
    """Return where `size` blocks of n positions begin and end: block b is `range(edges[b], edges[b + 1])`.

    Edges of `size` blocks are among those of `2 * size`, so zoom levels nest. No more blocks than positions.
    """
    return cuts(n, max(1, min(require_blocks(size), n)))


def require_blocks(size: int) -> int:
    """Return `size`; raises WatchError where a map cannot be drawn in so many blocks a side."""
    if arguments.whole(size, "size") < 1:
        raise WatchError(f"size= is how many blocks a side a map is drawn in: at least 1, got {size}")
    return int(size)


def cuts(n: int, size: int) -> list[int]:
    """Return what `edges` does with exactly `size` blocks, of which some are empty where positions are fewer."""
    return [b * n // size for b in range(size + 1)]


def pooled(
    call: Call,
    batch: int,
    heads: Sequence[int],
    row_cuts: Sequence[int],
    col_cuts: Sequence[int],
    *,
    mode: Mode = "sum",
    part: tiles.Part = tiles.WHOLE,
) -> Float[Tensor, "heads row_blocks col_blocks"]:
    """Return the sum or the largest of the weights in each block between the cuts, which only grow."""
    done = _in_one_pass(call, batch, heads, row_cuts, col_cuts, mode, part)
    return _by_tiles(call, batch, heads, row_cuts, col_cuts, mode, part) if done is None else done


def _by_tiles(
    call: Call,
    batch: int,
    heads: Sequence[int],
    row_cuts: Sequence[int],
    col_cuts: Sequence[int],
    mode: Mode,
    part: tiles.Part,
) -> Tensor:
    """Return what `pooled` does, from a sweep."""
    shape = (len(heads), len(row_cuts) - 1, len(col_cuts) - 1)
    found = torch.zeros(shape, dtype=call.exact, device=call.q.device)
    part = replace(
        part,
        rows=range(row_cuts[0], row_cuts[-1]),
        cols=range(col_cuts[0], col_cuts[-1]),
        steps=(_step(row_cuts), _step(col_cuts)),
    )
    by_row = _Blocks(row_cuts, RUN, mode, found)
    by_col = _Blocks(col_cuts, 4 * RUN, mode, found)

    def add(tile: tiles.Tile) -> None:
        rows, cols = by_row.met(tile.rows), by_col.met(tile.cols)
        if cols.height >= LONG:
            both = rows.pool(cols.pool_last(tile.weights))
        else:
            both = cols.pool(rows.pool(tile.weights).mT).mT
        here = found[tile.heads, rows.first : rows.first + rows.n_blocks, cols.first : cols.first + cols.n_blocks]
        if mode == "sum":
            here.add_(both)
        else:
            torch.maximum(here, both, out=here)

    tiles.each(call, batch, heads, add, part)
    return found


def _in_one_pass(
    call: Call,
    batch: int,
    heads: Sequence[int],
    row_cuts: Sequence[int],
    col_cuts: Sequence[int],
    mode: Mode,
    part: tiles.Part,
) -> Tensor | None:
    """Return what `kernels.py` finds, or None where it does not apply: not on a GPU, tables, very wide heads."""
    size, rule = (len(row_cuts) - 1, len(col_cuts) - 1), call.rule
    plain = (
        rule.rows is None and rule.spans is None and rule.bias is None and call.softcap is None and call.weights is None
    )
    if not _on_a_gpu(call) or not plain or part.gradient or sight.tabled(call) or call.q.dtype == torch.float64:
        return None
    if call.q.shape[-1] * call.q.element_size() > WIDEST:
        return None
    if any(list(given) != cuts(n, s) for given, n, s in zip((row_cuts, col_cuts), (call.n_queries, call.n_keys), size)):
        return None
    peak, rest = formula.normaliser(call, batch)
    if formula.in_parts(rest) or importlib.util.find_spec("triton") is None:
        return None
    from clearhead.seeing.maps import kernels

    index = torch.tensor(list(heads), device=call.q.device)
    lse, hidden = peak[index] * products.LOG2E, part.factor
    if part.counted is not None:
        lse = lse.masked_fill(~part.counted, -products.NEVER)
    if rule.tables:  # what hides keys from every query
        keys = sight.seen_keys(call, batch, heads)
        blank = torch.zeros(keys.shape, device=index.device) if hidden is None else hidden.expand(len(heads), -1)
        hidden = blank.masked_fill(~keys, products.NEVER)
    run = partial(
        kernels.pooled,
        call.q[batch][index],
        call.k[batch],
        lse,
        size,
        scale=call.scale * products.LOG2E,
        kv_of=torch.tensor([call.kv_of[h] for h in heads], device=index.device, dtype=torch.int32),
        reach=rule.reach,
        since=rule.since,
        hidden=hidden,
        largest=mode == "max",
    )
    way = (call.q.device, call.q.dtype, call.q.shape[-1], rule.reach is None, rule.since is None, hidden is None, mode)
    return _proved(way, run, lambda found: _differs(found, call, batch, heads[-1], row_cuts, col_cuts, mode, part))


def _on_a_gpu(call: Call) -> bool:
    return call.q.is_cuda


def _proved(way: tuple[object, ...], run: Callable[[], Tensor], differs: Callable[[Tensor], str]) -> Tensor | None:
    """Return what the kernel finds, or None, and a warning once, where it fails or what it finds `differs`."""
    if PROVED.get(way):
        return None
    try:
        found = run()
        if way not in PROVED:
            PROVED[way] = differs(found)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton's compiler has many
        PROVED[way] = f"{type(error).__name__}: {error}"
    if PROVED[way]:
        warnings.warn(f"overviews are made tile by tile, as on a CPU: the kernel {PROVED[way]}", stacklevel=2)
        return None
    return found


def _differs(
    found: Tensor,
    call: Call,
    batch: int,
    head: int,
    row_cuts: Sequence[int],
    col_cuts: Sequence[int],
    mode: Mode,
    part: tiles.Part,
) -> str:
    """Say how the first, middle and last blocks of the last head differ from those made of tiles; "" if they do not."""
    alone = part if part.factor is None else replace(part, factor=part.factor[-1:])
    for i in sorted({0, (len(row_cuts) - 1) // 2, len(row_cuts) - 2}):
        want = _by_tiles(call, batch, [head], row_cuts[i : i + 2], col_cuts, mode, alone)[0, 0]
        error, size = float((found[-1, i] - want).abs().max()), float(want.abs().max())
        if not error <= AGREES * max(1.0, size):
            return f"differs from tiles by {error:.1e} in blocks of up to {size:.1e}"
    return ""


def pyramid(
    call: Call, batch: int, head: int, size: int, *, mode: Mode = "sum", part: tiles.Part = tiles.WHOLE
) -> Pyramid:
    """Return every zoom level of one head from `size` x `size` blocks, made a power of two, up to a single one."""
    finest = (require_blocks(size) - 1).bit_length()
    row_cuts, col_cuts = (cuts(n, 2**finest) for n in (call.n_queries, call.n_keys))
    levels = [pooled(call, batch, [head], row_cuts, col_cuts, mode=mode, part=part)[0]]
    for _ in range(finest):
        four = levels[0].reshape(len(levels[0]) // 2, 2, -1, 2)
        levels.insert(0, four.sum((1, 3)) if mode == "sum" else four.amax((1, 3)))
    return Pyramid(tuple(levels), tuple(row_cuts), tuple(col_cuts), mode)


def _step(places: Sequence[int]) -> int:
    """Return the one length of all blocks, or 1."""
    lengths = {b - a for a, b in itertools.pairwise(places)}
    return lengths.pop() if len(lengths) == 1 and 0 not in lengths else 1


@dataclass(frozen=True, eq=False)
class _Met:
    """The blocks that a stretch of positions meets, from `first` on, and how to pool it.

    height:  positions of each, where each has as many; else 0, and one of the two below says it.
    members: for every few blocks the positions that they take, and which position lies in which, as ones.
    rows:    the positions of every block (block x longest), the last of a shorter one said again.
    empty:   which blocks have none.
    """

    mode: Mode
    first: int
    n_blocks: int
    height: int
    members: list[tuple[slice, Tensor]] | None = None
    rows: Tensor | None = None
    empty: Tensor | None = None

    def pool(self, x: Tensor) -> Tensor:
        """Return of x (heads, positions, any) the sum or maximum over each block's part."""
        if self.height:
            x = x.reshape(len(x), self.n_blocks, self.height, -1)
            return x.sum(2) if self.mode == "sum" else x.amax(2)
        if self.members is not None:
            return torch.cat([member @ x[:, part] for part, member in self.members], 1)
        assert self.rows is not None and self.empty is not None
        return x[:, self.rows].amax(2).masked_fill_(self.empty, 0)

    def pool_last(self, x: Tensor) -> Tensor:
        """Do the same to x (heads, any, positions), in blocks that have one height."""
        x = x.view(*x.shape[:2], self.n_blocks, self.height)
        return x.sum(3) if self.mode == "sum" else x.amax(3)


class _Blocks:
    """The blocks along one axis."""

    def __init__(self, places: Sequence[int], run: int, mode: Mode, like: Tensor) -> None:
        self.places, self.run, self.mode, self.dtype, self.device = places, run, mode, like.dtype, like.device
        self.known: dict[tuple[int, int], _Met] = {}

    def met(self, here: slice) -> _Met:
        """Return the blocks that positions `here` meet."""
        known = self.known.get((here.start, here.stop))
        if known is None:
            known = self.known[here.start, here.stop] = self.meet(here)
        return known

    def meet(self, here: slice) -> _Met:
        """Find them."""
        first = bisect.bisect_right(self.places, here.start) - 1
        last = bisect.bisect_left(self.places, here.stop)
        met = [min(max(place, here.start), here.stop) - here.start for place in self.places[first : last + 1]]
        ends, n_blocks = torch.tensor(met, device=self.device), len(met) - 1
        if (height := _step(met)) * n_blocks == met[-1]:
            return _Met(self.mode, first, n_blocks, height)
        if self.mode == "max":
            longest = int((ends[1:] - ends[:-1]).max())
            rows = ends[:-1, None] + torch.arange(longest, device=self.device)
            rows = torch.minimum(rows, ends[1:, None] - 1).clamp(min=0)
            return _Met(self.mode, first, n_blocks, 0, rows=rows, empty=(ends[1:] == ends[:-1])[:, None])
        members = []
        for i in range(0, n_blocks, self.run):
            stops = ends[i : i + self.run + 1]
            places = torch.arange(met[i], int(stops[-1]), device=self.device)
            member = (places >= stops[:-1, None]) & (places < stops[1:, None])
            members.append((slice(met[i], int(stops[-1])), member.to(self.dtype)))
        return _Met(self.mode, first, n_blocks, 0, members)
