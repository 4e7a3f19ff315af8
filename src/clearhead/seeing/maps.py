"""Exact weights on demand: a tile, a stream of tiles, and the overview whose every zoom level sums to the next.

Everything here and in `statistics.py` is built on `weights`, which computes one tile by the formula in `call.py`.
Long texts go through `sweep`, tile after tile, in memory that does not grow with the square of the length. Tiles are
computed in float32 at full precision, whatever precision the model's own products were allowed.

Pooling attention maps block by block, and serving them as tiles, is done elsewhere (HiGlass for genomics; flash-colsum,
SeerAttention for block statistics). Next: `statistics.py`.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.seeing.call import Call

TILE = 2**22  # numbers in one tile of a sweep: 16 MiB in float32, more gains nothing on a CPU
TOO_LARGE = 1e4  # float32 next to a log-sum-exp of this size is off by 5e-4: normalise again, in two parts


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32, also where the user allowed TF32 or bfloat16 products for the model."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # torch's
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before):
            backend.fp32_precision = precision


def scores(
    call: Call,
    batch: int,
    heads: Int[Tensor, " heads"],
    rows: Int[Tensor, " rows"],
    cols: Int[Tensor, " cols"],
) -> Float[Tensor, "heads rows cols"]:
    """Return `scale * q . k + bias` of one text's tile, -inf where one may not look; `heads` are rows of `call.q`."""
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

    A row sums to 1 over all keys, to less where the head has a sink.
    """
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
        found = None if call.lse is None else _one_number(call.lse[batch].to(call.exact))
        if found is None:
            peak, rest = _normalise(call, batch)
            found = _one_number(peak + rest) or (peak, rest)
        call.normalisers[batch] = found
    return call.normalisers[batch]


def _one_number(lse: Tensor) -> tuple[Tensor, Tensor] | None:
    lse = lse.masked_fill(~lse.isfinite(), 0)  # a row that may look nowhere: torch's CPU kernel says 0 too
    return None if (lse.abs() > TOO_LARGE).any() else (lse, torch.zeros_like(lse))


def _normalise(call: Call, batch: int) -> tuple[Tensor, Tensor]:
    peak = torch.zeros(len(call.heads), call.n_queries, dtype=call.exact, device=call.q.device)
    rest = torch.zeros_like(peak)
    cols = torch.arange(call.n_keys, device=call.q.device)
    sinks = None
    if call.sinks is not None:
        sinks = call.sinks[batch if len(call.sinks) > 1 else 0].to(call.exact).expand(-1, call.n_queries)
    for heads, rows in _tiles(call, range(len(call.heads))):
        tile = scores(call, batch, heads, rows, cols)
        if sinks is not None:
            tile = torch.cat([tile, sinks[heads][:, rows, None]], -1)
        highest = tile.amax(-1, keepdim=True)
        highest = highest.masked_fill(highest == -torch.inf, 0)
        total = (tile - highest).exp().sum(-1)
        peak[heads[:, None], rows] = highest.squeeze(-1)
        rest[heads[:, None], rows] = total.log().masked_fill(total == 0, 0)
    return peak, rest


def sweep(
    call: Call, batch: int, heads: Sequence[int]
) -> Iterator[tuple[Int[Tensor, " some"], Int[Tensor, " rows"], Float[Tensor, "some rows key"]]]:
    """Yield `(heads, rows, weights)` until every row of `heads` (rows of `call.q`) was seen once, whole."""
    cols = torch.arange(call.n_keys, device=call.q.device)
    for some, rows in _tiles(call, heads):
        yield some, rows, weights(call, batch, some, rows, cols)


def _tiles(call: Call, heads: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut heads x queries into pieces of at most `TILE` weights: few heads at once, so that there are rows enough."""
    at_once = max(1, TILE // (64 * max(1, call.n_keys)))
    for first in range(0, len(heads), at_once):
        some = torch.tensor(heads[first : first + at_once], device=call.q.device)
        height = max(1, TILE // (len(some) * max(1, call.n_keys)))
        for top in range(0, call.n_queries, height):
            yield some, torch.arange(top, min(top + height, call.n_queries), device=call.q.device)


def edges(n: int, size: int) -> list[int]:
    """Return where `size` blocks of n positions begin and end: block b is `range(edges[b], edges[b + 1])`.

    Edges of `size` blocks are among those of `2 * size`, so zoom levels nest. No more blocks than positions.
    """
    size = max(1, min(size, n))
    return [b * n // size for b in range(size + 1)]


def overview(call: Call, batch: int, heads: Sequence[int], size: int) -> Float[Tensor, "heads row_blocks col_blocks"]:
    """Return how much weight lies in each block of queries x keys: a sum, never a mean.

    The whole of a map sums to its number of queries, and four cells of the next zoom level to one of this.
    """
    pool_rows, pool_cols = (_blocks(n, size, call) for n in (call.n_queries, call.n_keys))
    sums = torch.zeros(len(heads), pool_rows.shape[1], pool_cols.shape[1], dtype=call.exact, device=call.q.device)
    place = {head: i for i, head in enumerate(heads)}
    for some, rows, tile in sweep(call, batch, heads):
        with full_precision():
            pooled = pool_rows[rows].T @ (tile @ pool_cols)
        sums[[place[head] for head in some.tolist()]] += pooled
    return sums


def _blocks(n: int, size: int, call: Call) -> Tensor:
    """Return which position lies in which block, as ones: position x block."""
    ends = edges(n, size)
    member = torch.zeros(n, len(ends) - 1, dtype=call.exact, device=call.q.device)
    for b, (start, stop) in enumerate(itertools.pairwise(ends)):
        member[start:stop, b] = 1
    return member
