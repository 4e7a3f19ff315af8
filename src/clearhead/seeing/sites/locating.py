"""Where the queries and keys of an attention call stand in their text, from everything that tells it.

In this order, the first that applies:

    a layer named for cross-attention, or given another text    keys are that text; queries stand as those of the
                                                                self-attention before them
    as many keys as queries                                     both count from 0
    a cache of a known package                                  it counts what it has read: see `told.py`
    an input of the module that is as long as its keys          keys are made from it: another text, or a text of which
                                                                few tokens look (pooling)
    keys that the layer's call before had, bit for bit          they are the same tokens; new ones follow the last
    a position argument, or a cache of another package          the queries stand there, if no key was dropped
    a causal mask                                               query i may see exactly the keys up to its own

What none of this tells is unknown, and said to be: nobody guesses from shapes. Next: `recorder.py`, whose recordings
carry this, and `editing/editor.py`, which cuts links by their positions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.seeing.positions import Positions, in_order, of_list
from clearhead.seeing.recordings.questions import CROSS
from clearhead.seeing.rule import Rule
from clearhead.seeing.sites.told import Arguments

HASH_BASE = 6364136223846793005  # odd, with its bits well mixed: the multiplier of Knuth's MMIX
NO_SOURCE = (
    "It has {n_queries} queries and {n_keys} keys, and nothing says which token is which: no cache of transformers or "
    "clearhead, no cache_position, no causal mask, and its keys are not those of the call before. Begin before the "
    "text is read, or read it in one forward without a cache"
)


@dataclass(frozen=True)
class Asked:
    """What of a call itself tells where it stands.

    rule: returns who may look where.
    keys: returns a copy of one head's keys, (batch, key, d_head), now and when the next call is compared with them.
    """

    name: str
    n_queries: int
    n_keys: int
    rule: Callable[[], Rule]
    keys: Callable[[], Tensor]


@dataclass(frozen=True)
class Located:
    """A call, and where it stood."""

    call: Asked
    positions: Positions

    def can_be_compared(self, later: Asked) -> bool:
        """Return whether the keys of a later call can be compared with these.

        They have no numbers where the model's own weights are kept because its keys are not known.
        """
        old, new = self.call.keys().shape[2], later.keys().shape[2]
        return not self.positions.unknown and old == new > 0


class Locator:
    """Locates one call after the other, and remembers each layer's latest."""

    def __init__(self) -> None:
        self.before: dict[str, Located] = {}
        self.latest: Located | None = None  # of a layer that looks at its own text

    def locate(self, call: Asked, said: Arguments) -> Positions:
        """Return where a call stands, by the arguments of the modules around it and by the calls before."""
        found = Located(call, self._locate(call, said))
        self.before[call.name] = found
        if found.positions.one_text:
            self.latest = found
        return found.positions

    def _locate(self, call: Asked, said: Arguments) -> Positions:
        n_queries, n_text = call.n_queries, call.n_keys - said.n_added
        if CROSS.search(call.name) or said.says_another_text:
            beside, cache = self.latest, said.cache
            first = 0 if cache is None else cache.read
            if beside is not None and beside.call.n_queries == n_queries:
                first = beside.positions.first
            return in_order(call.n_keys, first, one_text=False)
        if n_queries > n_text:
            return in_order(call.n_keys, one_text=False)  # pooled or merged keys
        cache = said.own_cache if n_queries == n_text else said.cache
        if cache is not None and cache.known and (found := _by_count(call, cache.read, cache.has_room_for)) is not None:
            return found
        if n_queries == n_text:
            return in_order(n_text)
        return self._by_evidence(call, said) or Positions(0, (), False, NO_SOURCE.format(**_counts(call)))

    def _by_evidence(self, call: Asked, said: Arguments) -> Positions | None:
        """Return where a call with more keys than queries stands, by what no known cache tells; None: nothing tells."""
        if said.has_sequence(call.keys().shape[0], call.n_queries, call.n_keys):
            return in_order(call.n_keys, one_text=False)
        rule, place, cache, position = call.rule(), said.place, said.own_cache, said.position or 0
        seen = rule.visible(call.n_queries, call.n_keys)
        filled = seen if place is None else place + call.n_queries
        n_carried = min(filled, call.n_keys) - call.n_queries
        before = self.before.get(call.name)
        if n_carried > 0 and before is not None and before.can_be_compared(call):
            if (carried := same_tokens(call.keys()[:, :n_carried], before)) is not None:
                first = int(carried[-1]) + 1
                return of_list(torch.cat([carried, torch.arange(first, first + call.n_queries)]), first)
            if place is not None or cache is not None:
                return None  # a cache whose keys are no longer those that were seen: turned, merged, of another text
        if place is not None:
            return _by_count(call, place, lambda n_keys: True, drops=False)
        if cache is not None and not cache.known and position <= cache.read:
            return _by_count(call, cache.read, cache.has_room_for, drops=False)
        if rule.reach is not None and 0 <= rule.reach <= call.n_keys - call.n_queries:
            return in_order(rule.reach + call.n_queries, rule.reach)
        if call.n_queries == 1 and 0 < seen < call.n_keys:
            return in_order(seen, seen - 1)
        if position and position + call.n_queries == call.n_keys:
            return in_order(call.n_keys, position)
        return None


def _counts(call: Asked) -> dict[str, int]:
    return {"n_queries": call.n_queries, "n_keys": call.n_keys}


def _by_count(call: Asked, read: int, has_room_for: Callable[[int], bool], *, drops: bool = True) -> Positions | None:
    """Return where a call stands before which `read` tokens were read; None where its keys do not fit that.

    More keys than tokens: empty places of a cache, which has room for as many. Fewer: the oldest tokens were dropped,
    by a cache that `drops` these first.
    """
    end = read + call.n_queries
    if end == call.n_keys:
        return in_order(end, read)
    if end > call.n_keys:
        return in_order(call.n_keys, read, start=end - call.n_keys) if drops else None
    if has_room_for(call.n_keys) or call.rule().visible(call.n_queries, call.n_keys) == end:
        return in_order(end, read)
    return None


def same_tokens(keys: Float[Tensor, "batch carried d_head"], before: Located) -> Int[Tensor, " carried"] | None:
    """Return which tokens some keys are, by those of the call before that hold the same bits; None where any is new.

    None too where the same key stands at several positions, or where texts differ in where a key stands, or where they
    are not in the order of the text. Texts may have changed places, as beams do.
    """
    old = before.call.keys()
    known, now = _signature(old).cpu(), _signature(keys.to(old.device, old.dtype)).cpu()
    at = before.positions.of_columns(old.shape[1]).expand(known.shape)
    known, at = known[at >= 0], at[at >= 0]
    values, which = torch.unique(known, return_inverse=True)
    lowest = torch.full_like(values, -1).scatter_reduce(0, which, at, "amin", include_self=False)
    highest = torch.full_like(values, -1).scatter_reduce(0, which, at, "amax", include_self=False)
    place = torch.searchsorted(values, now).clamp(max=max(len(values) - 1, 0))
    if not len(values) or not bool((values[place] == now).all() and (lowest == highest)[place].all()):
        return None
    found = lowest[place]
    agree = bool((found == found[0]).all()) and bool((found[0, 1:] > found[0, :-1]).all())
    return found[0] if agree else None


def _signature(keys: Float[Tensor, "batch key d_head"]) -> Int[Tensor, "batch key"]:
    """Return a number for each key that its bits determine: a polynomial of them, modulo 2^64."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[keys.element_size()]
    bits = keys.detach().contiguous().view(whole).long()
    powers = torch.full((bits.shape[-1],), HASH_BASE, device=bits.device).cumprod(0)
    return (bits * powers).sum(-1)
