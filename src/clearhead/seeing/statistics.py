"""What a head does, in few numbers: how spread it looks, where its weight goes, and a name where one fits.

Each is one sweep over exact tiles. The names follow the literature: heads that look at the previous token, at the
separator, or at nothing in particular (Clark et al. 2019), and the first token as a place to put attention that is
not needed (Xiao et al. 2023, "attention sinks"). A name says where the weight goes, not why.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.seeing import maps
from clearhead.seeing.call import Call

MOSTLY = 0.5  # a head that puts at least half of its weight somewhere is named after that place
SPREAD = 0.9  # entropy over that of looking everywhere alike, from which a head counts as diffuse


@dataclass(frozen=True)
class Link:
    """One weight, with its address: from the position that looks to the position looked at."""

    query: int
    key: int
    weight: float
    layer: int
    head: int


@dataclass(frozen=True)
class Habit:
    """What one head does over one text. Shares are means over its queries, in [0, 1].

    kind:    the place that gets at least half of the weight ("sink" the first key, "separator", "previous", "self",
             "next"; the largest wins), else "diffuse" where the spread is at least 0.9, else "mixed".
    spread:  entropy of a row over the logarithm of the number of keys it gives any weight; 1 = to all alike.
    """

    layer: int
    head: int
    kind: str
    sink: float
    separator: float
    previous: float
    itself: float
    next: float
    spread: float

    @property
    def glyph(self) -> str:
        """Return one character that stands for `kind`."""
        return {"sink": "|", "separator": ":", "previous": "<", "self": "\\", "next": ">", "diffuse": "~"}.get(
            self.kind, "."
        )


def entropy(call: Call, batch: int, heads: Sequence[int]) -> Float[Tensor, "heads query"]:
    """Return the entropy of every row in nats: 0 looks at one key, log n at n keys alike."""
    found = torch.zeros(len(call.heads), call.n_queries, dtype=call.exact, device=call.q.device)
    for some, rows, tile in maps.sweep(call, batch, heads):
        found[some[:, None], rows] = torch.special.entr(tile).sum(-1)
    return found[list(heads)]


def received(call: Call, batch: int, heads: Sequence[int]) -> Float[Tensor, "heads key"]:
    """Return the weight every key receives from all queries; a head's masses sum to its number of queries."""
    found = torch.zeros(len(call.heads), call.n_keys, dtype=call.exact, device=call.q.device)
    for some, _, tile in maps.sweep(call, batch, heads):
        found[some] += tile.sum(1)
    return found[list(heads)]


def fewest(row: Float[Tensor, " key"], coverage: float) -> list[int]:
    """Return the fewest keys that together carry `coverage` of the row's weight, heaviest first."""
    order = row.argsort(descending=True, stable=True)
    carried = row[order].cumsum(0)
    enough = int((carried < coverage * carried[-1] - 1e-6).sum()) + 1 if len(row) else 0
    return [key for key in order[:enough].tolist() if row[key] > 0]


def habits(call: Call, batch: int, heads: Sequence[int], layer: int, separators: Sequence[int]) -> list[Habit]:
    """Return what each head does; the last query stands at the last key, as in self-attention."""
    stands = call.stands
    marks = torch.tensor(list(separators), dtype=torch.long, device=call.q.device)
    sums = torch.zeros(len(call.heads), 6, dtype=torch.float64, device=call.q.device)
    n_rows = torch.zeros_like(sums)
    for some, rows, tile in maps.sweep(call, batch, heads):
        looks = tile.sum(-1) > 0
        room = (tile > 0).sum(-1)
        spread = torch.special.entr(tile).sum(-1) / room.clamp(min=2).log()
        at = [tile[:, :, 0], tile.index_select(2, marks).sum(-1)]
        at += [_along(tile, stands[rows] + offset) for offset in (-1, 0, 1)]
        choice = looks & (room > 1)  # a row with one place to look at says nothing about the head
        values = torch.stack([*at, spread], -1) * choice[..., None]
        sums[some] += values.sum(1)
        n_rows[some] += choice.sum(1, keepdim=True)
    shares = (sums / n_rows.clamp(min=1))[list(heads)].tolist()
    return [Habit(layer, call.heads[i], _kind(*share), *share) for i, share in zip(heads, shares)]


def _along(tile: Tensor, keys: Tensor) -> Tensor:
    """Return each row's weight on its own key in `keys`, 0 where that lies outside the text."""
    inside = (keys >= 0) & (keys < tile.shape[-1])
    index = keys.clamp(0, tile.shape[-1] - 1)[None, :, None].expand(len(tile), -1, 1)
    return tile.gather(2, index).squeeze(-1) * inside


def _kind(sink: float, separator: float, previous: float, itself: float, following: float, spread: float) -> str:
    shares = {"sink": sink, "separator": separator, "previous": previous, "self": itself, "next": following}
    place = max(shares, key=lambda name: shares[name])
    if shares[place] >= MOSTLY:
        return place
    return "diffuse" if spread >= SPREAD else "mixed"
