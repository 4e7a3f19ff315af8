"""`watch`: a model runs as it always does; the queries, keys and normaliser of every attention call are kept.

    with watch(model) as seen:
        model(tokens)
    seen.map(layer=3, head=7)

The model is not changed: hooks, there for the duration, say which module is running; `sites.py` sees the calls. What
ran and could not be seen is listed by name in `seen.unseen`. Next: `recording.py`, what comes out.
"""

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.errors import WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.recording import Ran, Recording
from clearhead.seeing.rule import Rule, recognise
from clearhead.seeing.sites import FusedCalls, Report, Sighting, uncompiled

LOOKS_LIKE_ATTENTION = re.compile(r"(?i)attention|attn")
NAMED_LIKE_ATTENTION = re.compile(r"(?i)(^|_)(attn|attention)\d*$")  # self_attn, attention, attn1; not attention_norm


@contextlib.contextmanager
def watch(
    model: nn.Module,
    *,
    layers: Sequence[int | str] | None = None,
    heads: Sequence[int] | None = None,
    outputs: bool = False,
    values: bool = False,
    gradients: bool = False,
) -> Iterator[Recording]:
    """Record the attention of `model` while the body runs; outputs, gradients and kernels stay what they were.

    `layers` keeps only some layers, by number in the order they run or by module name (`"decoder.*"`); `heads` only
    some heads of each. `outputs` keeps what each head gave, too, for `Recording.output` and for patching it into
    another run (`edit`). Queries and keys are copied in the dtype the kernel read, `nbytes` of the recording says how
    much that came to; the model itself is not kept alive. Watching may be nested.

    `values` keeps the values too, for maps weighted by what a head moves; `gradients` keeps, besides those, the
    gradient by every call's output, once the model has run backwards, for maps of gradient x attention.

    Two exceptions to "nothing changes", both in `seen.notes` when they happened: a compiled model runs uncompiled,
    and nn.MultiheadAttention leaves its inference kernel; outputs then move in the last digits.
    """
    if not isinstance(model, nn.Module):
        raise WatchError(f"watch() expects the torch.nn.Module that will run, got a {type(model).__name__}")
    recorder = Recorder(Recording(), layers, heads, outputs)
    recorder.values, recorder.gradients = values or gradients, gradients
    with standing_beside(model, recorder, recorder.keep):
        yield recorder.recording


@contextlib.contextmanager
def standing_beside(model: nn.Module, recorder: "Recorder", report: Report) -> Iterator[None]:
    """Tell `report` of every attention call of `model` while the body runs; `recorder` knows which module is running.

    What `watch` and `edit` have in common: one reports to a recorder, the other to an editor.
    """
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if not _is_leaf_of_torch(module):
                stack.enter_context(recorder.following(name, module))
        if stack.enter_context(uncompiled()) and any(map(_is_compiled, model.modules())):
            recorder.recording.note("the compiled model ran uncompiled while it was watched")
        recorder.mode = stack.enter_context(FusedCalls(report))
        yield


class Recorder:
    """Knows which module is running, and turns each sighting into a `Call` of the right layer."""

    def __init__(
        self,
        recording: Recording,
        layers: Sequence[int | str] | None = None,
        heads: Sequence[int] | None = None,
        outputs: bool = False,
    ) -> None:
        self.recording, self.layers, self.heads, self.outputs = recording, layers, heads, outputs
        self.values = self.gradients = False
        self.thread = threading.get_ident()
        self.running: list[str] = []  # names of the modules whose forward is running, outermost first
        self.times: dict[str, int] = {}  # fused calls of each module since the outermost forward began
        self.last_rule: tuple[Tensor, int, tuple[int, ...], Rule] | None = None
        self.mode: FusedCalls | None = None
        self.also_backward = False  # report layers, too, that activation checkpointing runs again during backward
        self.again = contextlib.ExitStack()  # what is open while one of those runs

    @contextlib.contextmanager
    def following(self, name: str, module: nn.Module) -> Iterator[None]:
        """Know while `module` runs, by hooks that are gone afterwards."""
        if isinstance(module, torch.jit.ScriptModule):
            self.recording.note(f"{name or 'the model'} is TorchScript, which runs out of sight: watch its original")
            yield
            return
        name = name.replace("_orig_mod.", "").removesuffix("_orig_mod")  # torch.compile's wrapper
        suspect = isinstance(module, nn.MultiheadAttention) or bool(
            LOOKS_LIKE_ATTENTION.search(type(module).__name__) or NAMED_LIKE_ATTENTION.search(name.rpartition(".")[2])
        )

        def begins(module: nn.Module, inputs: Any) -> None:
            if threading.get_ident() != self.thread:
                if suspect:
                    self.recording.ran[name] = Ran(type(module).__name__, "it ran in another thread than watch()")
                return
            if not self.running:
                self.times.clear()
                self.re_enter()
            self.running.append(name)
            if suspect and name not in self.recording.ran:
                self.recording.ran[name] = Ran(type(module).__name__, _why_unseen(module))

        def ends(module: nn.Module, inputs: Any, output: Any) -> None:
            if threading.get_ident() == self.thread and name in self.running:
                while self.running.pop() != name:  # a module that was left by an exception
                    pass
                if not self.running:
                    self.again.close()

        hooks = [
            module.register_forward_pre_hook(begins, prepend=True),
            module.register_forward_hook(ends, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def re_enter(self) -> None:
        """Open the function mode for a layer that runs again during backward, where torch turns modes off."""
        if not self.also_backward or self.mode is None or torch._C._current_graph_task_id() == -1:
            return
        if self.mode not in torch.overrides._get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            self.again.enter_context(self.mode)

    def keep(self, sighting: Sighting) -> None:
        """Copy what a fused call was given, into the layer it belongs to."""
        if not self.running:
            self.recording.outside += 1
            return
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing runs a layer again during backward: already seen
        index, name = self.place(sighting)
        if self.layers is not None and not any(asked(want, index, name) for want in self.layers):
            self.recording.skipped.add(index)
            return
        if (reason := not_plain(sighting.q)) is not None:
            self.recording.refused[name] = reason
            return
        try:
            call = self.copy(sighting)
        except RuntimeError as error:  # of torch, memory included: the model's own run goes on
            self.recording.refused[name] = f"it could not be copied: {error}"
            return
        self.recording.calls.setdefault(index, []).append(call)
        if self.gradients and sighting.out is not None and sighting.out.requires_grad:
            sighting.out.register_hook(partial(_keep_gradient, call))  # type: ignore[no-untyped-call]  # torch's

    def place(self, sighting: Sighting) -> tuple[int, str]:
        """Return the number and the name of the layer that a sighting belongs to: the module that is running."""
        if sighting.fast_path_lost:
            self.recording.note("nn.MultiheadAttention ran in its Python form, not in its inference kernel")
        name = self.running[-1]
        nth = self.times[name] = self.times.get(name, 0) + 1
        name = name if nth == 1 else f"{name}#{nth}"  # one module that attends more than once in a forward
        return self.recording.index(name), name

    @torch.no_grad()
    def copy(self, sighting: Sighting) -> Call:
        """Return the call with copies of its own: q and k are often views of one tensor with v, and get overwritten."""
        call = self.describe(sighting)
        dtype = dtype_in_kernel(sighting.q)
        call.q = call.q.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        call.k = call.k.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        if self.outputs and sighting.out is not None:
            out = four(sighting.out)
            out = out if len(call.heads) == call.n_heads else out[:, list(call.heads)]
            call.out = out.detach().clone(memory_format=torch.contiguous_format)
        return call

    def describe(self, sighting: Sighting) -> Call:
        """Return the call with the model's own tensors: good while the call lasts."""
        q, k, lse = four(sighting.q), four(sighting.k), sighting.lse
        batch, n_heads = max(q.shape[0], k.shape[0]), max(q.shape[1], k.shape[1])
        if k.shape[1] > 1 and k.stride(1) == 0:
            k = k[:, :1]  # one head, shown to all
        q, k = q.expand(batch, n_heads, -1, -1), k.expand(batch, -1, -1, -1)
        n_queries, n_kv_heads, n_keys = q.shape[2], k.shape[1], k.shape[2]
        group = n_heads // n_kv_heads
        heads = tuple(h for h in range(n_heads) if self.heads is None or h in self.heads)
        kv = sorted({h // group for h in heads})
        if lse is not None:
            lse = lse.reshape(batch, n_heads, -1)[..., :n_queries]
        v = self.copied_values(sighting.v, (batch, n_heads, n_kv_heads), heads, kv) if self.values else None
        sinks = None if sighting.sinks is None else sighting.sinks.detach().expand(-1, n_heads, -1)[:, list(heads)]
        if len(heads) < n_heads:  # on a GPU, picking by a list waits for it
            q, k, lse = q[:, list(heads)], k[:, kv], None if lse is None else lse[:, list(heads)]
        return Call(
            q=q,
            k=k,
            rule=self.rule(sighting, (batch, n_heads, n_queries, n_keys), dtype_in_kernel(sighting.q)),
            scale=q.shape[-1] ** -0.5 if sighting.scale is None else sighting.scale,
            heads=heads,
            kv_of=tuple(kv.index(h // group) for h in heads),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            lse=lse,
            dropout=sighting.dropout,
            v=v,
            softcap=sighting.softcap,
            sinks=sinks,
        )

    def copied_values(
        self, v: Tensor | None, sizes: tuple[int, int, int], heads: Sequence[int], kv: list[int]
    ) -> Tensor | None:
        """Return a copy of the values: as many rows as `kv` has, or where a model has more, one for each of `heads`."""
        if v is None:
            return None
        batch, n_heads, n_kv_heads = sizes
        dtype, v = dtype_in_kernel(v), four(v)
        shared = v.shape[1] in (1, n_kv_heads)
        v = v.expand(batch, n_kv_heads if shared else n_heads, -1, -1)[:, kv if shared else list(heads)]
        return v.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)

    def rule(self, sighting: Sighting, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Rule:
        """Return the call's rule, the very object of the layer before if that was given the same mask."""
        if sighting.rule is not None:
            return sighting.rule
        given, lead = sighting.mask, sighting.q.shape[:-2]
        if given is None:
            return recognise(None, sighting.is_causal, shape)
        version = -1 if given.is_inference() else given._version
        if self.last_rule is not None:
            last, last_version, last_shape, rule = self.last_rule
            if last is given and last_version == version != -1 and last_shape == shape:
                return rule
        mask = four(given.expand(*lead, *given.shape[-2:])) if given.ndim > 4 else given
        rule = recognise(mask if mask.dtype == torch.bool else mask.to(dtype), sighting.is_causal, shape)
        self.last_rule = (given, version, shape, rule)
        return rule


def _keep_gradient(call: Call, gradient: Tensor) -> None:
    kept = four(gradient.detach())
    if len(call.heads) < call.n_heads:
        kept = kept[:, list(call.heads)]
    call.gradient = kept.to(call.q.dtype, copy=True, memory_format=torch.contiguous_format)


def four(x: Tensor) -> Tensor:
    """Return `x` as (batch, heads, time, d_head): of three axes the first are heads, of five the first two texts."""
    return x.flatten(0, -4) if x.ndim > 4 else x[(None,) * (4 - x.ndim)]


def dtype_in_kernel(q: Tensor) -> torch.dtype:
    """Return the dtype the kernel read: autocast lowers it after the call was seen."""
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        return torch.get_autocast_dtype(q.device.type)
    return q.dtype


def asked(want: int | str, index: int, name: str) -> bool:
    """Say whether `want`, a number or a pattern of names, means this layer."""
    return fnmatchcase(name, want) if isinstance(want, str) else want == index


def not_plain(q: Tensor) -> str | None:
    """Say why a call cannot be recorded, or None."""
    if q.is_nested:
        return "its queries came as nested tensors, which are not recorded yet"
    if type(q) not in (Tensor, nn.Parameter):
        return f"its queries came as {type(q).__name__}, not as plain tensors"
    if torch._C._functorch.is_functorch_wrapped_tensor(q):
        return "it ran inside torch.func (vmap, grad): watch the plain call"
    return None


def _is_leaf_of_torch(module: nn.Module) -> bool:
    """Say whether `module` is one of torch's own that cannot hold attention: Linear, LayerNorm, Dropout, ..."""
    return type(module).__module__.startswith("torch.nn.modules") and next(module.children(), None) is None


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _why_unseen(module: nn.Module) -> str:
    """Say what is likely, should nothing be seen inside a module that looks like attention."""
    if isinstance(module, nn.MultiheadAttention):
        return "torch computes weights by hand when asked for them: call it with need_weights=False"
    chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if isinstance(chosen, str) and chosen != "sdpa":
        return f'its model was loaded with attn_implementation="{chosen}": load it with "sdpa"'
    return "it ran, but made no F.scaled_dot_product_attention call: attention by hand, or by another kernel"
