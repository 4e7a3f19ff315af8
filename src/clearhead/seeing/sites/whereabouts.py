"""Which module is running, so that every attention call gets the name of the module that made it.

Hooks, there for the duration, say where a forward pass is. A module that looks like attention and ran is remembered, so
that whatever was not seen can be named. Next: `recorder.py`, which keeps what is seen, and `fused.py`, where.
"""

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.seeing.recordings.recording import Ran, Recording
from clearhead.seeing.sites.compiled import compiled
from clearhead.seeing.sites.compiler import plain_name
from clearhead.seeing.sites.flash import flash_attention
from clearhead.seeing.sites.fused import FusedCalls
from clearhead.seeing.sites.interface import asked_of_interface
from clearhead.seeing.sites.sighting import Report, Sighting
from clearhead.seeing.sites.trials import Trial, is_leaf_of_torch
from clearhead.seeing.sites.uncompiled import uncompiled

LOOKS_LIKE_ATTENTION = re.compile(r"(?i)attention|attn")
NAMED_LIKE_ATTENTION = re.compile(r"(?i)(^|_)(attn|attention)\d*$")  # self_attn, attention, attn1; not attention_norm
HOW_MANY_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "heads", "nhead")
NOT_NESTED = (
    "nn.TransformerEncoder ran without nested tensors: padded positions of its output, which they leave 0, hold numbers"
)
UNSEEN = "it ran, but made no attention that can be seen: none with a softmax over keys, or by a kernel unknown here"


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


class Whereabouts:
    """Knows which module is running, and how often each has attended."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.thread = threading.get_ident()
        self.running: list[str] = []  # names of the modules whose forward is running, outermost first
        self.inputs: list[tuple[nn.Module, Any, Any]] = []  # what each of them was given
        self.times: dict[str, int] = {}  # fused calls of each module since the outermost forward began
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

        begins = Hook(lambda module, inputs, named: self.begins(name, module, inputs, named))
        ends = Hook(lambda module, inputs, output: self.ends(name, output))
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

    def begins(self, name: str, module: nn.Module, inputs: Any, named: Any) -> None:
        """Know that the forward of `module` begins."""
        if threading.get_ident() != self.thread:
            self.meet(name, type(module), "it ran in another thread than watch()")
            return
        if not self.running:
            self.times.clear()
            self.recording.n_forwards += 1
            self.re_enter()
        self.running.append(name)
        self.inputs.append((module, inputs, named))
        if isinstance(module, nn.TransformerEncoder) and in_nested_tensors(module, *inputs, **named):
            self.recording.note(NOT_NESTED)
        if name not in self.recording.ran:
            self.meet(name, type(module), UNSEEN)
            if name in self.recording.ran and self.mode is not None:
                self.mode.trials.append(Trial(name, inputs, named))

    def ends(self, name: str, output: Any = None) -> None:
        """Know that it has ended, and where it cannot have been attention, forget that it was named like that."""
        if threading.get_ident() == self.thread and name in self.running:
            while self.running.pop() != name:  # a module that was left by an exception
                pass
            del self.inputs[len(self.running) :]
            if self.mode is not None and self.mode.trials:
                if any(trial.name == name and trial.cleared(output) for trial in self.mode.trials):
                    del self.recording.ran[name]
                self.mode.trials = [trial for trial in self.mode.trials if trial.name in self.running]
            if not self.running:
                self.again.close()

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

    def meet(self, name: str, kind: type[nn.Module], likely: str = UNSEEN) -> None:
        """Remember a module that ran, if it looks like attention, and what to say should nothing be seen inside it."""
        if (
            issubclass(kind, nn.MultiheadAttention)
            or LOOKS_LIKE_ATTENTION.search(kind.__name__)
            or NAMED_LIKE_ATTENTION.search(name.rpartition(".")[2])
        ):
            self.recording.ran[name] = Ran(kind.__name__, likely)

    def re_enter(self) -> None:
        """Open the function mode for a layer that runs again during backward, where torch turns modes off."""
        if not self.also_backward or self.mode is None or torch._C._current_graph_task_id() == -1:
            return
        if self.mode not in torch.overrides._get_current_function_mode_stack():  # type: ignore[no-untyped-call]
            self.again.enter_context(self.mode)

    def refuse(self, reason: str) -> None:
        """Say why a call of the running module is not recorded."""
        if self.running and torch._C._current_graph_task_id() == -1:
            name = self.count()[1]
            if self.recording.refused.get(self.running[-1]) != reason:  # a loop over heads is refused once
                self.recording.refused[name] = reason

    def split(self, n: int) -> tuple[int, int]:
        """Return how many texts and how many heads the running module has put on one axis, `n` long.

        By the number of heads that it says it has, where that leaves the texts it was given; else by those texts.
        """
        module, inputs, named = self.inputs[-1] if self.inputs else (None, (), {})
        given = next((x for x in (*inputs, *named.values()) if isinstance(x, Tensor) and x.ndim > 2), None)
        if given is None:
            return 1, n
        for name in HOW_MANY_HEADS:
            heads = getattr(module, name, None)
            if isinstance(heads, int) and heads > 0 and n % heads == 0 and n // heads in given.shape[:2]:
                return n // heads, heads
        return (given.shape[0], n // given.shape[0]) if n % given.shape[0] == 0 else (1, n)

    def place(self, sighting: Sighting) -> tuple[int, str]:
        """Return the number and the name of the layer that a sighting belongs to: the module that is running."""
        if sighting.fast_path_lost:
            self.recording.note("nn.MultiheadAttention ran in its Python form, not in its inference kernel")
        return self.count()

    def count(self) -> tuple[int, str]:
        """Return the number and the name of the next call of the running module."""
        name = self.running[-1]
        nth = self.times[name] = self.times.get(name, 0) + 1
        name = name if nth == 1 else f"{name}#{nth}"  # one module that attends more than once in a forward
        return self.recording.index(name), name


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
        told = report, whereabouts.refuse, whereabouts.split, whereabouts.recording.note
        calls = FusedCalls(*told, gradients=whereabouts.also_backward)
        stack.enter_context(asked_of_interface(calls.through))
        stack.enter_context(flash_attention(calls.see_flash))
        whereabouts.mode = stack.enter_context(calls)
        yield
