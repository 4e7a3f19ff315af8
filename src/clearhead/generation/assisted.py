"""A small model guesses ahead, the large one reads all guesses at once and keeps what it would have said itself.

Reading five tokens costs a large model hardly more than reading one: both read every weight once. So a draft proposes
some tokens x ~ q, the model reads them together, and each is kept with probability `min(1, p(x) / q(x))`; the first
that is not kept is drawn again from what p has more than q, `max(0, p - q)`, normalised. What comes out is distributed
as p, exactly, however bad the draft (Leviathan, Kalman & Matias 2022, appendix A.1; Chen et al. 2023, theorem 1):

    P(x) = q(x) min(1, p(x)/q(x)) + P(not kept) max(0, p(x) - q(x)) / sum max(0, p - q) = p(x)

Choosing greedily is the same with p and q one at the best token: what comes out is what the model alone would write.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.errors import ConfigError
from clearhead.generation.reading import Opens, Reader
from clearhead.generation.sampling import Adjust, Choose, draw
from clearhead.generation.writing import End, Step, Stop, Token, adjusted


@dataclass(frozen=True)
class Draft:
    """The model that guesses, of the same vocabulary, and how many tokens it guesses at a time."""

    model: nn.Module | Opens
    n_tokens: int = 4

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise ConfigError(f"a draft guesses at least 1 token, got {self.n_tokens}")


def leftover(p: Float[Tensor, " vocab"], q: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    """Return `max(0, p - q)`, normalised: from where a token is drawn again after a guess was not kept."""
    rest = (p - q).clamp(min=0)
    total = rest.sum()
    return rest / total if total > 0 else p  # equal but for rounding: then nothing is refused but by rounding


@dataclass
class Side:
    """One of the two models: its reader, and how many tokens of the text it has read."""

    reader: Reader
    n_read: int = 0

    def scores(self, text: Sequence[int], last: int, device: torch.device) -> Float[Tensor, "last vocab"]:
        """Read what is new in `text` and return the scores of what follows each of its `last` tokens."""
        scores = self.reader.read(torch.tensor([text[self.n_read :]], device=device), last)[0]
        self.n_read = len(text)
        return scores.float()

    def forget(self, length: int) -> None:
        """Take back what was read beyond `length` tokens."""
        if self.n_read > length:
            self.reader.truncate(length)
            self.n_read = length


def assisted(
    reader: Reader,
    drafting: Reader,
    row: int,
    n_new: int,
    n_guesses: int,
    choose: Choose,
    adjust: Sequence[Adjust],
    stop: Stop,
) -> Iterator[Step]:
    """Yield the tokens of one row one by one, several for each reading of the model.

    Raises ConfigError where model and draft do not have the same vocabulary.
    """
    if reader.vocab_size != drafting.vocab_size:
        raise ConfigError(
            f"model and draft need one vocabulary, got {reader.vocab_size} and {drafting.vocab_size} tokens"
        )
    model, draft = Side(reader), Side(drafting)
    text, begun, dice = reader.texts[0], len(reader.texts[0]), choose.dice(row)
    device = reader.prompt.device
    while True:
        guesses, q = guess(draft, text, min(n_guesses, begun + n_new - len(text) - 1), choose, adjust, dice, device)
        scores = model.scores(text + guesses, len(guesses) + 1, device)
        contexts = [text + guesses[:i] for i in range(len(guesses) + 1)]
        p = choose.distribution(torch.cat([adjusted(s[None], adjust, [c]) for s, c in zip(scores, contexts)]))
        kept = accept(guesses, p, q, dice)
        logprobs = scores.log_softmax(-1)
        for i, token in enumerate(kept):
            text.append(token)
            stops, full = stop(text[begun:]), len(text) - begun == n_new
            end: End = "stop" if stops else "length" if full else None
            yield (Token(row, token, float(logprobs[i, token]), end),)
            if end is not None:
                return
        for side in (model, draft):
            side.forget(len(text) - 1)  # the last token was chosen, not read


def guess(
    draft: Side,
    text: Sequence[int],
    n: int,
    choose: Choose,
    adjust: Sequence[Adjust],
    dice: random.Random,
    device: torch.device,
) -> tuple[list[int], list[Tensor]]:
    """Return `n` tokens by the draft, and the distribution each was drawn from."""
    guesses: list[int] = []
    distributions = []
    for _ in range(n):
        scores = adjusted(draft.scores([*text, *guesses], 1, device), adjust, [[*text, *guesses]])
        q = choose.distribution(scores)
        guesses.append(one(q, dice))
        distributions.append(q[0])
    return guesses, distributions


def accept(
    guesses: Sequence[int], p: Float[Tensor, "more vocab"], q: Sequence[Tensor], dice: random.Random
) -> list[int]:
    """Return the guesses that are kept, and one token more: drawn again, or after the last guess."""
    for i, token in enumerate(guesses):
        if dice.random() * float(q[i][token]) >= float(p[i, token]):
            return [*guesses[:i], one(leftover(p[i], q[i]).unsqueeze(0), dice)]
    return [*guesses, one(p[-1:], dice)]


def one(distribution: Float[Tensor, "1 vocab"], dice: random.Random) -> int:
    """Draw one token."""
    return int(draw(distribution, torch.tensor([dice.random()], dtype=torch.float64, device=distribution.device)))
