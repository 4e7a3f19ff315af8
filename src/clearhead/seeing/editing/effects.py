"""Attention is not an explanation; this is the test: take every head, layer, link or token away, and see what moves.

    effect(model, tokens, target=1)                                             # heads, by what each does to logit 1
    effect(model, tokens, target=1, over="links", layer=2, head=0, query=6)     # what one query sees, link by link

Several removals run as one batch: the texts are repeated, each copy with one thing taken away, the first with none. So
all are computed by the same kernels at the same sizes, and a difference is a difference. That needs a model that treats
the rows of a batch apart and attends text by text; where its layers fold other things into the batch (windows of a
picture), or the first copy does not come out as the texts alone did, one thing is removed at a time: `notes` says so.

Whether weights explain: Jain and Wallace 2019; Wiegreffe and Pinter 2019. Removing heads one at a time: Michel et al.
2019. One at a time finds nothing where others stand in for what is missing; that is a property of the method.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clearhead.errors import InputError, WatchError, nearest
from clearhead.seeing import arguments
from clearhead.seeing.editing.continuing import Met
from clearhead.seeing.editing.editor import Edits, edit
from clearhead.seeing.editing.target import Inputs, Target, n_texts, reader, repeated, run, values
from clearhead.seeing.recorder import watch
from clearhead.seeing.recordings.questions import CROSS
from clearhead.seeing.recordings.recording import Recording

Over = Literal["heads", "layers", "links", "tokens"]

MOST = 100_000  # links that are tried: each is a row of a batch, so hours
PLACE = ("layer", "head", "query")
SHOWN = 10  # rows of a table that is printed
SAME = 1e-3  # relative; two batch sizes differ by rounding, a model that mixes its batch by more


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
        for row in self.rows[:SHOWN]:
            cells = [getattr(row, name) for name in names]
            text = "".join(f"{cell:8.4f}" if isinstance(cell, float) else f"{cell:8}" for cell in cells)
            lines.append(f"{text}{row.effect:+10.4f}{row.after:10.4f}")
        if len(self) > SHOWN:
            lines.append(f"... and {len(self) - SHOWN} more, none above {abs(self.rows[SHOWN].effect):.4f}")
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True)
class Case:
    """One thing to remove."""

    layer: int | None = None
    head: int | None = None
    query: int | None = None
    key: int | None = None
    weight: float | None = None

    def remove(self, change: Edits, texts: Sequence[int] | None, n_queries: int, renormalise: bool) -> None:
        """Ask for the edit that removes it from `texts`."""
        if self.key is None:
            change.switch_off(self.layer, self.head, batch=texts)
            return
        others = [i for i in range(n_queries) if i != self.key] if self.query is None else self.query
        change.cut(self.layer, self.head, others, self.key, renormalise=renormalise, batch=texts)


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

    inputs:  what the model is called with: a tensor, a dict of keyword arguments, or a list of arguments. Tensors as
             long as the first one along the first axis are taken to hold a text in each row. Effects are the means
             over the texts.
    target:  a function of the model's output that gives one number a row; or the number of a class or token, or the
             name of a class; without it, the likeliest. Of outputs (rows, classes) it is that logit; of (rows, time,
             tokens) the one at the last position, by `attention_map` if `inputs` has one.
    over:    "heads" and "layers" are switched off, "links" are cut: those of `layer`, `head` and `query` where given,
             else of all. "tokens" are hidden from all other positions, in all heads of all layers.
    renormalise: as in `Edits.cut`. `at_once`: how many rows a batch may have; 1 removes one thing at a time.

    InputError for what cannot be understood, WatchError for a model in training or whose attention was not seen. The
    model is what it was, also where Ctrl-C ends it.
    """
    if not isinstance(model, nn.Module):
        raise WatchError(f"effect() expects the torch.nn.Module that will run, got a {type(model).__name__}")
    if model.training:
        raise WatchError("effect() compares outputs, which are random in training: call model.eval() first")
    texts = n_texts(inputs)
    with edit(model) as change:
        outputs = run(model, inputs)
    if not change.met:
        raise WatchError(f"no attention was seen: {change.why_nothing}")
    value, name = reader(model, inputs, outputs, target)
    before = values(value(outputs, 1), texts, 1)[0]
    cases = _cases(model, inputs, over, change.met, (layer, head, query))
    n_queries = max(met.n_queries for met in change.met.values())
    notes = list(change.notes)
    size = max(1, arguments.whole(at_once, "at_once") // texts - 1)
    if size > 1 and any(met.batch != texts for met in change.met.values()):
        size = 1
        notes.append("one at a time: a layer's batch holds something else than the texts")
    removals = Removals(model, inputs, value, texts, n_queries, renormalise, notes)
    rows = []
    with _progress(len(cases), f"without one of the {over}") as advance:
        for row in removals.of(cases, before, size):
            rows.append(row)
            advance()
    rows.sort(key=lambda row: -abs(row.effect))
    return Effects(over, name, before, tuple(rows), tuple(notes))


@dataclass(frozen=True)
class Removals:
    """Runs the model with things removed."""

    model: nn.Module
    inputs: Inputs
    value: Callable[[Any, int], Tensor]
    texts: int
    n_queries: int
    renormalise: bool
    notes: list[str]

    def of(self, cases: Sequence[Case], before: float, size: int) -> Iterator[Effect]:
        """Yield the effect of each case, `size` of them in a batch where the model's answers allow it."""
        for first in range(0, len(cases) if size > 1 else 0, size):
            some = cases[first : first + size]
            beside, *after = self.together(some)
            if not first and self.mixes(before, beside, after, some[0]):
                self.notes.append("one at a time: the model's answer for a text depends on the others in its batch")
                break
            yield from (Effect(**asdict(case), before=beside, after=value) for case, value in zip(some, after))
        else:
            if size > 1:
                return
        for case in cases:
            yield Effect(**asdict(case), before=before, after=self.alone(case))

    def mixes(self, before: float, beside: float, after: Sequence[float], case: Case) -> bool:
        """Return whether rows of the first batch are not what they are alone: the untouched one, and one removal.

        By the size of what is measured, the target and its changes, whatever that is.
        """
        allowed = SAME * max(abs(before), *(abs(x - beside) for x in after))
        return not (abs(beside - before) <= allowed and abs(after[0] - self.alone(case)) <= allowed)

    def together(self, cases: Sequence[Case]) -> list[float]:
        """Return the target without anything removed, then without each case, all from one batch."""
        copies = len(cases) + 1
        with edit(self.model) as change:
            for i, case in enumerate(cases, 1):
                mine = range(i * self.texts, (i + 1) * self.texts)
                case.remove(change, mine, self.n_queries, self.renormalise)
            outputs = run(self.model, repeated(self.inputs, self.texts, copies))
        return values(self.value(outputs, copies), self.texts, copies)

    def alone(self, case: Case) -> float:
        """Return the target without one case."""
        with edit(self.model) as change:
            case.remove(change, None, self.n_queries, self.renormalise)
            outputs = run(self.model, self.inputs)
        return values(self.value(outputs, 1), self.texts, 1)[0]


def _cases(
    model: nn.Module,
    inputs: Inputs,
    over: Over,
    met: Mapping[int, Met],
    place: tuple[int | None, int | None, int | None],
) -> list[Case]:
    """Return what is to be removed, one after the other."""
    layer, head, query = (None if x is None else arguments.whole(x, name) for x, name in zip(place, PLACE))
    if over not in ("heads", "layers", "links", "tokens"):
        raise InputError(f"over={over!r}{nearest(str(over), ['heads', 'layers', 'links', 'tokens'])}")
    used = {"heads": "layer head", "layers": "layer", "tokens": "", "links": "layer head query"}[over].split()
    given = dict(zip(PLACE, (layer, head, query)))
    if extra := [name for name, value in given.items() if value is not None and name not in used]:
        raise InputError(f"over={over!r} does not take {extra[0]}=")
    if layer is not None and layer not in met:
        raise InputError(f"there is no layer {layer}: {min(met)} to {max(met)} ran")
    if over == "tokens":
        if crossing := [one.name for one in met.values() if CROSS.search(one.name) or one.n_queries > one.n_keys]:
            raise InputError(f'over="tokens" is for one text, and {crossing[0]} looks at another: use over="links"')
        if (n_keys := max(one.n_keys for one in met.values())) < 2:
            raise InputError('over="tokens" hides a token from the others, and this text has one')
        return [Case(key=key) for key in range(n_keys)]
    layers = [layer] if layer is not None else sorted(met)
    if over == "layers":
        return [Case(layer=i) for i in layers]
    most = max(met[i].n_heads for i in layers)
    if head is not None and not 0 <= head < most:
        raise InputError(f"there is no head {head}: the layers have up to {most}")
    if over == "heads":
        return [Case(layer=i, head=h) for i in layers for h in range(met[i].n_heads) if head in (None, h)]
    with watch(model, layers=layers, heads=None if head is None else [head]) as seen:
        run(model, inputs)
    return _links(seen, query)


def _links(seen: Recording, query: int | None) -> list[Case]:
    """Return the links with any weight in some text, of one query or of all."""
    found: list[Case] = []
    for layer in seen.numbers:
        call = seen.call(layer, 0)
        if query is not None and not -call.n_queries <= query < call.n_queries:
            continue
        places = list(range(call.n_queries)) if query is None else [range(call.n_queries)[query]]
        for one in call.heads:
            weights = torch.stack([seen.map(layer, one, places, batch=i, call=0) for i in range(call.batch)]).mean(0)
            rows, keys = weights.nonzero().unbind(1)
            if len(found) + len(rows) > MOST:
                raise InputError(f"more than {MOST:,} links: say whose, layer=, head= and query= name fewer")
            known = zip(rows.tolist(), keys.tolist(), weights[rows, keys].tolist())
            found += [Case(layer, one, places[row], key, weight) for row, key, weight in known]
    if query is not None and not found:
        raise InputError(f"there is no query {query}: the layers have up to {seen.call(seen.numbers[0], 0).n_queries}")
    return found


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
