"""Where attention happens, and how to stand beside it without getting in its way.

Nearly every PyTorch model ends in F.scaled_dot_product_attention. A function mode sees that call, however the model
imported it. Around that one call a dispatch mode is opened, one floor below autograd, where the fused kernels hand out
the log-sum-exp they need for their own backward pass: the model's kernel runs as it would have, outputs and gradients
are the same bits, and what normalised the weights is ours for nothing.

nn.MultiheadAttention hides its call behind a function of its own, in which modes are off: there the name that it calls
is replaced while that function runs.

Intercepting these calls is not new (attnread does so too). Next: `recorder.py` keeps what is seen here.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clearhead.seeing.rule import Rule

FUSED = torch._C._nn.scaled_dot_product_attention  # F.scaled_dot_product_attention, whatever was put over that name

# Fused kernels whose second output is the log-sum-exp, as (batch, heads, query[, 1]), some padded along query.
WITH_LSE = {
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
}
# Two of them compute it only when a gradient is wanted: their fifth argument says so.
ON_REQUEST = {"_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"}


@dataclass(frozen=True, eq=False)
class Sighting:
    """One call of attention: what it was given, what came out, and the log-sum-exp where its kernel gave one.

    All tensors are laid out as F.scaled_dot_product_attention has them, `out` too: (batch, heads, time, d_head). Scores
    are `scale * q . k`, then softcapped, then masked. `sinks`, three axes that broadcast to (batch, heads, query), are
    one more score a row, which takes weight to no key. A site that knows its rule says it in `rule`, and the mask is
    then not looked at.
    """

    q: Tensor
    k: Tensor
    mask: Tensor | None
    dropout: float
    is_causal: bool
    scale: float | None
    lse: Tensor | None
    fast_path_lost: bool = False  # torch would have run nn.MultiheadAttention's inference kernel, had nobody watched
    v: Tensor | None = None  # None, as is `out`, where a site cannot know them: such a call can be seen, not edited
    out: Tensor | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    rule: Rule | None = None


# Who is told of a sighting. The tensor it answers with, if any, is what the model goes on with in the place of `out`,
# in its shape, dtype and layout.
Report = Callable[[Sighting], Tensor | None]


class LogSumExp(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Open around one fused call; afterwards `found` is what its kernel normalised by, or None."""

    found: Tensor | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Without this, torch imports its compiler (1.3 s) to keep it away from the method below."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` as it is, or where it would not have computed a log-sum-exp, with that asked for."""
        name = func._schema.name.removeprefix("aten::")
        if name in ON_REQUEST:
            args = (*args[:4], True, *args[5:])
        out = func(*args, **(kwargs or {}))
        if name in WITH_LSE:
            self.found = out[1].detach()
        return out


class FusedCalls(TorchFunctionMode):
    """Report every fused attention call of this thread to `report`; everything else passes by untouched."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report, self.thread = report, threading.get_ident()
        self.inside_torchs_own = False  # nn.MultiheadAttention's function is running

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, standing beside it if it is attention."""
        kwargs = kwargs or {}
        if func is FUSED and not torch.compiler.is_compiling():
            return self.see(func, *args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self.inside_multi_head_attention():
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def see(
        self,
        func: Callable[..., Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **rest: Any,
    ) -> Tensor:
        """Run the fused call `func`, report it, and go on with what the report answers, or with what came out."""
        beside = LogSumExp()  # type: ignore[no-untyped-call]
        with beside:
            out = func(query, key, value, attn_mask, dropout_p, is_causal, **rest)
        lost = self.inside_torchs_own and not torch.is_grad_enabled()
        scale, lse = rest.get("scale"), beside.found
        sighting = Sighting(query, key, attn_mask, dropout_p, is_causal, scale, lse, lost, value, out)
        edited = self.report(sighting)
        return out if edited is None else edited

    @contextlib.contextmanager
    def inside_multi_head_attention(self) -> Iterator[None]:
        """While torch's own function runs, put `see` in the place of the name that it calls."""
        before = F.scaled_dot_product_attention

        def seen(*args: Any, **kwargs: Any) -> Tensor:
            if threading.get_ident() != self.thread:
                return before(*args, **kwargs)
            return self.see(before, *args, **kwargs)

        F.scaled_dot_product_attention, self.inside_torchs_own = seen, True
        try:
            yield
        finally:
            F.scaled_dot_product_attention, self.inside_torchs_own = before, False


@contextlib.contextmanager
def uncompiled() -> Iterator[bool]:
    """Run compiled models as they were written, and say whether torch's compiler was there at all.

    A compiled graph would have to be broken at every attention call and would stay so afterwards.
    """
    if "torch._dynamo" not in sys.modules:
        yield False
        return
    with torch.compiler.set_stance("force_eager"):
        yield True
