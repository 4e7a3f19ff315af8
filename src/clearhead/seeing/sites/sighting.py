"""What a site says of one call of attention, before anything is copied. Next: `fused.py`, where calls are sighted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.seeing.rule import Rule


@dataclass(frozen=True, eq=False)
class Sighting:
    """One call of attention: what it was given, what came out, and the log-sum-exp where its kernel gave one.

    All tensors are laid out as F.scaled_dot_product_attention has them, `out` too: (batch, heads, time, d_head). Scores
    are `scale * q . k`, then softcapped, then masked. `sinks`, three axes that broadcast to (batch, heads, query), are
    one more score a row, which takes weight to no key. A site that knows its rule says it in `rule`, and the mask is
    then not looked at. Where `out` is a copy in that layout, `gave` is the model's own tensor and what made it a copy.
    """

    q: Tensor
    k: Tensor
    mask: Tensor | None
    dropout: float
    is_causal: bool
    scale: float | None
    lse: Tensor | None
    v: Tensor | None = None  # None, as is `out`, where a site cannot know them: such a call can be seen, not edited
    out: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    rule: Rule | None = None
    by_hand: bool = False  # written out in Python: biases were added as they are, in no kernel's dtype
    gave: tuple[Tensor, Callable[[Tensor], Tensor]] | None = None
    weights: Tensor | None = None  # the model's own, before dropout, where they cannot be computed from q and k
    because: str = ""  # why they cannot
    fixed: str | None = None  # why it can be seen and not edited


# Who is told of a sighting. The tensor it answers with, if any, is what the model goes on with in the place of `out`,
# in its shape, dtype and layout.
Report = Callable[[Sighting], Tensor | None]


def dtype_in_kernel(q: Tensor) -> torch.dtype:
    """Return the dtype the kernel read: autocast lowers it after the call was seen."""
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        return torch.get_autocast_dtype(q.device.type)
    return q.dtype
