"""Facts about generation/sampling.py: every function against transformers' own, and what only ours promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import generation as theirs

from clearhead.errors import ConfigError
from clearhead.generation.sampling import (
    Greedy,
    Never,
    NoRepeats,
    RepetitionPenalty,
    Sampled,
    draw,
    min_p,
    top_k,
    top_p,
)

ROWS, VOCAB = 5, 40


def scores() -> torch.Tensor:
    return 3 * torch.randn(ROWS, VOCAB)


@pytest.mark.parametrize(
    ("ours", "warper"),
    [
        *[(lambda x, k=k: top_k(x, k), theirs.TopKLogitsWarper(k)) for k in (1, 7, 40)],
        *[(lambda x, p=p: top_p(x, p), theirs.TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.9, 0.999)],
        *[(lambda x, p=p: min_p(x, p), theirs.MinPLogitsWarper(p)) for p in (0.01, 0.2, 1.0)],
        *[(lambda x, t=t: x / t, theirs.TemperatureLogitsWarper(t)) for t in (0.5, 2.0)],
    ],
)
def test_filters_are_those_of_transformers(ours, warper) -> None:
    logits = scores()
    torch.testing.assert_close(ours(logits), warper(None, logits.clone()), rtol=0, atol=0)


def test_filters_act_in_transformers_order() -> None:
    logits = scores()
    ours = Sampled(temperature=0.7, top_k=20, top_p=0.8, min_p=0.1).distribution(logits)
    filtered = theirs.TopKLogitsWarper(20)(None, theirs.TemperatureLogitsWarper(0.7)(None, logits))
    filtered = theirs.MinPLogitsWarper(0.1)(None, theirs.TopPLogitsWarper(0.8)(None, filtered))
    torch.testing.assert_close(ours, filtered.softmax(-1))


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits, texts = scores(), torch.randint(VOCAB, (ROWS, 9))
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(texts, logits.clone())
    torch.testing.assert_close(RepetitionPenalty(penalty)(logits, texts.tolist()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_no_repeats_is_that_of_transformers(n: int) -> None:
    logits, texts = scores(), torch.randint(3, (ROWS, 11))
    expected = theirs.NoRepeatNGramLogitsProcessor(n)(texts, logits.clone())
    came = NoRepeats(n)(logits, texts.tolist())
    torch.testing.assert_close(came, expected, rtol=0, atol=0)
    assert n == 12 or came.isinf().any()


def test_never_rules_tokens_out() -> None:
    logits = scores()
    came = Never([3, 0])(logits, [[]] * ROWS)
    assert (came[:, [0, 3]] == -math.inf).all() and torch.equal(came[:, 4:], logits[:, 4:])
    assert logits.isfinite().all()


@given(st.integers(0, 10_000), st.floats(0.01, 0.99))
def test_the_nucleus_is_the_smallest_set_that_holds_p(seed: int, p: float) -> None:
    logits = 4 * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    probabilities, kept = logits.softmax(-1), top_p(logits, p).isfinite()
    assert probabilities[kept].sum() >= p - 1e-9
    if kept.sum() > 1:
        assert probabilities[kept].sum() - probabilities[kept].min() < p + 1e-9


def test_a_draw_takes_each_token_as_often_as_its_probability_says() -> None:
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    uniforms = (torch.arange(1_000, dtype=torch.float64) + 0.5) / 1_000
    came = draw(probabilities.expand(1_000, -1), uniforms)
    assert came.bincount(minlength=6).tolist() == [0, 250, 0, 500, 250, 0]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_a_draw_never_takes_what_has_no_probability(uniform: float) -> None:
    probabilities = torch.tensor([[0.0, 0.1, 0.2, 0.7, 0.0]])
    assert draw(probabilities, torch.tensor([uniform], dtype=torch.float64)).item() in (1, 3)


def test_greedy_is_certain_of_the_best() -> None:
    logits = scores()
    assert torch.equal(Greedy().distribution(logits).argmax(-1), logits.argmax(-1))
    assert (Greedy().distribution(logits).sum(-1) == 1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sampled(temperature=0.0), "for the best token use Greedy"),
        (lambda: Sampled(top_k=0), "at least 1 token"),
        (lambda: Sampled(top_p=1.5), "top_p is a probability"),
        (lambda: Sampled(min_p=0.0), "min_p is a probability"),
        (lambda: RepetitionPenalty(0.0), "above 0"),
        (lambda: NoRepeats(0), "at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
