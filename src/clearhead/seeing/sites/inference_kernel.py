"""torch's inference kernels for nn.MultiheadAttention and nn.TransformerEncoderLayer, which nobody can look into.

torch runs them only under many conditions, and not while a function mode or a hook is there, as when somebody watches.
The conditions are those of `forward` in torch/nn/modules/activation.py and transformer.py. Next: `whereabouts.py`,
which says when a kernel was left.
"""

from typing import Any

import torch
from torch import Tensor, nn


def would_run(module: nn.Module, *inputs: Any, **named: Any) -> bool:
    """Say whether torch would run an inference kernel for this forward of `module`, had nobody watched."""
    if not torch.backends.mha.get_fastpath_enabled() or module.training or torch.is_autocast_enabled():
        return False
    if isinstance(module, nn.TransformerEncoderLayer):
        return type(module).forward is nn.TransformerEncoderLayer.forward and _of_layer(module, *inputs, **named)
    if isinstance(module, nn.MultiheadAttention):
        return type(module).forward is nn.MultiheadAttention.forward and _of_attention(module, *inputs, **named)
    return False


def _of_layer(layer: nn.TransformerEncoderLayer, src: Tensor, *_: Any, **__: Any) -> bool:
    attention = layer.self_attn
    return (
        _fits(attention, src)
        and bool(layer.activation_relu_or_gelu)
        and layer.norm1.eps == layer.norm2.eps
        and not _learns(src, *layer.parameters())
    )


def _of_attention(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> bool:
    masks = [mask for mask in (key_padding_mask, attn_mask) if mask is not None]
    return (
        query is key is value
        and _fits(attention, query)
        and attention.bias_k is None
        and attention.bias_v is None
        and not attention.add_zero_attn
        and not any(torch.is_floating_point(mask) for mask in masks)
        and not _learns(query, *attention.parameters())
    )


def _fits(attention: nn.MultiheadAttention, x: Tensor) -> bool:
    """Say whether what a layer is, and what it was given, are what both kernels are made for."""
    weight = attention.in_proj_weight
    return (
        x.ndim == 3
        and weight is not None
        and attention.in_proj_bias is not None
        and x.dtype == weight.dtype
        and attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.num_heads % 2 == 0
    )


def _learns(*given: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in given)
