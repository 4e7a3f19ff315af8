"""Attention written out in Python: `softmax(q @ k.T * scale + mask) @ v`, followed from the product to the values.

A product of two tensors is followed through whatever is done to it: scaling, softcaps (c tanh(s / c)), biases, masks,
sinks appended as columns, reshaping of the axes in front. If it then goes through a softmax over keys and multiplies
values, it was attention, and is reported as any other call: the queries and keys that were multiplied, and the rule
that was put together on the way (`scores.py`). Keys may come before queries, products may be multiplied and summed, a
softmax may be an exponential and its sum.

At the softmax some rows are computed again from what is to be reported and compared with the rows that the model got.
Where they differ, where something was done to the scores that `steps.py` has no rule for, or where the weights were
changed after the softmax, the weights that multiplied the values are reported instead, as the model had them.

Refused, with the reason, is what is no table of weights of queries on keys: a mean over heads, some of the rows, a
band, or a softmax over anything else than a product of two tensors. Next: `interface.py`, transformers' own site.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.seeing.sites.einsum import mixes
from clearhead.seeing.sites.found import Found
from clearhead.seeing.sites.scores import CannotFollow, Scores, differs, numel, version
from clearhead.seeing.sites.steps import (
    UNKNOWN,
    Exponent,
    Pairs,
    State,
    axis,
    begin,
    changed,
    chosen,
    fixed,
    flat,
    is_layer,
    is_whole,
    operands,
    pairs_of,
    parts,
    spoiled,
    summed_over,
)
from clearhead.seeing.sites.vocabulary import SPARSE, WHAT, as_written, mixes_no_axes
from clearhead.seeing.sites.weights import Met, Spread, Turned, Weights, as_it_is, met, passed_on

OVERWRITTEN = "its queries, keys or masks were overwritten before its weights met the values"
TURNED = "its weights met the values on the side of their queries"


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
        if what == "layer":
            what = None if nn.Parameter in map(type, args[1:2]) or is_layer(args, kwargs) else "product"
        if (what is None and not self.known) or what == "like" or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        state = self.of(what, flat(args, kwargs)) if self.known else None
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
            weights = state.weights if isinstance(state, Turned) else state
            product = begin(func, args, kwargs, out) if weights.told or weights.scores.named else None
            out = self.arrived(func, operands(func, args, kwargs), state, out)
            if product is not None:  # weights that were told, or are of no attention, are a tensor like another
                self.keep(out, product)
            return out
        if what == "sum" and isinstance(state, Spread):
            whole = Met(state.own, state.v, as_it_is, as_it_is)
            return self.tell(state.weights, whole, out) if summed_over(-2, args, kwargs, out) else out
        if isinstance(out, (tuple, list)):
            for part, known in parts(what, state, out):
                self.keep(part, known)
        made = args[0] if what == "hide" and out is None else out  # scores[mask] = -inf returns nothing
        if not isinstance(made, Tensor) or made.ndim < 2 or not made.is_floating_point():
            return out
        try:
            after = self.step(func, what, args, kwargs, state, made)
        except (CannotFollow, RuntimeError, TypeError, ValueError, IndexError) as error:
            after = _broken(state, func, what, made, error)
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

        if what == "chosen" and not is_whole(state, out):
            return chosen(state, out)
        if isinstance(state, Weights | Turned | Spread):
            return passed_on(func, what, args, kwargs, state, out, is_it)
        if isinstance(state, Pairs):
            summed = what == "sum" and summed_over(-1, args, kwargs, out)
            return Scores.product(state.q, state.k, out) if summed else None
        if isinstance(state, Exponent):
            return self.divided(what, args, state, out)
        if what == "softmax":
            return self.normalized(state, axis(args, kwargs, out), out)
        product = begin(func, args, kwargs, out) if what == "product" else None
        if state is None or product is not None:
            return product
        if what == "exp":
            return Exponent(state)
        if what == "drawn":
            return Weights(state.failed(f"its weights came of {_name(func)}").emptied(), out.shape[-1])
        if state.broken is not None:
            return state if state.may_be(out, mixes_no_axes(func, what)) else None
        if what is None:
            raise CannotFollow(f"its scores went through {_name(func)}")
        return changed(what, args, kwargs, state, out, is_it)

    def normalized(self, scores: Scores | None, dim: int | None, out: Tensor) -> Weights | Turned:
        """Return what a softmax over axis `dim` made of scores; those of keys and queries where `dim` is -2.

        Scores that could be followed are checked against `out`, which should be their softmax.
        """
        own, mask, reason = (out.mT if dim == -2 else out), None, None
        if scores is not None and dim not in (-1, -2):
            scores = scores.failed("its softmax was over neither its keys nor its queries")
        if scores is not None and dim == -2:
            scores = scores.turned()
        if scores is None or not scores.in_order(own):
            scores = Scores.unknown(own, UNKNOWN)
        if scores.broken is None:
            try:
                scores = scores.tidied()
                reason = differs(scores, own)
                mask = None if reason is None else scores.mask()
            except (CannotFollow, RuntimeError) as error:
                reason = str(error)
        if reason is not None or scores.broken is not None:
            scores = scores.failed(reason or "").emptied(tuple(own.shape[:-2]))
        weights = Weights(scores, own.shape[-1], mask, versions=scores.made_of())
        return Turned(weights) if dim == -2 else weights

    def divided(self, what: str | None, args: Sequence[Any], state: Exponent, out: Tensor) -> State | None:
        """Return what the exponential of scores becomes: weights, where it is divided by its sum."""
        if what == "cast":
            return state
        by = args[1] if len(args) > 1 and self.state(args[0]) is state else None
        if what in ("times", "over") and isinstance(by, Tensor) and by.ndim == out.ndim and 1 in by.shape[-2:]:
            return self.normalized(state.scores, -1 if by.shape[-1] == 1 else -2, out)
        if not state.scores.in_order(out):
            return None
        return Exponent(state.scores.failed("the exponentials of its scores were changed before their sum was taken"))

    def never_divided(self, state: Exponent, given: Sequence[Any]) -> Weights:
        """Return what the exponential of scores is that meets the values: weights, if the scores were log-softmaxed."""
        w = next(x for x in given if self.state(x) is state)
        weights = self.normalized(state.scores, -1, w)
        if not isinstance(weights, Weights) or weights.scores.broken is not None:
            undivided = "its weights met the values before they were divided by their sum"
            weights = Weights(state.scores.failed(undivided, named=True).emptied(), w.shape[-1])
        self.keep(w, weights)
        return weights

    def arrived(self, func: Callable[..., Any], args: Sequence[Any], state: Weights | Turned, out: Tensor) -> Tensor:
        """Weights have met the values, or something else; return the output to go on with."""
        weights = state.weights if isinstance(state, Turned) else state
        given = [x for x in flat(args, {}) if isinstance(x, Tensor)]
        others = any(self.state(x) is None and not fixed(x) for x in given)
        # not tokens x classes, nor something learned
        pair = func in SPARSE or all(x.ndim > 2 and not fixed(x) for x in given)
        if weights.edited and others:
            self.note("weights of attention by hand met something after their values: an edit changes the first alone")
        if weights.told or (weights.scores.broken == UNKNOWN and not pair):
            return out
        try:
            found = met(func, args, state, out, lambda x: self.state(x) is state)
        except (IndexError, RuntimeError, ValueError):  # operands by name, or axes unlike any known
            found = None
        if found is not None:
            return self.tell(weights, found, out)
        by_letters = func is torch.einsum and isinstance(args[0], str)
        mixed = mixes(args, lambda x: self.state(x) is state) if by_letters else weights.may_be(out, known=False)
        if mixed and not weights.scores.named:
            self.keep(out, weights.changed("its weights were mixed with each other before they met the values"))
        elif others:
            self.refuse(weights, "its weights met something that is not the values of its keys alone")
        return out

    def tell(self, weights: Weights, met: Met, out: Tensor) -> Tensor:
        """Tell, once, of weights that met the values; return the output to go on with."""
        scores, own, v, laid = weights.scores, met.own, met.v, met.lay(out)
        if weights.told:
            return out
        size = (scores.n_queries, scores.n_keys)[:: 1 if met.proper else -1]
        lead = own.shape[:-2].numel()
        whole = own.shape[-2:] == size and v.shape[-2] == size[1]
        if scores.named:
            self.refuse(weights, UNKNOWN)
        elif weights.n_columns > scores.n_keys and v.shape[-2] != scores.n_keys:
            self.refuse(weights, "columns were appended to its scores, and their weights used")
        elif not (whole and laid.shape[:-2].numel() == lead >= numel(scores.lead)):
            self.refuse(weights, "only some of its weights met these values, or the same met several")
        else:
            exact = weights.proved(own) if met.proper else None
            if exact is not None:
                found = Found(exact, weights.dropout, v, out, met.lay)
            else:
                kept, reason = weights.undropped(met), scores.broken or (OVERWRITTEN if met.proper else TURNED)
                mask = weights.mask if met.proper and tuple(own.shape[:-2]) == scores.lead else None
                found = Found(Scores.unknown(kept, reason), weights.dropout, v, out, met.lay, kept, mask)
            _let_go(weights)
            edited = self.found(found)
            weights.edited = edited is not None
            return out if edited is None else met.back(edited)
        return out

    def refuse(self, weights: Weights, reason: str) -> None:
        """Say, once, why weights that met values cannot be told: what is known of their scores, or `reason`."""
        reason = (weights.scores.broken if weights.scores.named else None) or reason
        _let_go(weights)
        self.lost(f"attention by hand that cannot be told exactly: {reason}")

    def of(self, what: str | None, given: Sequence[Any]) -> State | None:
        """Return what a function was given that is known, attention before all else that a softmax weighs."""
        if what in ("shape", "cast"):
            given = given[:1]  # the others lend their shape or dtype alone
        states = [state for state in map(self.still, given) if state is not None]
        return next((state for state in states if not _is_named(state)), states[0] if states else None)

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


def _broken(
    state: State | None, func: Callable[..., Any], what: str | None, out: Tensor, error: Exception
) -> Scores | None:
    """Return what to know of scores that cannot be followed exactly any further: why."""
    if not isinstance(state, Scores) or not state.may_be(out, mixes_no_axes(func, what)):
        return None
    reason = str(error) if isinstance(error, CannotFollow) else f"its scores went through {_name(func)}: {error}"
    return state.failed(reason)


def _let_go(weights: Weights) -> None:
    """Hold no tensor of weights that were told or refused: the model may return them, and they live on."""
    weights.told, weights.scores = True, weights.scores.emptied()
    weights.dropped = weights.before = weights.mask = None


def _is_named(state: State) -> bool:
    """Say whether what becomes of scores or weights is at best named."""
    while isinstance(state, Exponent | Weights | Turned | Spread):
        state = state.weights if isinstance(state, Turned | Spread) else state.scores
    return isinstance(state, Scores) and state.named


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))
