"""An objective is the formula it says it is, and hides words as often as the paper does."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from clearhead.data.batches import Batch, Rows
from clearhead.data.tokenizer import Tokenizer
from clearhead.data.windows import Windows
from clearhead.errors import InputError
from clearhead.models.bert import BertConfig, BertForMaskedLM, BertForSequenceClassification
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.training.objectives import NOT_ASKED, Classification, MaskedWords, NextToken


@pytest.fixture
def model(config: BertConfig) -> nn.Module:
    return BertForSequenceClassification(config).eval()


@pytest.fixture
def batch(rows: Rows) -> Batch:
    weights = torch.rand(8) + 0.5
    return replace(rows.batch(range(8)), targets=torch.rand(8, 2).softmax(-1), weights=weights)


def masked_words(words: Tokenizer, rate: float = 0.15) -> MaskedWords:
    assert words.mask_id is not None
    return MaskedWords(
        mask_id=words.mask_id, vocab_size=words.vocab_size, special_ids=tuple(words.special_ids), rate=rate
    )


def test_classification_is_cross_entropy_against_probabilities(model: nn.Module, batch: Batch) -> None:
    scores = model(batch.tokens, batch.lengths).double()
    assert batch.targets is not None and batch.weights is not None
    smooth = batch.targets * 0.9 + 0.1 / 2
    a_row = -(smooth * scores.log_softmax(-1)).sum(-1)
    expected = (a_row * batch.weights).sum() / batch.weights.sum()
    loss = Classification(label_smoothing=0.1).loss(model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_weight_of_two_is_the_row_twice(model: nn.Module, rows: Rows) -> None:
    once = replace(rows.batch([0, 1, 2]), weights=torch.tensor([1.0, 2.0, 1.0]))
    twice = rows.batch([0, 1, 1, 2])
    objective = Classification()
    assert objective.count(once) == objective.count(twice) == 4
    assert objective.loss(model, once).item() == pytest.approx(objective.loss(model, twice).item(), rel=1e-5)


def test_evaluation_over_batches_is_evaluation_at_once(model: nn.Module, rows: Rows) -> None:
    objective = Classification(label_smoothing=0.3)
    whole = objective.evaluate(model, [rows.batch(range(20))])
    parts = objective.evaluate(model, [rows.batch(range(3)), rows.batch(range(3, 20))])
    assert parts == pytest.approx(whole, rel=1e-5)
    plain = Classification().loss(model, rows.batch(range(20))).item()
    assert whole["loss"] == pytest.approx(plain, rel=1e-5)  # smoothing is for training


def test_classification_without_targets_is_refused(rows: Rows) -> None:
    with pytest.raises(InputError, match="needs a target for every row"):
        Classification().prepare(replace(rows, targets=None).batch([0]))


def test_words_are_hidden_as_often_as_in_the_paper(words: Tokenizer) -> None:
    ordinary = [i for i in range(words.vocab_size) if i not in words.special_ids]
    tokens = torch.tensor(ordinary)[torch.randint(len(ordinary), (500, 64))]
    tokens[:, 0] = words.special_ids[2]
    lengths = torch.randint(32, 65, (500,))
    hidden = masked_words(words).prepare(Batch(tokens=tokens, lengths=lengths))
    assert hidden.targets is not None
    asked = hidden.targets != NOT_ASKED
    inside = torch.arange(64) < lengths[:, None]
    assert not asked[:, 0].any() and not (asked & ~inside).any()
    assert torch.equal(hidden.targets[asked], tokens[asked])
    assert torch.equal(hidden.tokens[~asked], tokens[~asked])
    assert asked[:, 1:][inside[:, 1:]].float().mean().item() == pytest.approx(0.15, abs=0.01)
    masked = hidden.tokens[asked] == words.mask_id
    kept = hidden.tokens[asked] == tokens[asked]
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / words.vocab_size, abs=0.02)


def test_masked_words_asks_only_about_hidden_ones(words: Tokenizer, config: BertConfig, rows: Rows) -> None:
    model = BertForMaskedLM(config).eval()
    objective = masked_words(words, rate=0.5)
    hidden = objective.prepare(rows.batch(range(6)))
    assert hidden.targets is not None
    right = model(hidden.tokens, hidden.lengths).log_softmax(-1)
    asked = [(b, t) for b, t in (hidden.targets != NOT_ASKED).nonzero().tolist()]
    expected = -sum(right[b, t, hidden.targets[b, t]].item() for b, t in asked) / len(asked)
    assert objective.count(hidden) == len(asked)
    assert objective.loss(model, hidden).item() == pytest.approx(expected, rel=1e-5)
    assert objective.evaluate(model, [hidden])["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_generator_hides_the_same_words_and_leaves_torchs_own_alone(words: Tokenizer, rows: Rows) -> None:
    before = torch.get_rng_state()
    first, second = (
        masked_words(words).prepare(rows.batch(range(9)), torch.Generator().manual_seed(0)).tokens for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_next_token_asks_about_every_token_of_a_text_exactly_once() -> None:
    ids = torch.arange(100, 137, dtype=torch.int32)
    for size in (1, 5, 12, 36, 50):
        windows = Windows(ids=ids, size=size)
        batch = windows.batch(range(len(windows.lengths)))
        assert batch.targets is not None
        asked = batch.targets != NOT_ASKED
        assert sorted(batch.targets[asked].tolist()) == list(range(101, 137))
        assert torch.equal(batch.targets[asked], batch.tokens[asked] + 1)
        assert NextToken().count(batch) == 36


def test_next_token_is_the_surprise_of_what_came_in_nats() -> None:
    config = GPTConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=1, d_ff=32, max_len=8)
    model = GPTForCausalLM(config).eval()
    ids = torch.randint(50, (20,), dtype=torch.int32)
    windows = Windows(ids=ids, size=8)
    batch = windows.batch([0, 2])  # the last one reaches back
    log_p = model(batch.tokens).log_softmax(-1)
    first = [log_p[0, t, ids[t + 1]].item() for t in range(8)]
    last = [log_p[1, t, ids[11 + t + 1]].item() for t in range(5, 8)]
    expected = -sum(first + last) / 11
    assert NextToken().loss(model, batch).item() == pytest.approx(expected, rel=1e-5)
    measures = NextToken().evaluate(model, [batch])
    assert measures["loss"] == pytest.approx(expected, rel=1e-5)
    assert measures["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
