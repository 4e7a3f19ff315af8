"""Who was allowed to look where, kept as small as it can be said.

Models hand masks over in every form: none, a causal flag, True and False, numbers to add, often as one query x key
table although a single sentence says it all. `recognise` finds that sentence; only what it cannot name is kept as it
came. A rule is shared by all layers that were given the same mask.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rule:
    """Every field narrows the others; `Rule()` lets everybody look everywhere.

    reach:   query i sees key j only where j <= i + reach. Causal is reach = 0, or n_keys - n_queries where the last
             query stands at the last key.
    allowed: True = may look.
    bias:    added to the scaled scores, in the dtype it came in.
    """

    reach: int | None = None
    allowed: Bool[Tensor, "#batch #heads #query #key"] | None = None
    bias: Float[Tensor, "#batch #heads #query #key"] | None = None

    @property
    def nbytes(self) -> int:
        """Return the memory its tables take."""
        return sum(t.numel() * t.element_size() for t in (self.allowed, self.bias) if t is not None)

    def apply(
        self,
        scores: Float[Tensor, "heads rows cols"],
        batch: int,
        heads: Int[Tensor, " heads"],
        rows: Int[Tensor, " rows"],
        cols: Int[Tensor, " cols"],
    ) -> Float[Tensor, "heads rows cols"]:
        """Return the scaled scores of one text's tile with the bias added and -inf where one may not look."""
        if self.bias is not None:
            scores = scores + _pick(self.bias, batch, heads, rows, cols).to(scores.dtype)
        if self.reach is not None:
            scores = scores.masked_fill(cols > rows[:, None] + self.reach, -torch.inf)
        if self.allowed is not None:
            scores = scores.masked_fill(~_pick(self.allowed, batch, heads, rows, cols), -torch.inf)
        return scores


def recognise(mask: Tensor | None, is_causal: bool, shape: tuple[int, int, int, int]) -> Rule:
    """Return the rule of one fused call; `shape` is (batch, heads, query, key), the mask broadcasts to it. Copies."""
    if is_causal:
        return Rule(reach=0)  # torch aligns its flag to the first key
    if mask is None:
        return Rule()
    mask = _squeeze(mask.detach(), shape)
    if mask.dtype != torch.bool:
        hidden = mask <= torch.finfo(mask.dtype).min / 2  # -inf, or the lowest number, which many models add
        if not ((mask == 0) | hidden).all() or hidden.all(-1).any():
            return Rule(bias=mask.clone(memory_format=torch.contiguous_format))
        mask = ~hidden
    if mask.all():
        return Rule()
    last = mask[:, :, -1:]
    if mask.shape[2] == 1 or torch.equal(mask, last.expand_as(mask)):
        return Rule(allowed=last.clone(memory_format=torch.contiguous_format))
    n_queries, n_keys = shape[2], shape[3]
    keys = torch.arange(n_keys, device=mask.device)
    for reach in {n_keys - n_queries, 0}:
        seen = keys <= torch.arange(reach, reach + n_queries, device=mask.device)[:, None]
        if mask.shape[3] == n_keys and torch.equal(mask, seen & last):
            return Rule(reach=reach, allowed=None if last.all() else last.clone(memory_format=torch.contiguous_format))
    return Rule(allowed=mask.clone(memory_format=torch.contiguous_format))


def _squeeze(mask: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Return `mask` with four axes, each one long where nothing changes along it."""
    mask = mask[(None,) * (4 - mask.ndim)]
    for axis in range(4):
        if mask.shape[axis] > 1 and mask.stride(axis) == 0:
            mask = mask.narrow(axis, 0, 1)
    return mask


def _pick(table: Tensor, batch: int, heads: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """Return the tile of a table whose axes may be one long."""
    tile = table[batch if table.shape[0] > 1 else 0]
    for axis, index in enumerate((heads, rows, cols)):
        if tile.shape[axis] > 1:
            tile = tile.index_select(axis, index)
    return tile
