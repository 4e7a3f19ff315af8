"""What a softmax made of scores, followed on its way to the values. Next: `byhand.py`.

Weights may be cast, reshaped, turned and dropped, and are still the softmax's. Whatever else is done to them makes
other weights, which are kept as the model has them when they meet the values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clearhead.seeing.sites.einsum import values_of
from clearhead.seeing.sites.scores import Scores, has_axes, numel, version
from clearhead.seeing.sites.vocabulary import mixes_no_axes, turns

CHOSEN = "only some of its scores or weights were kept for each query: the largest, or those of a sparse table"


@dataclass(eq=False)
class Weights:
    """Weights between the softmax and the values; one object for all tensors that hold the same weights.

    n_columns: how many weights a row has: one for each key, and for each sink.
    mask:      which keys are hidden, where that is known and the weights cannot be computed from the scores.
    versions:  of what the scores are made of, when they were compared with the weights.
    dropped:   the weights before dropout, as (*lead, query, key), where some were dropped.
    before:    weights that can be computed from their scores, their tensor and its version: these were made of them,
               perhaps by a function that changed nothing.
    """

    scores: Scores
    n_columns: int
    mask: Tensor | None = None
    dropout: float = 0.0
    told: bool = False
    edited: bool = False
    versions: tuple[int, ...] = ()
    dropped: Tensor | None = None
    before: "tuple[Weights, Tensor, int] | None" = None

    @property
    def sizes(self) -> tuple[int, int]:
        """Return how many weights there are, those of sinks not counted, and counted."""
        rows = numel(self.scores.lead) * self.scores.n_queries
        return rows * self.scores.n_keys, rows * self.n_columns

    def changed(self, reason: str, x: Tensor | None = None) -> "Weights":
        """Return weights that were made of these by changing them; `x` still holds these, if it is given."""
        exact = x is not None and self.scores.broken is None
        before = (self, x, version(x)) if x is not None and exact else self.before
        return Weights(self.scores.failed(reason), self.n_columns, dropout=self.dropout, before=before)

    def proved(self, own: Tensor) -> Scores | None:
        """Return scores that give `own`, the weights that met the values; None where none are known to."""
        weights = self
        if self.before is not None:
            first, x, counted = self.before
            same = version(x) == counted and x.numel() == own.numel() and torch.equal(x.reshape(own.shape), own)
            weights = first if same and not first.told else self
        scores = weights.scores
        known = scores.broken is None and scores.made_of() == weights.versions
        return scores if known and numel(scores.lead) == own.shape[:-2].numel() else None

    def undropped(self, met: "Met") -> Tensor:
        """Return the weights that met values as they were before dropout, unless they were changed after it."""
        if self.dropped is None or self.dropped.numel() != met.own.numel():
            return met.own
        return (self.dropped if met.proper else self.dropped.mT).reshape(met.own.shape)

    def may_be(self, out: Tensor, known: bool) -> bool:
        """Say whether `out`, made of these weights, may hold weights of the same queries and keys.

        `known` where a function made it that mixes no axes. Weights that are only to be named are followed further, as
        long as there are as many numbers: a band is cut and skewed before it meets the values.
        """
        if self.scores.named:
            return out.numel() >= self.sizes[0]
        if out.shape[-2] == self.scores.n_queries and out.shape[-1] in (self.scores.n_keys, self.n_columns):
            return True
        return out.numel() in self.sizes and (known or has_axes(out, self.scores.n_queries, self.scores.n_keys))


@dataclass(frozen=True, eq=False)
class Turned:
    """Weights as (key, query), for values that come first, as (d, key)."""

    weights: Weights


@dataclass(frozen=True, eq=False)
class Spread:
    """Weights times values, before the sum over keys: (*lead, query, key, d_value)."""

    weights: Weights
    own: Tensor
    v: Tensor


@dataclass(frozen=True, eq=False)
class Met:
    """Weights that multiplied values: `own` as (*lead, query, key) and `v` as (*lead, key, d).

    lay:    lays an output out as (*lead, query, d); `back` is the way back.
    proper: these queries and keys are those of the softmax, and not the other way round.
    """

    own: Tensor
    v: Tensor
    lay: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    proper: bool = True


def met(
    func: Callable[..., Any], args: Sequence[Any], state: Weights | Turned, out: Tensor, is_it: Callable[[Any], bool]
) -> Met | None:
    """Return weights (`is_it`) and values, as they multiplied each other; None where weights did not multiply values.

    Raises ValueError for operands that are not two, IndexError or RuntimeError where their axes do not fit.
    """
    turned = isinstance(state, Turned)
    if func is torch.einsum:
        found, operands = values_of(args, is_it, turned), args[1] if isinstance(args[1], (list, tuple)) else args[1:]
        own = operands[0] if is_it(operands[0]) else operands[1]
        return None if found is None else Met(own.mT if turned else own, *found)
    left, right = args
    behind = not is_it(left)  # the weights stand behind the values
    own, v = (right.mT, left.mT) if behind else (left, right)
    weights = state.weights if isinstance(state, Turned) else state
    proper, n_queries = behind == turned, weights.scores.n_queries
    if v.ndim < 2 or ((own if proper else own.mT).shape[-2] != n_queries and own.numel() in weights.sizes):
        return None  # all weights, with queries or keys in front, such as heads that are mixed
    if not proper and (is_it(v) or weights.may_be(out, known=False)):
        return None  # on the wrong side of values, as in a product of weights with weights
    lay = turn if behind else as_it_is
    return Met(own, v, lay, lay, proper)


def as_it_is(x: Tensor) -> Tensor:
    """Return `x`."""
    return x


def turn(x: Tensor) -> Tensor:
    """Return `x` with its last two axes changed for each other."""
    return x.mT


def passed_on(
    func: Callable[..., Any],
    what: str | None,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    state: Weights | Turned | Spread,
    out: Tensor,
    is_it: Callable[[Any], bool],
) -> Weights | Turned | Spread | None:
    """Return what weights are after a function that was no product; None where `out` holds none."""
    if isinstance(state, Spread):
        return None
    if turns(func, args, out):
        return Turned(state) if isinstance(state, Weights) else state.weights
    weights = state.weights if isinstance(state, Turned) else state
    if what == "times" and isinstance(state, Weights) and (apart := spread(args, weights, out, is_it)) is not None:
        return apart
    if what in ("cast", "shape"):
        return state  # also a slice, which takes sinks away again: looked at when the values are met
    if weights.told:
        return None
    own: Tensor | None = next((x for x in args if is_it(x)), None)
    if own is None or own.data_ptr() == out.data_ptr():
        own = None  # written over
    elif isinstance(state, Turned):
        own = own.mT
    if what == "dropout":
        training = kwargs.get("training", args[2] if len(args) > 2 else True)
        weights.dropout = float(kwargs.get("p", args[1] if len(args) > 1 else 0.5)) if training else 0.0
        weights.dropped = own if weights.dropout else None
        return state
    if weights.scores.named and any(_like(x, out) and not is_it(x) for x in args):
        return None  # a gate: numbers that a softmax weighed one by one are an input like another
    if not weights.may_be(out.mT if isinstance(state, Turned) else out, mixes_no_axes(func, what)):
        return None
    changed = weights.changed("its weights were changed between the softmax and the values", own)
    return Turned(changed) if isinstance(state, Turned) else changed


def _like(x: Any, out: Tensor) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.shape == out.shape


def spread(args: Sequence[Any], weights: Weights, out: Tensor, is_it: Callable[[Any], bool]) -> Spread | None:
    """Return weights as (query, key, 1) times values as (1, key, d); None where that is not what was multiplied.

    Where only some keys were kept for each query, their values are (query, key, d).
    """
    w, v = args if is_it(args[0]) else args[::-1]
    size = (weights.scores.n_queries, weights.scores.n_keys)
    if not all(isinstance(x, Tensor) and x.ndim > 2 for x in (w, v)) or tuple(w.shape[-3:]) != (*size, 1):
        return None
    apart = v.shape[-2] == size[1] and tuple(out.shape[-3:-1]) == size
    apart = apart and (v.shape[-3] == 1 or weights.scores.broken == CHOSEN)
    return Spread(weights, w.squeeze(-1), v.squeeze(-3) if v.shape[-3] == 1 else v) if apart else None
