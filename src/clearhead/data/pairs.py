"""Pairs of texts, a source and what answers it: what an encoder-decoder is trained on.

Pairs of the same two lengths share a batch wherever there are enough of them, so that little or nothing is padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from clearhead.data.batches import NOT_ASKED, collate, moved


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """Sources, padded on the right, and their answers, `NOT_ASKED` behind the end of each.

    `lengths` of the sources; None: none of them is padded.
    """

    tokens: Int[Tensor, "batch source"]
    lengths: Int[Tensor, " batch"] | None
    targets: Int[Tensor, "batch time"]
    unit: ClassVar[str] = "tokens"

    @property
    def n_items(self) -> int:
        """How many tokens there are on both sides, without padding."""
        n_source = self.tokens.numel() if self.lengths is None else int(self.lengths.sum())
        return n_source + int((self.targets != NOT_ASKED).sum())

    def to(self, device: torch.device | str) -> "PairBatch":
        """Return the batch on `device`."""
        return moved(self, device)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Sources and answers in memory, tokenized."""

    sources: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    pad_id: int

    @property
    def lengths(self) -> Sequence[tuple[int, int]]:
        """How many ids each source has, and each answer."""
        return [(len(source), len(answer)) for source, answer in zip(self.sources, self.answers, strict=True)]

    def batch(self, numbers: Sequence[int]) -> PairBatch:
        """Return these pairs as one batch."""
        tokens, lengths = collate([self.sources[n] for n in numbers], self.pad_id)
        targets, _ = collate([self.answers[n] for n in numbers], NOT_ASKED)
        padded = bool((lengths < tokens.shape[1]).any())
        return PairBatch(tokens=tokens, lengths=lengths if padded else None, targets=targets)
