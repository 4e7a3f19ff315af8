"""Kernels of attention behind F.scaled_dot_product_attention and nn.MultiheadAttention, called by the model itself.

Five of them take what the fused call takes, under other names and in another order, and return its output first and
the log-sum-exp second: they are read as that call is. The others want another layout or hold whole layers, and are
named. Next: `fused.py`, where they are met.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from clearhead.seeing.sites.flash import named
from clearhead.seeing.sites.flex import CannotTell
from clearhead.seeing.sites.sighting import Sighting

LIKE_THE_FUSED_CALL = {
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math",
}
OTHERS = {
    "_flash_attention_forward",
    "_flash_attention_forward_no_dropout_inplace",
    "_efficient_attention_forward",
    "_cudnn_attention_forward",
    "_scaled_dot_product_attention_math_for_mps",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
    "_triton_multi_head_attention",
    "_triton_scaled_dot_attention",
}


def functions(name: str) -> Iterator[Callable[..., Any]]:
    """Yield all by which Python can call an operator of torch's: by torch.ops, each of its overloads, and torch."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is not None:  # not every torch has all of them
        yield from (packet, *(getattr(packet, overload) for overload in packet.overloads()))
    if hasattr(torch, name):
        yield getattr(torch, name)


KERNELS = {function: name for name in LIKE_THE_FUSED_CALL | OTHERS for function in functions(name)}


def sighting_of(name: str, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> Sighting:
    """Return what a call of the operator `name` that gave `result` was; raises CannotTell."""
    if name not in LIKE_THE_FUSED_CALL or "q_descale" in kwargs:
        raise CannotTell(f"torch.ops.aten.{name} was called by itself: call torch's functions for attention")
    given = named(getattr(torch.ops.aten, name), args, kwargs)
    q, k, out = given["query"], given["key"], result[0]
    if given["is_causal"] and q.shape[-2] != k.shape[-2] and q.device.type != "cpu":
        raise CannotTell(f"torch.ops.aten.{name} is causal from another corner on every device")
    lse = None if name.endswith("_math") else result[1]  # of which some kernels return nothing, or more than asked for
    if not isinstance(lse, Tensor) or lse.ndim < 3 or lse.shape[2] < q.shape[-2]:
        lse = None
    return Sighting(
        q,
        k,
        given.get("attn_mask", given.get("attn_bias")),
        given["dropout_p"],
        given["is_causal"],
        given["scale"],
        None if lse is None else lse.detach(),
        v=given["value"],
        out=out,
    )
