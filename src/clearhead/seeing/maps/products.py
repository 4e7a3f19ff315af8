"""Scores of some heads tile by tile, in powers of two: what weights and their normaliser are computed from.

    s_ij = log2(e) * (scale * q_i . k_j + bias_ij) - subtracted_i + added_j

One product gives s: what is subtracted from a query's and added to a key's ride along as two more channels,
q' = (q, -subtracted, 1) and k' = (k, 1, added). A sweep over them takes bands of rows; what a band cannot see is never
multiplied. Next: `formula.py`.
"""

import contextlib
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.seeing.call import Call
from clearhead.seeing.maps import sight

LOG2E = math.log2(math.e)
NEVER = -1e30  # log2 of a weight of 0 that may be added to others without becoming "not a number"

# Scores in one tile and its widest side. On a CPU 1 MiB, which a second cache holds: 16 MiB gained nothing, and cost
# a causal sweep of 1,024 tokens 1.4 times the time. A GPU wants few large products.
ROOM = {"cpu": (2**18, 1024), "cuda": (2**26, 8192)}


@dataclass
class _Precision:
    """What the user allowed products to round to, while somebody has put it aside."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: int = 0
    before: list[str] = field(default_factory=list)


_PRECISION = _Precision()


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 as float32, also where the user allowed TF32 or bfloat16 products, or autocast, for the model.

    Autocast is of a thread. The other is a setting of the whole process: of several threads the first sets it and the
    last puts it back.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # torch's
    with _PRECISION.lock:
        _PRECISION.asked += 1
        if _PRECISION.asked == 1:
            _PRECISION.before = [backend.fp32_precision for backend in backends]
            for backend in backends:
                backend.fp32_precision = "ieee"
    try:
        with torch._C._DisableAutocast():
            yield
    finally:
        with _PRECISION.lock:
            _PRECISION.asked -= 1
            if _PRECISION.asked == 0:
                for backend, precision in zip(backends, _PRECISION.before):
                    backend.fp32_precision = precision


@dataclass(frozen=True)
class Band:
    """Some rows of a sweep: the keys that any of them may see, and among those the keys that all of them see."""

    rows: slice
    left: int
    right: int
    free_from: int
    free_to: int


def bands(ends: Int[Tensor, "#heads query 2"], rows: range, height: int) -> list[Band]:
    """Return rows cut where `height` divides them, with what `sight.stretches` says of each."""
    ends = ends.cpu()  # asked for every band: a GPU would be waited for
    first, last = ends[..., 0], ends[..., 1]
    limits = first.amin(0), last.amax(0), first.amax(0), last.amin(0)
    found = []
    for top in range(rows.start // height * height, rows.stop, height):
        here = slice(max(top, rows.start), min(top + height, rows.stop))
        left, right, free_from, free_to = (limit[here] for limit in limits)
        found.append(Band(here, int(left.min()), int(right.max()), int(free_from.max()), int(free_to.min())))
    return found


def strips(bands: Sequence[Band], cols: range, width: int) -> Iterator[tuple[Band, slice]]:
    """Yield every band with each stretch of `cols` that it sees something of, cut where `width` divides them."""
    for band in bands:
        left, right = max(cols.start, band.left), min(cols.stop, band.right)
        for edge in range(left // width * width, right, width) if left < right else ():
            yield band, slice(max(edge, left), min(edge + width, right))


def shape(call: Call, n_heads: int, rows: range, cols: range, steps: tuple[int, int] = (1, 1)) -> tuple[int, int, int]:
    """Return how many heads, rows and columns a tile has at most; the last two multiples of `steps` if possible."""
    room, widest = ROOM.get(call.q.device.type, ROOM["cuda"])
    width = _multiple(min(widest, max(1, _up(len(cols), steps[1]))), steps[1])
    height = _multiple(max(1, min(room // width, _up(len(rows), steps[0]))), steps[0])
    return max(1, min(n_heads, room // (height * width))), height, width


def _up(n: int, step: int) -> int:
    return -(-n // step) * step


def _multiple(n: int, step: int) -> int:
    return n // step * step if step <= n else n


class Products:
    """The queries and keys of some heads (rows of `call.q`) with their two channels, made once, multiplied by tiles."""

    def __init__(
        self,
        call: Call,
        batch: int,
        heads: Sequence[int],
        subtracted: Float[Tensor, "heads query"],
        added: Float[Tensor, "heads key"],
    ) -> None:
        self.call, self.batch, self.numbers = call, batch, sight.numbers(call, heads)
        self.subtracted, self.added = subtracted, added
        self.ends = sight.stretches(call, batch, heads)
        tables = (call.rule.allowed, call.rule.packed)
        self.has_table = any(table is not None and table.shape[2] > 1 for table in tables)
        d_head, capped = call.q.shape[-1], call.softcap is not None
        more = 0 if capped else 2
        self.q = torch.empty(len(heads), call.n_queries, d_head + more, dtype=call.exact, device=call.q.device)
        k = torch.empty(len(heads), call.n_keys, d_head + more, dtype=call.exact, device=call.q.device)
        for i, head in enumerate(heads):
            self.q[i, :, :d_head] = call.q[batch, head]
            k[i, :, :d_head] = call.k[batch, call.kv_of[head]]
        self.q[..., :d_head] *= call.scale / call.softcap if call.softcap is not None else call.scale * LOG2E
        if not capped:
            torch.neg(subtracted, out=self.q[..., d_head])
            self.q[..., d_head + 1], k[..., d_head], k[..., d_head + 1] = 1, 1, added
        self.k = k.mT

    def logarithms(self, rows: slice, cols: slice, out: Float[Tensor, "heads rows cols"]) -> None:
        """Write the scores of these queries on these keys into `out`, finite; hidden is only what `added` hides.

        To be called in `full_precision`, which a sweep enters once.
        """
        bias = self.call.rule.bias
        torch.bmm(self.q[:, rows], self.k[:, :, cols], out=out)
        if self.call.softcap is not None:
            out.tanh_().mul_(self.call.softcap * LOG2E)
            out.sub_(self.subtracted[:, rows, None]).add_(self.added[:, None, cols])
        if bias is not None:
            table = sight.cut(bias, self.batch, self.numbers, rows, cols)
            out.add_(table.to(out.dtype), alpha=LOG2E).clamp_(min=NEVER)

    def hide(self, tile: Float[Tensor, "heads rows cols"], band: Band, cols: slice, value: float) -> None:
        """Set what the band's queries may not see of these keys to `value`."""
        rule, rows = self.call.rule, band.rows
        if cols.start < band.free_from or cols.stop > band.free_to:
            start = cols.start if cols.start < band.free_from else max(cols.start, band.free_to)
            stop = cols.stop if cols.stop > band.free_to else min(cols.stop, band.free_from)
            some = tile[:, :, start - cols.start : stop - cols.start]
            if value == 0 and rule.rows is None and rule.spans is None:
                if rule.reach is not None:
                    some.tril_(rows.start + rule.reach - start)
                if rule.since is not None:
                    some.triu_(rows.start + rule.since - start)
            else:
                at, ends = torch.arange(start, stop, device=tile.device), self.ends[:, rows, :, None]
                some.masked_fill_((at < ends[:, :, 0]) | (at >= ends[:, :, 1]), value)
        if self.has_table:
            places = (torch.arange(s.start, s.stop, device=tile.device) for s in (rows, cols))
            may = rule.sees(self.batch, self.numbers, *places)
            assert may is not None, "a rule with a table says who may look"
            tile.masked_fill_(~may, value)
