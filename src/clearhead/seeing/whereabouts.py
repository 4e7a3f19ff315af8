"""Which module is running, so that every attention call gets the name of the module that made it.

Hooks, there for the duration, say where a forward pass is. A module that looks like attention and ran is remembered, so
that whatever was not seen can be named. Next: `recorder.py`, which keeps what is seen, and `sites.py`, where.
"""

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.seeing.flash import flash_attention
from clearhead.seeing.interface import asked_of_interface
from clearhead.seeing.recording import Ran, Recording
from clearhead.seeing.sighting import Report, Sighting
from clearhead.seeing.sites import FusedCalls, uncompiled

LOOKS_LIKE_ATTENTION = re.compile(r"(?i)attention|attn")
NAMED_LIKE_ATTENTION = re.compile(r"(?i)(^|_)(attn|attention)\d*$")  # self_attn, attention, attn1; not attention_norm
HOW_MANY_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head", "heads", "nhead")
UNSEEN = "it ran, but made no attention that can be seen: none with a softmax over keys, or by a kernel unknown here"


class Whereabouts:
    """Knows which module is running, and how often each has attended."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.thread = threading.get_ident()
        self.running: list[str] = []  # names of the modules whose forward is running, outermost first
        self.inputs: list[tuple[nn.Module, Any, Any]] = []  # what each of them was given
        self.times: dict[str, int] = {}  # fused calls of each module since the outermost forward began
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

        def begins(module: nn.Module, inputs: Any, named: Any) -> None:
            if threading.get_ident() != self.thread:
                if suspect:
                    self.recording.ran[name] = Ran(type(module).__name__, "it ran in another thread than watch()")
                return
            if not self.running:
                self.times.clear()
                self.recording.n_forwards += 1
                self.re_enter()
            self.running.append(name)
            self.inputs.append((module, inputs, named))
            if suspect and name not in self.recording.ran:
                self.recording.ran[name] = Ran(type(module).__name__, UNSEEN)

        def ends(module: nn.Module, inputs: Any, output: Any) -> None:
            if threading.get_ident() == self.thread and name in self.running:
                while self.running.pop() != name:  # a module that was left by an exception
                    pass
                del self.inputs[len(self.running) :]
                if not self.running:
                    self.again.close()

        hooks = [
            module.register_forward_pre_hook(begins, prepend=True, with_kwargs=True),
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

    def refuse(self, reason: str) -> None:
        """Say why a call of the running module is not recorded."""
        if self.running and torch._C._current_graph_task_id() == -1:
            self.recording.refused[self.count()[1]] = reason

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
        for name, module in model.named_modules():
            if not _is_leaf_of_torch(module):
                stack.enter_context(whereabouts.following(name, module))
        if stack.enter_context(uncompiled()) and any(map(_is_compiled, model.modules())):
            whereabouts.recording.note("the compiled model ran uncompiled while it was watched")
        told = report, whereabouts.refuse, whereabouts.split, whereabouts.recording.note
        calls = FusedCalls(*told, gradients=whereabouts.also_backward)
        stack.enter_context(asked_of_interface(calls.through))
        stack.enter_context(flash_attention(calls.see_flash))
        whereabouts.mode = stack.enter_context(calls)
        yield


def _is_leaf_of_torch(module: nn.Module) -> bool:
    """Say whether `module` is one of torch's own that cannot hold attention: Linear, LayerNorm, Dropout, ..."""
    return type(module).__module__.startswith("torch.nn.modules") and next(module.children(), None) is None


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
