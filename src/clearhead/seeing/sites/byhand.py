"""Attention written out in Python: `softmax(q @ k.T * scale + mask) @ v`, followed from the product to the values.

A product of two tensors is followed through whatever is done to it: scaling, softcaps (c tanh(s / c)), biases, masks,
sinks appended as columns, reshaping of the axes in front. If it then goes through a softmax over keys and multiplies
values, it was attention, and is reported as any other call: the queries and keys that were multiplied, and the rule
that was put together on the way (`scores.py`).

Exact or nothing: at the softmax some rows are computed again from what is to be reported and compared with the rows
the model got. Where they differ, or where something was done to the scores that this file has no rule for, the call is
refused, with that as the reason. Next: `interface.py`, transformers' own site.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.seeing.sites.einsum import product_of, values_of
from clearhead.seeing.sites.found import Found
from clearhead.seeing.sites.scores import CannotFollow, Scores, differs
from clearhead.seeing.sites.vocabulary import WHAT, turns


@dataclass(eq=False)
class Weights:
    """What a softmax made of scores, on its way to the values; shared by what is made of it."""

    scores: Scores
    dropout: float = 0.0
    told: bool = False


@dataclass(frozen=True, eq=False)
class Turned:
    """Weights as (key, query), for values that come first, as (d, key)."""

    weights: Weights


State = Scores | Weights | Turned


class ByHand:
    """Follows products to softmaxes. `found` is told of attention, and may answer with another output; `lost` of a
    call that was attention and cannot be told exactly, with the reason. With `gradients` these flow through what is
    told."""

    def __init__(
        self, found: Callable[[Found], Tensor | None], lost: Callable[[str], None], gradients: bool = False
    ) -> None:
        self.found, self.lost, self.gradients = found, lost, gradients
        self.known: dict[int, tuple[weakref.ref[Tensor], State]] = {}

    def run(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run one of torch's functions, and know what its result is made of."""
        what = WHAT.get(func)
        if (what is None and not self.known) or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        given = [self.state(x) for x in _flat(args, kwargs)] if self.known else []
        state = next((s for s in given if s is not None), None)
        if state is None and what != "product":
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        flow = self.gradients and torch.is_grad_enabled()
        with torch._C.DisableTorchFunction(), torch.set_grad_enabled(flow):
            return self.after(func, what, args, kwargs, state, out)

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
        if isinstance(state, Weights | Turned) and what == "product":
            return self.arrived(func, _tensors(args, kwargs), state, out)
        changed = args[0] if what == "hide" and out is None else out  # scores[mask] = -inf returns nothing
        if not isinstance(changed, Tensor) or changed.ndim < 2 or not changed.is_floating_point():
            return out
        try:
            after = self.step(func, what, args, kwargs, state, changed)
        except (CannotFollow, RuntimeError, TypeError, ValueError, IndexError) as error:
            after = _broken(state, func, changed, error)
        if after is not None:
            self.keep(changed, after)
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
        if isinstance(state, Weights | Turned) and turns(func, args, out):
            return Turned(state) if isinstance(state, Weights) else state.weights
        if isinstance(state, Turned):
            return state if what == "cast" else None
        if isinstance(state, Weights):
            return _passed_on(what, args, kwargs, state, out)
        if state is None:
            return _begin(func, args, kwargs, out)
        if what == "softmax":
            return self.softmax(state, args, kwargs, out)
        if state.broken is not None:
            return state if out.shape[-2:] == (state.n_queries, state.n_columns) else None
        if what is None:
            raise CannotFollow(f"its scores went through {_name(func)}")
        return _changed(what, args, kwargs, state, out, lambda x: self.state(x) is state)

    def softmax(self, scores: Scores, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Weights | None:
        """Check the scores against the weights that the model got of them."""
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if dim not in (-1, out.ndim - 1):
            return None  # over queries, or over heads: not attention as we know it
        try:
            scores = scores.tidied()
            reason = differs(scores, out)
        except (CannotFollow, RuntimeError) as error:
            reason = str(error)
        return Weights(scores if reason is None else scores.failed(reason))

    def arrived(self, func: Callable[..., Any], args: Sequence[Any], state: Weights | Turned, out: Tensor) -> Tensor:
        """Weights have met the values: tell, once."""
        weights = state.weights if isinstance(state, Turned) else state
        if weights.told:
            return out
        try:
            met = self.met(func, args, state)
        except (IndexError, RuntimeError, ValueError):  # operands by name, or axes unlike any known
            met = None
        if met is None:
            return out
        v, lay, back = met
        weights.told, scores = True, weights.scores
        weights.scores = scores.emptied()  # the model may return its weights: they keep nothing of this alive
        if scores.broken is None and scores.sinks and v.shape[-2] != scores.n_keys:
            scores = scores.failed("columns were appended to its scores, and their weights used")
        if scores.broken is not None:
            self.lost(f"attention by hand that cannot be told exactly: {scores.broken}")
            return out
        edited = self.found(Found(scores, weights.dropout, v, out, lay))
        return out if edited is None else back(edited)

    def met(
        self, func: Callable[..., Any], args: Sequence[Any], state: Weights | Turned
    ) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None:
        """Return values, how an output is laid out as (*lead, time, d), and the way back; None where weights did not
        multiply values."""
        if func is torch.einsum:
            return values_of(args, lambda x: self.state(x) is state) if isinstance(state, Weights) else None
        w, v = args if isinstance(state, Weights) else reversed(args)
        if self.state(w) is not state or not isinstance(v, Tensor) or v.ndim < 2:
            return None  # weights on the wrong side of values, as in a product of weights with weights
        if isinstance(state, Weights):
            return v, lambda x: x, lambda x: x
        return v.mT, lambda x: x.mT, lambda x: x.mT

    def state(self, x: Any) -> State | None:
        """Return what is known of `x`."""
        entry = self.known.get(id(x))
        return entry[1] if entry is not None and entry[0]() is x else None

    def keep(self, x: Tensor, state: State) -> None:
        """Know `x` for as long as the model holds it."""
        key, known = id(x), self.known

        def forget(gone: "weakref.ref[Tensor]") -> None:
            if key in known and known[key][0] is gone:
                del known[key]

        known[key] = (weakref.ref(x, forget), state)


def _begin(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Scores | None:
    """Return the scores that a product of queries and keys is; None for a layer's product with its weight."""
    if func is torch.einsum:
        made = product_of(args)
        return None if made is None else Scores.product(*made, out)
    tensors = _tensors(args, kwargs)
    bias = tensors.pop(0) if len(tensors) > 2 else None
    if len(tensors) != 2 or not all(isinstance(x, Tensor) and x.ndim > 1 for x in tensors):
        return None
    if any(isinstance(x, nn.Parameter) and x.ndim == 2 for x in tensors):
        return None  # a linear layer
    scores = Scores.product(tensors[0], tensors[1].mT, out)
    if bias is not None:  # baddbmm: beta * bias + alpha * product
        scores = scores.times(kwargs.get("alpha", 1)).plus(bias, kwargs.get("beta", 1), out)
    return scores


def _changed(
    what: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    scores: Scores,
    out: Tensor,
    is_it: Callable[[Any], bool],
) -> Scores | None:
    """Return the scores after one of the steps of NAMES."""
    ours = [is_it(x) for x in args]
    if what in ("times", "over", "plus", "minus"):
        other: Any = args[0] if not ours[0] else kwargs.get("other", args[1] if len(args) > 1 else None)
        if ours[0] and is_it(other):
            raise CannotFollow("its scores were combined with themselves")
        if what == "times":
            return scores.times(other)
        if not ours[0] and what != "plus":
            raise CannotFollow("its scores were what something was divided by or lessened by")
        if what == "over":
            return scores.times(1 / other)
        return scores.plus(other, kwargs.get("alpha", 1) * (1 if what == "plus" else -1), out)
    if what == "cap":
        return scores.cap()
    if what == "floor":
        if kwargs.get("max") is not None or len(args) > 2:
            raise CannotFollow("its scores were clamped from above")
        return scores.floor(kwargs.get("min", kwargs.get("other", args[1] if len(args) > 1 else None)))
    if what == "hide":
        return _hidden(args, kwargs, scores, out, ours)
    if what == "join":
        return scores.join(args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0), is_it, out)
    if what == "shape":
        return scores.reshape(out)
    if what == "cast":
        return scores.cast(out)
    raise CannotFollow(f"its scores went through {what}")


def _hidden(args: Sequence[Any], kwargs: dict[str, Any], scores: Scores, out: Tensor, ours: Sequence[bool]) -> Scores:
    """Return the scores after masked_fill(scores, mask, x), where(mask, scores, x) or scores[mask] = x."""
    if ours[0]:
        mask, value = (kwargs.get(name, args[i] if len(args) > i else None) for i, name in ((1, "mask"), (2, "value")))
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise CannotFollow("some of its scores were set by index")
        if mask.ndim < 2 and out.ndim > 1:
            mask = mask[(None,) * (2 - mask.ndim)]
        return scores.hide(mask, value, out)
    if len(args) < 3:
        raise CannotFollow("its scores went through where() without a mask")
    mask = args[0] if ours[2] else ~args[0]
    return scores.hide(mask, args[1] if ours[2] else args[2], out)


def _passed_on(
    what: str | None, args: Sequence[Any], kwargs: dict[str, Any], weights: Weights, out: Tensor
) -> Weights | None:
    """Return the weights after what may be done to them before they meet the values."""
    if what in ("cast", "shape"):
        return weights  # also a slice, which takes sinks away again: looked at when the values are met
    if what == "dropout":
        training = kwargs.get("training", args[2] if len(args) > 2 else True)
        weights.dropout = float(kwargs.get("p", args[1] if len(args) > 1 else 0.5)) if training else 0.0
        return weights
    if out.shape[-2:].numel() < weights.scores.n_queries * weights.scores.n_keys:
        return None  # a sum, a maximum, an index
    if weights.told:
        return None
    return Weights(weights.scores.failed("its weights were changed between the softmax and the values"))


def _broken(state: State | None, func: Callable[..., Any], out: Tensor, error: Exception) -> Scores | None:
    """Return what to know of scores that cannot be followed further: why."""
    if not isinstance(state, Scores) or out.shape[-2:] != (state.n_queries, state.n_columns):
        return None
    reason = str(error) if isinstance(error, CannotFollow) else f"its scores went through {_name(func)}: {error}"
    return state.failed(reason)


def _flat(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments of a call, those in lists too."""
    found: list[Any] = []
    for x in (*args, *kwargs.values()):
        found.extend(x) if isinstance(x, (list, tuple)) else found.append(x)
    return found


def _tensors(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return what a product was given, by place or by name."""
    return [*args, *(kwargs[name] for name in ("input", "batch1", "batch2", "mat2", "other") if name in kwargs)]


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))
