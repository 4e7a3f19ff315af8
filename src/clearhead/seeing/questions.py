"""What one asks a recording: exact maps and what follows from them, computed now.

`Recording` inherits these methods. Each finds the call and hands it to a function of `maps.py`, `statistics.py` or one
of their neighbours, where the work is done and explained. Next: `call.py` holds the formula, `maps.py` applies it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing import maps, statistics
from clearhead.seeing.call import Call
from clearhead.seeing.statistics import Habit, Link

Positions = slice | Sequence[int] | None

LARGEST_MAP = 2**26  # weights in one answer, 256 MiB in float32


class Questions(ABC):
    """What can be asked of the calls of one or several forward passes, by layer, head and text."""

    @property
    @abstractmethod
    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the recorded layers, in order."""

    @abstractmethod
    def number(self, layer: int | str) -> int:
        """Return the number of a layer given by number or name."""

    @abstractmethod
    def call(self, layer: int | str, call: int = -1) -> Call:
        """Return one call of a layer as it was recorded."""

    def map(
        self,
        layer: int | str,
        head: int,
        rows: Positions = None,
        cols: Positions = None,
        *,
        batch: int = 0,
        call: int = -1,
    ) -> Float[Tensor, "rows cols"]:
        """Return the exact weights of queries `rows` on keys `cols` of one head, computed now; all where not given.

        Rows sum to 1 over all keys, or to 0 where a query may look nowhere. Weights are those before dropout. Where
        `watch` kept only some rows, all rows are all of these; they keep their numbers. Statistics are over these rows.
        """
        one, heads = self._find(layer, head, batch, call)
        wanted_rows, wanted_cols = _kept_rows(rows, one), _positions(cols, one.n_keys, "key", one.q.device)
        if len(wanted_rows) * len(wanted_cols) > LARGEST_MAP:
            raise WatchError(
                f"{len(wanted_rows)} x {len(wanted_cols)} weights in one map: at most {LARGEST_MAP} at a time; "
                f"ask for some rows and cols, or for overview(layer, head, size)"
            )
        index = torch.tensor(heads, device=one.q.device)
        return maps.weights(one, batch, index, wanted_rows, wanted_cols)[0]

    def row(self, layer: int | str, head: int, query: int, *, batch: int = 0, call: int = -1) -> Float[Tensor, " key"]:
        """Return what one query gives to every key."""
        return self.map(layer, head, [query], batch=batch, call=call)[0]

    def overview(
        self, layer: int | str, head: int | None = None, size: int = 32, *, batch: int = 0, call: int = -1
    ) -> Float[Tensor, "*heads row_blocks col_blocks"]:
        """Return the weight in each of at most size x size blocks: exact sums, so that zoom levels add up.

        Without `head`, of all heads at once. Blocks are those of `maps.edges`; a map sums to its number of queries.
        """
        one, heads = self._find(layer, head, batch, call)
        sums = maps.overview(one, batch, heads, size)
        return sums if head is None else sums[0]

    def entropy(self, layer: int | str, *, batch: int = 0, call: int = -1) -> Float[Tensor, "heads query"]:
        """Return how spread each row is, in nats: 0 for one key, log n for n keys alike."""
        one, heads = self._find(layer, None, batch, call)
        return statistics.entropy(one, batch, heads)

    def received(self, layer: int | str, *, batch: int = 0, call: int = -1) -> Float[Tensor, "heads key"]:
        """Return how much weight each key receives from all queries together."""
        one, heads = self._find(layer, None, batch, call)
        return statistics.received(one, batch, heads)

    def links(
        self, layer: int | str, head: int, query: int, coverage: float = 0.7, *, batch: int = 0, call: int = -1
    ) -> list[Link]:
        """Return the fewest links of one query that together carry `coverage` of its weight, heaviest first."""
        row = self.row(layer, head, query, batch=batch, call=call)
        query, index = range(self.call(layer, call).n_all)[query], self.number(layer)
        return [Link(query, key, float(row[key]), index, head) for key in statistics.fewest(row, coverage)]

    def output(self, layer: int | str, head: int, *, batch: int = 0, call: int = -1) -> Float[Tensor, "query d_value"]:
        """Return what one head gave to each query: its weights @ values, from the kernel, before the projection."""
        one, heads = self._find(layer, head, batch, call)
        if one.out is None:
            raise WatchError("this recording holds queries and keys only: record with watch(model, outputs=True)")
        return one.out[batch, heads[0]]

    def heads(self, *, separators: Sequence[int] = (), batch: int = 0, call: int = -1) -> list[Habit]:
        """Return what every recorded head does; `separators` are the positions of [SEP] or of punctuation."""
        found = []
        for layer in self.numbers:
            one, heads = self._find(layer, None, batch, call)
            found += statistics.habits(one, batch, heads, layer, separators)
        return found

    def _find(self, layer: int | str, head: int | None, batch: int, call: int) -> tuple[Call, list[int]]:
        """Return the call asked for and the rows of its `q` that hold the head, or all heads."""
        one = self.call(layer, call)
        if not 0 <= batch < one.batch:
            raise WatchError(f"layer {layer!r} saw {one.batch} texts, counted from 0: there is no text {batch}")
        if head is None:
            return one, list(range(len(one.heads)))
        if head not in one.heads:
            recorded = f"{len(one.heads)} of {one.n_heads} were recorded: {', '.join(map(str, one.heads)) or 'none'}"
            raise WatchError(f"layer {layer!r} has no head {head}; {recorded}")
        return one, [one.heads.index(head)]


def _kept_rows(which: Positions, one: Call) -> Tensor:
    """Return the rows of `q` that hold the queries asked for."""
    if which is None:
        return torch.arange(one.n_queries, device=one.q.device)
    wanted = _positions(which, one.n_all, "query", one.q.device)
    if one.rule.rows is None:
        return wanted
    rows = torch.searchsorted(one.rows, wanted).clamp(max=max(one.n_queries - 1, 0))
    if len(missing := wanted[one.rows[rows] != wanted]):
        first, last = int(one.rows[0]), int(one.rows[-1])
        raise WatchError(
            f"query {int(missing[0])} was not kept: rows= kept {one.n_queries} of {one.n_all}, from {first} to {last}"
        )
    return rows


def _positions(which: Positions, n: int, what: str, device: torch.device) -> Tensor:
    """Return `which` of n positions as an index; negative ones count from the end."""
    if which is None or isinstance(which, slice):
        which = range(n)[which or slice(None)]
    if wrong := [i for i in which if not -n <= i < n]:
        raise WatchError(f"there is no {what} {wrong[0]}: the call had {n}")
    return torch.tensor([i % n for i in which], dtype=torch.long, device=device)
