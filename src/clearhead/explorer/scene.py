"""A `Scene`: one recording, with what its positions are and how it was made.

The recording holds the weights. The scene adds what a person needs beside them: the tokens or the picture, which layer
looks from which text at which, what the model answered, and which edits were in force. Next: `exploration.py`, which
answers questions about scenes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from clearhead.explorer.axes import Axis, numbered_axis
from clearhead.explorer.pictures import Picture
from clearhead.explorer.reading import Given, Prepared
from clearhead.seeing import Recording
from clearhead.seeing.call import Call
from clearhead.seeing.recordings.questions import CROSS


@dataclass(frozen=True)
class Origin:
    """How a scene was made, so that it can be made again.

    Attributes:
        model: The name of the model, "" where a recording was opened.
        text: The text, the name of the picture's file, or the path of the recording.
        kind: "text", "picture", "recording" or "" for a recording that is only in memory.
        target: What an encoder-decoder was told to write, None where it wrote it itself.
        max_new_tokens: How many tokens a decoder was asked to write after the text, None for none.
    """

    model: str = ""
    text: str = ""
    kind: str = ""
    target: str | None = None
    max_new_tokens: int | None = None


@dataclass(eq=False)
class Scene:
    """One recording and what it is of.

    Attributes:
        seen: The recording.
        axes: The texts or the picture that queries and keys are positions of; others are added as numbered axes.
        origin: How it was made.
        tokens: The ids of the one text, where known: duplicate-token and induction heads are told by them.
        answer: What the model said, as `meta` describes it.
        picture: The picture, where there is one.
        edits: The edits in force, as plain values.
        notes: What was left out or is not as it seems.
        model: The module that ran, where it is at hand; `given` what its layers were given, by their names.
        prepared: What the model was called with, where it is at hand: the scene can then be run again.
    """

    seen: Recording
    axes: list[Axis] = field(default_factory=list)
    origin: Origin = Origin()
    tokens: Tensor | None = None
    answer: dict[str, Any] | None = None
    picture: Picture | None = None
    edits: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    model: nn.Module | None = None
    given: dict[str, Given] = field(default_factory=dict)
    prepared: Prepared | None = None

    @classmethod
    def of(cls, seen: Recording, words: Sequence[str] | None = None, origin: Origin = Origin()) -> "Scene":
        """Return the scene of a recording alone; `words` name its positions, the recording's own where not given."""
        words = seen.words if words is None else words
        longest = max(layer.n_keys for layer in seen.layers)
        if words is not None:
            longest = min(longest, len(words))
        return cls(seen, [numbered_axis(longest, words)], origin)

    @property
    def title(self) -> str:
        """Return a line that names the scene."""
        return self.origin.text or repr(self.seen)

    @property
    def crosses(self) -> bool:
        """Return whether some layer looks from one text at another."""
        return any(CROSS.search(self.seen.name(layer)) for layer in self.seen.numbers)

    def part(self, layer: int) -> str:
        """Return "encoder", "decoder" or "cross" for a layer of an encoder-decoder, "" for one of another model."""
        name = self.seen.name(layer)
        if CROSS.search(name):
            return "cross"
        if not self.crosses:
            return ""
        return "decoder" if "decoder" in name.lower() else "encoder"

    def axes_of(self, layer: int, call: Call) -> tuple[int, int]:
        """Return the numbers of the axes that a layer's queries and keys are positions of."""
        part, names = self.part(layer), {axis.name: i for i, axis in enumerate(self.axes)}
        pair = {"encoder": ("source", "source"), "decoder": ("target", "target"), "cross": ("target", "source")}
        wanted = pair.get(part, ())
        if wanted and all(name in names for name in wanted):
            return names[wanted[0]], names[wanted[1]]
        first = self.first_query(layer, call)
        return self._axis(first + call.n_all), self._axis(call.n_keys)

    def first_query(self, layer: int, call: Call) -> int:
        """Return the position of a call's first query on its axis: later calls of a generation go on from the first."""
        return call.positions.first if self.seen.of_one_text(layer, call) else 0

    def _axis(self, n: int) -> int:
        """Return the number of an axis with at least `n` positions, a new one where there is none."""
        fitting = [i for i, axis in enumerate(self.axes) if len(axis) >= n and axis.name != "keys"]
        exact = [i for i, axis in enumerate(self.axes) if len(axis) == n]
        if exact or fitting:
            return (exact or fitting)[0]
        self.axes.append(numbered_axis(n))
        return len(self.axes) - 1

    def only(self, layers: Sequence[int]) -> Recording:
        """Return a recording of some of the layers, under the numbers that they have."""
        found = Recording()
        found.names, found.calls = self.seen.names, {layer: self.seen.calls[layer] for layer in layers}
        found.settle = self.seen.settle
        return found

    def with_edits(self, edits: Sequence[Mapping[str, Any]]) -> "Scene":
        """Return the scene, said to be made under `edits`."""
        return replace(self, edits=tuple(edits))
