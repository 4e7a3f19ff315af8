"""Which positions of a text the queries and keys of a call are, when it is read in several calls with a cache.

A call does not say. What the layer's call before it left does:

    no cache, or its first call      as many keys as queries: both count from 0
    a cache with room to spare       keys have their places, and the mask says how many are filled
    a cache that grows               the key before the new ones is the last one of the call before
    a cache that forgets (windows)   the same, with fewer keys than positions: the first ones are gone
    another text's keys              the queries stand where those of the self-attention before them do

What none of this tells counts from 0. Next: `editor.py`, which is asked to cut links by their positions.
"""

from dataclasses import dataclass

from torch import Tensor

from clearhead.seeing.recordings.questions import CROSS
from clearhead.seeing.rule import Rule


@dataclass(frozen=True, eq=False)
class Met:
    """A layer that ran: the sizes of its last call, and how that goes on.

    first, first_key: the positions of its first query and of its first key.
    last:             the last key in use, of one head of every text: (texts, d_head).
    """

    name: str
    batch: int
    n_heads: int
    n_queries: int
    n_keys: int
    first: int
    first_key: int
    last: Tensor

    @property
    def end(self) -> int:
        """Return the position after its last query."""
        return self.first + self.n_queries


def meet(name: str, q: Tensor, k: Tensor, rule: Rule | None, before: Met | None, beside: Met | None) -> Met:
    """Return what is known of a call of the layer `name`, whose call before it was `before`.

    `q` and `k` are (batch, heads, time, d_head), `rule` is asked for where there are more keys than queries. `beside`
    is the last call of a layer that looks at its own text.
    """
    batch, n_heads = max(q.shape[0], k.shape[0]), max(q.shape[1], k.shape[1])
    n_queries, n_keys = q.shape[2], k.shape[2]
    filled = n_keys if rule is None else max(n_queries, rule.visible(n_queries, n_keys))
    first = first_key = 0
    if CROSS.search(name):
        first = beside.first if beside is not None and beside.n_queries == n_queries else 0
    elif n_queries < n_keys:
        first, first_key = _places(k, n_queries, filled, rule, before)
    return Met(name, batch, n_heads, n_queries, n_keys, first, first_key, k[:, 0, filled - 1].detach().clone())


def _places(k: Tensor, n_queries: int, filled: int, rule: Rule | None, before: Met | None) -> tuple[int, int]:
    """Return the positions of the first query and of the first key, of a call with more keys than queries."""
    n_keys = k.shape[2]
    if filled < n_keys and n_queries > 1 and rule is not None and rule.reach is not None:
        return rule.reach, 0
    if before is None:
        return 0, 0
    if filled < n_keys:
        return (before.end, 0) if filled == before.end + n_queries else (0, 0)
    latest = k[:, None, 0, filled - n_queries - 1]
    if latest.shape[2:] != before.last.shape[1:] or not bool((latest == before.last).all(-1).any(1).all()):
        return 0, 0  # any text's: beams change places
    return before.end, before.end + n_queries - n_keys
