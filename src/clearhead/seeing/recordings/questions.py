"""What one asks a recording: exact maps and what follows from them, computed now.

`Recording` inherits these methods and those of `summaries.py`. Each finds the call and hands it to a function of
`maps/formula.py`, `maps/pyramid.py` or one of their neighbours, where the work is done and explained. Next:
`summaries.py`, then `call.py`, which holds the formula.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clearhead.errors import InputError, WatchError, counted
from clearhead.seeing import arguments
from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula, pyramid, sight, statistics, tiles, weighing
from clearhead.seeing.maps.pyramid import Mode, Pyramid
from clearhead.seeing.maps.statistics import Link
from clearhead.seeing.maps.weighing import Of

Positions = slice | Sequence[int] | None

LARGEST_MAP = 2**26  # weights in one answer, 256 MiB in float32
# What layers are called whose keys are another text's: cross_attention, crossattention, encoder_attn, EncDecAttention,
# torch.nn's multihead_attn.
CROSS = re.compile(r"(?i)cross|enc(oder)?_?(dec(oder)?_?)?att|multihead_attn")


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
    def name(self, layer: int | str) -> str:
        """Return the name of a layer: that of the module whose attention it is."""

    @abstractmethod
    def call(self, layer: int | str, call: int = -1) -> Call:
        """Return one call of a layer as it was recorded."""

    @abstractmethod
    def one_forward(
        self, layers: Sequence[int | str] | None, call: int = -1, *, all_of_them: bool = False
    ) -> dict[int, int]:
        """Return which call of each layer belongs to one forward, of those layers that ran in it."""

    def map(
        self,
        layer: int | str,
        head: int,
        rows: Positions = None,
        cols: Positions = None,
        *,
        of: Of = "weights",
        batch: int = 0,
        call: int = -1,
    ) -> Float[Tensor, "rows cols"]:
        """Return the exact weights of queries `rows` on keys `cols` of one head, computed now; all where not given.

        Rows sum to 1 over all keys, or to 0 where a query may look nowhere. Weights are those before dropout. Where
        `watch` kept only some rows, all rows are all of these; they keep their numbers. Statistics are over these rows.

        `of="values"` multiplies each weight by the length of its key's value vector, a matrix (the weight of the
        layer's output projection) by the length after it, `of="gradient"` by its gradient: see `maps/weighing.py`.
        """
        one, i = self._head(layer, head, batch, call)
        queries, keys = _stretch(rows, one.n_all), _stretch(cols, one.n_keys, "cols")
        places: weighing.Places
        if queries is not None and keys is not None and one.rule.rows is None:
            _refuse_too_large(len(queries), len(keys))
            places = slice(queries.start, queries.stop), slice(keys.start, keys.stop)
            tile = formula.window(one, batch, i, *places)
        else:
            places = _kept_rows(rows, one), rows_of(cols, one.n_keys, one.q.device, "cols", "key")
            _refuse_too_large(len(places[0]), len(places[1]))
            tile = formula.weights(one, batch, torch.tensor([i], device=one.q.device), *places)[0]
        if isinstance(of, str) and of == "weights":
            return tile
        return weighing.weigh(tile, one, batch, i, places, of)

    def row(self, layer: int | str, head: int, query: int, *, batch: int = 0, call: int = -1) -> Float[Tensor, " key"]:
        """Return what one query gives to every key."""
        return self.map(layer, head, [arguments.whole(query, "query")], batch=batch, call=call)[0]

    def overview(
        self,
        layer: int | str,
        head: int | None = None,
        size: int = 32,
        *,
        rows: slice | None = None,
        cols: slice | None = None,
        of: Of = "weights",
        mode: Mode = "sum",
        batch: int = 0,
        call: int = -1,
    ) -> Float[Tensor, "*heads row_blocks col_blocks"]:
        """Return the weight in each of at most size x size blocks: exact sums, so that zoom levels add up.

        Without `head`, of all heads at once. `rows` and `cols` cut a part out first. Blocks are those of
        `pyramid.edges`; a map sums to its number of queries, padding not counted. `mode="max"` returns the largest
        weight in each block instead; `of` is that of `map`.
        """
        one, heads = self._find(layer, head, batch, call)
        queries, keys = _kept_stretch(rows, one), _stretch(cols, one.n_keys, "cols")
        if queries is None or keys is None:
            raise WatchError("an overview is of rows and cols in one stretch: slices with a step of 1")
        cuts = [[part.start + cut for cut in pyramid.edges(len(part), size)] for part in (queries, keys)]
        part = self._part(one, batch, heads, of, mode, layer)
        found = pyramid.pooled(one, batch, heads, *cuts, mode=mode, part=part)
        return found if head is None else found[0]

    def pyramid(
        self,
        layer: int | str,
        head: int,
        size: int = 256,
        *,
        of: Of = "weights",
        mode: Mode = "sum",
        batch: int = 0,
        call: int = -1,
    ) -> Pyramid:
        """Return all zoom levels of one head from size x size blocks, `size` a power of two, up to a single one."""
        one, i = self._head(layer, head, batch, call)
        part = self._part(one, batch, [i], of, mode, layer)
        return pyramid.pyramid(one, batch, i, size, mode=mode, part=part)

    def zoom(
        self,
        layer: int | str,
        head: int,
        level: int,
        place: tuple[int, int],
        size: int = 256,
        *,
        mode: Mode = "sum",
        batch: int = 0,
        call: int = -1,
    ) -> Float[Tensor, "row_blocks col_blocks"]:
        """Return one tile of a zoom level, size x size blocks: at level z a map has 2**z x 2**z of them.

        `place` is (tile down, tile across). Four blocks of the next level add up to one of this; at a level at which
        blocks are narrower than a position some are empty and 0, and the others are single weights.
        """
        one, i = self._head(layer, head, batch, call)
        size, level = pyramid.require_blocks(size), arguments.whole(level, "level")
        if level < 0:
            raise WatchError(f"zoom levels count from 0, the whole map in one tile: there is no level {level}")
        place = _tile(place)
        if not all(0 <= at < 2**level for at in place):
            raise WatchError(f"zoom level {level} has tiles 0 to {2**level - 1} down and across, asked for {place}")
        cuts = (
            [b * n // (size << level) for b in range(at * size, (at + 1) * size + 1)]
            for at, n in zip(place, (one.n_queries, one.n_keys))
        )
        part = self._part(one, batch, [i], "weights", mode, layer)
        return pyramid.pooled(one, batch, [i], *cuts, mode=mode, part=part)[0]

    def links(
        self, layer: int | str, head: int, query: int, coverage: float = 0.7, *, batch: int = 0, call: int = -1
    ) -> list[Link]:
        """Return the fewest links of one query that together carry `coverage` of its weight, heaviest first."""
        coverage = arguments.share(coverage, "coverage")
        row = self.row(layer, head, query, batch=batch, call=call)
        query, index = range(self.call(layer, call).n_all)[query], self.number(layer)
        return [Link(query, key, float(row[key]), index, head) for key in statistics.fewest(row, coverage)]

    def output(self, layer: int | str, head: int, *, batch: int = 0, call: int = -1) -> Float[Tensor, "query d_value"]:
        """Return what one head gave to each query: its weights @ values, from the kernel, before the projection."""
        one, i = self._head(layer, head, batch, call)
        if one.out is None:
            raise WatchError("this recording holds queries and keys only: record with watch(model, outputs=True)")
        return one.out[batch, i]

    def _part(self, one: Call, batch: int, heads: list[int], of: Of, mode: Mode, layer: int | str) -> tiles.Part:
        """Return what of a map is pooled: rows that are padding do not count, weights may be multiplied."""
        if mode not in ("sum", "max"):
            raise WatchError(f'blocks hold the "sum" or the "max" of their weights, not {mode!r}')
        if mode == "max" and isinstance(of, str) and of == "gradient":
            raise WatchError('gradient x attention has two signs: ask for its sums, mode="sum"')
        return tiles.part_of(one, batch, heads, of, self.counted(one, batch, layer))

    def counted(self, one: Call, batch: int, layer: int | str) -> Bool[Tensor, " query"] | None:
        """Return which queries of a call are no padding, None for all: by `set_mask`, else by the mask of the call.

        In cross-attention the call's mask is about the keys, which are another text's.
        """
        said = self.mask_of(layer)
        return sight.counted(one, batch) if said is None else sight.counted_by(said, one, batch, self.name(layer))

    @abstractmethod
    def mask_of(self, layer: int | str) -> Bool[Tensor, "#batch time"] | None:
        """Return which positions of the queries' texts are no padding, where somebody said so."""

    def of_one_text(self, layer: int | str, one: Call) -> bool:
        """Return whether the queries and keys of a call are tokens of one text: not in cross-attention."""
        return one.positions.one_text and not CROSS.search(self.name(layer))

    def require_one_text(self, layer: int | str, one: Call, what: str) -> None:
        """Raise WatchError where queries and keys of a call are not positions of one text, which `what` is about."""
        if not one.positions.one_text:
            why = one.positions.unknown or "its queries look at keys of another text, or at pooled or merged keys"
            raise WatchError(f"{what} is about positions in one text; layer {layer!r} has none in this call. {why}")

    def _find(self, layer: int | str, head: int | None, batch: int, call: int) -> tuple[Call, list[int]]:
        """Return the call asked for and the rows of its `q` that hold the head, or all heads."""
        one = self.call(layer, call)
        if not 0 <= arguments.whole(batch, "batch") < one.batch:
            raise WatchError(
                f"layer {layer!r} saw {counted(one.batch, 'text')}, counted from 0: there is no text {batch}"
            )
        if head is None:
            return one, list(range(len(one.heads)))
        if head not in one.heads:
            recorded = f"{len(one.heads)} of {one.n_heads} were recorded: {', '.join(map(str, one.heads)) or 'none'}"
            raise WatchError(f"layer {layer!r} has no head {head}; {recorded}")
        return one, [one.heads.index(head)]

    def _head(self, layer: int | str, head: int, batch: int, call: int) -> tuple[Call, int]:
        """Return the call asked for and the row of its `q` that holds the one head."""
        one, heads = self._find(layer, arguments.whole(head, "head"), batch, call)
        return one, heads[0]


def _refuse_too_large(n_rows: int, n_cols: int) -> None:
    if n_rows * n_cols > LARGEST_MAP:
        raise WatchError(
            f"{n_rows} x {n_cols} weights in one map: at most {LARGEST_MAP} at a time; "
            f"ask for some rows and cols, or for overview(layer, head, size)"
        )


def _tile(place: tuple[int, int]) -> tuple[int, int]:
    try:
        down, across = (arguments.whole(at, "place") for at in place)
    except (TypeError, ValueError) as error:
        raise InputError(f"place= expects (tile down, tile across), two whole numbers, got {place!r}") from error
    return down, across


def _stretch(which: Positions, n: int, what: str = "rows") -> range | None:
    """Return `which` of n positions where that is one stretch of them, counted from the start; else None."""
    which = arguments.positions(which, what)
    if not isinstance(which, slice):
        return None
    found = range(n)[which]
    return found if found.step == 1 else None


def _kept_stretch(which: slice | None, one: Call) -> range | None:
    """Return the rows of `q` that hold a stretch of queries."""
    found = _stretch(which, one.n_all)
    if found is None or one.rule.rows is None:
        return found
    ends = torch.tensor([found.start, found.stop], device=one.q.device)
    return range(*torch.searchsorted(one.rows, ends).tolist())


def _kept_rows(which: Positions, one: Call) -> Tensor:
    """Return the rows of `q` that hold the queries asked for."""
    if which is None:
        return torch.arange(one.n_queries, device=one.q.device)
    wanted = rows_of(which, one.n_all, one.q.device)
    if one.rule.rows is None:
        return wanted
    rows = torch.searchsorted(one.rows, wanted).clamp(max=max(one.n_queries - 1, 0))
    if len(missing := wanted[one.rows[rows] != wanted]):
        first, last = int(one.rows[0]), int(one.rows[-1])
        raise WatchError(
            f"query {int(missing[0])} was not kept: rows= kept {one.n_queries} of {one.n_all}, from {first} to {last}"
        )
    return rows


def rows_of(which: Positions, n: int, device: torch.device, name: str = "rows", what: str = "query") -> Tensor:
    """Return `which` of n positions, given as `name`, as an index; negative ones count from the end."""
    which = arguments.positions(which, name)
    found = range(n)[which] if isinstance(which, slice) else which
    if wrong := [i for i in found if not -n <= i < n]:
        raise WatchError(f"there is no {what} {wrong[0]}: the call had {n}")
    return torch.tensor([i % n for i in found], dtype=torch.long, device=device)
