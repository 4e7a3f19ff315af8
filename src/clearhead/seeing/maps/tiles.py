"""All weights of a call, tile after tile: what every overview and every statistic is summed from.

    with t_ij = log2(e) * (scale * q_i . k_j + bias_ij - lse_i)        weight_ij = 2 ** t_ij

One product gives t (`products.py`). What the rule hides is skipped where a whole tile is hidden. A tile fits into the
processor's cache and is overwritten by the next one, so a sweep takes time in T x T and memory in T. On a CPU several
heads are swept at once (`workers.py`). Next: `pyramid.py`; `sight.py` has what is hidden from whom.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula, products, sight, weighing, workers
from clearhead.seeing.maps.products import LOG2E, NEVER, Band

MANY = 2**22  # weights from which several threads are worth starting: 4 ms of one


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

    def places(self, call: Call) -> tuple[range, range]:
        """Return the rows and columns: an empty part is a part, of nothing."""
        rows = range(call.n_queries) if self.rows is None else self.rows
        return rows, range(call.n_keys) if self.cols is None else self.cols


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
    for stream in _streams(call, batch, heads, part, logs):
        while True:
            with products.full_precision():  # while a tile is computed, not while the caller is at it
                tile = next(stream, None)
            if tile is None:
                break
            yield tile


@torch.no_grad()
def each(
    call: Call, batch: int, heads: Sequence[int], do: Callable[[Tile], None], part: Part = WHOLE, *, logs: bool = False
) -> None:
    """Call `do` with every tile of a sweep, on a CPU from several threads at once.

    Tiles of one head come in order and from one thread, so `do` may write where only that head's numbers are. It runs
    in `full_precision`.
    """
    streams = _streams(call, batch, heads, part, logs)
    rows, cols = part.places(call)
    many = len(heads) * len(rows) * len(cols) >= MANY
    with products.full_precision():
        workers.drain(streams, do, alone=not many or call.q.device.type != "cpu")


def _streams(call: Call, batch: int, heads: Sequence[int], part: Part, logs: bool) -> list[Iterator[Tile]]:
    """Return the tiles of as many heads as one tile holds, and of the next, and so on."""
    seen = sight.seen_keys(call, batch, heads)
    rows, cols = part.places(call)
    rows, cols = _narrowed(rows, part.counted), _narrowed(cols, seen.any(0))
    if not rows or not cols or not heads:
        return []
    formula.normaliser(call, batch)  # kept with the call: not to be made by several threads
    n_heads, height, width = products.shape(call, len(heads), rows, cols, part.steps)
    spans = call.rule.spans
    own = spans is not None and spans.shape[1] > 1  # every head looks elsewhere
    bands = None if own else products.bands(sight.stretches(call, batch, heads), rows, height)

    def stream(place: slice) -> Iterator[Tile]:
        some = heads[place]
        weights = _Weights(call, batch, some, part, place)
        room = _Room(2 if logs else 1, len(some) * height * width, call)
        found = products.bands(sight.stretches(call, batch, some), rows, height) if bands is None else bands
        for band, there in products.strips(found, cols, width):
            yield Tile(place, band.rows, there, *weights.tile(band, there, room))

    return [stream(slice(first, min(first + n_heads, len(heads)))) for first in range(0, len(heads), n_heads)]


class _Room:
    """Where tiles are written, one over the other; the few shapes that they have are remembered."""

    def __init__(self, n_tiles: int, size: int, call: Call) -> None:
        self.rows = torch.empty(n_tiles, size, dtype=call.exact, device=call.q.device)
        self.known: dict[tuple[int, int, int], list[Tensor]] = {}

    def of(self, shape: tuple[int, int, int]) -> list[Tensor]:
        """Return tiles of that shape, which the next ones overwrite."""
        if shape not in self.known:
            self.known[shape] = [row[: math.prod(shape)].view(shape) for row in self.rows]
        return self.known[shape]


class _Weights:
    """The weights of some heads, tile by tile."""

    def __init__(self, call: Call, batch: int, heads: Sequence[int], part: Part, place: slice) -> None:
        self.call, self.batch, device = call, batch, call.q.device
        self.index = torch.tensor(list(heads), device=device)
        self.by_weight = weighing.ByWeight(call, batch, heads) if part.gradient else None
        peak, rest = formula.normaliser(call, batch)
        self.in_parts = formula.in_parts(rest)  # too large for one number: the long way
        lse = peak[self.index] * LOG2E
        if part.counted is not None:
            lse = lse.masked_fill(~part.counted, -NEVER)
        hidden = torch.zeros(len(heads), call.n_keys, dtype=call.exact, device=device)
        if part.factor is not None:
            hidden += part.factor[place]
        hidden.masked_fill_(~sight.seen_keys(call, batch, heads), NEVER)
        self.products = products.Products(call, batch, heads, lse, hidden)

    def tile(self, band: Band, cols: slice, room: "_Room") -> tuple[Tensor, Tensor | None]:
        """Return weights and, where there is room for two, their log2."""
        rows = band.rows
        weights, *more = room.of((len(self.index), rows.stop - rows.start, cols.stop - cols.start))
        logs = more[0] if more else weights
        if self.in_parts:
            logs.copy_(self.in_two_parts(rows, cols))
        else:
            self.products.logarithms(rows, cols, logs)
        torch.exp2(logs, out=weights)
        if self.call.weights is not None:  # the formula gave 1, times what weights are multiplied by
            kept = self.call.weights[self.batch, :, rows, cols].index_select(0, self.index).to(weights.dtype)
            weights.mul_(kept)
            if more:  # where the model's softmax gave no number, none is added to any sum
                logs.add_(kept.abs().log2()).nan_to_num_(nan=NEVER, neginf=NEVER)
        self.products.hide(weights, band, cols, 0.0)
        if self.by_weight is not None:
            weights.mul_(self.by_weight.tile(rows, cols))
        return weights, more[0] if more else None

    def in_two_parts(self, rows: slice, cols: slice) -> Tensor:
        """Return log2 of the weights by way of `maps.weights`, which is slower and exact at any size of bias."""
        places = (torch.arange(s.start, s.stop, device=self.index.device) for s in (rows, cols))
        weights = formula.weights(self.call, self.batch, self.index, *places)
        dropped, hidden = self.products.subtracted[:, rows] > -NEVER / 2, self.products.added[:, None, cols]
        return (weights.log2() + hidden).clamp(min=NEVER).masked_fill(dropped[..., None], NEVER)


def _narrowed(places: range, which: Tensor | None) -> range:
    """Return the part of `places` from the first to the last that is True in `which`."""
    if which is None or not places:
        return places
    found = which[places.start : places.stop].nonzero()
    return range(places.start + int(found[0]), places.start + int(found[-1]) + 1) if len(found) else range(0)
