"""Which modules are running, and whether each of their forwards was accounted for.

A forward is accounted for if the module made a call of attention that was met (recorded, refused, or left out by
`layers=`), or if a module inside it did. Whether it should have made one is known from what the module is called, or
from its other forwards. If it should have and did not, that forward is a loss, and is named in `Recording.unseen`:
a custom operator, TorchScript, numpy or another thread may have attended in its place.

A loss is not final before the modules around it have ended. Where one of them, called attention itself, made a call
that was met, the module inside was its helper. Next: `whereabouts.py`.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from clearhead.seeing.recordings.account import Account
from clearhead.seeing.sites.trials import Trial

LOOKS_LIKE_ATTENTION = re.compile(r"(?i)attention|attn")
NAMED_LIKE_ATTENTION = re.compile(r"(?i)(^|_)(attn|attention)\d*$")  # self_attn, attention, attn1; not attention_norm
UNSEEN = "it ran, but made no attention that can be seen: none with a softmax over keys, or by a kernel unknown here"


@dataclass(eq=False, slots=True)
class Frame:
    """One forward of a module, while it runs.

    looks:     the module is called attention, by its class or by its own name.
    attended:  it made a call of attention that was met.
    accounted: it did, or a module inside it did, or a module inside it is a loss.
    handled:   the exception that was being handled when it began, if any.
    lost:      names and classes of the modules in it that are losses, unless a module around them made the call.
    """

    name: str
    module: nn.Module | None
    inputs: Any = ()
    named: Any = None
    looks: bool = False
    attended: bool = False
    accounted: bool = False
    trial: Trial | None = None
    handled: BaseException | None = None
    lost: tuple[tuple[str, str], ...] = ()


class Frames:
    """The stack of running modules, outermost first, of the thread that watches."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.running: list[Frame] = []
        self.trials: list[Trial] = []  # open ones; what follows the functions that run takes out those that end
        self.forward = -1  # number of the outermost forward
        self.again = False  # activation checkpointing runs a part of the model again: nothing of that is new
        self.attended: set[str] = set()  # modules that attended in some forward
        self.tried: set[str] = set()  # modules of which it is known that they may attend
        self.calls: dict[str, int] = {}  # calls of each module since the outermost forward began

    def push(self, frame: Frame) -> None:
        """Know that a forward begins."""
        frame.handled = sys.exception()
        if frame.looks and frame.name not in self.account.ran:
            self.account.ran[frame.name] = len(self.account.ran)
        if frame.looks and not self.again and frame.name not in self.tried:
            frame.trial = Trial(frame.inputs, frame.named)
            self.trials.append(frame.trial)
        self.running.append(frame)

    def pop(self, name: str, output: Any) -> None:
        """Know that the forward of the module `name` has ended, and decide whether it was a loss."""
        if not self.running or (self.running[-1].name != name and all(frame.name != name for frame in self.running)):
            return  # it began before anybody watched
        frame = self.running.pop()
        while frame.name != name:  # the modules above it were left by an exception that torch tells no hook of
            frame = self.running.pop()
        error = sys.exception()
        failed = error is not None and error is not frame.handled
        lost = frame.lost
        if frame.attended and frame.looks:
            self.tried.update(helper for helper, _ in lost)
            lost = ()
        elif not (frame.attended or failed or self.again or self.is_clear(frame, output)):
            lost = (*lost, (name, type(frame.module).__name__))
            self.tried.add(name)
        if frame.trial is not None:
            self.end_trial(frame)
        if self.running:
            above = self.running[-1]
            above.lost += lost
            above.accounted |= frame.accounted or bool(lost)
        else:
            for module, kind in lost:
                self.account.miss(module, kind, UNSEEN, self.forward)

    def is_clear(self, frame: Frame, output: Any) -> bool:
        """Say whether a module that made no call of attention need not have made one."""
        if frame.name in self.attended:
            return False
        if not frame.looks or frame.accounted:
            return True
        return frame.trial in self.trials and frame.trial.cleared(output)

    def end_trial(self, frame: Frame) -> None:
        """Look no longer at what a module does to its inputs."""
        if frame.trial in self.trials:
            self.trials.remove(frame.trial)

    def attend(self) -> str:
        """Note that the running module made a call of attention; return the name of the call, `#2` for its second."""
        frame = self.running[-1]
        frame.attended = True
        for one in self.running:
            one.accounted = True
        self.trials.clear()  # all are of modules around it, which are accounted for
        name = frame.name
        self.attended.add(name)
        self.tried.add(name)
        self.account.ran.setdefault(name, len(self.account.ran))
        nth = self.calls[name] = self.calls.get(name, 0) + 1
        return name if nth == 1 else f"{name}#{nth}"

    def refuse(self, reason: str) -> None:
        """Note that the call for which `attend` was asked last cannot be recorded."""
        frame = self.running[-1]
        kind = "" if frame.module is None else type(frame.module).__name__
        self.account.miss(frame.name, kind, reason, self.forward, self.calls[frame.name])

    def ran_in_graph(self, unseen: Mapping[str, str]) -> None:
        """Note the losses in a compiled graph that begins to run, which knows them itself: names and classes."""
        frame = self.running[-1]
        for name in unseen:
            self.account.ran.setdefault(name, len(self.account.ran))
        frame.looks, frame.lost = False, (*frame.lost, *unseen.items())
        frame.accounted |= bool(unseen)
        self.end_trial(frame)


def looks_like_attention(name: str, kind: type[nn.Module]) -> bool:
    """Say whether a module is called attention, by its class or by the last part of its name."""
    return bool(
        issubclass(kind, nn.MultiheadAttention)
        or LOOKS_LIKE_ATTENTION.search(kind.__name__)
        or NAMED_LIKE_ATTENTION.search(name.rpartition(".")[2])
    )
