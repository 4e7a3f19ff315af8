"""The loop: read, choose, tell, until every row is done.

A step costs one reading of one token a row. Rows that are done leave the batch, so they cost nothing more. On a GPU
the next reading is under way while the last choice is still on its way back: the device never waits for Python.
Next: `assisted.py`, several tokens a reading.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.generation.reading import Reader
from clearhead.generation.sampling import Adjust, Choose

Stop = Callable[[Sequence[int]], bool]  # told the tokens of an answer so far: is it done?

End = Literal["stop", "length"] | None


@dataclass(frozen=True)
class Token:
    """One token of one answer.

    `logprob` is its log-probability by the model itself, before anything was adjusted, filtered or sharpened. `end`
    says why it is the answer's last, if it is: "stop" (the token that stopped it), or "length".
    """

    row: int
    id: int
    logprob: float
    end: End = None


Step = tuple[Token, ...]


def stopper(stop: Collection[int] | Stop) -> Stop:
    """Return `stop` as a function of an answer's tokens: a collection stops at any of its members."""
    if callable(stop):
        return stop
    tokens = frozenset(stop)
    return lambda answer: answer[-1] in tokens


def write(reader: Reader, n_new: int, choose: Choose, adjust: Sequence[Adjust], stop: Stop) -> Iterator[Step]:
    """Yield one token for every row that is not done, up to `n_new` times."""
    texts, rows = reader.texts, list(range(len(reader.texts)))
    dice = [choose.dice(row) for row in rows]
    begun = [len(text) for text in texts]
    scores = reader.read(reader.prompt)[:, -1]
    for n in range(1, n_new + 1):
        chosen, logprobs = choose_each(scores, choose, [dice[row] for row in rows], adjust, [texts[r] for r in rows])
        fetched = Fetched(chosen, logprobs)
        ahead = reader.read(chosen.unsqueeze(1))[:, -1] if fetched.is_late and n < n_new else None
        step = []
        for row, (token, logprob) in zip(rows, fetched.pairs(), strict=True):
            texts[row].append(token)
            stops = stop(texts[row][begun[row] :])
            step.append(Token(row, token, logprob, "stop" if stops else "length" if n == n_new else None))
        yield tuple(step)
        kept = [i for i, token in enumerate(step) if token.end is None]
        if not kept:
            return
        if len(kept) < len(rows):
            rows = [rows[i] for i in kept]
            reader.keep(kept)
            chosen, ahead = chosen[kept], None if ahead is None else ahead[kept]
        scores = reader.read(chosen.unsqueeze(1))[:, -1] if ahead is None else ahead


def choose_each(
    scores: Float[Tensor, "rows vocab"],
    choose: Choose,
    dice: Sequence[random.Random],
    adjust: Sequence[Adjust],
    texts: Sequence[Sequence[int]],
) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return a token for each row and its log-probability by the scores as they came."""
    scores = scores.float()
    chosen = choose.choose(adjusted(scores, adjust, texts), dice)
    at = scores.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    return chosen, at - scores.logsumexp(-1)


def adjusted(
    scores: Float[Tensor, "rows vocab"], adjust: Sequence[Adjust], texts: Sequence[Sequence[int]]
) -> Float[Tensor, "rows vocab"]:
    """Return scores after every adjustment, in order."""
    for each in adjust:
        scores = each(scores, texts)
    return scores


class Fetched:
    """Tokens and their log-probabilities on the way from the device; what is launched meanwhile runs meanwhile."""

    def __init__(self, chosen: Int[Tensor, " rows"], logprobs: Float[Tensor, " rows"]) -> None:
        self.is_late = chosen.is_cuda
        self.numbers = torch.stack((chosen.double(), logprobs.double()), -1).to("cpu", non_blocking=self.is_late)
        if self.is_late:
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self.arrived.record()

    def pairs(self) -> list[tuple[int, float]]:
        """Return (token, log-probability) of every row, once they are here."""
        if self.is_late:
            self.arrived.synchronize()
        return [(int(token), logprob) for token, logprob in self.numbers.tolist()]
