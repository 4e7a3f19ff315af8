"""Who may look at whom: `Mask`, of which every rule narrows the others.

Next: `attention.py`.
"""

from dataclasses import dataclass, replace
from functools import reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.errors import ShapeError


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """Who may look at whom. Every field narrows the others; `Mask()` lets everybody look everywhere.

    Queries are aligned to the end of the keys: the last query stands where the last key stands, so decoding one
    token against a cache of a thousand is no special case.

    causal:      a query sees its own position and what came before, never what comes after.
    window:      (left, right): besides its own position, how many keys to each side a query sees. Mistral's
                 sliding window of W is `Mask(causal=True, window=(W - 1, 0))`.
    key_starts:  the first `key_starts[b]` keys of text b are padding (texts aligned to the right, to be continued).
    key_lengths: only the first `key_lengths[b]` keys of text b exist, the rest is padding.
    queries_at:  where the queries stand among the keys, if not at their end (a cache of fixed shape).
    allowed:     any other rule, True = may look.
    bias:        added to the scaled scores, e.g. -inf where one may not look, or a relative position bias.
    """

    causal: bool = False
    window: tuple[int, int] | None = None
    key_starts: Int[Tensor, " batch"] | None = None
    key_lengths: Int[Tensor, " batch"] | None = None
    queries_at: Int[Tensor, " query"] | None = None
    allowed: Bool[Tensor, "#batch #heads #query #key"] | None = None
    bias: Float[Tensor, "#batch #heads #query #key"] | None = None

    def dense(
        self, n_queries: int, n_keys: int, device: torch.device
    ) -> Bool[Tensor, "#batch #heads #query #key"] | None:
        """Return every boolean rule as one tensor that broadcasts to the scores, or None if all is allowed."""
        rules = [] if self.allowed is None else [self.allowed]
        keys = torch.arange(n_keys, device=device)
        if self.causal or self.window is not None:
            left, right = self.window if self.window is not None else (n_keys, n_keys)
            right = 0 if self.causal else right
            ahead = keys - self.places(n_queries, n_keys, device).unsqueeze(-1)  # query key
            rules.append(((-left <= ahead) & (ahead <= right))[None, None])
        if self.key_starts is not None:
            rules.append(keys >= self.key_starts[:, None, None, None])
        if self.key_lengths is not None:
            rules.append(keys < self.key_lengths[:, None, None, None])
        return reduce(torch.logical_and, rules) if rules else None

    def places(self, n_queries: int, n_keys: int, device: torch.device) -> Int[Tensor, " query"]:
        """Return where the queries stand among the keys: at their end, unless said otherwise."""
        return torch.arange(n_keys - n_queries, n_keys, device=device) if self.queries_at is None else self.queries_at

    def with_bias(self, bias: Float[Tensor, "#batch #heads #query #key"]) -> "Mask":
        """Return the same mask with `bias` added to the scores too."""
        return replace(self, bias=bias if self.bias is None else self.bias + bias)


EVERYWHERE = Mask()
CAUSAL = Mask(causal=True)


def check_mask(mask: Mask, q: Tensor, k: Tensor) -> None:
    """Raise ShapeError unless `mask` fits queries and keys, (batch, heads, time, d_head) each."""
    if not isinstance(mask, Mask):
        raise ShapeError(
            f"mask is a {type(mask).__name__}: expected clearhead.Mask, e.g. Mask(causal=True), "
            f"Mask(allowed=boolean tensor, True = may look) or Mask(bias=float tensor)"
        )
    full = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    for name, rule in (("allowed", mask.allowed), ("bias", mask.bias)):
        if rule is None:
            continue
        if name == "allowed" and rule.dtype != torch.bool:
            raise ShapeError(f"Mask.allowed must be boolean (True = may look), got {rule.dtype}: numbers go in bias=")
        if name == "bias" and not rule.is_floating_point():
            raise ShapeError(f"Mask.bias is added to the scores and must be floating, got {rule.dtype}")
        if rule.ndim != 4 or any(have not in (1, want) for have, want in zip(rule.shape, full, strict=True)):
            raise ShapeError(
                f"Mask.{name} must broadcast to (batch, heads, query, key) = {full}, got {tuple(rule.shape)}"
            )
        if rule.device != q.device:
            raise ShapeError(f"Mask.{name} is on {rule.device}, q on {q.device}: move it with .to(q.device)")
    for name, counts in (("key_starts", mask.key_starts), ("key_lengths", mask.key_lengths)):
        if counts is not None and (counts.shape != q.shape[:1] or counts.is_floating_point()):
            raise ShapeError(
                f"Mask.{name} must be {q.shape[0]} whole numbers, one a text, "
                f"got {counts.dtype} of shape {tuple(counts.shape)}"
            )
        if counts is not None and counts.device != q.device:
            raise ShapeError(f"Mask.{name} is on {counts.device}, q on {q.device}: move it with .to(q.device)")
    if mask.queries_at is not None and mask.queries_at.shape != q.shape[2:3]:
        raise ShapeError(f"Mask.queries_at is one place a query, {q.shape[2]}, got {tuple(mask.queries_at.shape)}")
    if isinstance(mask.window, int):  # as other libraries say it
        raise ShapeError(f"Mask.window is a pair, how many keys to the left and to the right, got {mask.window}")
    if mask.window is not None and min(mask.window) < 0:
        raise ShapeError(f"Mask.window counts keys to the left and right and cannot be negative, got {mask.window}")
