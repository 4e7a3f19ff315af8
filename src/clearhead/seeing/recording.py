"""What `watch` brings back: every attention call of the run in few numbers, and exact maps, computed when asked for.

A layer is a place in the model where attention happened, numbered in the order of first use; each forward adds one
call to it. Positions count from 0, heads as in the model. Next: `call.py` holds the formula, `maps.py` applies it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing import maps, statistics
from clearhead.seeing.call import Call
from clearhead.seeing.statistics import Habit, Link

Positions = slice | Sequence[int] | None

LARGEST_MAP = 2**26  # weights in one answer, 256 MiB in float32
FEW = 3  # layers that an error message names


@dataclass(frozen=True)
class Layer:
    """One place in the model where attention happened; sizes are those of its last call."""

    index: int
    name: str
    calls: int
    batch: int
    n_heads: int
    n_kv_heads: int
    n_queries: int
    n_keys: int
    dtype: torch.dtype
    nbytes: int  # of all its calls


@dataclass(frozen=True)
class Ran:
    """A module that looks like attention and ran: its class, and what to say should nothing be seen inside it."""

    kind: str
    likely: str


@dataclass(frozen=True)
class Unseen:
    """Attention that ran and is not in the recording, and why."""

    name: str
    kind: str
    reason: str


class Recording:
    """The attention of one or several forward passes; made by `watch`, which fills it while its body runs."""

    def __init__(self) -> None:
        self.names: list[str] = []  # of layers, by index
        self.calls: dict[int, list[Call]] = {}
        self.skipped: set[int] = set()  # layers that `layers=` left out
        self.ran: dict[str, Ran] = {}
        self.refused: dict[str, str] = {}
        self.outside = 0  # fused calls from outside the watched model
        self.notes: list[str] = []  # what watching changed or could not do, if anything

    def index(self, name: str) -> int:
        """Return the number of the layer called `name`, a new one where it was not met before."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def note(self, what: str) -> None:
        """Say once what watching changed or could not do."""
        if what not in self.notes:
            self.notes.append(what)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Return what was recorded, in order; raises WatchError, saying what was not seen, if that is nothing."""
        if not self.calls:
            raise WatchError(f"no attention was recorded: {self._why_empty()}")
        return tuple(self._layer(index) for index in sorted(self.calls))

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """Return the modules that look like attention and ran, but whose attention is not in here, and why."""
        seen = {name.partition("#")[0] for name in self.names if name not in self.refused}
        found = []
        for name, ran in self.ran.items():
            above = [name[:i] for i, letter in enumerate(name) if letter == "."]
            inside = name + "."
            if name in seen or any(s.startswith(inside) or not name for s in seen):
                continue  # seen, or made of something seen
            if any(other.startswith(inside) for other in self.ran) or any(a in seen and a in self.ran for a in above):
                continue  # the attention is a module inside, or this is a helper of one that was seen
            found.append(Unseen(name, ran.kind, self.refused.get(name, ran.likely)))
        found += [Unseen(name, "", why) for name, why in self.refused.items() if name not in self.ran]
        if self.outside:
            found.append(Unseen("", "", f"{self.outside} fused calls came from outside the watched model"))
        return tuple(found)

    @property
    def nbytes(self) -> int:
        """Return the memory the recording takes; masks that layers share are counted once."""
        calls = [call for calls in self.calls.values() for call in calls]
        rules = {id(call.rule): call.rule.nbytes for call in calls}
        return sum(call.nbytes for call in calls) + sum(rules.values())

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

        Rows sum to 1 over all keys, or to 0 where a query may look nowhere. Weights are those before dropout.
        """
        one, heads = self._find(layer, head, batch, call)
        wanted_rows, wanted_cols = (
            _positions(which, n, what, one.q.device)
            for which, n, what in ((rows, one.n_queries, "query"), (cols, one.n_keys, "key"))
        )
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
        query, index = range(self._find(layer, head, batch, call)[0].n_queries)[query], self._index(layer)
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
        for layer in self.layers:
            one, heads = self._find(layer.index, None, batch, call)
            found += statistics.habits(one, batch, heads, layer.index, separators)
        return found

    def call(self, layer: int | str, call: int = -1) -> Call:
        """Return one call of a layer as it was recorded."""
        calls = self.calls[self._index(layer)]
        if not -len(calls) <= call < len(calls):
            raise WatchError(f"layer {layer!r} was called {len(calls)} times: there is no call {call}")
        return calls[call]

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

    def _index(self, layer: int | str) -> int:
        layers = {one.index: one.name for one in self.layers}
        for index, name in layers.items():
            if layer in (index, name):
                return index
        known = [f"{index} {name!r}" for index, name in layers.items()]
        first, last = min(layers), max(layers)
        if len(layers) <= FEW:
            which = ", ".join(known)
        elif isinstance(layer, str):
            which = f"{len(layers)} layers, {known[0]} to {known[-1]}"
        elif last - first == len(layers) - 1:
            which = f"{len(layers)} layers, {first} to {last}"
        else:
            which = f"{len(layers)} layers: {', '.join(map(str, layers))}"
        raise WatchError(f"layer {layer!r} is not in this recording, which has {which}")

    def _layer(self, index: int) -> Layer:
        calls = self.calls[index]
        last = calls[-1]
        return Layer(
            index=index,
            name=self.names[index],
            calls=len(calls),
            batch=last.batch,
            n_heads=last.n_heads,
            n_kv_heads=last.n_kv_heads,
            n_queries=last.n_queries,
            n_keys=last.n_keys,
            dtype=last.q.dtype,
            nbytes=sum(call.nbytes for call in calls),
        )

    def _why_empty(self) -> str:
        if self.unseen:
            first = [f"{u.name or 'elsewhere'} ({u.kind}): {u.reason}" for u in self.unseen[:3]]
            more = f", and {len(self.unseen) - 3} more in .unseen" if len(self.unseen) > 3 else ""
            return "; ".join(first) + more
        if self.skipped:
            return f"layers= left out all of {', '.join(self.names)}"
        return "; ".join(self.notes) or "no module that looks like attention ran; run the model inside the with block"


def _positions(which: Positions, n: int, what: str, device: torch.device) -> Tensor:
    """Return `which` of n positions as an index; negative ones count from the end."""
    if which is None or isinstance(which, slice):
        which = range(n)[which or slice(None)]
    if wrong := [i for i in which if not -n <= i < n]:
        raise WatchError(f"there is no {what} {wrong[0]}: the call had {n}")
    return torch.tensor([i % n for i in which], dtype=torch.long, device=device)
