"""Which token comes next: scores in, one token a row out. Small functions of logits, each from its paper.

    adjust     what was written changes what may follow: RepetitionPenalty, NoRepeats, Never
    filter     unlikely tokens are ruled out: temperature, top_k, top_p, min_p
    choose     Greedy takes the best, Sampled draws

`-inf` is the score of a token that cannot come. Chance enters in one place: every row has its own stream of numbers
between 0 and 1, so what one text becomes does not depend on the texts beside it, nor on the device.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.errors import ConfigError

# Scores and, for each row, every token so far, prompt included -> scores.
Adjust = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]


# ---------------------------------------------------------------- filter


def top_k(logits: Float[Tensor, "*rows vocab"], k: int) -> Float[Tensor, "*rows vocab"]:
    """Keep the k best tokens, and those as good as the k-th (Fan, Lewis & Dauphin 2018, section 5.4)."""
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def top_p(logits: Float[Tensor, "*rows vocab"], p: float) -> Float[Tensor, "*rows vocab"]:
    """Keep the fewest tokens that together have probability p: the nucleus (Holtzman et al. 2019, section 3.1)."""
    ascending, order = logits.sort()
    out = ascending.softmax(-1).cumsum(-1) <= 1 - p
    out[..., -1] = False  # rounding must not rule out the best
    return logits.masked_fill(torch.empty_like(out).scatter_(-1, order, out), -math.inf)


def min_p(logits: Float[Tensor, "*rows vocab"], p: float) -> Float[Tensor, "*rows vocab"]:
    """Keep tokens at least p times as probable as the best one (Nguyen et al. 2024, section 3)."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


# ---------------------------------------------------------------- choose


def draw(probabilities: Float[Tensor, "rows vocab"], uniforms: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return, for each row, the token in whose stretch of the cumulative probability the uniform number falls."""
    heights = probabilities.double().cumsum(-1)
    level = uniforms.unsqueeze(-1) * heights[:, -1:]
    last = heights.shape[-1] - 1
    return torch.searchsorted(heights, level, right=True).squeeze(-1).clamp(max=last)


@runtime_checkable
class Choose(Protocol):
    """What turns scores into one token a row."""

    def dice(self, row: int) -> random.Random:
        """Return the stream of chance of this row."""

    def distribution(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Return the probability with which each token is chosen."""

    def choose(self, logits: Float[Tensor, "rows vocab"], dice: Sequence[random.Random]) -> Int[Tensor, " rows"]:
        """Return a token for each row, with the probabilities of `distribution`."""


@dataclass(frozen=True)
class Greedy:
    """Always the most probable token."""

    def dice(self, row: int) -> random.Random:
        """Return a stream that is not asked."""
        return random.Random(0)

    def distribution(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Return 1 for the best token, 0 for all others."""
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)

    def choose(self, logits: Float[Tensor, "rows vocab"], dice: Sequence[random.Random]) -> Int[Tensor, " rows"]:
        """Return the best token of each row, the first of equals."""
        return logits.argmax(-1)


GREEDY = Greedy()


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A token drawn from the model's distribution, sharpened by a temperature below 1, without its unlikely tail.

    Filters act in the order of the fields, as in transformers. Row i draws from the stream of `seed + i`; without a
    seed every run is another.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}: for the best token use Greedy()")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k keeps at least 1 token, got {self.top_k}")
        for name in ("top_p", "min_p"):
            p = getattr(self, name)
            if p is not None and not 0 < p <= 1:
                raise ConfigError(f"{name} is a probability above 0 and up to 1, got {p}")

    def dice(self, row: int) -> random.Random:
        """Return the stream of chance of this row."""
        return random.Random(None if self.seed is None else self.seed + row)

    def distribution(self, logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
        """Return the probability of each token after temperature and filters."""
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p(logits, self.min_p)
        return logits.softmax(-1)

    def choose(self, logits: Float[Tensor, "rows vocab"], dice: Sequence[random.Random]) -> Int[Tensor, " rows"]:
        """Return a token drawn for each row, by one number of its own stream."""
        uniforms = torch.tensor([each.random() for each in dice], dtype=torch.float64)
        return draw(self.distribution(logits), uniforms.to(logits.device))


# ---------------------------------------------------------------- adjust


@dataclass(frozen=True)
class RepetitionPenalty:
    """Lower the scores of tokens that occurred: divide what is above 0, multiply what is below (Keskar et al. 2019)."""

    penalty: float

    def __post_init__(self) -> None:
        if not self.penalty > 0:
            raise ConfigError(f"a repetition penalty is above 0 (1 changes nothing), got {self.penalty}")

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores with those of every token in `texts` lowered, however often it occurred."""
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for row, text in enumerate(texts):
            seen[row, torch.tensor(sorted(set(text)), device=logits.device)] = True
        return torch.where(seen, torch.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)


@dataclass(frozen=True)
class NoRepeats:
    """Let no sequence of `n` tokens come twice (Paulus, Xiong & Socher 2017, section 2.5)."""

    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"NoRepeats counts sequences of at least 1 token, got {self.n}")

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores with -inf for each token that would complete a sequence seen before."""
        logits = logits.clone()
        for row, text in enumerate(texts):
            if len(text) < self.n:
                continue
            end = list(text[len(text) - self.n + 1 :])
            grams = (text[i : i + self.n] for i in range(len(text) - self.n + 1))
            again = [gram[-1] for gram in grams if list(gram[:-1]) == end]
            logits[row, again] = -math.inf
        return logits


class Never:
    """Rule tokens out altogether: padding, for a model that was trained to start with it."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens = sorted(set(tokens))

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], texts: Sequence[Sequence[int]]
    ) -> Float[Tensor, "rows vocab"]:
        """Return scores with -inf for these tokens."""
        logits = logits.clone()
        logits[:, self.tokens] = -math.inf
        return logits
