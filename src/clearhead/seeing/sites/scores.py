"""What scores written out by hand are made of, in the one form that a recording knows.

    cap * tanh(scale * q . k / cap) + terms, hidden where masks say so, with sinks as columns behind

Every step returns new scores or raises CannotFollow; nothing is approximated. `differs` is the proof: rows computed
again from this form against the rows that the model's own softmax made. Next: `byhand.py` follows a model with it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

NOTHING_LEFT = -1e4 + 1  # scores as low as -1e4 are how models say "hidden": exp of them is 0 beside any other
ROUNDING = 8  # how many roundings of a score, in the model's own dtype, may lie between its weights and ours


class CannotFollow(Exception):
    """Something was done to scores that this form cannot say; the message says what."""


@dataclass(frozen=True, eq=False)
class Scores:
    """All tensors broadcast to (*lead, query, key), q and k to (*lead, time, d_head); `lead` is batch, heads, or both.

    terms:  added, in the order they came.
    hidden: True where a score was replaced by a very low number, `lowest` the highest such number.
    zeroed: True where a score was multiplied by 0, for a very low number to be added there.
    floored: scores lower than a very low number were raised to it, so that no row is without a softmax.
    eps:    the coarsest rounding that scores went through.
    """

    q: Tensor
    k: Tensor
    lead: tuple[int, ...]
    scale: float
    eps: float
    versions: tuple[int, int]
    capped: float | None = None
    terms: tuple[Tensor, ...] = ()
    hidden: tuple[Tensor, ...] = ()
    lowest: float = -torch.inf
    zeroed: Tensor | None = None
    floored: bool = False
    sinks: tuple[Tensor, ...] = ()
    broken: str | None = None
    named: bool = False  # where broken: what follows is not recorded, but named with the reason
    given: tuple[Tensor, Tensor] | None = None  # the very tensors that were multiplied

    @classmethod
    def product(cls, q: Tensor, k: Tensor, out: Tensor) -> "Scores":
        """Return the scores `out` = q @ k.T."""
        eps = torch.finfo(out.dtype).eps
        return cls(q, k, tuple(out.shape[:-2]), 1.0, eps, (version(q), version(k)), given=(q, k))

    @classmethod
    def unknown(cls, out: Tensor, reason: str) -> "Scores":
        """Return scores, or weights, of which no more is known than their shape, and why."""
        q, k = (out.new_empty(n, 0) for n in out.shape[-2:])
        return cls(q, k, tuple(out.shape[:-2]), 1.0, 0.0, (0, 0), broken=reason, named=True)

    @property
    def n_queries(self) -> int:
        """Return how many positions look."""
        return self.q.shape[-2]

    @property
    def n_keys(self) -> int:
        """Return how many positions can be looked at."""
        return self.k.shape[-2]

    @property
    def n_columns(self) -> int:
        """Return how many columns the scores have: the keys, and the sinks behind them."""
        return self.n_keys + sum(s.shape[-1] for s in self.sinks)

    def failed(self, reason: str, *, named: bool = False) -> "Scores":
        """Return scores that weights cannot be computed from, with the first reason there was."""
        return replace(self, broken=self.broken or reason, named=self.named or named)

    def emptied(self, lead: tuple[int, ...] | None = None) -> "Scores":
        """Return scores of the same shape, but for the axes in front, that hold no tensor of the model's."""
        q, k = (self.q.new_empty(n, 0) for n in (self.n_queries, self.n_keys))
        lead = self.lead if lead is None else lead
        return Scores(q, k, lead, 1.0, self.eps, self.versions, broken=self.broken, named=self.named)

    def in_order(self, out: Tensor) -> bool:
        """Say whether the last two axes of `out` may be queries and keys, with columns in front or behind."""
        return out.ndim > 1 and out.shape[-2] == self.n_queries and out.shape[-1] >= self.n_keys

    def may_be(self, out: Tensor, known: bool) -> bool:
        """Say whether `out`, made of these scores by functions unknown here, may be scores of these queries and keys.

        `known` where a function made it that mixes no axes. Columns may have been added, in front or behind.
        """
        if self.in_order(out):
            return True
        enough = out.numel() >= numel(self.lead) * self.n_queries * self.n_keys
        return enough and (known or has_axes(out, self.n_queries, self.n_keys))

    def made_of(self) -> tuple[int, ...]:
        """Return how often what these scores are made of was written to."""
        return tuple(map(version, (self.q, self.k, *self.terms, *self.hidden, *self.sinks)))

    def turned(self) -> "Scores":
        """Return the scores of keys and queries as those of queries and keys."""
        if self.sinks:
            return replace(self.failed("its softmax was over queries, and sinks were appended"), sinks=()).turned()
        terms, hidden = (tuple(x.mT for x in group) for group in (self.terms, self.hidden))
        zeroed = None if self.zeroed is None else self.zeroed.mT
        return replace(self, q=self.k, k=self.q, terms=terms, hidden=hidden, zeroed=zeroed)

    def times(self, by: Any) -> "Scores":
        """Return the scores multiplied by a number, or by a tensor that is the same for all keys."""
        if isinstance(by, Tensor) and by.numel() == 1:
            by = by.reshape(1) if by.requires_grad and torch.is_grad_enabled() else by.item()
        if isinstance(by, Tensor):
            if self.capped is not None or self.hidden or self.sinks or self.zeroed is not None:
                raise CannotFollow("its scores were multiplied by a tensor after they were capped or masked")
            if by.shape[-1] != 1:
                if self.terms or not bool(((by == 0) | (by == 1)).all()):
                    raise CannotFollow("its scores were multiplied by a tensor that differs from key to key")
                return replace(self, zeroed=by == 0)
            q = self.q * by
            lead = tuple(q.shape[:-2])
            return replace(
                self,
                q=q,
                lead=lead if _broadcasts(self.lead, lead) else self.lead,
                terms=tuple(t * by for t in self.terms),
            )
        by = float(by)
        if by <= 0 and self.hidden:
            raise CannotFollow("its scores were multiplied by a negative number after a mask")
        if self.sinks:
            raise CannotFollow("its scores were multiplied after a sink was appended")
        terms = tuple(t * by for t in self.terms)
        capped = None if self.capped is None else self.capped * by
        return replace(self, scale=self.scale * by, capped=capped, terms=terms, lowest=self.lowest * by)

    def floor(self, value: Any) -> "Scores":
        """Return the scores with those lower than `value`, which hides them, raised to it."""
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(value, Tensor) or value is None or not value < NOTHING_LEFT:
            raise CannotFollow("its scores went through a maximum with something")
        return replace(self, floored=True)

    def cap(self) -> "Scores":
        """Return the tanh of the scores."""
        if self.capped is not None or self.terms or self.hidden or self.sinks:
            raise CannotFollow("its scores went through a tanh after something was added to them")
        return replace(self, capped=1.0)

    def plus(self, what: Any, alpha: int | float, out: Tensor) -> "Scores":
        """Return the scores with alpha * `what` added, giving `out`."""
        if not isinstance(what, Tensor):
            what = torch.full((1, 1), float(what), device=out.device)
        if what.ndim < 2:
            what = what[(None,) * (2 - what.ndim)]
        if self.sinks:
            if what.shape[-1] == 1:
                return self  # one number a row: nothing to a softmax
            raise CannotFollow("something was added to its scores after a sink was appended")
        if what.dtype == torch.bool or not what.is_floating_point():
            what = what.to(out.dtype)
        wider = replace(self, lead=tuple(out.shape[:-2]))
        return replace(wider, terms=(*self.terms, what if alpha == 1 else what * alpha))

    def hide(self, mask: Tensor, value: Any, out: Tensor) -> "Scores":
        """Return the scores with `value` where the mask is True."""
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise CannotFollow("some of its scores were replaced by a table of others")
            value = value.item()
        if not value < NOTHING_LEFT:
            raise CannotFollow(f"some of its scores were replaced by {value:g}, which does not hide them")
        if self.sinks:
            raise CannotFollow("its scores were masked after a sink was appended")
        lead = tuple(out.shape[:-2])
        return replace(self, lead=lead, hidden=(*self.hidden, mask), lowest=max(self.lowest, float(value)))

    def join(self, parts: Sequence[Any], dim: int, is_it: Callable[[Any], bool], out: Tensor) -> "Scores":
        """Return the scores with columns appended, which must be cut off again after the softmax."""
        if dim not in (-1, out.ndim - 1) or not is_it(parts[0]) or any(map(is_it, parts[1:])):
            raise CannotFollow("its scores were put beside others")
        return replace(self, sinks=(*self.sinks, *(p.expand(*self.lead, self.n_queries, -1) for p in parts[1:])))

    def reshape(self, out: Tensor) -> "Scores":
        """Return the scores with the axes in front as `out` has them."""
        if out.shape[-2:] != (self.n_queries, self.n_columns) or out.shape[:-2].numel() < numel(self.lead):
            raise CannotFollow("the axes of its scores were mixed, or some were left out")
        lead = tuple(out.shape[:-2])
        if lead == self.lead:
            return self
        if numel(lead) != numel(self.lead):
            if numel(self.lead) != 1 and not _broadcasts(self.lead, lead):
                raise CannotFollow("the axes of its scores were expanded")
            return replace(self, lead=lead)

        def move(x: Tensor) -> Tensor:
            if numel(tuple(x.shape[:-2])) == 1:
                return x.reshape(*x.shape[-2:])
            return x.expand(*self.lead, *x.shape[-2:]).reshape(*lead, *x.shape[-2:])

        q, k = move(self.q), move(self.k)
        groups = (tuple(map(move, group)) for group in (self.terms, self.hidden, self.sinks))
        terms, hidden, sinks = groups
        zeroed = None if self.zeroed is None else move(self.zeroed)
        return replace(self, q=q, k=k, lead=lead, terms=terms, hidden=hidden, zeroed=zeroed, sinks=sinks)

    def cast(self, out: Tensor) -> "Scores":
        """Return the scores in the dtype of `out`."""
        return replace(self, eps=max(self.eps, torch.finfo(out.dtype).eps))

    def tidied(self) -> "Scores":
        """Return the scores with rows in which everything was hidden told otherwise.

        A softmax of one low number throughout is flat; the same comes of a query that is zero, hidden from nothing.
        """
        scores = self
        if (
            scores.floored
            and (mask := scores.mask()) is not None
            and bool((_as_scores(mask) == -torch.inf).all(-1).any())
        ):
            raise CannotFollow("rows were hidden whole, and raised to a number again")
        if scores.zeroed is not None:
            total = functools.reduce(torch.add, scores.terms) if scores.terms else torch.zeros(1, 1)
            if not bool(((total < NOTHING_LEFT) | ~scores.zeroed).all()):
                raise CannotFollow("some of its scores were multiplied by 0 and not hidden")
            lowest = float(total.masked_fill(~scores.zeroed, -torch.inf).max())
            scores = replace(scores, hidden=(*scores.hidden, scores.zeroed), lowest=max(scores.lowest, lowest))
        if not scores.hidden or scores.lowest == -torch.inf:
            return scores
        hidden = functools.reduce(torch.logical_or, scores.hidden)
        blind = hidden.all(-1, keepdim=True)
        if not blind.any():
            return scores
        terms = tuple(t.masked_fill(blind, 0) for t in scores.terms)
        return replace(scores, q=scores.q.masked_fill(blind, 0), terms=terms, hidden=(hidden & ~blind,))

    def mask(self) -> Tensor | None:
        """Return terms and masks as one, in the form of F.scaled_dot_product_attention, with as few axes as it has."""
        terms = [t for t in self.terms if self.sinks or t.shape[-1] != 1 or self.n_keys == 1]
        hidden = functools.reduce(torch.logical_or, self.hidden) if self.hidden else None
        if not terms:
            return None if hidden is None else ~hidden
        total = functools.reduce(torch.add, terms)
        return total if hidden is None else total.masked_fill(hidden, -torch.inf)


@torch.no_grad()
def differs(scores: Scores, weights: Tensor) -> str | None:
    """Say how `weights`, which the model's softmax made, differ from those that `scores` give; None if they do not.

    The first, the middle and the last row of every head of every text are computed again.
    """
    if scores.broken is not None:
        return scores.broken
    if tuple(weights.shape) != (*scores.lead, scores.n_queries, scores.n_columns):
        return "its weights have another shape than its scores"
    if weights.is_meta:
        return "it ran on the meta device, which holds no numbers"
    if scores.given is not None and scores.versions != tuple(map(version, scores.given)):
        return "its queries or keys were overwritten before the softmax"
    rows = torch.tensor(sorted({0, scores.n_queries // 2, scores.n_queries - 1}), device=weights.device)
    exact = torch.promote_types(scores.q.dtype, torch.float32)
    with torch.autocast(weights.device.type, enabled=False):
        made = (scores.q.index_select(-2, rows).to(exact) * scores.scale) @ scores.k.to(exact).mT
        if scores.capped is not None:
            made = scores.capped * (made / scores.capped).tanh()
        if (mask := scores.mask()) is not None:
            mask = mask.index_select(-2, rows) if mask.shape[-2] > 1 else mask
            made = made + mask.to(exact) if mask.dtype != torch.bool else made.masked_fill(~mask, -torch.inf)
        made = made.expand(*scores.lead, *made.shape[-2:])
        made = torch.cat([made, *(s.index_select(-2, rows).to(exact) for s in scores.sinks)], -1)
    size = made.masked_fill(~made.isfinite() | (made < NOTHING_LEFT), 0).abs().max()
    have, want = weights.index_select(-2, rows).to(exact), made.softmax(-1)
    if bool(torch.stack([weights[..., :1].isnan().any(), want.isnan().any()]).any()):
        return "some rows of its softmax are not numbers"  # a row is one that may look nowhere
    error = (have - want).nan_to_num().abs().max()
    allowed = 1e-6 + torch.finfo(weights.dtype).eps + ROUNDING * scores.eps * (1 + size)
    if not bool(error <= allowed):
        return f"weights computed again differ from its own by {float(error):.1e}"
    return None


def _as_scores(mask: Tensor) -> Tensor:
    return torch.zeros((), device=mask.device).masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask


def version(x: Tensor) -> int:
    """Return how often a tensor was written to, as far as torch counts that."""
    return -1 if x.is_inference() else x._version


def has_axes(x: Tensor, n_queries: int, n_keys: int) -> bool:
    """Say whether `x` has an axis as long as there are queries, and another as long as there are keys."""
    return x.shape.count(n_queries) > (n_queries == n_keys) and n_keys in x.shape


def numel(shape: tuple[int, ...]) -> int:
    """Return how many numbers a tensor of a shape holds."""
    return torch.Size(shape).numel()


def _broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    sizes = zip(reversed(small), reversed(large))
    return len(small) <= len(large) and all(few in (1, many) for few, many in sizes)
