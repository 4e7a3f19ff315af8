"""Who was allowed to look where, kept as small as it can be said.

Models hand masks over in every form: none, a causal flag, True and False, numbers to add, often as one query x key
table although a single sentence says it all. `recognition.py` finds that sentence; only what it cannot name is kept as
a table, one bit a link. A rule is shared by all layers that were given the same mask.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

# Picks from a table (batch, heads, query, key), whose axes may be one long, what belongs to some keys.
Pick = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Rule:
    """Every field narrows the others; `Rule()` lets everybody look everywhere. Positions are those of the call.

    reach:   query i sees key j only where j <= i + reach. Causal is reach = 0, or n_keys - n_queries where the last
             query stands at the last key.
    since:   and only where j >= i + since: a causal window of w keys is since = reach - w + 1.
    keys:    of each text, the first key that may be seen and the first after it that may not: padding on either side.
    spans:   the same for each query: documents in one text, a prefix seen by all, whatever is one stretch a row.
    allowed: True = may look.
    packed:  the same, eight keys a byte, the lowest bit first.
    bias:    added to the scaled scores, in the dtype it came in.
    rows:    which of the call's queries are kept, ascending, where not all are. Tables above then hold these only.
    """

    reach: int | None = None
    allowed: Bool[Tensor, "#batch #heads #query #key"] | None = None
    bias: Float[Tensor, "#batch #heads #query #key"] | None = None
    since: int | None = None
    keys: Int[Tensor, "#batch 2"] | None = None
    spans: Int[Tensor, "#batch #heads #query 2"] | None = None
    packed: UInt8[Tensor, "#batch #heads #query bytes"] | None = None
    rows: Int[Tensor, " query"] | None = None

    @property
    def tables(self) -> dict[str, Tensor]:
        """Return its tensors by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Return the memory its tables take."""
        return sum(t.numel() * t.element_size() for t in self.tables.values())

    def apply(
        self,
        scores: Float[Tensor, "heads rows cols"],
        batch: int,
        heads: Int[Tensor, " heads"],
        rows: Int[Tensor, " rows"],
        cols: Int[Tensor, " cols"],
    ) -> Float[Tensor, "heads rows cols"]:
        """Return the scaled scores of one text's tile with the bias added and -inf where one may not look."""
        return self._narrow(scores, batch, rows[:, None], cols, _of_tile(batch, heads, rows))

    def apply_to_links(
        self,
        scores: Float[Tensor, "heads links"],
        batch: int,
        heads: Int[Tensor, " heads"],
        rows: Int[Tensor, " links"],
        cols: Int[Tensor, " links"],
    ) -> Float[Tensor, "heads links"]:
        """Do what `apply` does, to the scores of queries rows[i] on keys cols[i]."""
        return self._narrow(scores, batch, rows, cols, _of_links(batch, heads, rows))

    def sees(
        self, batch: int, heads: Int[Tensor, " heads"], rows: Int[Tensor, " rows"], cols: Int[Tensor, " cols"]
    ) -> Bool[Tensor, "#heads #rows #cols"] | None:
        """Return one text's tile of who may look where, or None where everybody may; the bias is not looked at.

        `rows` count the queries that are kept, as in `apply`.
        """
        found = None
        for may in self._each(batch, rows[:, None], cols, _of_tile(batch, heads, rows)):
            may = may[(None,) * (3 - may.ndim)]
            found = may if found is None else found & may
        return found

    def visible(self, n_queries: int, n_keys: int) -> int:
        """Return how many leading keys may be seen by somebody: no query of any text sees a later one."""
        stop = n_keys if self.reach is None else min(n_keys, n_queries + self.reach)
        for table in (self.keys, self.spans):
            if table is not None and table.numel():
                stop = min(stop, int(table[..., 1].max()))
        return max(stop, 0)

    def keep(self, rows: Int[Tensor, " kept"]) -> "Rule":
        """Return the rule of some of the queries, ascending."""
        kept: dict[str, Any] = {"rows": rows}
        for name in ("spans", "allowed", "packed", "bias"):
            table = getattr(self, name)
            if table is not None:
                kept[name] = table if table.shape[2] == 1 else table.index_select(2, rows.to(table.device))
        return replace(self, **kept)

    def to(self, device: torch.device) -> "Rule":
        """Return the rule with its tables on another device."""
        there: dict[str, Any] = {name: table.to(device) for name, table in self.tables.items()}
        return replace(self, **there)

    def same(self, other: "Rule") -> bool:
        """Say whether the other rule is the same sentence in the same words."""
        if (self.reach, self.since) != (other.reach, other.since) or self.tables.keys() != other.tables.keys():
            return False
        theirs = other.tables
        return all(
            t.dtype == theirs[name].dtype and t.device == theirs[name].device and torch.equal(t, theirs[name])
            for name, t in self.tables.items()
        )

    def _narrow(self, scores: Tensor, batch: int, rows: Tensor, cols: Tensor, pick: Pick) -> Tensor:
        if self.bias is not None:
            scores = scores + pick(self.bias, cols).to(scores.dtype)
        for may in self._each(batch, rows, cols, pick):
            scores = scores.masked_fill(~may, -torch.inf)
        return scores

    def _each(self, batch: int, rows: Tensor, cols: Tensor, pick: Pick) -> Iterator[Tensor]:
        """Yield for every field what it alone allows: `rows` and `cols` broadcast to a tile, or go link by link."""
        stands = rows if self.rows is None else self.rows[rows]
        if self.reach is not None:
            yield cols <= stands + self.reach
        if self.since is not None:
            yield cols >= stands + self.since
        if self.keys is not None:
            start, stop = self.keys[batch if len(self.keys) > 1 else 0]
            yield (cols >= start) & (cols < stop)
        if self.spans is not None:
            yield (cols >= pick(self.spans[..., :1], cols)) & (cols < pick(self.spans[..., 1:], cols))
        if self.allowed is not None:
            yield pick(self.allowed, cols)
        if self.packed is not None:
            yield (pick(self.packed, cols // 8) >> (cols % 8).to(torch.uint8)) & 1 == 1


def _of_tile(batch: int, heads: Tensor, rows: Tensor) -> Pick:
    """Pick heads x rows x cols."""

    def pick(table: Tensor, cols: Tensor) -> Tensor:
        tile = table[batch if len(table) > 1 else 0]
        for axis, wanted in enumerate((heads, rows, cols)):
            if tile.shape[axis] > 1:
                tile = tile.index_select(axis, wanted)
        return tile

    return pick


def _of_links(batch: int, heads: Tensor, rows: Tensor) -> Pick:
    """Pick heads x links, from rows[i] to cols[i]."""

    def pick(table: Tensor, cols: Tensor) -> Tensor:
        tile = table[batch if len(table) > 1 else 0]
        places = (heads[:, None], rows, cols)
        return tile[tuple(at if n > 1 else torch.zeros_like(at) for at, n in zip(places, tile.shape))]

    return pick
