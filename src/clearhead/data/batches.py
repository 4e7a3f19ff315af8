"""Batches: rows of similar length side by side, in an order that can be stopped and continued anywhere.

`plan_epoch` decides which rows share a batch: similar lengths, so that little is padding, shuffled by a pure function
of seed and epoch. `Batches` walks through the plans; where it stands is three integers.

Next: `training/objectives.py` turns a batch into a loss.
"""

import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.errors import InputError

Length = int | tuple[int, int]  # two for a pair: of the source, and of the target

T = TypeVar("T")
NOT_ASKED = -100  # the target of a position nobody asks about: cross_entropy's default ignore_index


@runtime_checkable
class Portion(Protocol):
    """What the training loop needs of a batch of anything."""

    unit: ClassVar[str]  # what `n_items` counts

    @property
    def n_items(self) -> int:
        """How much work it is, without padding."""
        ...

    def to(self, device: torch.device | str) -> "Portion":
        """Return it on `device`."""
        ...


@runtime_checkable
class Source(Protocol):
    """A data set in memory: how long each row is, and rows by number as one batch."""

    @property
    def lengths(self) -> Sequence[Length]:
        """How long each row is; rows of similar length share a batch."""
        ...

    def batch(self, numbers: Sequence[int]) -> Portion:
        """Return these rows as one batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of token ids, padded on the right, and what a model should say to them."""

    tokens: Int[Tensor, "batch time"]
    lengths: Int[Tensor, " batch"]
    targets: Float[Tensor, "batch labels"] | Int[Tensor, "batch time"] | None = None
    weights: Float[Tensor, " batch"] | None = None  # None: every row counts 1
    unit: ClassVar[str] = "tokens"

    @property
    def n_items(self) -> int:
        """How many tokens there are, without padding."""
        return int(self.lengths.sum())

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on `device`."""
        return moved(self, device)


def moved(batch: T, device: torch.device | str) -> T:
    """Return a dataclass of tensors, some of which may be None, on `device`."""
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}  # type: ignore[arg-type]
    here = {name: x.to(device) for name, x in fields.items() if x is not None}
    return dataclasses.replace(batch, **here)  # type: ignore[type-var]


def collate(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "batch time"], Int[Tensor, " batch"]]:
    """Return the rows as one tensor, filled up with `pad_id` on the right, and their lengths."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows], dtype=torch.long)
    return tokens, torch.tensor([len(row) for row in rows])


def plan_epoch(
    lengths: Sequence[Length], *, epoch: int, seed: int, batch_size: int | None = None, batch_tokens: int | None = None
) -> list[list[int]]:
    """Return the batches of one epoch as lists of row numbers: every row once, similar lengths together, shuffled.

    A batch holds `batch_size` rows, or as many as stay within `batch_tokens` ids, padding counted; a row longer than
    that is a batch of its own. The rows are shuffled, sorted by length within pools of 64 batches, cut into batches,
    and the batches shuffled: a pure function of its arguments. Pairs are sorted by the source's length, then by the
    target's, and both of them count.
    """
    assert (batch_size is None) != (batch_tokens is None)
    shuffle = random.Random(f"{seed}/{epoch}")  # seeded by a string, it mixes both (SHA-512)
    rows = list(range(len(lengths)))
    shuffle.shuffle(rows)
    sizes = [(length,) if isinstance(length, int) else length for length in lengths]
    mean = max(1.0, sum(map(sum, sizes)) / max(1, len(sizes)))
    pool = 64 * (batch_size or max(1, int((batch_tokens or 0) / mean)))
    batches = []
    for start in range(0, len(rows), pool):
        batch: list[int] = []
        widest: tuple[int, ...] = ()
        for row in sorted(rows[start : start + pool], key=lambda row: sizes[row]):
            widened = tuple(map(max, widest, sizes[row])) if batch else sizes[row]
            padded = (len(batch) + 1) * sum(widened)
            if len(batch) == batch_size or (batch and batch_tokens is not None and padded > batch_tokens):
                batches.append(batch)
                batch, widened = [], sizes[row]
            batch.append(row)
            widest = widened
        batches.append(batch)
    shuffle.shuffle(batches)
    return batches


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A data set in memory, tokenized; `batch` picks rows by number."""

    tokens: Sequence[Sequence[int]]
    pad_id: int
    targets: Float[Tensor, "rows labels"] | None = None
    weights: Float[Tensor, " rows"] | None = None

    @property
    def lengths(self) -> list[int]:
        """How many ids each row has."""
        return [len(row) for row in self.tokens]

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return these rows as one batch."""
        tokens, lengths = collate([self.tokens[n] for n in numbers], self.pad_id)
        chosen = torch.tensor(numbers)
        targets = None if self.targets is None else self.targets[chosen]
        weights = None if self.weights is None else self.weights[chosen]
        return Batch(tokens=tokens, lengths=lengths, targets=targets, weights=weights)


class Batches:
    """The batches of `rows` without end, epoch after epoch; `state` says where they are, and puts them there."""

    def __init__(
        self, rows: Source, *, seed: int, batch_size: int | None = None, batch_tokens: int | None = None
    ) -> None:
        self.rows, self.seed, self.sizes = rows, seed, {"batch_size": batch_size, "batch_tokens": batch_tokens}
        self.lengths = rows.lengths
        self.state = {"epoch": 0, "index": 0, "seed": seed}

    @property
    def state(self) -> dict[str, int]:
        """The next batch's place: {"epoch", "index", "seed"}."""
        return {"epoch": self._epoch, "index": self._index, "seed": self.seed}

    @state.setter
    def state(self, state: Mapping[str, int]) -> None:
        if state["seed"] != self.seed:
            raise InputError(f"these batches are shuffled by seed {self.seed}, the state is of seed {state['seed']}")
        self._epoch, self._index = state["epoch"], state["index"]
        self._plan = self.plan(self._epoch)

    def plan(self, epoch: int) -> list[list[int]]:
        """Return the row numbers of every batch of an epoch."""
        return plan_epoch(self.lengths, epoch=epoch, seed=self.seed, **self.sizes)

    def __iter__(self) -> Iterator[Portion]:
        return self

    def __next__(self) -> Portion:
        if self._index == len(self._plan):
            self.state = {"epoch": self._epoch + 1, "index": 0, "seed": self.seed}
        self._index += 1
        return self.rows.batch(self._plan[self._index - 1])
