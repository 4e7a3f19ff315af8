"""Which token of the text each query row and each key column of an attention call is.

A map has rows and columns; a text has positions, counted from 0 in the row of tokens that the model was given, padding
included. They are the same numbers in one forward pass over a whole text. They differ when a text is read in several
forwards with a cache (row 0 of a decoding step is position 12), when a cache has empty places or has dropped tokens,
and when a module adds keys that are no token at all. `sites/locating.py` finds out; every other part of the package
asks here.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Stretch:
    """`length` key columns from `column` on, which are the tokens from `position` on."""

    column: int
    position: int
    length: int


@dataclass(frozen=True)
class Positions:
    """Where the queries and keys of one call stand.

    first:    the position of the first query; the others follow it, one after the other.
    keys:     which columns are tokens, ascending in both column and position. A column that is in none of them is no
              token: an empty place of a cache, a key that the module learned or added.
    one_text: False where queries and keys are not counted in the same text: cross-attention, pooled or merged keys.
    unknown:  where nothing tells the positions, what was missing; else "". Then `first` and `keys` say nothing.
    """

    first: int
    keys: tuple[Stretch, ...]
    one_text: bool = True
    unknown: str = ""

    @property
    def end(self) -> int:
        """Return the position after the last key that is a token: how much of the text there was by this call."""
        return self.keys[-1].position + self.keys[-1].length if self.keys else 0

    def of_columns(self, n_keys: int, device: torch.device | None = None) -> Int[Tensor, " key"]:
        """Return the position of each key column, -1 for a column that is no token."""
        found = torch.full((n_keys,), -1, dtype=torch.long, device=device)
        for one in self.keys:
            found[one.column : one.column + one.length] = torch.arange(
                one.position, one.position + one.length, device=device
            )
        return found

    def columns(self, positions: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Return the key column at which each position stands, -1 for a position that has none in this call."""
        found = torch.full_like(positions, -1)
        for one in self.keys:
            within = positions - one.position
            found = torch.where((within >= 0) & (within < one.length), within + one.column, found)
        return found

    def parts(self, columns: slice) -> Iterator[tuple[int, int, int]]:
        """Yield the tokens among some columns as (first column, column after the last, position minus column)."""
        for one in self.keys:
            start, stop = max(columns.start, one.column), min(columns.stop, one.column + one.length)
            if start < stop:
                yield start, stop, one.position - one.column


def in_order(n_keys: int, first: int = 0, *, start: int = 0, one_text: bool = True) -> Positions:
    """Return positions where the columns are the tokens from `start` on, and the first query stands at `first`."""
    return Positions(first, (Stretch(0, start, n_keys),), one_text)


def of_list(positions: Int[Tensor, " key"], first: int) -> Positions:
    """Return positions where column j is token `positions[j]`, ascending."""
    steps = (positions[1:] - positions[:-1] != 1).nonzero()[:, 0] + 1
    starts = [0, *steps.tolist(), len(positions)]
    keys = [Stretch(a, int(positions[a]), b - a) for a, b in itertools.pairwise(starts) if a < b]
    return Positions(first, tuple(keys))
