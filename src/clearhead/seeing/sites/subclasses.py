"""Masks that are subclasses of Tensor, whose meaning is in their Python code and whose memory may hold nothing.

`torch.nn.attention.bias.causal_upper_left` and `causal_lower_right` return such masks: torch never reads their numbers,
which are uninitialized. Next: `fused.py`, which asks here about every mask.
"""

import sys
from typing import Any

from torch import Tensor, nn

from clearhead.seeing.rule import Rule

CAUSAL_HOME = "torch.nn.attention.bias"


def causal_rule(mask: Tensor | None) -> Rule | None:
    """Return the rule of one of torch's own causal masks, None for any other mask."""
    home: Any = sys.modules.get(CAUSAL_HOME)  # not imported here: whoever made such a mask has done that
    if home is None or not isinstance(mask, home.CausalBias):
        return None
    lower_right = mask.variant == home.CausalVariant.LOWER_RIGHT
    return Rule(reach=mask.seq_len_kv - mask.seq_len_q if lower_right else 0)


def holds_numbers(x: Tensor) -> bool:
    """Say whether the memory of `x` holds its values: it is a plain tensor, or a subclass that overrides nothing."""
    kind = type(x)
    if kind in (Tensor, nn.Parameter):
        return True
    own = [getattr(kind, name, None) for name in ("__torch_function__", "__torch_dispatch__")]
    plain = [getattr(Tensor, name) for name in ("__torch_function__", "__torch_dispatch__")]
    return all(getattr(a, "__func__", a) == getattr(b, "__func__", b) for a, b in zip(own, plain))
