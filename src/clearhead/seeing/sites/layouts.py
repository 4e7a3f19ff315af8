"""A call of flash attention as a sighting: tensors in their places, and the rule of who saw whom.

Texts that were packed are told apart again. Where transformers packed them, because of padding or because a row held
several documents, they stand where they stood in the model's own tensors. Next: `texts.py`, several texts in one row.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clearhead.seeing.rule import Rule
from clearhead.seeing.sites.flash import Given, Kernel, kernel
from clearhead.seeing.sites.flex import CannotTell
from clearhead.seeing.sites.sighting import Sighting
from clearhead.seeing.sites.texts import (
    Places,
    as_padded,
    in_rows,
    offsets,
    one_row,
    rule_of,
    shifts,
    side_by_side,
    too_wide,
)

MOST = 2**26  # numbers of a bias that ALiBi may be written out in
PACKED = "texts of very different lengths were kept one after the other, as one text with several documents in it"
HOLES = "texts with padding in their midst were kept without it: positions count what the kernel was given"


@dataclass(frozen=True, eq=False)
class Padded:
    """What transformers' flash entry was asked for: how long its texts are, and which of their keys are padding."""

    batch: int
    n_queries: int
    n_keys: int
    mask: Tensor | None


class Reader:
    """Reads calls, and remembers where the latest texts stood and what rules they had: the next layer has the same."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self.ends: list[tuple[Tensor, int, tuple[int, ...]]] = []  # a tensor, its version, its numbers
        self.met: list[Places] = []
        self.rules: list[tuple[Places, Places, tuple[int, int, torch.device], Rule]] = []

    def sighting(
        self, given: Given, out: Tensor, lse: Tensor | None, asked: Padded | None
    ) -> tuple[Sighting, Callable[[Tensor], Tensor]]:
        """Return what a call that gave `out` was, and how another output is laid out as that one; CannotTell."""
        call = kernel(given)
        queries, keys = map(self.same, self.places(call, asked))
        batched = call.q.ndim == 4
        if not batched and lse is not None:
            lse = _laid_lse(lse, queries, call.q)

        def lay(x: Tensor) -> Tensor:
            return x.transpose(1, 2) if batched else queries.lay_out(x)

        def back(x: Tensor) -> Tensor:
            return x.transpose(1, 2) if batched else queries.pack(x, out)

        k, v = (_keys(x, call, keys) for x in (call.k, call.v))
        if lse is not None:  # a row that sees nothing has an infinite one here, and 0 in torch
            lse = None if call.slopes is not None else lse.masked_fill(lse.isinf(), 0)
        rule = self.rule(queries, keys, (call.left, call.right, call.q.device))
        if call.slopes is not None:
            rule = replace(rule, bias=_distances(call.slopes, queries, keys, call.q.shape[-2]))
        sighting = Sighting(
            lay(call.q),
            k,
            None,
            call.dropout,
            False,
            call.scale,
            lse,
            v=v,
            out=lay(out),
            softcap=call.softcap,
            rule=rule,
            gave=(out, lay),
        )
        return sighting, back

    def places(self, call: Kernel, asked: Padded | None) -> tuple[Places, Places]:
        """Return where queries and keys stand."""
        if call.q.ndim == 4 or call.ends_q is None:
            batch, n_queries = call.q.shape[:2]
            queries = side_by_side([n_queries] * batch, offsets([n_queries] * batch))
            used = [call.k.shape[1]] * batch if call.used_k is None else self.numbers(call.used_k)
            begins = [0] * batch if call.from_k is None else self.numbers(call.from_k)
            return queries, as_padded([n - b for n, b in zip(used, begins)], begins, max(used, default=0))
        first_q = self.numbers(call.ends_q)
        n_q = [b - a for a, b in itertools.pairwise(first_q)]
        first_k = (0,) * (len(n_q) + 1) if call.ends_k is None else self.numbers(call.ends_k)
        n_k = [b - a for a, b in itertools.pairwise(first_k)]
        if call.used_k is not None:
            n_k = list(self.numbers(call.used_k))
        if call.pages is not None:
            return side_by_side(n_q, first_q[:-1]), side_by_side(n_k, offsets(n_k))
        if asked is not None and call.used_k is None and (found := self.as_asked(n_q, n_k, asked)) is not None:
            return found
        if too_wide(n_q, n_k):
            self.note(PACKED)
            return one_row(n_q, first_q[:-1]), one_row(n_k, first_k[:-1])
        return side_by_side(n_q, first_q[:-1]), side_by_side(n_k, first_k[:-1])

    def as_asked(self, n_q: list[int], n_k: list[int], asked: Padded) -> tuple[Places, Places] | None:
        """Return where texts stood before they were packed; None where that cannot be known."""
        if asked.mask is None:
            found = in_rows(n_q, asked.batch, asked.n_queries), in_rows(n_k, asked.batch, asked.n_keys)
            return None if found[0] is None or found[1] is None else (found[0], found[1])
        may = asked.mask.bool()
        n, width = may.sum(-1), may.shape[-1]
        first, last = may.int().argmax(-1), width - may.flip(-1).int().argmax(-1)
        counts, firsts, lasts = torch.stack([n, first, last * (n > 0)]).tolist()
        firsts = [a if count else 0 for a, count in zip(firsts, counts)]
        if counts != n_k or any(b - a != count for a, b, count in zip(firsts, lasts, counts)):
            self.note(HOLES)
            return None
        keys, short = as_padded(counts, firsts, width), width - asked.n_queries
        if asked.n_queries == min(asked.n_keys, width):
            queries = as_padded(counts, firsts, width)
        elif asked.n_queries == 1:
            queries = as_padded([1] * asked.batch, [0] * asked.batch, 1)
        else:  # the last ones
            begins = [max(a - short, 0) for a in firsts]
            queries = as_padded([max(b - short - a, 0) for a, b in zip(begins, lasts)], begins, asked.n_queries)
        return (queries, keys) if list(queries.length) == n_q else None

    def numbers(self, ends: Tensor) -> tuple[int, ...]:
        """Return a few numbers that the model holds on its device, waiting for them once."""
        version = -1 if ends.is_inference() else ends._version
        for held, was, known in self.ends:
            if held is ends and was == version != -1:
                return known
        found = tuple(int(n) for n in ends.tolist())
        self.ends = [*self.ends[-3:], (ends, version, found)]
        return found

    def same(self, places: Places) -> Places:
        """Return the very places of another layer, where they are the same: these know where tokens go."""
        for known in self.met:
            if known.said == places.said:
                return known
        self.met = [*self.met[-7:], places]
        return places

    def rule(self, queries: Places, keys: Places, how: tuple[int, int, torch.device]) -> Rule:
        """Return who sees whom, the very rule of another layer, where that is the same."""
        for *where, known_how, rule in self.rules:
            if where[0] is queries and where[1] is keys and known_how == how:
                return rule
        rule = rule_of(queries, keys, *how)
        self.rules = [*self.rules[-3:], (queries, keys, how, rule)]
        return rule


def _keys(x: Tensor, call: Kernel, keys: Places) -> Tensor:
    """Return keys, or values, in their places; of a cache only what somebody may see."""
    if call.pages is not None:
        pages = call.pages[:, : -(-keys.width // x.shape[1])]
        x = x[pages.clamp_min(0).long()].flatten(1, 2)
    return x[:, : keys.width].transpose(1, 2) if x.ndim == 4 else keys.lay_out(x)


def _laid_lse(lse: Tensor, queries: Places, q: Tensor) -> Tensor | None:
    """Return a log-sum-exp as (batch, heads, time): it came as (heads, tokens), or in older packages text by text."""
    if lse.shape == (q.shape[1], q.shape[0]):
        return queries.lay_out(lse.mT[..., None])[..., 0]
    if lse.ndim != 3 or lse.shape[:2] != (len(queries.length), q.shape[1]):
        return None
    texts, within, _ = (x.to(lse.device) for x in queries.tokens())
    at, _ = queries.taken(lse.device)
    packed = lse.new_zeros(q.shape[0], q.shape[1]).index_copy(0, at, lse[texts, :, within])
    return queries.lay_out(packed[..., None])[..., 0]


def _distances(slopes: Tensor, queries: Places, keys: Places, n_heads: int) -> Tensor:
    """Return ALiBi's bias: so much for every key that lies between (Press et al. 2022)."""
    shift = shifts(queries, keys)
    shift = shift[:1] if len(set(shift)) == 1 else shift
    n = max(len(shift), len(slopes) if slopes.ndim == 2 else 1)
    if not (queries.alone and keys.alone):
        raise CannotTell("its ALiBi slopes are over several documents in one row")
    if n * n_heads * queries.width * keys.width > MOST:
        raise CannotTell(f"its ALiBi slopes over {queries.width} x {keys.width} links are more than {MOST} numbers")
    at_q, at_k = (torch.arange(places.width, device=slopes.device) for places in (queries, keys))
    apart = at_q[:, None] + torch.tensor(shift, device=slopes.device)[:, None, None] - at_k
    return -slopes.float().reshape(-1, n_heads, 1, 1) * apart.abs()[:, None]
