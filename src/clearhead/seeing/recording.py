"""What `watch` brings back: every attention call of the run in few numbers, and exact maps, computed when asked for.

A layer is a place in the model where attention happened, numbered in the order of first use; each forward adds one
call to it. Positions count from 0, heads as in the model. Next: `questions.py`, what can be asked of it.
"""

from dataclasses import dataclass

import torch

from clearhead.errors import WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.questions import Questions

FEW = 3  # layers that an error message names


@dataclass(frozen=True)
class Layer:
    """One place in the model where attention happened; sizes are those of its last call."""

    index: int
    name: str
    calls: int
    batch: int
    n_heads: int
    n_kv_heads: int
    n_queries: int
    n_keys: int
    dtype: torch.dtype
    nbytes: int  # of all its calls


@dataclass(frozen=True)
class Ran:
    """A module that looks like attention and ran: its class, and what to say should nothing be seen inside it."""

    kind: str
    likely: str


@dataclass(frozen=True)
class Unseen:
    """Attention that ran and is not in the recording, and why."""

    name: str
    kind: str
    reason: str


class Recording(Questions):
    """The attention of one or several forward passes; made by `watch`, which fills it while its body runs."""

    def __init__(self) -> None:
        self.names: list[str] = []  # of layers, by index
        self.calls: dict[int, list[Call]] = {}
        self.skipped: set[int] = set()  # layers that `layers=` left out
        self.ran: dict[str, Ran] = {}
        self.refused: dict[str, str] = {}
        self.outside = 0  # fused calls from outside the watched model
        self.notes: list[str] = []  # what watching changed or could not do, if anything

    def index(self, name: str) -> int:
        """Return the number of the layer called `name`, a new one where it was not met before."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def note(self, what: str) -> None:
        """Say once what watching changed or could not do."""
        if what not in self.notes:
            self.notes.append(what)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Return what was recorded, in order; raises WatchError, saying what was not seen, if that is nothing."""
        if not self.calls:
            raise WatchError(f"no attention was recorded: {self._why_empty()}")
        return tuple(self._layer(index) for index in sorted(self.calls))

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """Return the modules that look like attention and ran, but whose attention is not in here, and why."""
        seen = {name.partition("#")[0] for name in self.names if name not in self.refused}
        found = []
        for name, ran in self.ran.items():
            above = [name[:i] for i, letter in enumerate(name) if letter == "."]
            inside = name + "."
            if name in seen or any(s.startswith(inside) or not name for s in seen):
                continue  # seen, or made of something seen
            if any(other.startswith(inside) for other in self.ran) or any(a in seen and a in self.ran for a in above):
                continue  # the attention is a module inside, or this is a helper of one that was seen
            found.append(Unseen(name, ran.kind, self.refused.get(name, ran.likely)))
        found += [Unseen(name, "", why) for name, why in self.refused.items() if name not in self.ran]
        if self.outside:
            found.append(Unseen("", "", f"{self.outside} fused calls came from outside the watched model"))
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Return the memory the recording takes; masks that layers share are counted once."""
        calls = [call for calls in self.calls.values() for call in calls]
        rules = {id(call.rule): call.rule.nbytes for call in calls}
        return sum(call.nbytes for call in calls) + sum(rules.values())

    def call(self, layer: int | str, call: int = -1) -> Call:
        """Return one call of a layer as it was recorded."""
        calls = self.calls[self.number(layer)]
        if not -len(calls) <= call < len(calls):
            raise WatchError(f"layer {layer!r} was called {len(calls)} times: there is no call {call}")
        return calls[call]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the recorded layers, in order."""
        return tuple(layer.index for layer in self.layers)

    def number(self, layer: int | str) -> int:
        """Return the number of a layer given by number or name; raises WatchError, saying what there is."""
        if isinstance(layer, int) and layer in self.calls:
            return layer
        layers = {one.index: one.name for one in self.layers}
        for index, name in layers.items():
            if layer in (index, name):
                return index
        known = [f"{index} {name!r}" for index, name in layers.items()]
        first, last = min(layers), max(layers)
        if len(layers) <= FEW:
            which = ", ".join(known)
        elif isinstance(layer, str):
            which = f"{len(layers)} layers, {known[0]} to {known[-1]}"
        elif last - first == len(layers) - 1:
            which = f"{len(layers)} layers, {first} to {last}"
        else:
            which = f"{len(layers)} layers: {', '.join(map(str, layers))}"
        raise WatchError(f"layer {layer!r} is not in this recording, which has {which}")

    def _layer(self, index: int) -> Layer:
        calls = self.calls[index]
        last = calls[-1]
        return Layer(
            index=index,
            name=self.names[index],
            calls=len(calls),
            batch=last.batch,
            n_heads=last.n_heads,
            n_kv_heads=last.n_kv_heads,
            n_queries=last.n_queries,
            n_keys=last.n_keys,
            dtype=last.q.dtype,
            nbytes=sum(call.nbytes for call in calls),
        )

    def _why_empty(self) -> str:
        if self.unseen:
            first = [f"{u.name or 'elsewhere'} ({u.kind}): {u.reason}" for u in self.unseen[:3]]
            more = f", and {len(self.unseen) - 3} more in .unseen" if len(self.unseen) > 3 else ""
            return "; ".join(first) + more
        if self.skipped:
            return f"layers= left out all of {', '.join(self.names)}"
        return "; ".join(self.notes) or "no module that looks like attention ran; run the model inside the with block"
