"""Facts about generation/beams.py: the beams of transformers, with every rule about when to stop."""

from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clearhead.checkpoints import load
from clearhead.errors import ConfigError
from clearhead.generation import Beams, Never, NoRepeats, RepetitionPenalty, answers, generate, hypotheses

from .models import DECODERS, ENCODER_DECODERS, VOCAB, decoder, encoder_decoder, shaken, texts

STOP = [3, 7]


@pytest.fixture(scope="module", params=[0, 1, 2])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Return transformers' tiny GPT-2 and ours of the same weights."""
    sizes = {"vocab_size": VOCAB, "n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 48}
    theirs = shaken(GPT2LMHeadModel(GPT2Config(**sizes)), request.param, 0.4)
    folder: Path = tmp_path_factory.mktemp("gpt2")
    theirs.save_pretrained(folder)
    return theirs, load(folder)


@pytest.mark.parametrize(
    ("length_penalty", "early_stopping"), [*product([1.0, 0.0, 2.0, -1.0], [False, True, "never"])], ids=str
)
def test_beams_are_those_of_transformers(pair, length_penalty: float, early_stopping) -> None:
    theirs, ours = pair
    prompts = torch.tensor(texts(4, 4))
    greedy = answers(generate(ours, prompts.tolist(), max_new_tokens=10), 2)
    stops = sorted({*STOP, greedy[0][3], greedy[1][6]})  # some that do come
    for n in (2, 5):
        expected = theirs.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=10,
            num_beams=n,
            num_return_sequences=n,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=28,
            return_dict_in_generate=True,
            output_scores=True,
        )
        beams = Beams(n, length_penalty, early_stopping)
        came = hypotheses(ours, prompts.tolist(), beams, max_new_tokens=10, stop=stops)
        flat = [each for row in came for each in row]
        padded = [list(each.ids) + [28] * (expected.sequences.shape[1] - 4 - len(each.ids)) for each in flat]
        assert padded == expected.sequences[:, 4:].tolist()
        torch.testing.assert_close(torch.tensor([each.score for each in flat]), expected.sequences_scores)
        assert length_penalty > 1 or any(len(each.ids) < 10 for each in flat)  # some did stop


def test_beams_with_adjustments_are_those_of_transformers(pair) -> None:
    theirs, ours = pair
    prompts = torch.tensor(texts(6, 6))
    expected = theirs.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=12,
        num_beams=3,
        do_sample=False,
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        suppress_tokens=[5],
        pad_token_id=28,
    )
    adjust = [RepetitionPenalty(1.5), NoRepeats(2), Never([5])]
    came = answers(generate(ours, prompts.tolist(), max_new_tokens=12, choose=Beams(3), adjust=adjust), 2)
    assert came == expected[:, 6:].tolist()


@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)
def test_unequal_prompts_give_the_beams_of_each_alone(config) -> None:
    model, prompts = decoder(config), texts(3, 12, 1)
    together = hypotheses(model, prompts, Beams(4), max_new_tokens=8, stop=STOP)
    for prompt, row in zip(prompts, together):
        [alone] = hypotheses(model, [prompt], Beams(4), max_new_tokens=8, stop=STOP)
        assert [each.ids for each in row] == [each.ids for each in alone]
        for came, expected in zip(row, alone):
            assert came.score == pytest.approx(expected.score, abs=1e-5)
            text = torch.tensor([[*prompt, *came.ids]])
            logprobs = model(text)[0].log_softmax(-1)[len(prompt) - 1 : -1]
            exact = logprobs.gather(1, text[0, len(prompt) :, None])[:, 0]
            torch.testing.assert_close(torch.tensor(came.logprobs), exact, atol=1e-5, rtol=1e-5)


def test_beams_of_an_encoder_decoder_are_those_of_each_source_alone() -> None:
    model, sources = encoder_decoder(ENCODER_DECODERS["relative"]), texts(3, 12, 5)
    together = hypotheses(model, sources, Beams(3), max_new_tokens=8, stop=STOP)
    alone = [hypotheses(model, [source], Beams(3), max_new_tokens=8, stop=STOP)[0] for source in sources]
    assert [[each.ids for each in row] for row in together] == [[each.ids for each in row] for row in alone]


def test_one_beam_is_greedy() -> None:
    model, prompts = decoder(), texts(3, 7)
    greedy = answers(generate(model, prompts, max_new_tokens=9), 2)
    assert answers(generate(model, prompts, max_new_tokens=9, choose=Beams(1)), 2) == greedy


def test_more_beams_find_what_is_at_least_as_probable() -> None:
    model, prompts = decoder(std=0.25), texts(3, 7, 5, 4)
    best = [hypotheses(model, prompts, Beams(n, length_penalty=0.0), max_new_tokens=6) for n in (1, 40)]
    assert all(wide[0].score >= narrow[0].score - 1e-6 for narrow, wide in zip(*best))
    assert any(wide[0].score > narrow[0].score + 1e-3 for narrow, wide in zip(*best))


def test_all_beams_together_find_the_most_probable_answer_there_is() -> None:
    model, [prompt] = decoder(std=0.25), texts(5)
    two = torch.tensor([[*prompt, a] for a in range(VOCAB)])
    logprobs = model(two).log_softmax(-1)
    total = logprobs[0, -2, :, None] + logprobs[:, -1]
    [row] = hypotheses(model, [prompt], Beams(VOCAB), max_new_tokens=2)
    assert list(row[0].ids) == list(divmod(int(total.argmax()), VOCAB))


def test_the_answer_is_told_as_if_it_were_being_written() -> None:
    model, prompts = decoder(), texts(3, 7, 4)
    found = [row[0] for row in hypotheses(model, prompts, Beams(3), max_new_tokens=8, stop=STOP)]
    steps = list(generate(model, prompts, max_new_tokens=8, choose=Beams(3), stop=STOP))
    assert answers(steps, 3) == [list(each.ids) for each in found]
    ends = {token.row: (n, token.end) for n, step in enumerate(steps, 1) for token in step if token.end}
    assert ends == {
        row: (len(each.ids), "stop" if each.ids[-1] in STOP else "length") for row, each in enumerate(found)
    }


@pytest.mark.parametrize("arguments", [(0,), (2, 1.0, "sometimes")])
def test_what_cannot_be_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises((ConfigError, TypeError)):
        Beams(*arguments)
