"""What a map comes down to: how spread each row is, what each key receives, and the links that matter.

Each is one sweep over exact tiles, in time T x T and memory T; fixed offsets take T. Next: `habits.py`, which puts a
name to what a head does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula, products, sight, tiles

LN2 = 1 / products.LOG2E
WIDE_ENOUGH = 0.25  # a key seen by fewer of the queries than this is never called a sink: too few to average over


@dataclass(frozen=True)
class Link:
    """One weight, with its address: from the position that looks to the position looked at."""

    query: int
    key: int
    weight: float
    layer: int
    head: int


@dataclass(frozen=True)
class Sink:
    """A key that queries give much of their weight to: `share` is the mean over the queries that could look at it."""

    layer: int
    head: int
    key: int
    share: float


def entropy(call: Call, batch: int, heads: Sequence[int]) -> Float[Tensor, "heads query"]:
    """Return the entropy of every row in nats: 0 looks at one key, log n at n keys alike."""
    found = torch.zeros(len(heads), call.n_queries, dtype=call.exact, device=call.q.device)

    def add(tile: tiles.Tile) -> None:
        found[tile.heads, tile.rows] -= surprise(tile)

    tiles.each(call, batch, heads, add, logs=True)
    return found.clamp_(min=0)


def surprise(tile: tiles.Tile) -> Float[Tensor, "some rows"]:
    """Return the sum of weight * log(weight) of a tile's rows, which overwrites the tile's logs."""
    assert tile.logs is not None, "asked for with logs=True"
    return tile.logs.mul_(tile.weights).sum(-1) * LN2


def received(
    call: Call, batch: int, heads: Sequence[int], counts: Float[Tensor, "#heads query"] | None = None
) -> Float[Tensor, "heads key"]:
    """Return the weight every key receives from all queries, each counting as often as `counts` says, or once.

    A head's masses sum to its number of queries, less what goes to sinks of the model's own.
    """
    found = torch.zeros(len(heads), call.n_keys, dtype=call.exact, device=call.q.device)
    counts = found.new_ones(1, call.n_queries) if counts is None else counts
    counts = counts.expand(len(heads), -1)

    def add(tile: tiles.Tile) -> None:
        found[tile.heads, tile.cols] += torch.bmm(counts[tile.heads, None, tile.rows], tile.weights)[:, 0]

    tiles.each(call, batch, heads, add)
    return found


def at_offset(call: Call, batch: int, heads: Sequence[int], offset: int) -> Float[Tensor, "heads query"]:
    """Return what each query gives to the token `offset` positions from its own (-1: the one before).

    0 where that token is not among the keys: outside the text, or dropped from a cache.
    """
    keys = call.positions.columns(call.places + offset)
    inside = (keys >= 0).nonzero()[:, 0]
    found = torch.zeros(len(heads), call.n_queries, dtype=call.exact, device=call.q.device)
    found[:, inside] = formula.pairs(call, batch, heads, inside, keys[inside])
    return found


def fewest(row: Float[Tensor, " key"], coverage: float) -> list[int]:
    """Return the fewest keys that together carry `coverage` of the row's weight, heaviest first."""
    order = row.argsort(descending=True, stable=True)
    carried = row[order].cumsum(0)
    enough = int((carried < coverage * carried[-1] - 1e-6).sum()) + 1 if len(row) else 0
    return [key for key in order[:enough].tolist() if row[key] > 0]


def strongest(
    call: Call,
    batch: int,
    heads: Sequence[int],
    count: int,
    *,
    apart: int = 0,
    without: Sequence[int] = (),
    counted: Bool[Tensor, " query"] | None = None,
) -> list[tuple[int, int, int, float]]:
    """Return the `count` largest weights of all heads together as (place in heads, row, key, weight), largest first.

    `apart` leaves out links between positions nearer than that, in calls whose queries and keys are of one text;
    `without` leaves out keys, such as sinks; only queries in `counted` count. Memory is that of one tile and of the
    answer.
    """
    if count < 1:
        return []
    device, part = call.q.device, tiles.Part(counted=counted)
    kept = torch.ones(call.n_keys, dtype=call.exact, device=device)
    kept[list(without)] = 0
    lists: dict[int, _Largest] = {}

    def add(tile: tiles.Tile) -> None:
        weights = tile.weights
        if without:
            weights.mul_(kept[tile.cols])
        for start, stop, shift in call.positions.parts(tile.cols) if apart and call.positions.one_text else ():
            stands = call.places[tile.rows] - shift  # as columns
            if int(stands[0]) - apart < stop and int(stands[-1]) + apart > start:
                near = (torch.arange(start, stop, device=device) - stands[:, None]).abs() < apart
                weights[..., start - tile.cols.start : stop - tile.cols.start].masked_fill_(near, 0)
        lists.setdefault(tile.heads.start, _Largest(count, weights)).add(tile)

    tiles.each(call, batch, heads, add, part)
    some = [lists[head] for head in sorted(lists)]  # the same list whichever head was done first
    if not some:
        return []
    best, order = torch.cat([one.weights for one in some]).sort(descending=True, stable=True)
    places = torch.cat([one.places for one in some])[order[:count]]
    return [(h, row, key, weight) for (h, row, key), weight in zip(places.tolist(), best[:count].tolist())]


class _Largest:
    """The largest weights of tiles that come one by one, and where they were: (head, row, key)."""

    def __init__(self, count: int, like: Tensor) -> None:
        self.count, self.weights = count, like.new_zeros(0)
        self.places = torch.zeros(0, 3, dtype=torch.long, device=like.device)

    def add(self, tile: tiles.Tile) -> None:
        """Take over what is larger than the least of a full list."""
        least = float(self.weights[-1]) if len(self.weights) == self.count else 0.0
        if not float(tile.weights.amax()) > least:
            return
        flat, (rows, cols) = tile.weights.flatten(), tile.weights.shape[1:]
        over = (flat > least).nonzero()[:, 0]
        if len(over) > self.count:
            over = over[flat[over].topk(self.count).indices]
        found = torch.stack([over // (rows * cols), over // cols % rows, over % cols], 1)
        found += found.new_tensor([tile.heads.start, tile.rows.start, tile.cols.start])
        best, order = torch.cat([self.weights, flat[over]]).sort(descending=True, stable=True)
        self.weights, self.places = best[: self.count], torch.cat([self.places, found])[order[: self.count]]


def sinks(
    call: Call, batch: int, heads: Sequence[int], share: float, counted: Bool[Tensor, " query"] | None
) -> list[tuple[int, int, float]]:
    """Return (place in heads, key, share) of every key with a mean weight of at least `share`, largest first.

    The mean is over the queries that could look at the key and are in `counted` (None: all): with a causal mask that is
    the importance score of Gu et al. 2025 ("When attention sink emerges in language models", section 3), which calls
    the first token a sink above 0.3. Keys that fewer than a quarter of the queries could see are left out.
    """
    counts = torch.ones(call.n_queries, dtype=call.exact, device=call.q.device)
    counts = counts if counted is None else counts * counted
    seen_by = sight.audience(call, batch, heads, counts)
    means = received(call, batch, heads, counts[None]) / seen_by.clamp(min=1)
    means = means.masked_fill(seen_by < WIDE_ENOUGH * counts.sum(), 0)
    found = (means >= share).nonzero()
    links = [(h, key, float(means[h, key])) for h, key in found.tolist()]
    return sorted(links, key=lambda link: -link[2])
