"""Runs a model with things removed: many at a time, as rows of one batch, where its answers allow that.

The inputs are repeated, and each copy but the first has one thing removed. All copies are computed by the same kernels
at the same sizes, so a difference between them is the removal. That needs a model that takes the repeated inputs and
treats the rows of a batch apart. Both are checked with the first batch; where they do not hold, one thing is removed
at a time, and `notes` says why.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clearhead.errors import WatchError
from clearhead.seeing.editing.cases import Case
from clearhead.seeing.editing.editor import Edits, edit
from clearhead.seeing.editing.inputs import Inputs, run
from clearhead.seeing.editing.kinds import Met
from clearhead.seeing.editing.target import values

TOLERANCE = 1e-3  # relative: two batch sizes differ by rounding, a model that mixes its batch by more
FOLDED = "a layer's batch holds something else than the texts"


@dataclass(frozen=True)
class Removals:
    """A model, its inputs and what is measured.

    value:  gives one number a row, from an output that holds each text so many times.
    texts:  the number of texts in the inputs.
    before: the target with nothing removed.
    met:    the layers that ran with nothing removed, by number.
    hidden: the layers in which tokens are hidden; None where none are.
    notes:  what the caller should know is added here.
    """

    model: nn.Module
    inputs: Inputs
    value: Callable[[Any, int], Tensor]
    texts: int
    before: float
    met: Mapping[int, Met]
    hidden: tuple[int, ...] | None
    renormalise: bool
    notes: list[str]

    def of(self, cases: Sequence[Case], size: int) -> Iterator[tuple[Case, float, float]]:
        """Yield each case with the target before and after, from batches of `size` cases, or one case at a time."""
        if size > 1 and any(met.batch != self.texts for met in self.met.values()):
            self.notes.append(f"one at a time: {FOLDED}")
            size = 1
        if size > 1:
            beside, after, why = self.first_batch(cases[:size])
            if why:
                self.notes.append(f"one at a time: {why}")
                size = 1
        if size == 1:
            yield from self.each_alone(cases)
            return
        yield from ((case, beside, value) for case, value in zip(cases, after))
        for first in range(size, len(cases), size):
            some = cases[first : first + size]
            beside, *after = self.together(some)
            yield from ((case, beside, value) for case, value in zip(some, after))

    def first_batch(self, cases: Sequence[Case]) -> tuple[float, list[float], str]:
        """Return the target without and with the first removals, and why it cannot be trusted, if so.

        The untouched row and one removal are compared with what they are alone, in relation to the size of the target
        and of its changes.
        """
        try:
            beside, *after = self.together(cases)
        except Exception as error:  # what is wrong with a removal itself is raised again when it is alone
            folded = isinstance(error, WatchError)
            return (
                self.before,
                [],
                FOLDED if folded else f"the model did not take the inputs repeated ({_first(error)})",
            )
        allowed = TOLERANCE * max(abs(self.before), *(abs(x - beside) for x in after))
        if abs(beside - self.before) <= allowed and abs(after[0] - self.alone(cases[0])) <= allowed:
            return beside, after, ""
        return self.before, [], "the model's answer for a text depends on the others in its batch"

    def each_alone(self, cases: Sequence[Case]) -> Iterator[tuple[Case, float, float]]:
        """Yield each case from a run of its own, and check once that runs can be compared."""
        for i, case in enumerate(cases):
            before, after = self.before, self.alone(case)
            if not i:
                again = self.alone(None)
                if not abs(again - before) <= TOLERANCE * max(abs(before), abs(after - before)):
                    raise WatchError(
                        f"the model gives {before:.6g} and then {again:.6g} for the same inputs with nothing removed: "
                        f"no effect can be measured while it draws random numbers or keeps something from run to run, "
                        f"such as a cache of its own"
                    )
            yield case, before, after

    def together(self, cases: Sequence[Case]) -> list[float]:
        """Return the target without anything removed, then without each case, all from one batch."""
        copies = len(cases) + 1
        with edit(self.model) as change:
            for i, case in enumerate(cases, 1):
                self.remove(change, case, range(i * self.texts, (i + 1) * self.texts))
            outputs = run(self.model, self.inputs, self.texts, copies)
        if any(met.batch != self.texts * copies for met in change.met.values()):
            raise WatchError(FOLDED)
        return values(self.value(outputs, copies), self.texts, copies)

    def alone(self, case: Case | None) -> float:
        """Return the target without one case, or with nothing removed."""
        with edit(self.model) as change:
            if case is not None:
                self.remove(change, case, None)
            outputs = run(self.model, self.inputs)
        return values(self.value(outputs, 1), self.texts, 1)[0]

    def remove(self, change: Edits, case: Case, texts: Sequence[int] | None) -> None:
        """Ask for the edit that removes a case from `texts`."""
        if case.key is None:
            change.switch_off(case.layer, case.head, batch=texts)
        elif case.layer is None or case.query is None:
            change.hide(self.hidden, case.key, renormalise=self.renormalise, batch=texts)
        else:
            place = case.layer, case.head, case.query, case.key
            change.cut_link(*place, renormalise=self.renormalise, batch=texts)


def _first(error: Exception) -> str:
    """Return the first line of an error."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
