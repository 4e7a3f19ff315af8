"""Several texts in one row of tokens, without padding between them, as the varlen kernels take them; and back.

A recording has texts side by side, of one length: (batch, heads, time, d_head). Where each packed token stands in there
is a `Places`: text i in row i from its first token, unless whoever asked for the attention had padded texts, or
documents in one row, before the kernel's sake made them something else; they then stand where they stood.

What is left over in a row is padding: a query there sees nothing, and nobody sees a key there. Next: `flash.py`.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.seeing.rule import Rule

SPREAD = 4  # texts stand side by side unless the longest makes that so many times what they are
ALWAYS = 2**15  # tokens for which that does not matter


@dataclass(frozen=True, eq=False)
class Places:
    """Text i is `length[i]` tokens, packed from `offset[i]` on; it stands in `row[i]` from `start[i]` on."""

    row: tuple[int, ...]
    start: tuple[int, ...]
    length: tuple[int, ...]
    offset: tuple[int, ...]
    n_rows: int
    width: int
    known: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def said(self) -> tuple[object, ...]:
        """Return all that it says, to be compared."""
        return self.row, self.start, self.length, self.offset, self.n_rows, self.width

    @property
    def alone(self) -> bool:
        """Say whether every row holds one text at most."""
        return len(set(self.row)) == len(self.row)

    @property
    def full(self) -> bool:
        """Say whether nothing is left over in any row."""
        return sum(self.length) == self.n_rows * self.width

    def fits(self, n_tokens: int) -> bool:
        """Say whether so many packed tokens, one text after the other, are these rows one after the other."""
        in_order = all(
            offset == row * self.width + start for offset, row, start in zip(self.offset, self.row, self.start)
        )
        return self.full and in_order and n_tokens == self.n_rows * self.width

    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return of every token its text, its number in that text, and its place, counted through the rows."""
        texts = torch.arange(len(self.length)).repeat_interleave(_of(self.length))
        within = torch.arange(len(texts)) - _of(offsets(self.length))[texts]
        return texts, within, _of(r * self.width + s for r, s in zip(self.row, self.start))[texts] + within

    def taken(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return of every token where it is packed and its place; found once, all layers of a forward ask."""
        if device not in self.known:
            texts, within, places = self.tokens()
            self.known[device] = ((_of(self.offset)[texts] + within).to(device), places.to(device))
        return self.known[device]

    def lay_out(self, packed: Float[Tensor, "tokens heads d"]) -> Float[Tensor, "batch heads time d"]:
        """Return packed tokens in their places, zeros in what is left over."""
        if self.fits(len(packed)):
            rows = packed
        else:
            at, places = self.taken(packed.device)
            rows = packed.new_zeros(self.n_rows * self.width, *packed.shape[1:]).index_copy(0, places, packed[at])
        return rows.view(self.n_rows, self.width, *packed.shape[1:]).transpose(1, 2)

    def pack(
        self, x: Float[Tensor, "batch heads time d"], into: Float[Tensor, "tokens heads d"]
    ) -> Float[Tensor, "tokens heads d"]:
        """Return `into` with what stands in their places in `x` instead of its tokens."""
        rows = x.transpose(1, 2).flatten(0, 1)
        if self.fits(len(into)):
            return rows
        at, places = self.taken(into.device)
        return into.index_copy(0, at, rows[places])


def side_by_side(lengths: Sequence[int], offsets: Sequence[int], width: int | None = None) -> Places:
    """Return places of text i in row i, from its first token on; rows of `width`, or as long as the longest text."""
    n = len(lengths)
    width = max(lengths, default=0) if width is None else width
    return Places(tuple(range(n)), (0,) * n, tuple(lengths), tuple(offsets), n, width)


def as_padded(lengths: Sequence[int], starts: Sequence[int], width: int) -> Places:
    """Return places of packed texts that stood in rows of `width`, each from its start."""
    return replace(side_by_side(lengths, offsets(lengths), width), start=tuple(starts))


def one_row(lengths: Sequence[int], offsets: Sequence[int]) -> Places:
    """Return places of texts one after the other in a single row."""
    n = len(lengths)
    starts = list(itertools.accumulate((0, *lengths)))
    return Places((0,) * n, tuple(starts[:-1]), tuple(lengths), tuple(offsets), 1, starts[-1])


def in_rows(lengths: Sequence[int], n_rows: int, width: int) -> Places | None:
    """Return places of texts one after the other in rows of `width`; None where one would go on in the next row."""
    firsts = offsets(lengths)
    rows = [min(first // width, n_rows - 1) if width else 0 for first in firsts]
    starts = [first - row * width for first, row in zip(firsts, rows)]
    if sum(lengths) != n_rows * width or any(s + n > width for s, n in zip(starts, lengths)):
        return None
    return Places(tuple(rows), tuple(starts), tuple(lengths), tuple(firsts), n_rows, width)


def too_wide(*sides: Sequence[int]) -> bool:
    """Say whether texts of these lengths would be mostly padding, side by side."""
    sizes = [(len(lengths) * max(lengths, default=0), sum(lengths)) for lengths in sides]
    return any(size > max(ALWAYS, SPREAD * total) for size, total in sizes)


def offsets(lengths: Sequence[int]) -> list[int]:
    """Return where each of some texts begins that are one after the other."""
    return list(itertools.accumulate((0, *lengths[:-1]))) if lengths else []


def shifts(queries: Places, keys: Places) -> list[int]:
    """Return of each text how far its keys stand after its queries, the last query at the last key."""
    return [
        k_start + n_k - q_start - n_q
        for k_start, n_k, q_start, n_q in zip(keys.start, keys.length, queries.start, queries.length)
    ]


def rule_of(queries: Places, keys: Places, left: int, right: int, device: torch.device) -> Rule:
    """Return who sees whom: its own text, `left` keys back and `right` on from where a query stands; -1: all of them.

    As flash attention has it, the last query of a text stands at its last key.
    """
    shift = shifts(queries, keys)
    same = len(set(shift)) == 1
    rule = Rule(
        reach=shift[0] + right if same and right >= 0 else None,
        since=shift[0] - left if same and left >= 0 else None,
    )
    if keys.alone and not keys.full:
        ends = torch.zeros(keys.n_rows, 2, dtype=torch.int32)
        for row, start, length in zip(keys.row, keys.start, keys.length):
            ends[row] = torch.tensor([start, start + length])
        rule = replace(rule, keys=ends.to(device))
    moves = not same and (left >= 0 or right >= 0)
    if queries.full and queries.alone and keys.alone and not moves:
        return rule
    texts, within, places = queries.tokens()
    first = _of(keys.start)[texts]
    stop = first + _of(keys.length)[texts]
    if moves:
        stands = within + first + (_of(keys.length) - _of(queries.length))[texts]
        first = torch.maximum(first, stands - left) if left >= 0 else first
        stop = torch.minimum(stop, stands + right + 1) if right >= 0 else stop
    spans = torch.zeros(queries.n_rows * queries.width, 2, dtype=torch.int32)
    seen = stop > first
    spans[places[seen]] = torch.stack([first, stop], -1)[seen].int()
    return replace(rule, spans=spans.view(queries.n_rows, 1, queries.width, 2).to(device))


def _of(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.long)
