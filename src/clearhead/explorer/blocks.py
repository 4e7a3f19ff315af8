"""Blocks of a map as bytes: what a picture of attention is drawn from, at any zoom.

A block's *share* is the weight in it divided by the number of its queries, so that a color means the same at every
zoom, and a single weight is its own share. A byte is 0 where no query of the block may look at any of its keys, 1 below
`FLOOR`, and from 2 to 255 on a logarithmic scale:

    share = FLOOR ** (1 - (byte - 2) / 253)

Blocks of a long text are estimated from a sample of queries first (`sampled`): the rows of a sample are exact, what is
estimated is the sum over the rows that were left out. Next: `questions/maps.py`.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.seeing.call import Call
from clearhead.seeing.maps import pyramid, sight, tiles

FLOOR = 1e-6  # the smallest share that has a byte of its own
N_STEPS = 253  # steps from the floor to 1
SIGNED_STEPS = 127
SIGNED_FLOOR = 1e-4  # differences are linear below this size, logarithmic above
MAX_EXACT_WEIGHTS = 2**26  # weights that are computed at once to answer a question: about 0.1 s on two CPU cores

Mode = Literal["sum", "max"]


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of the maps of some heads of one call.

    Attributes:
        share: Mean weight of a block's queries, or the largest weight in mode "max".
        visible: Where some query of a block may look at some of its keys.
        n_rows: How many queries of each block count: padding and queries that were not kept do not.
        error: The standard error of each share where it was estimated from a sample, None where it is exact.
        mode: "sum" or "max".
    """

    share: Float[Tensor, "heads row_blocks col_blocks"]
    visible: Bool[Tensor, "#heads row_blocks col_blocks"]
    n_rows: Int[Tensor, " row_blocks"]
    error: Float[Tensor, "heads row_blocks col_blocks"] | None = None
    mode: Mode = "sum"

    @property
    def mass(self) -> Float[Tensor, "heads row_blocks col_blocks"]:
        """Return the sum of the weights of each block, of mode "sum"."""
        return self.share * self.n_rows[:, None]

    def to_bytes(self) -> bytes:
        """Return one byte a block, heads one after the other, rows from the top."""
        levels = 1 - self.share.double().clamp(min=FLOOR, max=1).log() / math.log(FLOOR)
        found = (2 + (N_STEPS * levels).round()).to(torch.uint8)
        found[self.share < FLOOR] = 1
        found[~self.visible.expand_as(found)] = 0
        return found.cpu().numpy().tobytes()


def signed_bytes(difference: Float[Tensor, "rows cols"]) -> bytes:
    """Return differences of shares as bytes: 128 is none, more is larger, on a symmetric logarithmic scale."""
    size = torch.log1p(difference.abs() / SIGNED_FLOOR) / math.log1p(1 / SIGNED_FLOOR)
    found = 128 + (difference.sign() * SIGNED_STEPS * size).round()
    return found.clamp(1, 255).to(torch.uint8).cpu().numpy().tobytes()


def blocks(
    call: Call,
    batch: int,
    heads: Sequence[int],
    row_cuts: Sequence[int],
    col_cuts: Sequence[int],
    mode: Mode,
    counted: Bool[Tensor, " query"] | None,
) -> Blocks:
    """Return exact blocks between positions.

    Args:
        call: The attention call. Where not all of its queries were kept, blocks are of those that were.
        batch: The text.
        heads: Rows of `call.q`.
        row_cuts: Where blocks of queries begin and end, as positions of the call.
        col_cuts: The same of keys.
        mode: "sum" or "max".
        counted: Which of the kept queries are no padding; None for all.
    """
    rows = kept_cuts(call, row_cuts)
    found = pyramid.pooled(call, batch, heads, rows, col_cuts, mode=mode, part=tiles.Part(counted=counted))
    n_rows = counts(call, rows, counted)
    share = found / n_rows.clamp(min=1)[:, None] if mode == "sum" else found
    return Blocks(share, visible(call, batch, heads, rows, col_cuts, counted), n_rows, mode=mode)


def kept_cuts(call: Call, cuts: Sequence[int]) -> list[int]:
    """Return the rows of `call.q` at which blocks between these positions begin and end."""
    if call.rule.rows is None:
        return list(cuts)
    return torch.searchsorted(call.rows, torch.tensor(cuts, device=call.q.device)).tolist()


def counts(call: Call, cuts: Sequence[int], counted: Tensor | None) -> Int[Tensor, " blocks"]:
    """Return how many queries count in each block between rows of `call.q`."""
    one = torch.ones(call.n_queries, dtype=torch.long, device=call.q.device)
    total = torch.nn.functional.pad((one if counted is None else one * counted).cumsum(0), (1, 0))
    at = total[torch.tensor(cuts, device=total.device)]
    return at[1:] - at[:-1]


def visible(
    call: Call,
    batch: int,
    heads: Sequence[int],
    row_cuts: Sequence[int],
    col_cuts: Sequence[int],
    counted: Bool[Tensor, " query"] | None,
) -> Bool[Tensor, "#heads row_blocks col_blocks"]:
    """Return in which blocks, between rows of `call.q`, some query that counts may look at some key.

    Of a rule that is one stretch of keys a query, a block counts as visible from the first to the last key that its
    queries may see; between documents of one text that may be a little more than they see.
    """
    rows = torch.arange(row_cuts[0], row_cuts[-1], device=call.q.device)
    ends = torch.tensor(row_cuts[1:], device=rows.device)
    block = torch.searchsorted(ends, rows, right=True)
    cols = torch.tensor(col_cuts, device=rows.device)
    keys = sight.seen_keys(call, batch, heads)
    if sight.tabled(call):
        return _visible_in_tables(call, batch, heads, rows, block, cols, counted, len(ends))
    stretch = sight.stretches(call, batch, heads)[:, rows]
    start, stop = stretch[..., 0], stretch[..., 1]
    nothing = stop <= start if counted is None else (stop <= start) | ~counted[rows]
    start, stop = start.masked_fill(nothing, call.n_keys), stop.masked_fill(nothing, 0)
    shape = (len(stretch), len(ends))
    where = block.expand(len(stretch), -1)
    first = start.new_full(shape, call.n_keys).scatter_reduce(1, where, start, "amin")
    last = stop.new_zeros(shape).scatter_reduce(1, where, stop, "amax")
    met = torch.maximum(first[..., None], cols[:-1]), torch.minimum(last[..., None], cols[1:])
    seen = torch.nn.functional.pad(keys.long().cumsum(1), (1, 0))
    low, high = (torch.clamp(at, 0, call.n_keys).flatten(1) for at in met)
    many = seen.expand(max(len(seen), len(low)), -1)
    n_seen = many.gather(1, high.expand(len(many), -1)) - many.gather(1, low.expand(len(many), -1))
    return ((n_seen > 0) & (high > low)).view(-1, len(ends), len(cols) - 1)


def _visible_in_tables(
    call: Call,
    batch: int,
    heads: Sequence[int],
    rows: Tensor,
    block: Tensor,
    cols: Tensor,
    counted: Tensor | None,
    n_blocks: int,
) -> Tensor:
    """Return what `visible` does for a rule that holds a table of queries x keys."""
    found: Tensor | None = None
    for place, may in sight.table(call, batch, heads):
        inside = (rows >= place.start) & (rows < place.stop)
        if not bool(inside.any()):
            continue
        some = may[:, rows[inside] - place.start].float()
        if counted is not None:
            some = some * counted[rows[inside], None]
        total = torch.nn.functional.pad(some.cumsum(2), (1, 0))
        each = total[:, :, cols[1:]] - total[:, :, cols[:-1]]
        if found is None:
            found = each.new_zeros(len(each), n_blocks, each.shape[2])
        found.index_add_(1, block[inside], each)
    if found is None:
        return torch.zeros(1, n_blocks, len(cols) - 1, dtype=torch.bool, device=cols.device)
    return found > 0


def subset(call: Call, rows: Int[Tensor, " some"]) -> Call:
    """Return the call with some of its kept queries, ascending: all that is asked of it is of these rows alone."""
    rule = call.rule.keep(rows)
    if call.rule.rows is not None:
        rule = replace(rule, rows=call.rule.rows[rows])
    sinks = call.sinks
    return replace(
        call,
        q=call.q[:, :, rows],
        lse=None if call.lse is None else call.lse[:, :, rows],
        out=None if call.out is None else call.out[:, :, rows],
        gradient=None if call.gradient is None else call.gradient[:, :, rows],
        sinks=sinks if sinks is None or sinks.shape[2] == 1 else sinks[:, :, rows],
        weights=None if call.weights is None else call.weights[:, :, rows],
        rule=rule,
        n_asked=call.n_all,
        normalisers={},
    )


def spread_rows(
    call: Call, cuts: Sequence[int], each: int, counted: Bool[Tensor, " query"] | None
) -> Int[Tensor, " some"]:
    """Return up to `each` random rows of `call.q` of every block between positions, the same at every call.

    Sampling within blocks (stratified sampling) gives every block its rows, and errors that can be stated.
    """
    chance = torch.Generator().manual_seed(0)
    rows = kept_cuts(call, cuts)
    some: list[Tensor] = []
    for start, stop in itertools.pairwise(rows):
        inside = torch.arange(start, stop)
        if counted is not None:
            inside = inside[counted[start:stop].cpu()]
        order = torch.randperm(len(inside), generator=chance)[:each]
        some.append(inside[order].sort().values)
    return torch.cat(some).to(call.q.device)


def sampled(
    call: Call,
    batch: int,
    heads: Sequence[int],
    row_cuts: Sequence[int],
    col_cuts: Sequence[int],
    mode: Mode,
    counted: Bool[Tensor, " query"] | None,
    each: int,
) -> Blocks:
    """Return blocks estimated from `each` queries of every block, with the standard error of every share.

    The estimate is the mean of the sampled rows. Its standard error is s / sqrt(n) * sqrt(1 - n / N), s the standard
    deviation of the n rows sampled out of N (Cochran 1977, "Sampling Techniques", section 2.6). In mode "max" the
    largest weight of the sampled rows is a lower bound and has no such error.
    """
    kept = kept_cuts(call, row_cuts)
    n_rows = counts(call, kept, counted)
    some = spread_rows(call, row_cuts, each, counted)
    part = subset(call, some)
    by_row = pyramid.pooled(part, batch, heads, range(part.n_queries + 1), col_cuts, mode=mode)
    place = torch.searchsorted(torch.tensor(kept[1:], device=some.device), some, right=True)
    where = place[None, :, None].expand_as(by_row)
    blank = by_row.new_zeros(len(heads), len(n_rows), by_row.shape[2])
    seen = visible(call, batch, heads, kept, col_cuts, counted)
    if mode == "max":
        return Blocks(
            blank.scatter_reduce(1, where, by_row, "amax"), seen, n_rows, torch.full_like(blank, math.nan), mode
        )
    n = torch.bincount(place, minlength=len(n_rows)).to(by_row)[:, None]
    mean = blank.scatter_add(1, where, by_row) / n.clamp(min=1)
    off = by_row - mean.gather(1, where)
    variance = blank.scatter_add(1, where, off * off) / (n - 1).clamp(min=1)
    left_out = 1 - n / n_rows.clamp(min=1)[:, None]
    error = (variance / n.clamp(min=1) * left_out.clamp(min=0)).sqrt()
    error = error.masked_fill((n < 2) & (left_out > 0), math.nan)  # one row says nothing of how rows differ
    return Blocks(mean, seen, n_rows, error)
