"""What ran and was not seen, by module, reason and forward: what `Recording.unseen` is made of.

Two kinds of events come here. A call of attention that was met and could not be recorded is a refusal, with its
reason. The forward of a module that should have attended, by its name or because it did in other forwards, but made no
call that could be seen, is a loss. Neither hides the other, and neither is hidden by what was seen of the same module
before or after. Next: `recording.py`; `sites/frames.py` decides what is a loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from clearhead.errors import counted


@dataclass(frozen=True)
class Unseen:
    """Attention that ran and is not in the recording, and why.

    name:       of the module; with `#2`, its second call of attention in a forward.
    kind:       the class of that module.
    times:      how often it happened.
    forwards:   in which forwards of the model, in order; none where it ran outside of them, as in another thread.
    n_forwards: how many forwards of the model there were.
    """

    name: str
    kind: str
    reason: str
    times: int = 1
    forwards: tuple[int, ...] = ()
    n_forwards: int = 1

    def __repr__(self) -> str:
        return f"<Unseen {self}>"

    @property
    def how_often(self) -> str:
        """Return how often, and in which forwards, in words; empty where that was once in every forward."""
        n = len(self.forwards)
        often = [] if self.times == n or self.times == 1 else [counted(self.times, "time")]
        if n and n < self.n_forwards:
            often.append(f"in forward{'s' if n > 1 else ''} {spans(self.forwards)} of {self.n_forwards}")
        return " ".join(often)

    def __str__(self) -> str:
        where = f"{self.name or 'the watched model'} ({self.kind})" if self.kind else self.name
        often = f" ({self.how_often})" if self.how_often else ""
        return ": ".join(filter(None, (where, f"{self.reason}{often}")))


@dataclass
class Missed:
    """One reason why attention of one module was not recorded, and when.

    calls: which calls of attention of the module in a forward these were, counted from 1; none for a whole forward.
    """

    kind: str
    times: int = 0
    forwards: list[int] = field(default_factory=list)
    calls: set[int] = field(default_factory=set)


class Account:
    """What ran and was not seen."""

    def __init__(self) -> None:
        self.missed: dict[tuple[str, str], Missed] = {}  # by module name and reason
        self.ran: dict[str, int] = {}  # modules that are called attention, or attended, in the order of their first run
        self.outside = 0  # fused calls from outside the watched model

    def miss(self, name: str, kind: str, reason: str, forward: int | None, call: int | None = None) -> None:
        """Note that attention of the module `name` was not recorded.

        Args:
            name: of the module.
            kind: its class.
            reason: why, as the user will read it.
            forward: the number of the model's forward, from 0; None outside of any.
            call: which call of attention of this module in this forward it was, from 1; None for the whole forward.
        """
        entry = self.missed.setdefault((name, reason), Missed(kind))
        entry.times += 1
        if forward is not None and entry.forwards[-1:] != [forward]:
            entry.forwards.append(forward)
        if call is not None:
            entry.calls.add(call)

    def unseen(self, n_forwards: int) -> tuple[Unseen, ...]:
        """Return what was not seen, once for each module and reason, in the order in which the modules first ran."""
        found = []
        for (name, reason), entry in sorted(
            self.missed.items(), key=lambda one: self.ran.get(one[0][0], len(self.ran))
        ):
            only = max(entry.calls) if len(entry.calls) == 1 else 1
            name = f"{name}#{only}" if only > 1 else name
            found.append(Unseen(name, entry.kind, reason, entry.times, tuple(entry.forwards), n_forwards))
        if self.outside:
            reason = f"{counted(self.outside, 'fused call')} came from outside the watched model"
            found.append(Unseen("", "", reason, self.outside))
        return tuple(found)


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers in words: `0, 2 to 5 and 9`."""
    starts = [0, *(i + 1 for i, (one, after) in enumerate(pairwise(numbers)) if after != one + 1)]
    runs = [numbers[start:stop] for start, stop in zip(starts, [*starts[1:], len(numbers)])]
    said: list[str] = []
    for run in runs:
        said += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
    return " and ".join(filter(None, (", ".join(said[:-1]), said[-1])))
