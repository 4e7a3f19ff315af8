"""Where attention happens, and how to stand beside it without getting in its way.

Nearly every PyTorch model ends in F.scaled_dot_product_attention. A function mode sees that call, however the model
imported it. Around that one call a dispatch mode is opened, one floor below autograd, where the fused kernels hand out
the log-sum-exp they need for their own backward pass: the model's kernel runs as it would have, outputs and gradients
are the same bits, and what normalised the weights is ours for nothing.

nn.MultiheadAttention hides its call behind a function of its own, in which modes are off: it is made to run with this
one on. Attention written out by hand is followed by `byhand.py`; `interface.py` knows what transformers meant by a
call, `flex.py` what a call of flex_attention was, and `flash.py` what flash_attn was given.

Intercepting these calls is not new (attnread does so too). Next: `recorder.py` keeps what is seen here.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clearhead.attention import attend_with_sinks
from clearhead.seeing.sites.aten import sighting_of as kernel_sighting
from clearhead.seeing.sites.byhand import ByHand
from clearhead.seeing.sites.dispatch import FUSED_CALL, KERNELS, never_attends
from clearhead.seeing.sites.edges import EXPONENTIALS, Edges
from clearhead.seeing.sites.flash import INSIDE, Given, named, op_name
from clearhead.seeing.sites.flex import UNCOMPILED, CannotTell, is_flex, sighting_of
from clearhead.seeing.sites.found import Found, as_fused
from clearhead.seeing.sites.interface import Asked
from clearhead.seeing.sites.layouts import Reader
from clearhead.seeing.sites.normaliser import LogSumExp
from clearhead.seeing.sites.sighting import Report, Sighting, dtype_in_kernel
from clearhead.seeing.sites.subclasses import causal_rule
from clearhead.seeing.sites.trials import Trial

TRACED = "while torch.jit.trace ran the model it was not watched"


class TorchsOwn(threading.local):
    """Says whether nn.MultiheadAttention's function is running in this thread, and for how many texts."""

    texts: int | None = None


OWN = TorchsOwn()


class FusedCalls(TorchFunctionMode):
    """Report every attention call of this thread to `report`; everything else passes by untouched.

    `refuse` is told why a call that was attention cannot be reported. `split` says how many texts and how many heads
    the running module has put on one axis. `note` is told of what watching changed. `trials` are told of every other
    function that runs, and those that end are taken out. With `gradients` they flow through what is reported, for an
    answer to be part of the model.
    """

    def __init__(
        self,
        report: Report,
        refuse: Callable[[str], None],
        split: Callable[[int], tuple[int, int]],
        note: Callable[[str], None],
        trials: list[Trial],
        gradients: bool = False,
    ) -> None:
        super().__init__()
        self.note = note
        self.report, self.refuse, self.split = report, refuse, split
        self.asked: list[Asked] = []  # calls of transformers' attention interface that are running
        self.by_hand = ByHand(self.found_by_hand, self.lost, note, gradients)
        self.edges = Edges(self.lost)
        self.flash, self.in_flash = Reader(note), False
        self.trials = trials

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func`, standing beside it if it is attention."""
        kwargs = kwargs or {}
        if self.in_flash:
            return func(*args, **kwargs)
        if torch._C._get_tracing_state() is not None:  # torch.jit.trace, which would write down what we compute
            self.note(TRACED)
            return func(*args, **kwargs)
        if not (self.by_hand.known or self.edges.known) and never_attends(func):
            out = func(*args, **kwargs)
            if self.trials:
                self.look_at_trials(func, args, kwargs, out)
            return out
        if func in KERNELS and not torch.compiler.is_compiling():
            kernel = KERNELS[func]
            return self.see(func, args, kwargs) if kernel == FUSED_CALL else self.see_kernel(kernel, func, args, kwargs)
        if func is F.multi_head_attention_forward and OWN.texts is None:
            with self.inside_torchs_own(*args):
                return func(*args, **kwargs)
        if func is attend_with_sinks and not torch.compiler.is_compiling():
            return self.see_sinks(*args)
        if is_flex(func) and not torch.compiler.is_compiling():
            return self.see_flex(func, args, kwargs)
        if (name := op_name(func)) is not None and not torch.compiler.is_compiling():
            below = name.startswith("flash_attn") and not torch.is_grad_enabled()
            return self.see_flash(lambda: func(*args, **kwargs), named(func, args, kwargs), below)
        out = self.by_hand.run(func, args, kwargs)
        if self.edges.known or func in EXPONENTIALS:
            self.edges.look(func, args, kwargs, out)
        if self.trials:
            self.look_at_trials(func, args, kwargs, out)
        return out

    def look_at_trials(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> None:
        """Let the trials that are on look at a function and what it gave; those that end are taken out."""
        self.trials[:] = [trial for trial in self.trials if trial.goes_on(func, args, kwargs, out)]

    def see(self, func: Callable[..., Tensor], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """Run the fused call `func` as it was made, report it, and go on with the answer, or with what came out."""
        beside = LogSumExp()  # type: ignore[no-untyped-call]
        with beside:
            out = func(*args, **kwargs)
        edited = self.tell(replace(_fused(*args, **kwargs), lse=beside.found, out=out))
        return out if edited is None else edited

    def see_kernel(self, name: str, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run a kernel behind the fused call, which the model called itself, and report it as that call."""
        result = func(*args, **kwargs)
        try:
            sighting = kernel_sighting(name, args, kwargs, result)
        except CannotTell as error:
            self.lost(str(error))
            return result
        edited = self.tell(sighting)
        return result if edited is None else (edited, *result[1:])

    def see_sinks(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rule: Tensor | None,
        sinks: Tensor,
        scale: float,
        is_causal: bool,
        dropout: float,
    ) -> Tensor:
        """Run our own attention with sinks, and report it without the key that stands for them in the fused call."""
        beside = LogSumExp()  # type: ignore[no-untyped-call]
        with beside:
            out = attend_with_sinks(q, k, v, rule, sinks, scale, is_causal, dropout)
        lse = beside.found
        if lse is not None:  # causal, a query stands in front too
            lse = lse.reshape(*q.shape[:2], -1)[..., int(is_causal) :]
        with torch._C.DisableTorchFunction():  # the key made of them was rounded to what the kernel reads
            given = (sinks / scale).to(q.dtype).to(dtype_in_kernel(q)).float() * scale
        sighting = Sighting(q, k, rule, dropout, is_causal, scale, lse, v=v, out=out, sinks=given.reshape(1, -1, 1))
        edited = self.tell(sighting)
        return out if edited is None else edited

    def see_flex(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run flex_attention, report it, and go on with what the report answers, or with what came out."""
        result = func(*args, **kwargs)
        asked = self.asked[-1].of_flex() if self.asked else None
        if asked is not None:
            self.note(UNCOMPILED)
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                sighting = sighting_of(result, *args, **kwargs, asked=asked)
        except (CannotTell, RuntimeError) as error:
            self.lost(f"flex_attention that cannot be told exactly: {error}")
            return result
        edited = self.tell(sighting)
        return result if edited is None else (edited, *result[1:])

    def see_flash(self, run: Callable[[], Any], given: Given, below_autograd: bool = False) -> Any:
        """Run a call of flash_attn or of torch's varlen, report it, and go on with the answer or with what came out."""
        beside = LogSumExp()  # type: ignore[no-untyped-call]
        self.in_flash = True
        try:
            with beside:
                result = run()
        finally:
            self.in_flash = False
        several, own = isinstance(result, tuple | list), given.get("out")
        out = own if own is not None else result[0] if several else result
        lse = result if own is not None else beside.found
        if lse is None and several and len(result) > 1:
            lse = result[1].detach()
        asked = self.asked[-1].of_flash() if self.asked else None
        with torch.autocast(out.device.type, enabled=False):  # which these kernels know nothing of
            try:
                with torch._C.DisableTorchFunction():
                    sighting, back = self.flash.sighting(given, out, lse, asked)
            except (CannotTell, RuntimeError) as error:
                self.lost(f"flash attention that cannot be told exactly: {error}")
                return result
            if below_autograd and any(isinstance(x, Tensor) and x.requires_grad for x in given.values()):
                sighting = replace(sighting, fixed=INSIDE)
            edited = self.tell(sighting)
            if edited is None:
                return result
            with torch._C.DisableTorchFunction():
                edited = back(edited)
                if own is not None:
                    own.copy_(edited)
                    return result
        return type(result)((edited, *result[1:])) if several else edited

    def through(
        self,
        function: Callable[..., Any],
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Call a function of transformers' attention interface, and know what it was asked for while it runs."""
        asked = Asked(function, module, query, key, value, args, kwargs)
        self.asked.append(asked)
        try:
            result = function(module, query, key, value, *args, **kwargs)
        finally:
            self.asked.pop()
        if not asked.seen:
            self.refuse(f'transformers\' {asked.name} made no call that can be seen: load the model with "sdpa"')
        return result

    def tell(self, sighting: Sighting) -> Tensor | None:
        """Report a call as whoever asked for it put it, and return the output to go on with, if another."""
        if not self.asked:
            return self.report(sighting)
        return self.asked[-1].report(sighting, self.report)

    def lost(self, reason: str) -> None:
        """Say why a call cannot be told."""
        if self.asked:
            self.asked[-1].seen = True
        self.refuse(reason)

    def found_by_hand(self, found: Found) -> Tensor | None:
        """Report attention that was written out in Python."""
        lead = found.scores.lead
        if len(lead) == 1:
            batch, heads = (OWN.texts, lead[0] // OWN.texts) if OWN.texts else self.split(lead[0])
        else:
            batch, heads = torch.Size(lead[:-1]).numel(), lead[-1] if lead else 1
        try:
            sighting = as_fused(found, batch, heads)
        except RuntimeError as error:
            self.lost(f"attention by hand, laid out unlike any known: {error}")
            return None
        edited = self.tell(sighting)
        return None if edited is None else edited.reshape(found.lay(found.out).shape)

    @contextlib.contextmanager
    def inside_torchs_own(self, query: Tensor, *_: Any) -> Iterator[None]:
        """Let the function behind nn.MultiheadAttention run with this mode on, in which it would call itself for ever.

        It asks whether a mode is on before anything else, and hands itself over if so: it is told that none is.
        """
        functional: Any = F
        before, thread = functional.has_torch_function, threading.get_ident()

        def nobody(tensors: Any) -> bool:
            return False if threading.get_ident() == thread else before(tensors)

        OWN.texts = query.shape[1] if query.ndim == 3 else 1  # (time, batch, d_model)
        functional.has_torch_function = nobody
        try:
            with self:
                yield
        finally:
            functional.has_torch_function, OWN.texts = before, None


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **_: Any,
) -> Sighting:
    """Return what F.scaled_dot_product_attention was given, called as it is."""
    rule = causal_rule(attn_mask)
    mask = attn_mask if rule is None else None
    return Sighting(query, key, mask, dropout_p, is_causal, scale, None, v=value, rule=rule)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Take the modes that watch from this thread while the body runs, and leave all others."""
    overrides: Any = torch.overrides
    before = overrides._get_current_function_mode_stack()

    def put(modes: Sequence[TorchFunctionMode]) -> None:
        for _ in overrides._get_current_function_mode_stack():
            overrides._pop_mode()
        for mode in modes:
            overrides._push_mode(mode)

    put([mode for mode in before if not isinstance(mode, FusedCalls)])
    try:
        yield
    finally:
        put(before)


def watching() -> int:
    """Return how many watch or edit in this thread."""
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return sum(isinstance(mode, FusedCalls) for mode in modes)
