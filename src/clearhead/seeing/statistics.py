"""What a map comes down to: how spread each row is, what each key receives, and the links that matter.

Each is one sweep over exact tiles, in time T x T and memory T; fixed offsets take T. Next: `habits.py`, which puts a
name to what a head does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clearhead.seeing import maps, sight, tiles
from clearhead.seeing.call import Call

LN2 = 1 / tiles.LOG2E
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
    for tile in tiles.sweep(call, batch, heads, logs=True):
        found[tile.heads, tile.rows] -= surprise(tile)
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
    for tile in tiles.sweep(call, batch, heads):
        if counts is None:
            found[tile.heads, tile.cols] += tile.weights.sum(1)
        else:
            some = counts[tile.heads] if len(counts) > 1 else counts
            rows = some[:, None, tile.rows].expand(len(tile.weights), -1, -1)
            with maps.full_precision():
                found[tile.heads, tile.cols] += (rows @ tile.weights)[:, 0]
    return found


def at_offset(call: Call, batch: int, heads: Sequence[int], offset: int) -> Float[Tensor, "heads query"]:
    """Return what each query gives to the key `offset` places from its own (-1: the one before), 0 outside the text."""
    keys = call.stands + offset
    inside = ((keys >= 0) & (keys < call.n_keys)).nonzero()[:, 0]
    found = torch.zeros(len(heads), call.n_queries, dtype=call.exact, device=call.q.device)
    found[:, inside] = maps.pairs(call, batch, heads, inside, keys[inside])
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

    `apart` leaves out links between positions nearer than that; `without` leaves out keys, such as sinks; only
    queries in `counted` count. Memory is that of one tile and of the answer.
    """
    device, part = call.q.device, tiles.Part(counted=counted)
    best = torch.zeros(0, dtype=call.exact, device=device)
    places = torch.zeros(0, 3, dtype=torch.long, device=device)
    hidden = torch.zeros(call.n_keys, dtype=torch.bool, device=device)
    hidden[list(without)] = True
    for tile in tiles.sweep(call, batch, heads, part) if count > 0 else ():
        weights = tile.weights
        if without:
            weights.masked_fill_(hidden[tile.cols], 0)
        if apart:
            stands = call.stands[tile.rows]
            if int(stands[0]) - apart < tile.cols.stop and int(stands[-1]) + apart > tile.cols.start:
                keys = torch.arange(tile.cols.start, tile.cols.stop, device=device)
                weights.masked_fill_((keys - stands[:, None]).abs() < apart, 0)
        least = float(best[-1]) if len(best) == count else 0.0
        if not float(weights.amax()) > least:
            continue
        flat = weights.flatten()
        over = (flat > least).nonzero()[:, 0]
        if len(over) > count:
            over = over[flat[over].topk(count).indices]
        rows, cols = weights.shape[1:]
        found = torch.stack([over // (rows * cols), over // cols % rows, over % cols], 1)
        found += torch.tensor([tile.heads.start, tile.rows.start, tile.cols.start], device=device)
        best, order = torch.cat([best, flat[over]]).sort(descending=True, stable=True)
        best, places = best[:count], torch.cat([places, found])[order[:count]]
    return [(h, row, key, weight) for (h, row, key), weight in zip(places.tolist(), best.tolist())]


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
