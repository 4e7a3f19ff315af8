"""What one of torch's functions makes of scores, or of weights on their way to the values. Next: `byhand.py`.

Between the product and the values stand scores, then weights; turned, where a model has keys before queries. A model
that multiplies and sums instead of calling a product has something wider for a moment (`Pairs`, `Spread`), and one that
writes its softmax out has numbers whose rows are yet to be divided by their sum (`Exponent`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.seeing.sites.einsum import product_of
from clearhead.seeing.sites.scores import CannotFollow, Scores
from clearhead.seeing.sites.weights import CHOSEN, Spread, Turned, Weights

UNKNOWN = "its softmax was over something else than a product of queries and keys that could be followed"


@dataclass(frozen=True, eq=False)
class Pairs:
    """Queries times keys, before their last axis is summed: (*lead, query, key, d_head)."""

    q: Tensor
    k: Tensor


@dataclass(frozen=True, eq=False)
class Exponent:
    """The exponential of scores."""

    scores: Scores


State = Scores | Pairs | Exponent | Weights | Turned | Spread


def flat(args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments of a call, those in lists too."""
    found: list[Any] = []
    for x in (*args, *kwargs.values()):
        found.extend(x) if isinstance(x, (list, tuple)) else found.append(x)
    return found


def operands(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return what a product was given, as a matmul would be given it: what is added, if anything is, then two tensors.

    Returns none for a tensordot that is no product of two matrices.
    """
    if func is F.linear:
        x, weight, bias = (*args, *(kwargs[name] for name in ("input", "weight", "bias") if name in kwargs), None)[:3]
        return [x, weight.mT] if bias is None else [bias, x, weight.mT]
    if func is torch.tensordot:
        return matrices(*args, **kwargs)
    names = ("input", "batch1", "batch2", "mat1", "mat2", "other")
    return [*args, *(kwargs[name] for name in names if name in kwargs)]


def matrices(a: Tensor, b: Tensor, dims: Any = 2, **_: Any) -> list[Tensor]:
    """Return two matrices whose product a tensordot is; none if it is another."""
    rows, columns = ([a.ndim - 1], [0]) if dims == 1 else dims if isinstance(dims, (list, tuple)) else ([], [])
    if a.ndim != 2 or b.ndim != 2 or len(rows) != 1 or len(columns) != 1:
        return []
    return [a if rows[0] % 2 else a.mT, b.mT if columns[0] % 2 else b]


def axis(args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> int | None:
    """Return the axis that a function was asked for, counted from the end of `out`; None where that is not one."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    dim = dim[0] if isinstance(dim, (list, tuple)) and len(dim) == 1 else dim
    return (dim if dim < 0 else dim - out.ndim) if isinstance(dim, int) and not isinstance(dim, bool) else None


def summed_over(dim: int, args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> bool:
    """Say whether a sum that gave `out` was over axis `dim` alone, counted from the end, which is gone."""
    x = args[0] if args else kwargs["input"]
    return axis(args, kwargs, x) == dim and out.ndim == x.ndim - 1


def is_layer(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Say whether a product has a matrix that is a parameter, as that of a linear layer has."""
    return any(isinstance(x, Tensor) and x.ndim == 2 and fixed(x) for x in (*args[1:], *kwargs.values()))


def spoiled(state: State) -> State:
    """Return what to know of scores or weights that were written to by a function that was not seen."""
    if isinstance(state, Scores):
        return state.failed("its scores were written to in a way that was not followed")
    if isinstance(state, Weights):
        return state if state.told else state.changed("its weights were written to before the values")
    if isinstance(state, Turned):
        return Turned(cast(Weights, spoiled(state.weights)))
    if isinstance(state, Exponent):
        return Exponent(cast(Scores, spoiled(state.scores)))
    if isinstance(state, Spread):
        return Spread(cast(Weights, spoiled(state.weights)), state.own, state.v)
    return state


def fixed(x: Any) -> bool:
    """Say whether `x` is a parameter, or a view of one."""
    return isinstance(x, nn.Parameter) or (isinstance(x, Tensor) and isinstance(x._base, nn.Parameter))


def pairs_of(args: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """Return (q, k) if two tensors are multiplied as (*lead, query, 1, d) and (*lead, 1, key, d)."""
    if len(args) != 2 or not all(isinstance(x, Tensor) and x.ndim > 2 and not x.is_nested for x in args):
        return None
    for q, k in (args, args[::-1]):
        if q.shape[-2] == 1 == k.shape[-3] and q.shape[-3] > 1 < k.shape[-2] and q.shape[-1] == k.shape[-1] > 1:
            return q.squeeze(-2), k.squeeze(-3)
    return None


def begin(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], out: Tensor) -> Scores | None:
    """Return the scores that a product of queries and keys is; None for a layer's product with its weight."""
    if func is torch.einsum:
        made = product_of(args)
        return None if made is None or fixed(flat(args, {})[2]) else Scores.product(*made, out)
    tensors = operands(func, args, kwargs)
    bias = tensors.pop(0) if len(tensors) > 2 else None
    if len(tensors) != 2 or not all(isinstance(x, Tensor) and x.ndim > 1 for x in tensors):
        return None
    if fixed(tensors[1]) or (fixed(tensors[0]) and tensors[0].ndim == 2):
        return None  # a linear layer
    scores = Scores.product(tensors[0], tensors[1].mT, out)
    if bias is not None:  # baddbmm: beta * bias + alpha * product
        scores = scores.times(kwargs.get("alpha", 1))
        if (beta := kwargs.get("beta", 1)) != 0:  # then it is not even read
            scores = scores.plus(bias, beta, out)
    return scores


def changed(
    what: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    scores: Scores,
    out: Tensor,
    is_it: Callable[[Any], bool],
) -> Scores:
    """Return the scores after one of the steps of `vocabulary.py`; raises CannotFollow."""
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
    if what == "neg":
        return scores.times(-1)
    if what == "log":
        if axis(args, kwargs, out) != -1 or scores.sinks:
            raise CannotFollow("its scores went through log_softmax over another axis than its keys")
        return scores  # less the same for all keys
    if what == "cap":
        return scores.cap()
    if what == "floor":
        if kwargs.get("max") is not None or len(args) > 2:
            raise CannotFollow("its scores were clamped from above")
        return scores.floor(kwargs.get("min", kwargs.get("other", args[1] if len(args) > 1 else None)))
    if what == "hide":
        return hidden(args, kwargs, scores, out, ours)
    if what == "join":
        return scores.join(args[0], kwargs.get("dim", args[1] if len(args) > 1 else 0), is_it, out)
    if what == "shape":
        return scores.reshape(out)
    if what == "cast":
        return scores.cast(out)
    raise CannotFollow("its scores were mixed with each other")


def hidden(args: Sequence[Any], kwargs: dict[str, Any], scores: Scores, out: Tensor, ours: Sequence[bool]) -> Scores:
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


def is_whole(state: State | None, out: Tensor) -> bool:
    """Say whether a table made of scores or weights, by a function that may pick some of them, may hold them all."""
    if not isinstance(state, Scores | Weights):
        return True
    whole = state.in_order(out) if isinstance(state, Scores) else state.may_be(out, known=False)
    return whole and out.layout is torch.strided


def chosen(state: State | None, out: Any) -> State | None:
    """Return what scores or weights become of which some were picked; None where they are not followed."""
    scores = state.scores if isinstance(state, Weights) else state
    if not isinstance(scores, Scores) or scores.named or (isinstance(state, Weights) and state.told):
        return None
    if not isinstance(out, Tensor) or out.ndim < 2 or not out.is_floating_point():
        return None
    some = Scores.unknown(out, CHOSEN)
    return Weights(some, out.shape[-1]) if isinstance(state, Weights) else some


def parts(what: str | None, state: State | None, out: Sequence[Any]) -> Iterator[tuple[Tensor, State]]:
    """Yield the tensors that scores or weights were taken apart into: some heads or texts, or it is not known what."""
    weights = state if isinstance(state, Weights) else None
    whole = weights.scores if weights is not None else state
    if not isinstance(whole, Scores) or (weights is not None and weights.told):
        return
    if what == "chosen":
        yield from ((x, some) for x in out if (some := chosen(state, x)) is not None)
        return
    said = (
        "scores were taken apart before the softmax"
        if weights is None
        else "weights were taken apart before the values"
    )
    width = whole.n_columns if weights is None else weights.n_columns
    for x in out:
        if isinstance(x, Tensor) and x.ndim > 1 and x.is_floating_point() and x.shape[-1] == width > 1:
            part = Scores.unknown(x, f"its {said}")
            if x.shape[-2] == whole.n_queries:  # some heads or texts
                part = whole.failed(f"its {said}").emptied(tuple(x.shape[:-2]))
            yield x, part if weights is None else Weights(part, width, dropout=weights.dropout)
