"""What each head does, in few numbers, and a name where one fits.

The names follow the literature: heads that look at the previous or next token or at a separator (Clark et al. 2019,
"What does BERT look at?", section 3), at the first token or another one that takes attention nobody needs (Xiao et al.
2023, "attention sinks"; Gu et al. 2025), at an earlier occurrence of the same token (duplicate-token heads, Wang et al.
2022, section 3) or at what came after it (induction heads, Olsson et al. 2022: their "prefix matching" score, on a text
that is said twice). A name says where the weight goes, not why.

One sweep for all numbers. Queries that are padding, or had one key only to look at, say nothing and are left out:
`queries` says how many were counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula, sight, statistics, tiles

# A head that puts at least half of its weight somewhere is named after that place. Clark et al. 2019 name heads by the
# same measure: "more than 50 % of their attention on average to the previous token".
MOSTLY = 0.5
SPREAD = 0.9  # entropy over that of looking everywhere alike, from which a head counts as diffuse; our choice
NEAR = 8  # places to either side that count as near; our choice
MORE = 2.0  # and "local" is a head that looks near that many times as often as one that looks everywhere alike
SHARES = "sink", "separator", "previous", "itself", "next", "duplicate", "induction"  # all but two name a distance
EARLIER = 8  # occurrences of a token that are looked back to, the latest first: work stays O(T)


@dataclass(frozen=True)
class Habit:
    """What one head does over one text. Shares are in [0, 1]; they and all other means are over the queries counted.

    kind:      the place that gets at least half of the weight ("sink", "separator", "previous", "self", "next",
               "duplicate", "induction"; the largest wins), else "local", else "diffuse", else "mixed".
    queries:   how many were counted: no padding, and with more than one key to look at.
    sink:      what goes to the first key that is no padding.
    separator: to the positions that were named as such.
    entropy:   of a row, in nats.
    spread:    entropy of a row over the logarithm of the number of keys it could look at; 1 = to all alike.
    near:      what goes to keys at most 8 places away; `near_by_chance` would, from a head that looks everywhere alike.
               "local" is near >= 0.5 and twice what chance gives.
    distance:  how far away the keys are that it looks at, in tokens: mean of weight * |query - key|.
    heaviest:  the key that receives most, `heaviest_share` how much; from half on the head is called a sink too.
    duplicate: what goes to earlier occurrences of the query's own token (the latest 8); None without `tokens`.
    induction: what goes to the tokens after those.
    """

    layer: int
    head: int
    kind: str
    queries: int
    sink: float
    separator: float
    previous: float
    itself: float
    next: float
    entropy: float
    spread: float
    near: float
    near_by_chance: float
    distance: float
    heaviest: int
    heaviest_share: float
    duplicate: float | None = None
    induction: float | None = None


@torch.no_grad()
def habits(
    call: Call,
    batch: int,
    heads: Sequence[int],
    layer: int,
    separators: Sequence[int] = (),
    tokens: Int[Tensor, " time"] | None = None,
    counted: Bool[Tensor, " query"] | None = None,
) -> list[Habit]:
    """Return what each head does over the queries in `counted` (None: all).

    Where queries and keys are not of one text, as in cross-attention, no head is named for a distance, and what is
    measured by distance (previous, itself, next, near, distance) is 0. Keys that are no tokens have no distance either.
    """
    if not call.n_keys:
        return []
    one_text = call.positions.one_text
    room = sight.choices(call, batch, heads)
    said = (room > 1).to(call.exact)  # a row with one place to look at says nothing about the head
    if counted is not None:
        said = said * counted
    said = said.expand(len(heads), -1)
    first = int(sight.seen_keys(call, batch, heads).any(0).to(torch.uint8).argmax())
    rows, got = _swept(call, batch, heads, said, [first, *separators])
    rows["spread"] = rows["entropy"] / room.clamp(min=2).log()
    rows["chance"] = _near_by_chance(call, room)
    for name, offset in (("previous", -1), ("itself", 0), ("next", 1)):
        rows[name] = statistics.at_offset(call, batch, heads, offset) if one_text else torch.zeros_like(said)
    if tokens is not None:
        rows["duplicate"], rows["induction"] = repeats(call, batch, heads, tokens)
    n_said = said.sum(1)
    count = n_said.clamp(min=1)
    means = {name: ((values * said).sum(1) / count).tolist() for name, values in rows.items()}
    most = (got / count[:, None]).max(1)
    found = []
    for i, head in enumerate(heads):
        mean = {name: values[i] for name, values in means.items()}
        shares: dict[str, Any] = {name: mean.get(name) for name in SHARES}
        heaviest, share = int(most.indices[i]), float(most.values[i])
        rest = (mean["spread"], mean["near"] if one_text else 0.0, mean["chance"])
        named = {name: shares[name] for name in (SHARES if one_text else SHARES[:2])}
        kind = _kind(named, share if heaviest not in separators else 0.0, *rest)
        found.append(
            Habit(
                layer,
                call.heads[head],
                kind,
                int(n_said[i]),
                entropy=mean["entropy"],
                spread=mean["spread"],
                near=mean["near"],
                near_by_chance=mean["chance"],
                distance=mean["distance"],
                heaviest=heaviest,
                heaviest_share=share,
                **shares,
            )
        )
    return found


def _swept(
    call: Call, batch: int, heads: Sequence[int], said: Tensor, marks: Sequence[int]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return what one sweep tells of every row (heads, query), and what each key receives from rows in `said`.

    `marks` are the first key and the separators.
    """
    names = ("entropy", "distance", "near", "sink", "separator")
    rows = said.new_zeros(len(names), *said.shape)
    got = torch.zeros(len(heads), call.n_keys, dtype=call.exact, device=call.q.device)
    distances = _Distances(call)

    def add(tile: tiles.Tile) -> None:
        cols, logs = tile.cols, tile.logs
        assert logs is not None, "asked for with logs=True"
        entropy, distance, near, *marked = rows[:, tile.heads, tile.rows]
        entropy.sub_(logs.mul_(tile.weights).sum(-1), alpha=statistics.LN2)
        distances.add(tile, distance, near)
        for found, places in zip(marked, (marks[:1], marks[1:])):
            if met := [mark - cols.start for mark in places if cols.start <= mark < cols.stop]:
                found.add_(tile.weights[:, :, met].sum(-1))
        got[tile.heads, cols] += torch.bmm(said[tile.heads, None, tile.rows], tile.weights)[:, 0]

    tiles.each(call, batch, heads, add, tiles.Part(counted=said.any(0)), logs=True)
    return dict(zip(names, rows)), got


class _Distances:
    """How far away a tile's weights lie from their queries: most of it from sums of whole rows.

    Queries are counted in columns: a query's column is that of its own token, were it among the keys.
    """

    def __init__(self, call: Call) -> None:
        self.positions, self.queries = call.positions, call.places
        self.at = self.queries.tolist()
        self.floats = self.queries.to(call.exact)
        self.places = torch.arange(call.n_keys, dtype=call.exact, device=call.q.device)
        self.near: dict[tuple[int, int, int], tuple[Tensor, ...]] = {}  # a few, one for each kind of tile

    def add(self, tile: tiles.Tile, distance: Tensor, near: Tensor) -> None:
        """Add the sum of weight * |query - key| of a tile's rows, and the weight on keys at most `NEAR` away."""
        if self.positions.one_text:
            for start, stop, shift in self.positions.parts(tile.cols):
                self.add_part(tile, start, stop, shift, distance, near)

    def add_part(self, tile: tiles.Tile, start: int, stop: int, shift: int, distance: Tensor, near: Tensor) -> None:
        """Add those of the tile's columns from `start` to `stop`, in which the column of a position is `shift` less.

        Left of all these queries |i - j| falls apart into i and -j, right of them into j and -i, both counted from the
        first of the keys. Only keys among the queries, and near them, take a table of distances.
        """
        weights, rows, width = tile.weights, tile.rows, stop - start
        if width < weights.shape[2]:
            weights = weights[:, :, start - tile.cols.start : stop - tile.cols.start]
        shift += start
        first, last = (self.at[at] - shift for at in (rows.start, rows.stop - 1))
        left, right = (max(0, min(width, at)) for at in (first - NEAR, last + NEAR + 1))
        for sign, start, stop in ((1, 0, left), (-1, right, width)):
            if start < stop:
                far = weights if stop - start == width else weights[:, :, start:stop]
                distance.addcmul_(far.sum(-1), self.floats[rows] - shift, value=sign)
                distance.sub_(far @ self.places[start:stop], alpha=sign)
        if left < right:
            table, away = self.middle(self.queries[rows], first - left, right - left, weights.dtype)
            middle = weights[:, :, left:right]
            near.add_((middle * table).sum(-1))
            distance.add_((middle * away).sum(-1))

    def middle(self, stands: Tensor, before: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return which of `width` keys are near each query, and how far from it each is.

        The keys begin `before` places before the first query.
        """
        key, steps = (before, width, len(stands)), stands - stands[0]
        known = self.near.get(key)
        if known is None or not torch.equal(known[0], steps):
            away = (torch.arange(width, device=stands.device) - before - steps[:, None]).abs()
            known = self.near[key] = (steps, (away <= NEAR).to(dtype), away.to(dtype))
        return known[1], known[2]


def _near_by_chance(call: Call, room: Tensor) -> Tensor:
    """Return what share of the keys that each query could look at is near, as if all near ones were among them."""
    ahead = NEAR if call.rule.reach is None else 0
    near = torch.zeros_like(call.places)
    for one in call.positions.keys if call.positions.one_text else ():
        within = call.places - one.position  # counted from the first of these tokens
        near += (within + ahead + 1).clamp(0, one.length) - (within - NEAR).clamp(0, one.length)
    return (near / room.clamp(min=1)).clamp(max=1)


def repeats(
    call: Call, batch: int, heads: Sequence[int], tokens: Int[Tensor, " time"]
) -> tuple[Float[Tensor, "heads query"], Float[Tensor, "heads query"]]:
    """Return what each query gives to earlier occurrences of its token, and to the tokens after those.

    `tokens` are those of the text, up to this call's last. The latest `EARLIER` occurrences are looked at. A token
    right after an occurrence that is the query itself counts as itself, not as induction.
    """
    same, after = (torch.zeros(len(heads), call.n_queries, dtype=call.exact, device=call.q.device) for _ in range(2))
    tokens = tokens.to(call.q.device)
    order = tokens.argsort(stable=True)  # occurrences of a token side by side, in the order of the text
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    rows = torch.arange(call.n_queries, device=order.device)

    def add(found: Tensor, rows: Tensor, positions: Tensor) -> None:
        keys = call.positions.columns(positions)
        rows, keys = rows[keys >= 0], keys[keys >= 0]  # a cache may have dropped the others
        found[:, rows] += formula.pairs(call, batch, heads, rows, keys)

    for back in range(1, EARLIER + 1):
        at = place[call.places[rows]] - back
        rows, at = rows[at >= 0], at[at >= 0]
        earlier = order[at]
        alike = tokens[earlier] == tokens[call.places[rows]]
        rows, earlier = rows[alike], earlier[alike]
        if not len(rows):
            break
        add(same, rows, earlier)
        apart = earlier + 1 < call.places[rows]
        add(after, rows[apart], earlier[apart] + 1)
    return same, after


def _kind(shares: dict[str, float | None], heaviest: float, spread: float, near: float, by_chance: float) -> str:
    known = {name: share for name, share in shares.items() if share is not None}
    place = max(known, key=lambda name: known[name])
    if known[place] >= MOSTLY:
        return "self" if place == "itself" else place
    if heaviest >= MOSTLY:
        return "sink"
    if near >= MOSTLY and near >= MORE * by_chance:
        return "local"
    return "diffuse" if spread >= SPREAD else "mixed"
