"""What `effect` removes, one case after the other: heads, layers, links or tokens. Next: `removals.py`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from clearhead.errors import InputError, counted, nearest
from clearhead.seeing import arguments
from clearhead.seeing.editing.inputs import Inputs, holds_state, run
from clearhead.seeing.editing.key_axes import KeyAxis, key_axes
from clearhead.seeing.editing.kinds import Met
from clearhead.seeing.recorder import watch
from clearhead.seeing.recordings.recording import Recording

Over = Literal["heads", "layers", "links", "tokens"]

MAX_LINKS = 100_000  # that are tried: each is a row of a batch, so this takes hours
PLACE = ("layer", "head", "query")
TAKES = {"heads": "layer head", "layers": "layer", "tokens": "layer", "links": "layer head query"}


@dataclass(frozen=True)
class Case:
    """One thing to remove: what is None is not restricted. `query` and `key` count as in maps, a token's as in edits.

    weight: of a link, what the head gives it, the mean over the texts.
    """

    layer: int | None = None
    head: int | None = None
    query: int | None = None
    key: int | None = None
    weight: float | None = None


@dataclass(frozen=True)
class Wanted:
    """What the caller of `effect` asked for: over what, and in which layer, head and query."""

    over: Over
    layer: int | None
    head: int | None
    query: int | None

    @classmethod
    def of(cls, over: Over, layer: int | None, head: int | None, query: int | None) -> "Wanted":
        """Return the checked request; raises InputError for what does not go together."""
        if over not in TAKES:
            raise InputError(f"over={over!r}{nearest(str(over), list(TAKES))}")
        given = dict(zip(PLACE, (layer, head, query)))
        checked = {name: None if x is None else arguments.whole(x, name) for name, x in given.items()}
        extra = [name for name, x in checked.items() if x is not None and name not in TAKES[over].split()]
        if extra:
            raise InputError(f"over={over!r} does not take {extra[0]}=")
        return cls(over, **checked)


def cases(
    model: nn.Module, inputs: Inputs, wanted: Wanted, met: Mapping[int, Met], notes: list[str]
) -> tuple[list[Case], tuple[int, ...] | None]:
    """Return what is to be removed, and the layers in which tokens are hidden (None for the other kinds).

    Args:
        model: The model. It is run once more where its links are asked for.
        inputs: What it is called with.
        wanted: What was asked for.
        met: The layers that ran, by number.
        notes: What the caller should know is added here.

    Raises:
        InputError: For a layer, head or query that is not there, and for more than one text where one was expected.
    """
    layer, head = wanted.layer, wanted.head
    if layer is not None and layer not in met:
        raise InputError(f"there is no layer {layer}: {min(met)} to {max(met)} ran")
    if wanted.over == "tokens":
        axis = _axis(key_axes(met, layer), layer, notes)
        return _tokens(axis, holds_state(inputs), notes), axis.layers
    layers = [layer] if layer is not None else sorted(met)
    if wanted.over == "layers":
        return [Case(layer=i) for i in layers], None
    most = max(met[i].n_heads for i in layers)
    if head is not None and not 0 <= head < most:
        raise InputError(f"there is no head {head}: the layers have up to {most}")
    if wanted.over == "heads":
        return [Case(layer=i, head=h) for i in layers for h in range(met[i].n_heads) if head in (None, h)], None
    with watch(model, layers=layers, heads=None if head is None else [head]) as seen:
        run(model, inputs)
    return _links(seen, wanted.query), None


def _axis(axes: list[KeyAxis], layer: int | None, notes: list[str]) -> KeyAxis:
    """Return the tokens that are meant: those that `layer` looks at, or the only ones."""
    if layer is None and len(axes) > 1:
        raise InputError(
            f'over="tokens" hides the tokens of one text, and this model looks at several: '
            f"{'; '.join(map(str, axes))}. Name one of the layers, layer={axes[-1].layers[0]} for the last of these"
        )
    axis = next(axis for axis in axes if layer is None or layer in axis.layers)
    if len(axes) > 1:
        notes.append(f"tokens are the {axis}: no other layer looks at them")
    if any("#" in name for name in axis.names):
        notes.append("modules that attend more than once in a run are taken to look at the same tokens each time")
    return axis


def _tokens(axis: KeyAxis, has_past: bool, notes: list[str]) -> list[Case]:
    """Return one case for each token."""
    before = axis.tokens.start - axis.keys.start
    if before and not has_past:
        notes.append(
            f"the first {counted(before, 'key')} stand before the first token of these inputs, such as a learned "
            f"prefix: they are no tokens, and were not hidden"
        )
    hidden = axis.keys if has_past else axis.tokens
    if len(hidden) < 2:
        raise InputError('over="tokens" hides a token from the others, and this text has one')
    return [Case(key=key) for key in hidden]


def _links(seen: Recording, query: int | None) -> list[Case]:
    """Return the links with any weight in some text, of one query or of all."""
    found: list[Case] = []
    for layer in seen.numbers:
        call = seen.call(layer, 0)
        if query is not None and not -call.n_queries <= query < call.n_queries:
            continue
        places = list(range(call.n_queries)) if query is None else [range(call.n_queries)[query]]
        for head in call.heads:
            weights = torch.stack([seen.map(layer, head, places, batch=i, call=0) for i in range(call.batch)]).mean(0)
            rows, keys = weights.nonzero().unbind(1)
            if len(found) + len(rows) > MAX_LINKS:
                raise InputError(f"more than {MAX_LINKS:,} links: say whose, layer=, head= and query= name fewer")
            known = zip(rows.tolist(), keys.tolist(), weights[rows, keys].tolist())
            found += [Case(layer, head, places[row], key, weight) for row, key, weight in known]
    if query is not None and not found:
        raise InputError(f"there is no query {query}: the layers have up to {seen.call(seen.numbers[0], 0).n_queries}")
    return found
