"""Attention is not an explanation; this is the test: take every head, layer, link or token away, and see what moves.

    effect(model, tokens, target=1)                                             # heads, by what each does to logit 1
    effect(model, tokens, target=1, over="links", layer=2, head=0, query=6)     # what one query sees, link by link

Whether weights explain: Jain and Wallace 2019; Wiegreffe and Pinter 2019. Removing heads one at a time: Michel et al.
2019. One at a time finds nothing where others stand in for what is missing; that is a property of the method.
Next: `cases.py`, what is removed; `removals.py`, how it is run; `target.py`, what is measured.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.errors import InputError, WatchError
from clearhead.seeing import arguments
from clearhead.seeing.editing.cases import Case, Over, Wanted, cases
from clearhead.seeing.editing.editor import edit
from clearhead.seeing.editing.inputs import Inputs, run, tensors
from clearhead.seeing.editing.removals import Removals
from clearhead.seeing.editing.target import Target, answer, n_texts, reader, values

MAX_ROWS_SHOWN = 10  # of a table that is printed


@dataclass(frozen=True)
class Effect:
    """What the target was with everything, and without one head, layer, link or token; all that is None was not asked.

    weight: of a link, what the head gives it: the mean over the texts.
    """

    layer: int | None
    head: int | None
    query: int | None
    key: int | None
    weight: float | None
    before: float
    after: float

    @property
    def effect(self) -> float:
        """Return how far the removal moves the target; negative: what was removed speaks for it."""
        return self.after - self.before


@dataclass(frozen=True)
class Effects(Sequence[Effect]):
    """Effects, the largest first, whichever its sign; `target` in words, its value `before` anything is removed."""

    over: str
    target: str
    before: float
    rows: tuple[Effect, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers; a row has only the fields that its kind has."""
        rows = [{k: v for k, v in asdict(row).items() if v is not None} | {"effect": row.effect} for row in self.rows]
        fields = {"over": self.over, "target": self.target, "before": self.before}
        return {**fields, "rows": rows, "notes": list(self.notes)}

    def __repr__(self) -> str:
        names = [name for name in ("layer", "head", "query", "key", "weight") if self.rows and _has(self.rows[0], name)]
        lines = [f"{self.target}: {self.before:.4f}; without one of {len(self)} {self.over}:"]
        lines.append("".join(f"{name:>8}" for name in names) + f"{'effect':>10}{'after':>10}")
        for row in self.rows[:MAX_ROWS_SHOWN]:
            cells = [getattr(row, name) for name in names]
            text = "".join(f"{cell:8.4f}" if isinstance(cell, float) else f"{cell:8}" for cell in cells)
            lines.append(f"{text}{row.effect:+10.4f}{row.after:10.4f}")
        if len(self) > MAX_ROWS_SHOWN:
            rest = self.rows[MAX_ROWS_SHOWN:]
            lines.append(f"... and {len(rest)} more, none above {abs(rest[0].effect):.4f}")
        return "\n".join([*lines, *self.notes])


@torch.no_grad()
def effect(
    model: nn.Module,
    inputs: Inputs,
    target: Target = None,
    over: Over = "heads",
    *,
    layer: int | None = None,
    head: int | None = None,
    query: int | None = None,
    renormalise: bool = True,
    at_once: int = 32,
) -> Effects:
    """Rank heads, layers, links or tokens by what removing them does to `target`.

    Args:
        model: Any module whose attention `watch` can see, in eval mode. Afterwards it is what it was, also where Ctrl-C
            ends it.
        inputs: What the model is called with: a tensor, a dict of keyword arguments, or a list of arguments. Every run
            gets a copy, caches and other objects included; what the caller gave stays as it was. Effects are the means
            over the texts of a batch.
        target: What is measured for each text. A function of the logits that gives one number a text; the number of a
            class or token; the name of a class; or None, the likeliest. Of logits (texts, classes) it is that logit; of
            logits (texts, time, tokens) the one at the last position, by the attention mask if `inputs` has one. The
            logits are the output if it is a tensor, its `logits`, or the first tensor of a tuple with two or more axes;
            a function gets the whole output where there are none.
        over: "heads" and "layers" are switched off, "links" are cut. "tokens" are hidden from all other positions, in
            all heads of all layers that look at the same text.
        layer: Only this layer, by number. With "tokens" it says which text is meant, where a model reads several: the
            one whose tokens are this layer's keys.
        head: Only this head; for "heads" and "links".
        query: Only links of this query; for "links".
        renormalise: Whether the weights that are left of a row sum to 1 again, as in `Edits.cut`.
        at_once: How many rows a batch may have; 1 removes one thing at a time.

    Returns:
        The effects, the largest first. Its `notes` say what else was done or could not be.

    Raises:
        InputError: For arguments that cannot be understood, or inputs that cannot be copied.
        WatchError: For a model in training, one whose attention was not seen, or whose answer changes from run to run.
    """
    if not isinstance(model, nn.Module):
        raise WatchError(f"effect() expects the torch.nn.Module that will run, got a {type(model).__name__}")
    if model.training:
        raise WatchError("effect() compares outputs, which are random in training: call model.eval() first")
    wanted, at_once = Wanted.of(over, layer, head, query), arguments.whole(at_once, "at_once")
    removals, todo, name = _prepared(model, inputs, target, wanted, renormalise)
    effects = []
    with _progress(len(todo), f"without one of the {over}") as advance:
        for case, before, after in removals.of(todo, max(1, at_once // removals.texts - 1)):
            effects.append(Effect(**asdict(case), before=before, after=after))
            advance()
    effects.sort(key=lambda row: -abs(row.effect))
    return Effects(over, name, removals.before, tuple(effects), tuple(removals.notes))


def _prepared(
    model: nn.Module, inputs: Inputs, target: Target, wanted: Wanted, renormalise: bool
) -> tuple[Removals, list[Case], str]:
    """Run the model with nothing removed, and return what will run it again, what to remove, and the target's name."""
    given = tensors(inputs)
    with edit(model) as change:
        outputs = run(model, inputs)
    if not change.met:
        raise WatchError(f"no attention was seen: {change.why_nothing}")
    batches = {met.batch for met in change.met.values()}
    value, name = reader(model, inputs, outputs, target, batches)
    found, logits = value(outputs, 1), answer(outputs)
    rows = len(logits) if isinstance(logits, Tensor) and logits.ndim else len(given[0])
    texts = n_texts(found, [rows, *batches])
    before, notes = values(found, texts, 1)[0], list(change.notes)
    if not math.isfinite(before):
        raise InputError(f"the {name} is {before} with nothing removed, so no change of it can be measured")
    todo, hidden = cases(model, inputs, wanted, change.met, notes)
    return Removals(model, inputs, value, texts, before, change.met, hidden, renormalise, notes), todo, name


def _has(row: Effect, name: str) -> bool:
    return getattr(row, name) is not None


@contextmanager
def _progress(n: int, what: str) -> Iterator[Callable[[], None]]:
    """Show a bar on standard error, for a person at a terminal, while there is something to wait for."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.file.isatty()) as bar:
        task = bar.add_task(what, total=n)
        yield lambda: bar.update(task, advance=1)
