"""Attention written out in Python: `softmax(q @ k.T * scale + mask) @ v`, followed from the product to the values.

A product of two tensors is followed through whatever is done to it: scaling, softcaps (c tanh(s / c)), biases, masks,
sinks appended as columns, reshaping of the axes in front. If it then goes through a softmax over keys and multiplies
values, it was attention, and is reported as any other call: the queries and keys that were multiplied, and the rule
that was put together on the way (`scores.py`). Keys may come before queries, products may be multiplied and summed, a
softmax may be an exponential and its sum.

Exact or nothing: at the softmax some rows are computed again from what is to be reported and compared with the rows
the model got. Where they differ, or where something was done to the scores that `steps.py` has no rule for, the call is
refused, with that as the reason. So is what met values by a softmax over anything else. Next: `interface.py`,
transformers' own site.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clearhead.seeing.sites.einsum import mixes, values_of
from clearhead.seeing.sites.found import Found
from clearhead.seeing.sites.scores import CannotFollow, Scores, differs, version
from clearhead.seeing.sites.steps import (
    UNKNOWN,
    Exponent,
    Pairs,
    Spread,
    State,
    Turned,
    Weights,
    axis,
    begin,
    changed,
    fixed,
    flat,
    operands,
    pairs_of,
    parts,
    passed_on,
    spoiled,
    spread,
    summed_over,
)
from clearhead.seeing.sites.vocabulary import WHAT, as_written, turns

Met = tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class ByHand:
    """Follows products to softmaxes. `found` is told of attention, and may answer with another output; `lost` of a
    call that was attention and cannot be told exactly, with the reason; `note` of weights that go on after another
    output was answered. With `gradients` these flow through what is told."""

    def __init__(
        self,
        found: Callable[[Found], Tensor | None],
        lost: Callable[[str], None],
        note: Callable[[str], None],
        gradients: bool = False,
    ) -> None:
        self.found, self.lost, self.note, self.gradients = found, lost, note, gradients
        self.known: dict[int, tuple[weakref.ref[Tensor], State, int]] = {}

    def run(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one of torch's functions, and know what its result is made of."""
        called = as_written(func)
        what = WHAT.get(called)
        if (what is None and not self.known) or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        given = [self.still(x) for x in flat(args, kwargs)] if self.known else []
        state = next((s for s in given if s is not None), None)
        pairs = pairs_of(args) if state is None and what == "times" else None
        if state is None and what not in ("product", "softmax") and pairs is None:
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if pairs is not None:
            self.keep(out, Pairs(*pairs))
            return out
        flow = self.gradients and torch.is_grad_enabled()
        with torch._C.DisableTorchFunction(), torch.set_grad_enabled(flow):
            return self.after(called, what, args, kwargs, state, out)

    def after(
        self,
        func: Callable[..., Any],
        what: str | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        state: State | None,
        out: Any,
    ) -> Any:
        """Return `out`, or what the report answered in its place, having noted what it is made of."""
        if what == "product" and isinstance(state, Exponent):
            state = self.never_divided(state, flat(args, kwargs))
        if what == "product" and isinstance(state, Weights | Turned):
            return self.arrived(func, operands(args, kwargs), state, out)
        if what == "sum" and isinstance(state, Spread):
            met = (state.v, _as_it_is, _as_it_is)
            return self.tell(state.weights, met, out) if summed_over(-2, args, kwargs, out) else out
        if isinstance(out, (tuple, list)):
            for part, known in parts(state, out):
                self.keep(part, known)
        made = args[0] if what == "hide" and out is None else out  # scores[mask] = -inf returns nothing
        if not isinstance(made, Tensor) or made.ndim < 2 or not made.is_floating_point():
            return out
        try:
            after = self.step(func, what, args, kwargs, state, made)
        except (CannotFollow, RuntimeError, TypeError, ValueError, IndexError) as error:
            after = _broken(state, func, made, error)
        if after is not None:
            self.keep(made, after)
        return out

    def step(
        self,
        func: Callable[..., Any],
        what: str | None,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        state: State | None,
        out: Tensor,
    ) -> State | None:
        """Return what `out` is made of, None if that is nothing to follow; raises CannotFollow."""

        def is_it(x: Any) -> bool:
            return self.state(x) is state

        if isinstance(state, Weights | Turned | Spread):
            return _on_its_way(func, what, args, kwargs, state, out, is_it)
        if isinstance(state, Pairs):
            summed = what == "sum" and summed_over(-1, args, kwargs, out)
            return Scores.product(state.q, state.k, out) if summed else None
        if isinstance(state, Exponent):
            return self.divided(what, args, state, out)
        if what == "softmax":
            return self.softmax(state, axis(args, kwargs, out), out)
        if state is None:
            return begin(func, args, kwargs, out)
        if what == "exp":
            return Exponent(state)
        if what == "drawn":
            return Weights(state.failed(f"its weights came of {_name(func)}"))
        if state.broken is not None:
            return state if out.shape[-2:] == (state.n_queries, state.n_columns) else None
        if what is None:
            raise CannotFollow(f"its scores went through {_name(func)}")
        return changed(what, args, kwargs, state, out, is_it)

    def softmax(self, scores: Scores | None, dim: int | None, out: Tensor) -> Weights | Turned | None:
        """Check the scores against the weights that the model got of them; where no scores are known, know why."""
        if scores is not None and dim in (-1, -2):
            return self.normalised(scores, dim, out)
        if scores is not None:
            return Weights(scores.failed("its softmax was over neither its keys nor its queries"))
        weights = Weights(Scores.unknown(out.mT if dim == -2 else out, UNKNOWN))
        return Turned(weights) if dim == -2 else weights

    def normalised(self, scores: Scores, dim: int, out: Tensor) -> Weights | Turned:
        """Check scores, those of keys and queries where `dim` is -2, against what should be their softmax."""
        try:
            scores = (scores.turned() if dim == -2 else scores).tidied()
            reason = differs(scores, out.mT if dim == -2 else out)
        except (CannotFollow, RuntimeError) as error:
            reason = str(error)
        weights = Weights(scores if reason is None else scores.failed(reason), versions=scores.made_of())
        return Turned(weights) if dim == -2 else weights

    def divided(self, what: str | None, args: Sequence[Any], state: Exponent, out: Tensor) -> State | None:
        """Return what the exponential of scores becomes: weights, where it is divided by its sum."""
        if what == "cast":
            return state
        by = args[1] if len(args) > 1 and self.state(args[0]) is state else None
        if what in ("times", "over") and isinstance(by, Tensor) and by.ndim == out.ndim and 1 in by.shape[-2:]:
            return self.normalised(state.scores, -1 if by.shape[-1] == 1 else -2, out)
        if out.shape[-2:] != (state.scores.n_queries, state.scores.n_columns):
            return None
        return Exponent(state.scores.failed("the exponentials of its scores were changed before their sum was taken"))

    def never_divided(self, state: Exponent, given: Sequence[Any]) -> Weights | Turned:
        """Return what the exponential of scores is that meets the values: weights, if the scores were log-softmaxed."""
        w = next(x for x in given if self.state(x) is state)
        weights = self.normalised(state.scores, -1, w)
        if isinstance(weights, Weights) and weights.scores.broken is not None:
            weights = Weights(state.scores.failed("its weights met the values before they were divided by their sum"))
        self.keep(w, weights)
        return weights

    def arrived(self, func: Callable[..., Any], args: Sequence[Any], state: Weights | Turned, out: Tensor) -> Tensor:
        """Weights have met the values, or something else; return the output to go on with."""
        weights = state.weights if isinstance(state, Turned) else state
        given = [x for x in flat(args, {}) if isinstance(x, Tensor)]
        pair = all(x.ndim > 2 and not fixed(x) for x in given)  # not tokens x classes, nor something learned
        if weights.edited and any(self.state(x) is None and not fixed(x) for x in given):
            self.note("weights of attention by hand met something after their values: an edit changes the first alone")
        if weights.told or (weights.scores.broken == UNKNOWN and not pair):
            return out
        try:
            met = self.met(func, args, state)
        except (IndexError, RuntimeError, ValueError):  # operands by name, or axes unlike any known
            met = None
        if met is not None:
            return self.tell(weights, met, out)
        size = (weights.scores.n_queries, weights.scores.n_keys)
        by_letters = func is torch.einsum and isinstance(args[0], str)
        if mixes(args, lambda x: self.state(x) is state) if by_letters else tuple(out.shape[-2:]) in (size, size[::-1]):
            mixed = weights.scores.failed("its weights were mixed with each other before they met the values")
            self.keep(out, Weights(mixed))
        elif any(self.state(x) is None and not fixed(x) for x in given):
            self.refuse(weights, "its weights met something that is not the values of its keys alone")
        return out

    def tell(self, weights: Weights, met: Met, out: Tensor) -> Tensor:
        """Tell, once, of weights that met the values; return the output to go on with."""
        v, lay, back = met
        scores, laid = weights.scores, lay(out)
        if weights.told:
            return out
        whole = (laid.shape[:-2].numel(), laid.shape[-2], v.shape[-2])
        if scores.sinks and v.shape[-2] != scores.n_keys:
            self.refuse(weights, "columns were appended to its scores, and their weights used")
        elif whole != (torch.Size(scores.lead).numel(), scores.n_queries, scores.n_keys):
            self.refuse(weights, "only some of its weights met these values, or the same met several")
        elif scores.broken is None and scores.made_of() != weights.versions:
            self.refuse(weights, "its queries, keys or masks were overwritten before its weights met the values")
        elif scores.broken is not None:
            self.refuse(weights, scores.broken)
        else:
            weights.told, weights.scores = True, scores.emptied()  # the model may return its weights: they hold nothing
            edited = self.found(Found(scores, weights.dropout, v, out, lay))
            weights.edited = edited is not None
            return out if edited is None else back(edited)
        return out

    def refuse(self, weights: Weights, reason: str) -> None:
        """Say, once, why weights that met values cannot be told."""
        weights.told, weights.scores = True, weights.scores.failed(reason).emptied()
        self.lost(f"attention by hand that cannot be told exactly: {weights.scores.broken}")

    def met(self, func: Callable[..., Any], args: Sequence[Any], state: Weights | Turned) -> Met | None:
        """Return values, how an output is laid out as (*lead, time, d), and the way back; None where weights did not
        multiply values."""
        turned = isinstance(state, Turned)
        if func is torch.einsum:
            return values_of(args, lambda x: self.state(x) is state, turned)
        w, v = reversed(args) if turned else args
        if self.state(w) is not state or not isinstance(v, Tensor) or v.ndim < 2:
            return None  # weights on the wrong side of values, as in a product of weights with weights
        return (v.mT, _turned, _turned) if turned else (v, _as_it_is, _as_it_is)

    def state(self, x: Any) -> State | None:
        """Return what is known of `x`."""
        entry = self.known.get(id(x))
        return entry[1] if entry is not None and entry[0]() is x else None

    def still(self, x: Any) -> State | None:
        """Return what is known of `x` before a function runs: less, if it was written to since."""
        state = self.state(x)
        if state is not None and self.known[id(x)][2] != version(x):  # a view of it, or by what no mode sees
            self.keep(x, state := spoiled(state))
        return state

    def keep(self, x: Tensor, state: State) -> None:
        """Know `x` for as long as the model holds it."""
        key, known = id(x), self.known

        def forget(gone: "weakref.ref[Tensor]") -> None:
            if key in known and known[key][0] is gone:
                del known[key]

        known[key] = (weakref.ref(x, forget), state, version(x))


def _on_its_way(
    func: Callable[..., Any],
    what: str | None,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    state: Weights | Turned | Spread,
    out: Tensor,
    is_it: Callable[[Any], bool],
) -> State | None:
    """Return what weights are after a function that was no product."""
    if isinstance(state, Spread):
        return None
    if turns(func, args, out):
        return Turned(state) if isinstance(state, Weights) else state.weights
    if isinstance(state, Weights):
        apart = spread(args, state, out, is_it) if what == "times" else None
        return apart or passed_on(what, args, kwargs, state, out)
    passed = passed_on(what, args, kwargs, state.weights, out.mT)
    return state if passed is state.weights else None if passed is None else Turned(passed)


def _broken(state: State | None, func: Callable[..., Any], out: Tensor, error: Exception) -> Scores | None:
    """Return what to know of scores that cannot be followed further: why."""
    if not isinstance(state, Scores) or out.shape[-2:] != (state.n_queries, state.n_columns):
        return None
    reason = str(error) if isinstance(error, CannotFollow) else f"its scores went through {_name(func)}: {error}"
    return state.failed(reason)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _turned(x: Tensor) -> Tensor:
    return x.mT


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))
