"""What a model is asked to do: an objective turns a batch into one number to be made smaller.

The loop knows four methods and no task; what a batch holds is between the objective and the rows it is made for.
`prepare` draws what is random (which words to hide), on the CPU and before the model runs; `count` says how much a
batch counts, so that several small batches make exactly the step that one large batch makes; `loss` is the mean over
that count; `evaluate` is what a person wants to read.

Next: `optimizer.py` makes the number smaller, `loop.py` repeats it.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.data.batches import NOT_ASKED, Batch
from clearhead.data.pairs import PairBatch
from clearhead.errors import InputError
from clearhead.models.encoder_decoder import EncoderDecoderConfig

B = TypeVar("B")  # the kind of batch


@runtime_checkable
class Objective(Protocol[B]):
    """What the loop needs of a task."""

    def prepare(self, batch: B, generator: torch.Generator | None = None) -> B:
        """Draw what is random, from `generator` or from torch's own."""
        ...

    def count(self, batch: B) -> float:
        """Return how much a prepared batch counts."""
        ...

    def loss(self, model: nn.Module, batch: B) -> Float[Tensor, ""]:
        """Return the mean loss over what `count` counts."""
        ...

    def evaluate(self, model: nn.Module, batches: Iterable[B]) -> dict[str, float]:
        """Return loss and accuracy over prepared batches."""
        ...


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross-entropy against a row of probabilities: hard labels, shared opinions, another model's predictions.

    `label_smoothing` mixes that much of the uniform distribution into the targets (Szegedy et al. 2016, section 7),
    in training only. Every row counts its weight.
    """

    label_smoothing: float = 0.0

    def prepare(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Return the batch as it is."""
        if batch.targets is None:
            raise InputError("classification needs a target for every row, and these rows have none")
        return batch

    def count(self, batch: Batch) -> float:
        """Return the sum of the rows' weights."""
        return float(len(batch.tokens) if batch.weights is None else batch.weights.sum())

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return `-sum(target * log softmax(scores))`, the weighted mean over rows."""
        scores = model(batch.tokens, batch.lengths)
        return self._sum(scores, batch, self.label_smoothing) / self.count(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the weighted mean loss, and how often the likeliest label is the target's likeliest."""
        total, weight, right, n_rows = 0.0, 0.0, 0, 0
        for batch in batches:
            assert batch.targets is not None
            scores = model(batch.tokens, batch.lengths)
            total += self._sum(scores, batch, 0.0).item()
            weight += self.count(batch)
            right += int((scores.argmax(-1) == batch.targets.argmax(-1)).sum())
            n_rows += len(scores)
        return {"loss": total / weight, "accuracy": right / n_rows}

    def _sum(self, scores: Tensor, batch: Batch, smoothing: float) -> Tensor:
        assert batch.targets is not None
        losses = F.cross_entropy(scores.float(), batch.targets, reduction="none", label_smoothing=smoothing)
        return losses.sum() if batch.weights is None else (losses * batch.weights).sum()


@dataclass(frozen=True, kw_only=True)
class MaskedWords:
    """Guess hidden words (Devlin et al. 2018, section 3.1, task 1).

    Of the tokens that are not special, `rate` are asked about; of these 80 % become [MASK], 10 % a random token and
    10 % stay. Drawn anew every time a row comes by, as RoBERTa does (Liu et al. 2019, section 4.1).
    """

    mask_id: int
    vocab_size: int
    special_ids: tuple[int, ...]
    rate: float = 0.15

    def prepare(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Hide words; the targets are what stood there. A row of special tokens only is asked nothing."""
        tokens = batch.tokens
        asked = torch.rand(tokens.shape, generator=generator) < self.rate
        asked &= torch.isin(tokens, torch.tensor(self.special_ids), invert=True)
        asked &= torch.arange(tokens.shape[1]) < batch.lengths[:, None]
        fate = torch.rand(tokens.shape, generator=generator)
        other = torch.randint(self.vocab_size, tokens.shape, generator=generator)
        hidden = torch.where(asked & (fate < 0.8), self.mask_id, tokens)
        hidden = torch.where(asked & (fate >= 0.9), other, hidden)
        return replace(batch, tokens=hidden, targets=torch.where(asked, tokens, NOT_ASKED))

    def count(self, batch: Batch) -> float:
        """Return how many words are asked about."""
        return n_asked(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean of `-log p(word)` over the words asked about; 0 if there are none."""
        scores = model(batch.tokens, batch.lengths)
        return surprise(scores, batch) / max(1.0, self.count(batch))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean loss, and how often the likeliest word is the hidden one."""
        return measured((model(batch.tokens, batch.lengths), batch) for batch in batches)


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """Guess every token from those before it (Radford et al. 2018, section 3.1); the rows are windows of a text."""

    def prepare(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Return the batch as it is."""
        return batch

    def count(self, batch: Batch) -> float:
        """Return how many tokens are asked about."""
        return n_asked(batch)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean of `-log p(token)`, in nats a token."""
        return surprise(model(batch.tokens), batch) / self.count(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return the mean loss, its exponential, and how often the likeliest token is the one that came."""
        measures = measured((model(batch.tokens), batch) for batch in batches)
        return {**measures, "perplexity": math.exp(min(measures["loss"], 700.0))}


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence:
    """Guess every token of the answer from the source and from the answer so far (Sutskever, Vinyals & Le 2014).

    The model is shown the right answer up to there, whatever it would have said itself. `label_smoothing` as for
    classification, in training only (Vaswani et al. 2017, section 5.4).
    """

    label_smoothing: float = 0.0

    def prepare(self, batch: PairBatch, generator: torch.Generator | None = None) -> PairBatch:
        """Return the batch as it is."""
        return batch

    def count(self, batch: PairBatch) -> float:
        """Return how many tokens the answers have."""
        return n_asked(batch)

    def loss(self, model: nn.Module, batch: PairBatch) -> Float[Tensor, ""]:
        """Return the mean of `-log p(token)`, in nats a token."""
        return surprise(self._scores(model, batch), batch, self.label_smoothing) / self.count(batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[PairBatch]) -> dict[str, float]:
        """Return the mean loss, how often the likeliest token is the answer's, and in how many rows all of them are."""
        seen = [0, 0]

        def answers() -> Iterator[tuple[Tensor, PairBatch]]:
            for batch in batches:
                scores = self._scores(model, batch)
                right = (scores.argmax(-1) == batch.targets) | (batch.targets == NOT_ASKED)
                seen[0] += int(right.all(-1).sum())
                seen[1] += len(right)
                yield scores, batch

        measures = measured(answers())
        return {**measures, "exact": seen[0] / max(1, seen[1])}

    def _scores(self, model: nn.Module, batch: PairBatch) -> Tensor:
        """Return the scores of every answer's tokens; what is read begins with the model's start token."""
        config = model.config
        assert isinstance(config, EncoderDecoderConfig)
        read = batch.targets.roll(1, dims=-1).masked_fill(batch.targets.roll(1, dims=-1) == NOT_ASKED, config.pad_id)
        read[:, 0] = config.start_id
        scores: Tensor = model(batch.tokens, read, batch.lengths)
        return scores


def n_asked(batch: Batch | PairBatch) -> float:
    """Return how many positions have a target."""
    assert batch.targets is not None
    return float((batch.targets != NOT_ASKED).sum())


def surprise(
    scores: Float[Tensor, "batch time vocab"], batch: Batch | PairBatch, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Return the sum of `-log p(target)` over the positions asked about, in float32."""
    assert batch.targets is not None
    scores, targets = scores.float().flatten(0, 1), batch.targets.flatten()
    return F.cross_entropy(scores, targets, ignore_index=NOT_ASKED, reduction="sum", label_smoothing=label_smoothing)


def measured(answers: Iterable[tuple[Tensor, Batch | PairBatch]]) -> dict[str, float]:
    """Return the mean surprise over the positions asked about, and how often the likeliest token is the target."""
    total, asked, right = 0.0, 0.0, 0
    for scores, batch in answers:
        total += surprise(scores, batch).item()
        asked += n_asked(batch)
        assert batch.targets is not None
        right += int((scores.argmax(-1) == batch.targets).sum())
    return {"loss": total / max(1.0, asked), "accuracy": right / max(1.0, asked)}
