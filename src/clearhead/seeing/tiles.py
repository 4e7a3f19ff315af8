"""All weights of a call, tile after tile: what every overview and every statistic is summed from.

    with t_ij = log2(e) * (scale * q_i . k_j + bias_ij - lse_i)        weight_ij = 2 ** t_ij

One product gives t: the normaliser and what hides a key ride along as two more channels, q' = (q, -lse, 1) and
k' = (k, 1, hidden_j). What the rule hides is skipped where a whole tile is hidden. A tile fits into the processor's
cache and is overwritten by the next one, so a sweep takes time in T x T and memory in T. Next: `pyramid.py`;
`sight.py` has what is hidden from whom.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clearhead.seeing import maps, sight, weighing
from clearhead.seeing.call import Call

LOG2E = math.log2(math.e)
NEVER = -1e30  # log2 of a weight of 0 that may be added to others without becoming "not a number"

# Weights in one tile and its widest side. On a CPU 1 MiB, which a second cache holds: 16 MiB gained nothing, and cost
# a causal sweep of 1,024 tokens 1.4 times the time. A GPU wants few large products.
ROOM = {"cpu": (2**18, 1024), "cuda": (2**26, 8192)}


@dataclass(eq=False)
class Tile:
    """The weights of some heads, rows and cols, until the next one is asked for.

    heads: which of the heads asked for, by place; rows, cols: positions.
    logs:  log2 of the weights where they were asked for, finite; meaningless where a weight is 0.
    """

    heads: slice
    rows: slice
    cols: slice
    weights: Float[Tensor, "some rows cols"]
    logs: Float[Tensor, "some rows cols"] | None


@dataclass(frozen=True, eq=False)
class Part:
    """Which part of a text's map to go through.

    rows, cols: contiguous positions, all where None.
    counted:    queries that count; the weights of others are 0. All where None.
    factor:     log2 of what the weights of a key are multiplied by, a row for each head asked for.
    gradient:   multiply each weight by the gradient of what was run backwards by that weight (`weighing.py`).
    steps:      rows and columns of a tile are multiples of these where they can be.
    """

    rows: range | None = None
    cols: range | None = None
    counted: Bool[Tensor, " query"] | None = None
    factor: Float[Tensor, "heads key"] | None = None
    gradient: bool = False
    steps: tuple[int, int] = (1, 1)


WHOLE = Part()


def part_of(
    call: Call, batch: int, heads: Sequence[int], of: weighing.Of, counted: Bool[Tensor, " query"] | None
) -> Part:
    """Return the whole map of some heads, its weights multiplied as `of` says, only `counted` queries counting."""
    if isinstance(of, str) and of == "weights":
        return Part(counted=counted)
    if isinstance(of, str) and of == "gradient":
        return Part(counted=counted, gradient=True)
    return Part(counted=counted, factor=weighing.lengths(call, batch, heads, of).log2().clamp(min=NEVER))


@torch.no_grad()
def sweep(call: Call, batch: int, heads: Sequence[int], part: Part = WHOLE, *, logs: bool = False) -> Iterator[Tile]:
    """Go once through every weight of `heads` (rows of `call.q`) that is not hidden by the rule."""
    rows = _narrowed(part.rows or range(call.n_queries), part.counted)
    cols = _narrowed(part.cols or range(call.n_keys), sight.seen_keys(call, batch, heads).any(0))
    if not rows or not cols or not heads:
        return
    n_heads, height, width = _shape(call, len(heads), rows, cols, part.steps)
    room = torch.empty((2 if logs else 1), n_heads * height * width, dtype=call.exact, device=call.q.device)
    for first in range(0, len(heads), n_heads):
        place = slice(first, min(first + n_heads, len(heads)))
        products = _Products(call, batch, heads[place], part, place)
        for top in range(rows.start // height * height, rows.stop, height):
            here = slice(max(top, rows.start), min(top + height, rows.stop))
            left, right = products.visible(here, cols)
            for edge in range(left // width * width, right, width) if left < right else ():
                there = slice(max(edge, left), min(edge + width, right))
                yield Tile(place, here, there, *products.tile(here, there, room))


class _Products:
    """The queries and keys of some heads with their two channels, made once and multiplied tile by tile."""

    def __init__(self, call: Call, batch: int, heads: Sequence[int], part: Part, place: slice) -> None:
        self.call, self.batch, device = call, batch, call.q.device
        self.index, self.numbers = torch.tensor(list(heads), device=device), sight.numbers(call, heads)
        self.by_weight = weighing.ByWeight(call, batch, heads) if part.gradient else None
        self.ends = sight.stretches(call, batch, heads)
        ends = self.ends.cpu()  # asked for every tile: a GPU would be waited for
        self.left, self.right = ends[..., 0].amin(0), ends[..., 1].amax(0)
        self.free_from, self.free_to = ends[..., 0].amax(0), ends[..., 1].amin(0)
        tables = (call.rule.allowed, call.rule.packed)
        self.has_table = any(table is not None and table.shape[2] > 1 for table in tables)
        peak, rest = maps.normaliser(call, batch)
        self.in_parts = maps.in_parts(rest)  # too large for one number: the long way
        self.lse = peak[self.index] * LOG2E
        if part.counted is not None:
            self.lse = self.lse.masked_fill(~part.counted, -NEVER)
        self.hidden = torch.zeros(len(self.index), call.n_keys, dtype=call.exact, device=device)
        if part.factor is not None:
            self.hidden += part.factor[place]
        self.hidden.masked_fill_(~sight.seen_keys(call, batch, heads), NEVER)
        kv = torch.tensor([call.kv_of[h] for h in heads], device=device)
        q, k = call.q[batch][self.index].to(call.exact), call.k[batch][kv].to(call.exact)
        if call.softcap is None:
            q = torch.cat([q * (call.scale * LOG2E), -self.lse[..., None], torch.ones_like(q[..., :1])], -1)
            k = torch.cat([k, torch.ones_like(k[..., :1]), self.hidden[..., None]], -1)
        else:
            q *= call.scale / call.softcap
        self.q, self.k = q, k.mT

    def visible(self, rows: slice, cols: range) -> tuple[int, int]:
        """Return from where to where in `cols` these rows can see anything at all."""
        left, right = int(self.left[rows].min()), int(self.right[rows].max())
        return max(cols.start, left), min(cols.stop, right)

    def tile(self, rows: slice, cols: slice, room: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return weights and, where `room` has a second row, their log2."""
        shape = (len(self.index), rows.stop - rows.start, cols.stop - cols.start)
        weights, *more = (row[: math.prod(shape)].view(shape) for row in room)
        logs = more[0] if more else weights
        if self.in_parts:
            logs.copy_(self.in_two_parts(rows, cols))
        else:
            self.logarithms(rows, cols, logs)
        torch.exp2(logs, out=weights)
        self.hide(weights, rows, cols)
        if self.by_weight is not None:
            weights.mul_(self.by_weight.tile(rows, cols))
        return weights, more[0] if more else None

    def logarithms(self, rows: slice, cols: slice, out: Tensor) -> None:
        """Write log2 of the weights into `out`, before what depends on both query and key is hidden."""
        bias = self.call.rule.bias
        with maps.full_precision():
            torch.bmm(self.q[:, rows], self.k[:, :, cols], out=out)
        if self.call.softcap is not None:
            out.tanh_().mul_(self.call.softcap * LOG2E)
            out.sub_(self.lse[:, rows, None]).add_(self.hidden[:, None, cols])
        if bias is not None:
            table = sight.cut(bias, self.batch, self.numbers, rows, cols)
            out.add_(table.to(out.dtype), alpha=LOG2E).clamp_(min=NEVER)

    def in_two_parts(self, rows: slice, cols: slice) -> Tensor:
        """Return log2 of the weights by way of `maps.weights`, which is slower and exact at any size of bias."""
        device = self.index.device
        places = (torch.arange(s.start, s.stop, device=device) for s in (rows, cols))
        weights = maps.weights(self.call, self.batch, self.index, *places)
        dropped = self.lse[:, rows] > -NEVER / 2
        return (weights.log2() + self.hidden[:, None, cols]).clamp(min=NEVER).masked_fill(dropped[..., None], NEVER)

    def hide(self, weights: Tensor, rows: slice, cols: slice) -> None:
        """Set to 0 what these queries may not see of these keys."""
        rule = self.call.rule
        if cols.start < int(self.free_from[rows].max()) or cols.stop > int(self.free_to[rows].min()):
            if rule.rows is None and rule.spans is None:
                if rule.reach is not None:
                    weights.tril_(rows.start + rule.reach - cols.start)
                if rule.since is not None:
                    weights.triu_(rows.start + rule.since - cols.start)
            else:
                at, ends = torch.arange(cols.start, cols.stop, device=weights.device), self.ends[:, rows, :, None]
                weights.masked_fill_((at < ends[:, :, 0]) | (at >= ends[:, :, 1]), 0)
        if self.has_table:
            device = weights.device
            places = (torch.arange(s.start, s.stop, device=device) for s in (rows, cols))
            may = rule.sees(self.batch, self.numbers, *places)
            assert may is not None, "a rule with a table says who may look"
            weights.masked_fill_(~may, 0)


def _shape(call: Call, n_heads: int, rows: range, cols: range, steps: tuple[int, int]) -> tuple[int, int, int]:
    """Return how many heads, rows and columns a tile has at most."""
    room, widest = ROOM.get(call.q.device.type, ROOM["cuda"])
    width = _multiple(min(widest, _up(len(cols), steps[1])), steps[1])
    height = _multiple(max(1, min(room // width, _up(len(rows), steps[0]))), steps[0])
    return max(1, min(n_heads, room // (height * width))), height, width


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _multiple(n: int, step: int) -> int:
    return n // step * step if step <= n else n


def _narrowed(places: range, which: Tensor | None) -> range:
    """Return the part of `places` from the first to the last that is True in `which`."""
    if which is None or not places:
        return places
    found = which[places.start : places.stop].nonzero()
    return range(places.start + int(found[0]), places.start + int(found[-1]) + 1) if len(found) else range(0)
