"""Facts about generation/assisted.py: a draft changes how fast text comes, never which."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from clearhead.errors import ConfigError
from clearhead.generation import Draft, RepetitionPenalty, Sampled, answers, generate
from clearhead.generation.assisted import leftover

from .models import DECODERS, ENCODER_DECODERS, LLAMA, TINY, decoder, encoder_decoder, texts

N = 9


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)
def test_greedy_text_is_the_same_token_for_token(config, n_tokens: int) -> None:
    model, prompts = decoder(config), texts(3, 9)
    expected = [step[0] for prompt in prompts for step in generate(model, [prompt], max_new_tokens=N)]
    for small in (decoder(config), decoder(LLAMA, seed=5)):  # one that is always right, one that hardly ever is
        came = [step[0] for step in generate(model, prompts, max_new_tokens=N, draft=Draft(small, n_tokens))]
        assert [(each.id, each.end) for each in came] == [(each.id, each.end) for each in expected]
        assert [each.row for each in came] == [0] * N + [1] * N
        torch.testing.assert_close(
            torch.tensor([each.logprob for each in came]),
            torch.tensor([each.logprob for each in expected]),
            atol=1e-5,
            rtol=1e-5,
        )


def test_an_encoder_decoder_can_be_assisted() -> None:
    model, sources = encoder_decoder(ENCODER_DECODERS["relative"]), texts(6, 11)
    expected = answers(generate(model, sources, max_new_tokens=N), 2)
    small = encoder_decoder(ENCODER_DECODERS["learned"], seed=4)
    assert answers(generate(model, sources, max_new_tokens=N, draft=Draft(small)), 2) == expected


def test_adjustments_and_stops_hold_for_guesses_too() -> None:
    model, prompts = decoder(), texts(5, 2)
    settings = {"max_new_tokens": N, "adjust": [RepetitionPenalty(2.0)]}
    whole = answers(generate(model, prompts, **settings), 2)
    for stop in ((), {whole[0][3]}, lambda answer: len(answer) == 6):
        expected = answers(generate(model, prompts, stop=stop, **settings), 2)
        for small in (decoder(), decoder(LLAMA)):
            assert answers(generate(model, prompts, stop=stop, draft=Draft(small), **settings), 2) == expected


def test_a_draft_that_is_right_saves_readings() -> None:
    model, small, reads = decoder(), decoder(), []
    model.gpt.norm.register_forward_hook(lambda *_: reads.append(1))
    list(generate(model, texts(4), max_new_tokens=15, draft=Draft(small, 4)))
    assert len(reads) == 3


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_what_is_kept_and_drawn_again_adds_up_to_the_distribution(sharpness: float) -> None:
    # P(x) = q(x) min(1, p(x)/q(x)) + P(not kept) leftover(x), exactly
    p, q = (sharpness * torch.randn(2, 50, dtype=torch.float64)).softmax(-1)
    kept = q * (p / q).clamp(max=1)
    torch.testing.assert_close(kept + (1 - kept.sum()) * leftover(p, q), p)


def test_sampled_text_is_distributed_as_the_model_alone_says() -> None:
    # Every text of three tokens out of three has its exact probability; the statistic of Pearson's chi-square with
    # 26 degrees of freedom is below 54.1 in 999 of 1,000 runs, and this one always draws the same numbers.
    vocab, n = 3, 600
    model = decoder(replace(TINY, vocab_size=vocab, n_layers=1), seed=1)
    small = decoder(replace(TINY, vocab_size=vocab, n_layers=1), seed=4)
    choose = Sampled(temperature=1.5, seed=0)
    every = torch.cartesian_prod(*[torch.arange(vocab)] * 3)
    with torch.no_grad():
        scores = model(torch.cat((torch.tensor([[1, 2]]).expand(len(every), -1), every), 1))[:, 1:-1]
        exact = choose.distribution(scores).gather(-1, every[..., None])[..., 0].prod(-1)
        other = choose.distribution(small(torch.tensor([[1, 2]]))[0, -1])
    assert (other - choose.distribution(scores[0, 0])).abs().max() > 0.15  # the draft believes something else
    came = answers(generate(model, [[1, 2]] * n, max_new_tokens=3, choose=choose, draft=Draft(small, 2)), n)
    counts = Counter(map(tuple, came))
    seen = torch.tensor([float(counts[tuple(text)]) for text in every.tolist()])
    assert ((seen - n * exact) ** 2 / (n * exact)).sum() < 54.1


def test_a_draft_of_another_vocabulary_is_refused() -> None:
    other = decoder(replace(TINY, vocab_size=40))
    with pytest.raises(ConfigError, match="one vocabulary, got 29 and 40 tokens"):
        list(generate(decoder(), texts(3), max_new_tokens=4, draft=Draft(other)))


def test_a_draft_guesses_something() -> None:
    with pytest.raises(ConfigError, match="at least 1 token"):
        Draft(decoder(), 0)
