"""Attention by hand, found: in the layout of the fused call, as every sighting is. Next: `fused.py`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.seeing.sites.scores import Scores
from clearhead.seeing.sites.sighting import Sighting


@dataclass(frozen=True)
class Found:
    """Attention by hand: its scores and its values, as (*lead, time, d), and its output, which `lay` lays out so.

    weights: where the scores do not tell them; `scores.broken` is the reason, and `mask` what is known to be hidden.
    """

    scores: Scores
    dropout: float
    v: Tensor
    out: Tensor
    lay: Callable[[Tensor], Tensor]
    weights: Tensor | None = None
    mask: Tensor | None = None


def as_fused(found: Found, batch: int, heads: int) -> Sighting:
    """Return attention by hand in the layout of the fused call: batch, heads, time, d_head."""
    scores, lead, lay = found.scores, found.scores.lead, found.lay

    def four(x: Tensor) -> Tensor:
        if x.shape[:-2].numel() == 1:
            return x.reshape(1, 1, *x.shape[-2:])
        if len(lead) == 2 and x.ndim <= 4 and x.shape[:-2] != (batch * heads,):
            return x[(None,) * (4 - x.ndim)]
        if x.shape[:-2].numel() != batch * heads:
            x = x.expand(*lead, *x.shape[-2:])
        return x.reshape(batch, heads, *x.shape[-2:])

    def whole(x: Tensor) -> Tensor:
        return four(x).expand(batch, heads, *x.shape[-2:])

    def laid(out: Tensor) -> Tensor:
        return whole(lay(out))

    sinks, kept = scores.sinks, found.weights
    mask = scores.mask() if kept is None else found.mask
    return Sighting(
        q=whole(scores.q),
        k=four(scores.k) if len(lead) == 2 and kept is None else whole(scores.k),
        mask=None if mask is None else four(mask),
        dropout=found.dropout,
        is_causal=False,
        scale=scores.scale,
        lse=None,
        v=four(found.v) if len(lead) == 2 else whole(found.v),
        out=laid(found.out),
        softcap=scores.capped,
        sinks=torch.cat([four(s) for s in sinks], -1).logsumexp(-1) if sinks else None,
        by_hand=True,
        weights=None if kept is None else whole(kept),
        because=scores.broken or "",
        gave=(found.out, laid),
    )
