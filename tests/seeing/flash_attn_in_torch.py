"""flash_attn 2.8 with kernels in plain torch: its kernels are for GPUs alone, and what watches them is tested on any.

The names, signatures, autograd functions, operators (flash_attn >= 2.7 registers them with torch.library) and layouts
are those of `flash_attn/flash_attn_interface.py`; what they compute is computed here, text by text, by the formula, and
so are the log-sum-exp and the gradients. Two habits of the kernels are kept: a row that sees nothing gives 0 and has an
infinite log-sum-exp, and where all is causal ALiBi is added counting from the first key. Not a mock: outputs are right.
"""

import math
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp of one text, each (time, heads, d_head).

    `options` are the probability of dropout, scale, causal, the window's left and right, softcap and ALiBi's slopes.
    """
    dropout, scale, causal, left, right, softcap, slopes = options
    right = 0 if causal else right
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1).float() for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)))
    scores = q @ k.mT * scale
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    at_q, at_k = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1], torch.arange(k.shape[1])
    if slopes is not None:
        all_causal = right == 0 and left < 0
        scores = scores + slopes[:, None, None] * (at_k if all_causal else -(at_q - at_k).abs())
    if left >= 0:
        scores = scores.masked_fill(at_k < at_q - left, -math.inf)
    if right >= 0:
        scores = scores.masked_fill(at_k > at_q + right, -math.inf)
    lse = scores.logsumexp(-1)
    weights = scores.softmax(-1).nan_to_num(0)
    out = F.dropout(weights, dropout) @ v
    return out.transpose(0, 1), lse.masked_fill(lse == -math.inf, math.inf)


def batched(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    slopes = options[-1]
    each = [
        attend(*one, *options[:-1], slopes[i] if slopes is not None and slopes.ndim == 2 else slopes)
        for i, one in enumerate(zip(q, k, v))
    ]
    return torch.stack([out for out, _ in each]), torch.stack([lse for _, lse in each])


def packed(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    slopes, ends_q, ends_k = options[-1], ends_q.tolist(), ends_k.tolist()
    outs, lses = [], []
    for i, (a, b, c, d) in enumerate(zip(ends_q, ends_q[1:], ends_k, ends_k[1:])):
        mine = slopes[i] if slopes is not None and slopes.ndim == 2 else slopes
        out, lse = attend(q[a:b], k[c:d], v[c:d], *options[:-1], mine)
        outs.append(out)
        lses.append(lse)
    left = len(q) - ends_q[-1]
    outs.append(q.new_zeros(left, *q.shape[1:]).float())
    return torch.cat(outs), F.pad(torch.cat(lses, 1), (0, left))


@torch.library.custom_op("flash_attn::_flash_attn_forward", mutates_args=(), device_types="cpu")
def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return output, log-sum-exp, dropped weights, state of the random numbers; the last two are empty."""
    options = (dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes)
    out, lse = batched(q, k, v, *options)
    return out.to(q.dtype), lse.contiguous(), q.new_empty(0), torch.empty(2, dtype=torch.int64)


@torch.library.custom_op("flash_attn::_flash_attn_varlen_forward", mutates_args=(), device_types="cpu")
def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the same of several texts, one after the other; keys may lie in pages."""
    if block_table is not None:
        used = (cu_seqlens_k[1:] - cu_seqlens_k[:-1]).tolist()
        k, v = (torch.cat([x[pages].flatten(0, 1)[:n] for pages, n in zip(block_table, used)]) for x in (k, v))
    options = (dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes)
    out, lse = packed(q, k, v, cu_seqlens_q, cu_seqlens_k, *options)
    return out.to(q.dtype), lse.contiguous(), q.new_empty(0), torch.empty(2, dtype=torch.int64)


def fwd_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None, v: Tensor | None, *more: Any) -> Any:
    """Put the new keys and values into the cache, and attend to it; called by position, as the extension is."""
    (used, _, _, index, leftpad, pages, slopes, _, scale, causal, left, right, softcap, _, _) = more
    outs, lses = [], []
    for i in range(len(q)):
        row = i if index is None else int(index[i])
        mine_k, mine_v = (x[row] if pages is None else x[pages[i]].flatten(0, 1) for x in (k_cache, v_cache))
        n = mine_k.shape[0] if used is None else int(used[i])
        if k is not None and v is not None:
            assert pages is None, "new keys go into pages on a GPU only"
            mine_k[n : n + k.shape[1]], mine_v[n : n + k.shape[1]] = k[i], v[i]
            n += k.shape[1]
        first = 0 if leftpad is None else int(leftpad[i])
        out, lse = attend(q[i], mine_k[first:n], mine_v[first:n], 0.0, scale, causal, left, right, softcap, slopes)
        outs.append(out)
        lses.append(lse)
    return [torch.stack(outs).to(q.dtype), torch.stack(lses)]


flash_attn_gpu = SimpleNamespace(fwd_kvcache=fwd_kvcache)


def _forward(
    ctx: Any,
    inputs: tuple[Tensor, ...],
    split: Callable[..., tuple[Tensor, ...]],
    ends: tuple[Any, ...],
    options: tuple[Any, ...],
    more: dict[str, Any] | None = None,
) -> Any:
    """Call the operator, as every function's forward does; `split` makes queries, keys and values of its inputs."""
    dropout, scale, causal, window, softcap, slopes, _, return_softmax, _ = options
    scale = inputs[0].shape[-1] ** -0.5 if scale is None else scale
    given = (dropout, scale, causal, *window, softcap, slopes)
    op = torch.ops.flash_attn._flash_attn_varlen_forward if ends else torch.ops.flash_attn._flash_attn_forward
    out, lse, dropped, _ = op(*split(*inputs), *ends, *given, False, **(more or {}))
    ctx.save_for_backward(*inputs)
    ctx.again = lambda *x: (packed(*split(*x), *ends[:2], *given) if ends else batched(*split(*x), *given))[0]
    return (out, lse, dropped) if return_softmax else out


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        out = ctx.again(*inputs)
    return torch.autograd.grad(out, inputs, gradient.to(out.dtype))


def _three(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return q, k, v


def _from_qkv(qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.unbind(-3)


def _from_kv(q: Tensor, kv: Tensor) -> tuple[Tensor, ...]:
    return (q, *kv.unbind(-3))


# The names and the order of forward's arguments are part of what is imitated.
# fmt: off
class FlashAttnFunc(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                deterministic, return_softmax, is_grad_enabled):
        options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax,
                   is_grad_enabled)
        return _forward(ctx, (q, k, v), _three, (), options)

    @staticmethod
    def backward(ctx, gradient, *_):
        return (*_backward(ctx, gradient), *[None] * 9)


class FlashAttnQKVPackedFunc(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                deterministic, return_softmax, is_grad_enabled):
        options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax,
                   is_grad_enabled)
        return _forward(ctx, (qkv,), _from_qkv, (), options)

    @staticmethod
    def backward(ctx, gradient, *_):
        return (*_backward(ctx, gradient), *[None] * 9)


class FlashAttnKVPackedFunc(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, kv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                deterministic, return_softmax, is_grad_enabled):
        options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax,
                   is_grad_enabled)
        return _forward(ctx, (q, kv), _from_kv, (), options)

    @staticmethod
    def backward(ctx, gradient, *_):
        return (*_backward(ctx, gradient), *[None] * 9)


class FlashAttnVarlenFunc(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
                softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax, block_table,
                is_grad_enabled):
        options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax,
                   is_grad_enabled)
        ends = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return _forward(ctx, (q, k, v), _three, ends, options, {"block_table": block_table})

    @staticmethod
    def backward(ctx, gradient, *_):
        return (*_backward(ctx, gradient), *[None] * 14)


class FlashAttnVarlenQKVPackedFunc(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, cu_seqlens, max_seqlen, dropout_p, softmax_scale, causal, window_size,
                softcap, alibi_slopes, deterministic, return_softmax, is_grad_enabled):
        options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax,
                   is_grad_enabled)
        return _forward(ctx, (qkv,), _from_qkv, (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen), options)

    @staticmethod
    def backward(ctx, gradient, *_):
        return (*_backward(ctx, gradient), *[None] * 11)


class FlashAttnVarlenKVPackedFunc(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
                softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax,
                is_grad_enabled):
        options = (dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_softmax,
                   is_grad_enabled)
        return _forward(ctx, (q, kv), _from_kv, (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k), options)

    @staticmethod
    def backward(ctx, gradient, *_):
        return (*_backward(ctx, gradient), *[None] * 13)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                    softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False):
    return FlashAttnFunc.apply(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                               deterministic, return_attn_probs, torch.is_grad_enabled())


def flash_attn_qkvpacked_func(qkv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                              softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False):
    return FlashAttnQKVPackedFunc.apply(qkv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                                        deterministic, return_attn_probs, torch.is_grad_enabled())


def flash_attn_kvpacked_func(q, kv, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                             softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False):
    return FlashAttnKVPackedFunc.apply(q, kv, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                                       deterministic, return_attn_probs, torch.is_grad_enabled())


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
                           softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                           deterministic=False, return_attn_probs=False, block_table=None):
    return FlashAttnVarlenFunc.apply(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
                                     softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
                                     return_attn_probs, block_table, torch.is_grad_enabled())


def flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, dropout_p=0.0, softmax_scale=None,
                                     causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                                     deterministic=False, return_attn_probs=False):
    return FlashAttnVarlenQKVPackedFunc.apply(qkv, cu_seqlens, max_seqlen, dropout_p, softmax_scale, causal,
                                              window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
                                              torch.is_grad_enabled())


def flash_attn_varlen_kvpacked_func(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                                    dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    return FlashAttnVarlenKVPackedFunc.apply(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
                                             softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
                                             return_attn_probs, torch.is_grad_enabled())


def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, rotary_cos=None, rotary_sin=None,
                            cache_seqlens=None, cache_batch_idx=None, cache_leftpad=None, block_table=None,
                            softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                            rotary_interleaved=True, alibi_slopes=None, num_splits=0, return_softmax_lse=False):
    softmax_scale = q.shape[-1] ** (-0.5) if softmax_scale is None else softmax_scale
    if isinstance(cache_seqlens, int):
        cache_seqlens = torch.full((q.shape[0],), cache_seqlens, dtype=torch.int32)
    out, lse = flash_attn_gpu.fwd_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens, rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad, block_table,
        alibi_slopes, None, softmax_scale, causal, window_size[0], window_size[1], softcap, rotary_interleaved,
        num_splits)
    return (out, lse) if return_softmax_lse else out
# fmt: on


def install(monkeypatch: Any) -> ModuleType:
    """Have the package imported for one test, this file as the interface that it is found by."""
    package = ModuleType("flash_attn")
    package.__spec__ = ModuleSpec("flash_attn", None)
    for name, value in globals().items():
        if name.startswith("flash_attn_") and callable(value):
            setattr(package, name, value)
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", sys.modules[__name__])
    return package
