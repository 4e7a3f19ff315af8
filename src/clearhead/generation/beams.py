"""Beam search: keep the n best beginnings instead of one (Sutskever, Vinyals & Le 2014, section 3.2).

Every step continues each beginning by every token and keeps the n best of all that; those that end in a stop token
leave as finished, with their log-probability divided by `length ** length_penalty` (Wu et al. 2016, section 7). The
rules of who may finish and when to stop are those of transformers, so that the same beams come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from clearhead.errors import ConfigError
from clearhead.generation.reading import Reader
from clearhead.generation.sampling import Adjust
from clearhead.generation.writing import Stop, adjusted

NEVER = -1e9  # the score of a beam that exists in number only


@dataclass(frozen=True)
class Beams:
    """How many beginnings to keep, and which of the finished answers is best.

    `length_penalty` above 0 favours long answers, below 0 short ones. `early_stopping`: True ends as soon as n answers
    are finished; False when the best beginning, ended now, would be no better than the worst of them; "never" when it
    could not become better at any length (Wu et al.'s and fairseq's rule needs this and `length_penalty` 0).
    """

    n: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"beam search keeps at least 1 beam, got {self.n}")
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(f"early_stopping is True, False or 'never', got {self.early_stopping!r}")


@dataclass(frozen=True)
class Hypothesis:
    """An answer of one row: its tokens, the log-probability of each by the model, and the score it was ranked by."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class Beam:
    """A beginning: its tokens, their log-probabilities, and the sum of those after adjustment."""

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0


@dataclass
class Row:
    """The beams of one prompt, best first, and the answers that are finished, best first."""

    prompt: list[int]
    running: list[Beam]
    finished: list[Hypothesis] = field(default_factory=list)

    def advance(self, candidates: Sequence[tuple[Beam, int]], beams: Beams, stop: Stop, n_new: int) -> list[int]:
        """Take in the best continuations, best first; return from which beam each new beam comes."""
        ends = [len(beam.ids) == n_new or stop(beam.ids) for beam, _ in candidates]
        for (beam, _), end in list(zip(candidates, ends))[: beams.n]:
            if end and beam.total > NEVER / 2:
                score = beam.total / len(beam.ids) ** beams.length_penalty
                self.finished.append(Hypothesis(beam.ids, beam.logprobs, score))
        self.finished = sorted(self.finished, key=lambda each: -each.score)[: beams.n]
        alive = [each for each, end in zip(candidates, ends) if not end][: beams.n]
        spare = [(Beam(beam.ids, beam.logprobs, NEVER), parent) for beam, parent in candidates]
        alive += spare[: beams.n - len(alive)]
        self.running = [beam for beam, _ in alive]
        return [parent for _, parent in alive]

    def is_done(self, beams: Beams, n_new: int) -> bool:
        """Say whether nothing better can come, by the rule of `early_stopping`."""
        length = len(self.running[0].ids)
        if length == n_new:
            return True
        if len(self.finished) < beams.n:
            return False
        if beams.early_stopping is True:
            return True
        if beams.early_stopping == "never" and beams.length_penalty > 0:
            length = n_new
        return self.running[0].total / length**beams.length_penalty <= self.finished[-1].score


def beam_search(
    reader: Reader, beams: Beams, n_new: int, adjust: Sequence[Adjust], stop: Stop, n_stops: int = 1
) -> list[list[Hypothesis]]:
    """Return the finished answers of every row, best first, at most `beams.n` each.

    `n_stops` is how many tokens stop: so many times n continuations are looked at beyond n, lest all of them stop.
    """
    n = beams.n
    rows = [Row(text, [Beam(), *[Beam(total=NEVER)] * (n - 1)]) for text in reader.texts]
    live = list(range(len(rows)))
    scores = reader.read(reader.prompt)[:, -1].repeat_interleave(n, 0)
    reader.keep([i for i in live for _ in range(n)])
    while live:
        texts = [rows[i].prompt + list(beam.ids) for i in live for beam in rows[i].running]
        logprobs = scores.float().log_softmax(-1)
        totals = torch.tensor([beam.total for i in live for beam in rows[i].running], device=scores.device)
        ranked = adjusted(logprobs, adjust, texts) + totals.unsqueeze(-1)
        vocab_size = ranked.shape[-1]
        best = ranked.view(len(live), -1).topk(min(max(2, 1 + n_stops), vocab_size) * n)
        parents, tokens, still = [], [], []
        for at, i in enumerate(live):
            candidates = []
            for total, place in zip(best.values[at].tolist(), best.indices[at].tolist(), strict=True):
                parent, token = divmod(place, vocab_size)
                beam = rows[i].running[parent]
                logprob = float(logprobs[at * n + parent, token])
                candidates.append((Beam((*beam.ids, token), (*beam.logprobs, logprob), total), parent))
            from_beams = rows[i].advance(candidates, beams, stop, n_new)
            if not rows[i].is_done(beams, n_new):
                still.append(i)
                parents += [at * n + parent for parent in from_beams]
                tokens += [[beam.ids[-1]] for beam in rows[i].running]
        live = still
        if live:
            reader.keep(parents)
            scores = reader.read(torch.tensor(tokens, device=scores.device))[:, -1]
    return [row.finished for row in rows]
