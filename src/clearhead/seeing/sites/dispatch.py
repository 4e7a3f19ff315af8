"""Which of torch's functions the interceptor has to look at: decided once for each function.

A forward pass calls hundreds of functions, and most are no part of attention: norms, activations, views. They are
passed on at once, unless scores or weights are being followed at that moment. Next: `fused.py`, which looks at the
others.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from clearhead.attention import attend_with_sinks
from clearhead.seeing.sites.aten import KERNELS as OF_ATEN
from clearhead.seeing.sites.edges import EXPONENTIALS
from clearhead.seeing.sites.flash import op_name
from clearhead.seeing.sites.flex import is_flex
from clearhead.seeing.sites.vocabulary import WHAT, as_written

FUSED = torch._C._nn.scaled_dot_product_attention  # F.scaled_dot_product_attention, whatever was put over that name
FUSED_CALL = "scaled_dot_product_attention"
ATEN = torch.ops.aten.scaled_dot_product_attention  # what it ends in; models that torch.export wrote call it
FUSED_CALLS: set[Callable[..., Any]] = {FUSED, ATEN, ATEN.default}
KERNELS = {**OF_ATEN, **dict.fromkeys(FUSED_CALLS, FUSED_CALL)}  # by function: what `see_kernel` calls it
MAX_FUNCTIONS = 4096  # that are remembered; torch has some 2,000


@lru_cache(MAX_FUNCTIONS)
def never_attends(func: Callable[..., Any]) -> bool:
    """Return whether a function neither is attention nor can begin what becomes attention, whatever it is given."""
    if func in KERNELS or func is F.multi_head_attention_forward or func is attend_with_sinks:
        return False
    return not (is_flex(func) or op_name(func) is not None or func in EXPONENTIALS or as_written(func) in WHAT)
