"""Exact weights on demand: a tile, single links, and the normaliser that both stand on.

`weights` computes one tile of any rows and columns by the formula in `call.py`, in float32 at full precision, whatever
precision the model's own products were allowed. What needs every weight of a long text goes through `tiles.py`, in
memory that does not grow with the square of its length. Next: `tiles.py`.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.seeing.call import Call
from clearhead.seeing.maps import products, sight, workers
from clearhead.seeing.maps.products import LOG2E, NEVER, full_precision

TILE = 2**22  # numbers in one tile of a sweep: 16 MiB in float32, more gains nothing on a CPU
TOO_LARGE = 1e4  # float32 next to a log-sum-exp of this size is off by 5e-4: normalise again, in two parts


def scores(
    call: Call,
    batch: int,
    heads: Int[Tensor, " heads"],
    rows: Int[Tensor, " rows"],
    cols: Int[Tensor, " cols"],
) -> Float[Tensor, "heads rows cols"]:
    """Return `scale * q . k + bias` of one text's tile, -inf where one may not look; `heads` are rows of `call.q`.

    Of kept weights these are their logarithms, which differ from the model's scores by one number a row.
    """
    if call.weights is not None:
        return weights(call, batch, heads, rows, cols).log()
    kv = torch.tensor(call.kv_of, device=heads.device)[heads]
    q = call.q[batch].index_select(0, heads).index_select(1, rows).to(call.exact)
    k = call.k[batch].index_select(0, kv).index_select(1, cols).to(call.exact)
    with full_precision():
        tile = (q * call.scale) @ k.transpose(-2, -1)
    if call.softcap is not None:
        tile = call.softcap * (tile / call.softcap).tanh()
    numbers = torch.tensor(call.heads, device=heads.device)[heads]  # tables have the model's own numbering
    return call.rule.apply(tile, batch, numbers, rows, cols)


@torch.no_grad()
def weights(
    call: Call,
    batch: int,
    heads: Int[Tensor, " heads"],
    rows: Int[Tensor, " rows"],
    cols: Int[Tensor, " cols"],
) -> Float[Tensor, "heads rows cols"]:
    """Return the exact weights of one text's tile; a row that may look nowhere is all zeros.

    A row sums to 1 over all keys, to less where the head has a sink. Kept weights are returned as the model had them.
    """
    if call.weights is not None:
        return call.weights[batch][heads[:, None, None], rows[:, None], cols].to(call.exact)
    peak, rest = normaliser(call, batch)
    tile = scores(call, batch, heads, rows, cols)
    return tile.sub_(peak[heads][:, rows, None]).sub_(rest[heads][:, rows, None]).exp_()


@torch.no_grad()
def normaliser(call: Call, batch: int) -> tuple[Float[Tensor, "heads query"], Float[Tensor, "heads query"]]:
    """Return the log-sum-exp of one text as `peak + rest`; kept with the call once computed.

    The kernel's own is used where it gave one. Two parts because a row whose every score had the lowest number added
    to it, which some models do to padding, has a log-sum-exp in which `rest` would drown.
    """
    if batch not in call.normalisers:
        lse = call.lse
        if call.weights is not None:  # which are what they are: nothing is left to divide by
            lse = call.q.new_zeros(call.q.shape[:3])
        found = None if lse is None else _one_number(lse[batch].to(call.exact))
        if found is None:
            found = _swept(call, batch)
        if found is None:
            peak, rest = _normalise(call, batch)
            found = _one_number(peak + rest) or (peak, rest)
        call.normalisers[batch] = found
    return call.normalisers[batch]


def _one_number(lse: Tensor) -> tuple[Tensor, Tensor] | None:
    lse = lse.masked_fill(lse.isinf(), 0)  # a row that may look nowhere: torch's CPU kernel says 0 too
    return None if not (lse.abs() <= TOO_LARGE).all() else (lse, lse.new_zeros(()).expand_as(lse))


def in_parts(rest: Float[Tensor, "heads query"]) -> bool:
    """Say whether the second part of a normaliser is more than zeros; does not read it, a GPU would be waited for."""
    return rest.stride(-1) != 0


def _swept(call: Call, batch: int) -> tuple[Tensor, Tensor] | None:
    """Return the log-sum-exp from one sweep over tiles of scores, or None where one number cannot hold it.

    The largest score so far and the sum of powers of two below it are carried from tile to tile (Milakov and Gimelshein
    2018, "Online normalizer calculation for softmax").
    """
    heads, device = range(len(call.heads)), call.q.device
    seen, rows = sight.seen_keys(call, batch, heads), range(call.n_queries)
    n_heads, height, width = products.shape(call, len(heads), rows, range(call.n_keys))
    peak = torch.full((len(heads), call.n_queries), NEVER, dtype=call.exact, device=device)
    total = torch.zeros_like(peak)

    def stream(place: slice) -> Iterator[tuple[slice, slice, Tensor]]:
        some = heads[place]
        hidden = peak.new_zeros(len(some), call.n_keys).masked_fill_(~(seen[place] if len(seen) > 1 else seen), NEVER)
        tiles = products.Products(call, batch, some, torch.zeros_like(peak[place]), hidden)
        room = torch.empty(len(some) * height * width, dtype=call.exact, device=device)
        for band, cols in products.strips(products.bands(tiles.ends, rows, height), range(call.n_keys), width):
            shape = (len(some), band.rows.stop - band.rows.start, cols.stop - cols.start)
            logs = room[: math.prod(shape)].view(shape)
            tiles.logarithms(band.rows, cols, logs)
            tiles.hide(logs, band, cols, NEVER)
            yield place, band.rows, logs

    def add(tile: tuple[slice, slice, Tensor]) -> None:
        *here, logs = tile
        before, sums = peak[*here], total[*here]
        highest = torch.maximum(before, logs.amax(-1))
        sums.mul_((before - highest).exp2_()).add_(logs.sub_(highest[..., None]).exp2_().sum(-1))
        before.copy_(highest)

    streams = [stream(slice(h, min(h + n_heads, len(heads)))) for h in range(0, len(heads), n_heads)]
    with full_precision():
        workers.drain(streams, add, alone=device.type != "cpu")
    nowhere = peak < NEVER / 2
    if call.rule.bias is not None and bool(nowhere.any()):
        return None  # a bias as low as numbers go hides nothing where there is nothing else
    lse = ((peak + total.log2()) / LOG2E).masked_fill(nowhere, -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks[batch if len(call.sinks) > 1 else 0].to(lse)
        lse = torch.logaddexp(lse, sinks.expand_as(lse))
    return _one_number(lse)


def _normalise(call: Call, batch: int) -> tuple[Tensor, Tensor]:
    """Return the highest score of every row and the log-sum-exp of what each is below it, row by row."""
    peak = torch.zeros(len(call.heads), call.n_queries, dtype=call.exact, device=call.q.device)
    rest = torch.zeros_like(peak)
    cols = torch.arange(call.n_keys, device=call.q.device)
    for heads, rows in _tiles(call, range(len(call.heads))):
        tile = scores(call, batch, heads, rows, cols)
        if (beside := sinks(call, batch, heads, rows)) is not None:
            tile = torch.cat([tile, beside], -1)
        highest = tile.amax(-1, keepdim=True)
        highest = highest.masked_fill(highest == -torch.inf, 0)
        total = (tile - highest).exp().sum(-1)
        peak[heads[:, None], rows] = highest.squeeze(-1)
        rest[heads[:, None], rows] = total.log().masked_fill(total == 0, 0)
    return peak, rest


def sinks(
    call: Call, batch: int, heads: Int[Tensor, " heads"], rows: Int[Tensor, " rows"]
) -> Float[Tensor, "heads rows 1"] | None:
    """Return the score that takes weight to no key, where the call has one."""
    if call.sinks is None:
        return None
    found = call.sinks[batch if len(call.sinks) > 1 else 0].to(call.exact).expand(-1, call.n_queries)
    return found[heads][:, rows, None]


def _tiles(call: Call, heads: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut heads x queries into pieces of at most `TILE` weights: few heads at once, so that there are rows enough."""
    at_once = max(1, TILE // (64 * max(1, call.n_keys)))
    for first in range(0, len(heads), at_once):
        some = torch.tensor(heads[first : first + at_once], device=call.q.device)
        height = max(1, TILE // (len(some) * max(1, call.n_keys)))
        for top in range(0, call.n_queries, height):
            yield some, torch.arange(top, min(top + height, call.n_queries), device=call.q.device)


def pairs(
    call: Call, batch: int, heads: Sequence[int], rows: Int[Tensor, " links"], cols: Int[Tensor, " links"]
) -> Float[Tensor, "heads links"]:
    """Return single weights, of query rows[i] on key cols[i]: as much work as there are, whatever the length."""
    some, at_once = torch.tensor(list(heads), device=call.q.device), max(1, TILE // (64 * max(1, len(heads))))
    parts = (slice(first, first + at_once) for first in range(0, max(1, len(rows)), at_once))
    return torch.cat([_pairs(call, batch, some, rows[part], cols[part]) for part in parts], 1)


@torch.no_grad()
def _pairs(call: Call, batch: int, heads: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    if call.weights is not None:
        return call.weights[batch, heads[:, None], rows, cols].to(call.exact)
    peak, rest = normaliser(call, batch)
    kv, numbers = (torch.tensor(of, device=heads.device)[heads] for of in (call.kv_of, call.heads))
    q = call.q[batch, heads[:, None], rows].to(call.exact)
    k = call.k[batch, kv[:, None], cols].to(call.exact)
    score = (q * k).sum(-1) * call.scale
    if call.softcap is not None:
        score = call.softcap * (score / call.softcap).tanh()
    score = call.rule.apply_to_links(score, batch, numbers, rows, cols)
    return (score - peak[heads[:, None], rows] - rest[heads[:, None], rows]).exp()


@torch.no_grad()
def window(call: Call, batch: int, head: int, rows: slice, cols: slice) -> Float[Tensor, "rows cols"]:
    """Return what `weights` does for one head and positions in one stretch, with fewer and smaller steps."""
    peak, rest = normaliser(call, batch)
    places = (torch.arange(s.start, s.stop, device=call.q.device) for s in (rows, cols))
    if call.softcap is not None or call.weights is not None or in_parts(rest):
        return weights(call, batch, torch.tensor([head], device=call.q.device), *places)[0]
    q, k = call.q[batch, head, rows].to(call.exact), call.k[batch, call.kv_of[head], cols].to(call.exact)
    with full_precision():
        tile = torch.addmm(peak[head, rows, None], q, k.mT, beta=-1, alpha=call.scale)
    if not sight.free(call, rows, cols):
        numbers = torch.tensor([call.heads[head]], device=tile.device)
        tile = call.rule.apply(tile[None], batch, numbers, *places)[0]
    return tile.exp_()
