"""Which module is running, so that every attention call gets the name of the module that made it.

Hooks, registered for as long as somebody watches, tell of the beginning and the end of every module's forward.
`frames.py` keeps account of them, so that attention that was not seen can be named. Next: `recorder.py`, which keeps
what is seen, and `fused.py`, where it is seen.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.seeing.recordings.recording import Recording
from clearhead.seeing.sites.compiled import compiled
from clearhead.seeing.sites.compiler import plain_name
from clearhead.seeing.sites.flash import flash_attention
from clearhead.seeing.sites.frames import Frame, Frames, looks_like_attention
from clearhead.seeing.sites.fused import FusedCalls
from clearhead.seeing.sites.inference_kernel import would_run
from clearhead.seeing.sites.interface import asked_of_interface
from clearhead.seeing.sites.sighting import Report
from clearhead.seeing.sites.told import Arguments, CacheLengths
from clearhead.seeing.sites.trials import is_leaf_of_torch
from clearhead.seeing.sites.uncompiled import uncompiled

HOW_MANY_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "heads", "nhead")
NOT_NESTED = (
    "nn.TransformerEncoder ran without nested tensors: padded positions of its output, which they leave 0, hold numbers"
)
PYTHON_FORM = "nn.MultiheadAttention ran in its Python form, not in its inference kernel"
ANOTHER_THREAD = "it ran in another thread than the one that watches"
BACKWARD_THREADS = (
    "activation checkpointing ran layers again in several threads at once, where edits do not reach all of them: "
    "gradients are not those of the edited model"
)
TENSOR_PARALLEL = (
    "layers are split over {} processes (tensor parallelism): heads are those of this process, numbered from 0 in each"
)
MAY_LEAVE_A_KERNEL = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)


class Hook:
    """A hook of ours, which a copy or a file of the model does not take along: there it does nothing."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __call__(self, *given: Any) -> None:
        """Tell of a module that begins or ends."""
        self.call(*given)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Be a hook that does nothing."""
        return Hook, (nobody,)


def nobody(*_: Any) -> None:
    """Tell nobody."""


def in_nested_tensors(
    encoder: nn.TransformerEncoder, src: Any, mask: Any = None, src_key_padding_mask: Any = None, *_: Any, **__: Any
) -> bool:
    """Say whether torch would have left padding out, had nobody watched."""
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters())
    return src_key_padding_mask is not None and encoder.use_nested_tensor and not (encoder.training or learns)


@dataclass(frozen=True)
class Hooks:
    """The hooks of a followed module, which can be taken from it and put back: faster than torch registers them."""

    begins: Callable[..., None]
    ends: Callable[..., None]
    first: int  # by what number torch knows them
    last: int

    def take_from(self, module: nn.Module) -> None:
        """Take them away."""
        for hooks in (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs):
            hooks.pop(self.first, None)  # somebody may have taken all hooks away
        for hooks in (module._forward_hooks, module._forward_hooks_always_called):
            hooks.pop(self.last, None)

    def put_on(self, module: nn.Module) -> None:
        """Put them back where they were: before all others, and after them."""
        module._forward_pre_hooks[self.first] = self.begins
        module._forward_pre_hooks.move_to_end(self.first, last=False)  # type: ignore[attr-defined]  # it is ordered
        module._forward_pre_hooks_with_kwargs[self.first] = True
        module._forward_hooks[self.last] = self.ends
        module._forward_hooks_always_called[self.last] = True


class Elsewhere(threading.local):
    """How many modules are running in a thread that does not watch."""

    depth = 0


class Whereabouts:
    """Knows which module is running, and how often each has attended."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.thread = threading.get_ident()
        self.frames = Frames(recording.account)
        self.caches = CacheLengths()  # what the caches among the arguments had read when the forward began
        self.elsewhere = Elsewhere()
        self.hooks: dict[nn.Module, Hooks] = {}
        self.scripted: list[str] = []  # modules in TorchScript, a dot behind their names
        self.mode: FusedCalls | None = None
        self.not_in_graphs: str | None = None  # why calls cannot be told of from within compiled graphs
        self.also_backward = False  # report layers, too, that activation checkpointing runs again during backward
        self.again = contextlib.ExitStack()  # what is open while one of those runs

    @contextlib.contextmanager
    def following(self, name: str, module: nn.Module) -> Iterator[None]:
        """Know while `module` runs, by hooks that are gone afterwards."""
        if isinstance(module, torch.jit.ScriptModule):
            if not any(f"{name}.".startswith(outer) for outer in self.scripted):
                self.scripted.append(f"{name}." if name else "")
                self.recording.note(
                    f"{name or 'the model'} is TorchScript, which runs out of sight: watch its original"
                )
            yield
            return
        name = plain_name(name)

        looks = looks_like_attention(name, type(module))
        begins, ends = Hook(partial(self.begins, name, looks)), Hook(partial(self.ends, name))
        hooks = self.hooks[module] = Hooks(
            begins,
            ends,
            module.register_forward_pre_hook(begins, prepend=True, with_kwargs=True).id,
            module.register_forward_hook(ends, always_call=True).id,
        )
        try:
            yield
        finally:
            hooks.take_from(module)

    def begins(self, name: str, looks: bool, module: nn.Module, inputs: Any, named: Any) -> None:
        """Know that the forward of `module` begins, which `looks` like attention or does not."""
        if threading.get_ident() != self.thread and not self.follows_backward():
            self.begins_elsewhere(name, module)
            return
        if not self.frames.running:
            self.starts()
        self.frames.push(Frame(name, module, inputs, named, looks))
        if named or len(inputs) > 1:
            self.caches.look(inputs, named)
        if isinstance(module, MAY_LEAVE_A_KERNEL):
            self.note_kernels(module, inputs, named)

    def ends(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Know that it has ended."""
        if threading.get_ident() != self.thread:
            self.elsewhere.depth -= 1
            return
        self.frames.pop(name, output)
        if not self.frames.running:
            self.again.close()
            self.caches.known.clear()  # caches are not kept alive

    def starts(self) -> None:
        """Know that a forward of the model begins, or that backward runs a part of it again."""
        self.frames.calls.clear()
        self.caches.known.clear()
        self.frames.again = torch._C._current_graph_task_id() != -1
        if self.frames.again:
            self.re_enter()
            return
        self.frames.forward = self.recording.n_forwards
        self.recording.n_forwards += 1

    def follows_backward(self) -> bool:
        """Follow backward into another thread, where it runs for a GPU, for as long as it runs a layer again there."""
        if not self.also_backward or self.frames.running or torch._C._current_graph_task_id() == -1:
            return False
        self.again.callback(setattr, self, "thread", self.thread)
        self.thread = threading.get_ident()
        return True

    def begins_elsewhere(self, name: str, module: nn.Module) -> None:
        """Name what runs in another thread; not each module inside it."""
        self.elsewhere.depth += 1
        if self.elsewhere.depth > 1:
            return
        if torch._C._current_graph_task_id() == -1:
            self.recording.account.miss(name, type(module).__name__, ANOTHER_THREAD, None)
        elif self.also_backward:
            self.recording.note(BACKWARD_THREADS)

    def note_kernels(self, module: nn.Module, inputs: Any, named: Any) -> None:
        """Say where torch would have run another kernel, had nobody watched."""
        if isinstance(module, nn.TransformerEncoder):
            if in_nested_tensors(module, *inputs, **named):
                self.recording.note(NOT_NESTED)
        elif would_run(module, *inputs, **named):
            self.recording.note(PYTHON_FORM)

    @contextlib.contextmanager
    def unhooked(self, module: nn.Module) -> Iterator[None]:
        """Leave `module` and all in it without hooks while the body runs: a graph would be traced through them."""
        hooked = [(one, self.hooks[one]) for one in module.modules() if one in self.hooks]
        for one, hooks in hooked:
            hooks.take_from(one)
        try:
            yield
        finally:
            for one, hooks in hooked:
                hooks.put_on(one)

    def re_enter(self) -> None:
        """Open the function mode for a layer that runs again during backward, where torch turns modes off."""
        if not self.also_backward or self.mode is None:
            return
        if self.mode not in torch.overrides._get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            self.again.enter_context(self.mode)

    def refuse(self, reason: str) -> None:
        """Say why a call of the running module is not recorded."""
        if self.frames.running and not self.frames.again:
            self.count()
            self.frames.refuse(reason)

    def split(self, n: int) -> tuple[int, int]:
        """Return how many texts and how many heads the running module has put on one axis, `n` long.

        By the number of heads that it says it has, where that leaves the texts it was given; else by those texts.
        """
        frame = self.frames.running[-1] if self.frames.running else Frame("", None)
        given = next(
            (x for x in (*frame.inputs, *(frame.named or {}).values()) if isinstance(x, Tensor) and x.ndim > 2), None
        )
        if given is None:
            return 1, n
        for name in HOW_MANY_HEADS:
            heads = getattr(frame.module, name, None)
            if isinstance(heads, int) and heads > 0 and n % heads == 0 and n // heads in given.shape[:2]:
                return n // heads, heads
        return (given.shape[0], n // given.shape[0]) if n % given.shape[0] == 0 else (1, n)

    @property
    def arguments(self) -> Arguments:
        """Return the arguments of the modules that are running."""
        return Arguments(self.frames.running, self.caches)

    def count(self) -> tuple[int, str]:
        """Return the number and the name of the next call of the running module."""
        name, known = self.frames.attend(), len(self.recording.names)
        index = self.recording.index(name)
        if index == known and (n := processes_of(self.frames.running[-1].module)) > 1:
            self.recording.note(TENSOR_PARALLEL.format(n))
        return index, name


def processes_of(module: nn.Module | None) -> int:
    """Return over how many processes tensor parallelism has split the parameters of a running module."""
    tensors: Any = sys.modules.get("torch.distributed.tensor")
    if tensors is None or module is None:
        return 1
    split = (p.device_mesh.size() for p in module.parameters() if isinstance(p, tensors.DTensor) and is_split(p))
    return max(split, default=1)


def is_split(parameter: Any) -> bool:
    """Say whether each process holds another part of a distributed parameter."""
    return any(placement.is_shard() for placement in parameter.placements)


@contextlib.contextmanager
def standing_beside(model: nn.Module, whereabouts: Whereabouts, report: Report) -> Iterator[None]:
    """Tell `report` of every attention call of `model` while the body runs, and `whereabouts` which module is running.

    What `watch` and `edit` have in common: one reports to a recorder, the other to an editor.
    """
    with contextlib.ExitStack() as stack:
        regions = stack.enter_context(compiled(model, whereabouts, report))
        for name, module in model.named_modules():
            if not is_leaf_of_torch(module) and module not in regions:
                stack.enter_context(whereabouts.following(name, module))
        stack.enter_context(uncompiled(model, whereabouts.recording.note))
        told = report, whereabouts.refuse, whereabouts.split, whereabouts.recording.note, whereabouts.frames.trials
        calls = FusedCalls(*told, gradients=whereabouts.also_backward)
        stack.enter_context(asked_of_interface(calls.through))
        stack.enter_context(flash_attention(calls.see_flash))
        whereabouts.mode = stack.enter_context(calls)
        yield
