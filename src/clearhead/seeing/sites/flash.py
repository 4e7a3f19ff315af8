"""flash_attn (Dao 2023) and torch's varlen_attn: kernels that want other layouts, and several texts in one row.

Every function of flash_attn 2 that can be differentiated ends in one of six autograd functions, looked up when it is
called: they are wrapped for the duration, and so whatever name a model has for the function is seen. What is called
below them, or by another package, are operators of torch.library; a function mode sees these, and a dispatch mode gets
the log-sum-exp they return. `flash_attn_with_kvcache` has neither: the extension module it calls is put behind another.

Nothing is imported here: a model that uses the package comes with it imported. Next: `layouts.py`, where
the texts of a call stand.
"""

import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from clearhead.seeing.sites.flex import CannotTell

HOME = "flash_attn.flash_attn_interface"
FUNCTIONS = [f"FlashAttn{varlen}{packed}Func" for varlen in ("", "Varlen") for packed in ("", "QKVPacked", "KVPacked")]
EXTENSIONS = ("flash_attn_gpu", "flash_attn_cuda")  # what flash_attn calls its kernels, since 2.7.3 and before
OPS = {
    "flash_attn::_flash_attn_forward",
    "flash_attn::_flash_attn_varlen_forward",
    "torch_attn::_varlen_attn",
    "torch_attn::_varlen_attn_out",
}
# fwd_kvcache is called by position
KVCACHE = (
    "q k_cache v_cache k v cache_seqlens rotary_cos rotary_sin cache_batch_idx cache_leftpad block_table alibi_slopes "
    "out softmax_scale causal window_size_left window_size_right softcap rotary_interleaved num_splits"
).split()
INSIDE = "it was called below autograd, where a change would not reach the gradient"

Given = Mapping[str, Any]
See = Callable[[Callable[[], Any], Given], Any]  # runs the call, told what it was given, by name


def op_name(func: Any) -> str | None:
    """Return the name of an operator of OPS, None for anything else."""
    kind = type(func)
    if kind is OpOverloadPacket:
        name: str = func._qualified_op_name
    elif kind is OpOverload:
        name = func._schema.name
    else:
        return None
    return name if name in OPS else None


def named(func: Any, args: Sequence[Any], kwargs: Given) -> Given:
    """Return what an operator, or the forward of an autograd function, was given, by name."""
    if not isinstance(func, OpOverload | OpOverloadPacket):
        return dict(zip(list(inspect.signature(func).parameters)[1:], args))  # without ctx
    overload: Any = func if isinstance(func, OpOverload) else func.default
    known = overload._schema.arguments
    defaults = {one.name: one.default_value for one in known if one.has_default_value()}
    return {**defaults, **dict(zip((one.name for one in known), args)), **kwargs}


@contextlib.contextmanager
def flash_attention(see: See) -> Iterator[None]:
    """While the body runs, have what flash_attn calls in this thread called by `see`."""
    home, thread = sys.modules.get(HOME), threading.get_ident()
    with contextlib.ExitStack() as stack:
        for function in (getattr(home, name, None) for name in FUNCTIONS):
            if function is not None:
                stack.enter_context(_applied(function, see, thread))
        for name in EXTENSIONS:
            if hasattr(getattr(home, name, None), "fwd_kvcache"):
                stack.enter_context(_replaced(home, name, Beside(getattr(home, name), see, thread)))
        yield


class Beside:
    """An extension module, one function of which is called by `see`."""

    def __init__(self, module: Any, see: See, thread: int) -> None:
        self.module, self.see, self.thread = module, see, thread

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def fwd_kvcache(self, *args: Any, **kwargs: Any) -> Any:
        """Run the kernel behind flash_attn_with_kvcache."""
        if torch.compiler.is_compiling() or threading.get_ident() != self.thread:
            return self.module.fwd_kvcache(*args, **kwargs)
        given = dict(zip(KVCACHE, args)) if len(args) == len(KVCACHE) and not kwargs else {}
        return self.see(lambda: self.module.fwd_kvcache(*args, **kwargs), given)


@contextlib.contextmanager
def _applied(function: Any, see: See, thread: int) -> Iterator[None]:
    """Have an autograd function applied by `see`."""
    apply = function.apply

    def applied(*args: Any) -> Any:
        if torch.compiler.is_compiling() or threading.get_ident() != thread:
            return apply(*args)
        return see(lambda: apply(*args), named(function.forward, args, {}))

    with _replaced(function, "apply", staticmethod(applied)):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, by: Any) -> Iterator[None]:
    """Put something else under a name, and afterwards what was there, if there was."""
    before = vars(owner).get(name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@dataclass(frozen=True, eq=False)
class Kernel:
    """A call in the words of flash attention. Tensors are (batch, time, heads, d_head) or (tokens, heads, d_head).

    left, right: how many keys before and after its own a query sees, -1 for all of them; causal is right = 0.
    ends_q, ends_k: where texts begin and end in a row of tokens, or None. used_k: how many keys each text has.
    from_k: where in its row each text's keys begin. pages: of each text, which blocks of `k` hold its keys.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    left: int
    right: int
    softcap: float | None
    slopes: Tensor | None
    dropout: float
    ends_q: Tensor | None
    ends_k: Tensor | None
    used_k: Tensor | None
    from_k: Tensor | None
    pages: Tensor | None


def kernel(given: Given) -> Kernel:
    """Return what was given in one set of words; raises CannotTell for what nobody here understands."""
    if not given:
        raise CannotTell("its package is of a version unknown here")
    if given.get("rotary_cos") is not None:
        raise CannotTell("its queries are rotated inside the kernel (rotary_cos)")
    if given.get("leftpad_k") is not None:
        raise CannotTell("its keys begin at leftpad_k")
    q, k, v = _tensors(given)
    if "window_size_left" in given:
        left, right = given["window_size_left"], given["window_size_right"]
    elif "window_size" in given or "cu_seq_q" in given:
        left, right = given.get("window_size") or (-1, -1)
    else:  # causal once meant another corner
        raise CannotTell("its package is older than flash_attn 2.3")
    scale, used = given.get("softmax_scale", given.get("scale")), given.get("seqused_k")
    if "cache_seqlens" in given:
        used = given["cache_seqlens"]
        if used is not None and given["k"] is not None:
            used = used + given["k"].shape[1]
    return Kernel(
        q=q,
        k=k,
        v=v,
        scale=q.shape[-1] ** -0.5 if scale is None else float(scale),
        left=left,
        right=0 if given.get("causal") or given.get("is_causal") else right,
        softcap=given.get("softcap") or None,
        slopes=given.get("alibi_slopes"),
        dropout=given.get("dropout_p") or 0.0,
        ends_q=given.get("cu_seqlens_q", given.get("cu_seq_q", given.get("cu_seqlens"))),
        ends_k=given.get("cu_seqlens_k", given.get("cu_seq_k", given.get("cu_seqlens"))),
        used_k=used,
        from_k=given.get("cache_leftpad"),
        pages=given.get("block_table"),
    )


def _tensors(given: Given) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, whichever of them came as one tensor."""
    if "qkv" in given:
        q, k, v = given["qkv"].unbind(-3)
    elif "kv" in given:
        q, (k, v) = given["q"], given["kv"].unbind(-3)
    elif "k_cache" in given:  # the kernel has put the new keys there
        q, k, v = given["q"], given["k_cache"], given["v_cache"]
        if given["cache_batch_idx"] is not None:
            k, v = (x.index_select(0, given["cache_batch_idx"].long()) for x in (k, v))
    else:
        q, k, v = (given[name] for name in (("q", "k", "v") if "q" in given else ("query", "key", "value")))
    return q, k, v
