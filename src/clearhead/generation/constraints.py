"""What may not come, or has to: adjustments of scores that follow from the place in an answer or from its last tokens.

Each is an `Adjust` of `sampling.py`: scores and, for each row, every token so far, in; scores out. The rules are those
of transformers' logits processors, so that the same answers come out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class NeverSequences:
    """Let none of `words`, sequences of tokens, come: the last token of one cannot follow the others."""

    words: Sequence[Sequence[int]]

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores with -inf for each token that would complete a sequence."""
        logits = logits.clone()
        for row, text in enumerate(texts):
            ends = [
                word[-1] for word in self.words if list(text[max(len(text) - len(word) + 1, 0) :]) == list(word[:-1])
            ]
            logits[row, ends] = -math.inf
        return logits


@dataclass(frozen=True)
class NotBefore:
    """Rule out `tokens` in texts of fewer than `length` tokens, `start` and more: no end too soon."""

    tokens: Sequence[int]
    length: int
    start: int = 0

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores with -inf for these tokens in rows that are too short."""
        rows = [row for row, text in enumerate(texts) if self.start <= len(text) < self.length]
        logits = logits.clone()
        for row in rows:
            logits[row, list(self.tokens)] = -math.inf
        return logits


@dataclass(frozen=True)
class Forced:
    """Let one of the tokens in `at[n]` be the only choice where `n` tokens stand before."""

    at: Mapping[int, Sequence[int]]

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores that are 0 for a forced token and -inf for all others."""
        logits = logits.clone()
        for row, text in enumerate(texts):
            if (tokens := self.at.get(len(text))) is not None:
                logits[row] = -math.inf
                logits[row, list(tokens)] = 0.0
        return logits
