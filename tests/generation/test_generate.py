"""Facts about generation/: what is written is what the model says, alone or in company, cached or not."""

import pytest
import torch

from clearhead.errors import ConfigError, InputError, ShapeError
from clearhead.generation import (
    Beams,
    Draft,
    Greedy,
    Never,
    RepetitionPenalty,
    Sampled,
    Token,
    answers,
    generate,
)
from clearhead.generation.reading import open_reader
from clearhead.models.bert import Bert, BertConfig
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM

from .models import DECODERS, ENCODER_DECODERS, LLAMA, PAIR, TINY, VOCAB, decoder, encoder_decoder, texts

N = 12


def uncached(model: GPTForCausalLM, prompt: list[int], n: int) -> tuple[list[int], torch.Tensor]:
    """Return the greedy answer and every step's scores, the whole text read anew for each token."""
    text, rows = list(prompt), []
    for _ in range(n):
        rows.append(model(torch.tensor([text]))[0, -1].detach())
        text.append(int(rows[-1].argmax()))
    return text[len(prompt) :], torch.stack(rows)


def sources(config: EncoderDecoderConfig, *lengths: int) -> list:
    """Return random sources: texts, or as much sound each."""
    return texts(*lengths) if config.n_mels is None else list(torch.randn(len(lengths), config.n_mels, 14))


def scored(model, prompts, answers: list[list[int]]) -> torch.Tensor:
    """Return the scores of every step of a batch that writes `answers`."""
    with torch.no_grad():
        reader = open_reader(model, prompts, len(answers[0]))
        pieces = [reader.prompt, *torch.tensor(answers).split(1, dim=1)][: len(answers[0])]
        return torch.cat([reader.read(piece) for piece in pieces], dim=1)


# ---------------------------------------------------------------- cached, together


@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)
def test_unequal_prompts_give_what_each_gives_alone_without_a_cache(config: GPTConfig) -> None:
    model, prompts = decoder(config), texts(3, 17, 1, 8)
    came = answers(generate(model, prompts, max_new_tokens=N), 4)
    scores = scored(model, prompts, came)
    for row, prompt in enumerate(prompts):
        expected, alone = uncached(model, prompt, N)
        assert came[row] == expected
        torch.testing.assert_close(scores[row], alone, atol=1e-5, rtol=1e-5)
    assert len({token for row in came for token in row}) > 8  # a model that repeats one word would prove little


@pytest.mark.parametrize("config", ENCODER_DECODERS.values(), ids=ENCODER_DECODERS)
def test_unequal_sources_give_what_each_gives_alone_without_a_cache(config: EncoderDecoderConfig) -> None:
    model, given = encoder_decoder(config), sources(config, 5, 16, 2)
    came = answers(generate(model, given, max_new_tokens=N), 3)
    scores = scored(model, given, came)
    for row, source in enumerate(given):
        target, alone = [config.start_id], []
        for _ in range(N):
            alone.append(model(torch.as_tensor(source)[None], torch.tensor([target]))[0, -1].detach())
            target.append(int(alone[-1].argmax()))
        assert came[row] == target[1:]
        torch.testing.assert_close(scores[row], torch.stack(alone), atol=1e-5, rtol=1e-5)


def test_the_source_is_projected_once() -> None:
    model, calls = encoder_decoder(), []
    for block in model.decoder.blocks:
        block.cross_attention.k_proj.register_forward_hook(lambda *_: calls.append(1))
    list(generate(model, texts(4, 6), max_new_tokens=9))
    assert len(calls) == PAIR.n_decoder_layers


def test_an_answer_begins_as_it_is_told() -> None:
    model, [source] = encoder_decoder(), texts(7)
    whole = answers(generate(model, [source], max_new_tokens=N), 1)[0]
    rest = answers(generate(model, [source], max_new_tokens=N - 3, begin=[PAIR.start_id, *whole[:3]]), 1)[0]
    assert rest == whole[3:]


@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)
def test_rows_that_are_done_leave_and_disturb_nobody(config: GPTConfig) -> None:
    model, prompts = decoder(config), texts(3, 9, 5, 4)
    alone = [answers(generate(model, [prompt], max_new_tokens=N), 1)[0] for prompt in prompts]
    stop = {alone[1][2], alone[2][5]}
    sizes = [len(step) for step in generate(model, prompts, max_new_tokens=N, stop=stop)]
    came = answers(generate(model, prompts, max_new_tokens=N, stop=stop), 4)
    cut = [next((i + 1 for i, token in enumerate(row) if token in stop), N) for row in alone]
    assert came == [row[:end] for row, end in zip(alone, cut)]
    assert sizes == [sum(end >= n for end in cut) for n in range(1, max(cut) + 1)] and min(cut) < max(cut)


def test_a_row_that_is_done_is_not_computed_again() -> None:
    model, prompts, seen = decoder(), texts(3, 9), []
    first = answers(generate(model, prompts, max_new_tokens=1), 2)
    model.gpt.words.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    assert first[0] != first[1]
    list(generate(model, prompts, max_new_tokens=4, stop={first[0][0]}))
    assert seen[0] == (2, 9) and seen[1] == (1, 1)


# ---------------------------------------------------------------- what a step tells


def test_tokens_come_as_they_are_made() -> None:
    model, reads = decoder(), []
    model.gpt.norm.register_forward_hook(lambda *_: reads.append(1))
    steps = generate(model, texts(4), max_new_tokens=5)
    assert reads == []
    for n in range(1, 6):
        next(steps)
        assert len(reads) == n
    assert next(steps, None) is None


def test_a_token_tells_its_log_probability_by_the_model_itself() -> None:
    model, [prompt] = decoder(), texts(6)
    tokens = [step[0] for step in generate(model, [prompt], max_new_tokens=N, choose=Sampled(top_k=3, temperature=0.5))]
    text = prompt + [token.id for token in tokens]
    expected = model(torch.tensor([text]))[0].log_softmax(-1)[len(prompt) - 1 : -1]
    expected = expected.gather(1, torch.tensor(text[len(prompt) :])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([token.logprob for token in tokens]), expected)


def test_the_last_token_says_why_it_is() -> None:
    model, [prompt] = decoder(LLAMA), texts(6)
    steps = list(generate(model, [prompt], max_new_tokens=N))
    assert [step[0].end for step in steps] == [None] * (N - 1) + ["length"]
    ids = [step[0].id for step in steps]
    new = next(n for n in range(1, N - 1) if ids[n] not in ids[:n])
    ends = [step[0].end for step in generate(model, [prompt], max_new_tokens=N, stop=[ids[new]])]
    assert ends == [None] * new + ["stop"]


def test_stop_may_be_a_function_of_the_answer() -> None:
    model, prompts = decoder(), texts(6, 2)
    seen: list[list[int]] = []

    def is_long(answer: list[int]) -> bool:
        seen.append(list(answer))
        return len(answer) == 3

    came = answers(generate(model, prompts, max_new_tokens=9, stop=is_long), 2)
    assert [len(row) for row in came] == [3, 3]
    assert seen[-1] == came[1]


# ---------------------------------------------------------------- chance


def test_a_sampled_row_does_not_depend_on_its_neighbours() -> None:
    model, prompts = decoder(std=0.25), texts(5, 11, 3)
    together = answers(generate(model, prompts, max_new_tokens=N, choose=Sampled(seed=7)), 3)
    for row, prompt in enumerate(prompts):
        assert answers(generate(model, [prompt], max_new_tokens=N, choose=Sampled(seed=7 + row)), 1) == [together[row]]


def test_a_seed_gives_the_same_text_and_no_seed_another() -> None:
    model, prompts = decoder(std=0.2), texts(5)

    def write(seed: int | None) -> list[int]:
        return answers(generate(model, prompts, max_new_tokens=30, choose=Sampled(seed=seed)), 1)[0]

    assert write(3) == write(3) != write(4)
    assert write(None) != write(None)


def test_the_same_prompt_twice_gives_two_texts() -> None:
    model, [prompt] = decoder(std=0.2), texts(5)
    one, other = answers(generate(model, [prompt, prompt], max_new_tokens=20, choose=Sampled(seed=0)), 2)
    assert one != other


def test_a_cold_sample_is_greedy() -> None:
    model, prompts = decoder(), texts(4, 9)
    cold = answers(generate(model, prompts, max_new_tokens=N, choose=Sampled(temperature=1e-6)), 2)
    assert cold == answers(generate(model, prompts, max_new_tokens=N, choose=Greedy()), 2)


def test_adjustments_see_the_prompt_and_the_answer_in_order() -> None:
    model, prompts = decoder(), texts(4, 9)
    plain = answers(generate(model, prompts, max_new_tokens=N), 2)
    banned = answers(generate(model, prompts, max_new_tokens=N, adjust=[Never([plain[0][0], plain[1][0]])]), 2)
    assert not {plain[0][0], plain[1][0]} & {token for row in banned for token in row}
    seen = []

    def spy(scores: torch.Tensor, so_far: list[list[int]]) -> torch.Tensor:
        seen.append([list(text) for text in so_far])
        return scores

    came = answers(generate(model, prompts, max_new_tokens=3, adjust=[RepetitionPenalty(1e6), spy]), 2)
    assert seen[2] == [prompt + row[:2] for prompt, row in zip(prompts, came)]
    assert all(len(set(prompt + row)) == len(set(prompt)) + 3 for prompt, row in zip(prompts, came))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("prompts", "settings", "error", "message"),
    [
        ([[1], []], {}, InputError, "prompt 2 is empty"),
        ([[1, VOCAB]], {}, InputError, f"from 0 to {VOCAB - 1}, got 1 to {VOCAB}"),
        ([[-1]], {}, InputError, "got -1 to -1"),
        ([[1] * 45], {"max_new_tokens": 5}, ShapeError, "49 tokens, but this model has 48 learned positions"),
        ([[1]], {"max_new_tokens": 0}, ConfigError, "at least 1, got 0"),
        ([[1]], {"begin": [1]}, ConfigError, "begin is for encoder-decoders"),
        ([[1]], {"choose": Beams(2), "draft": Draft(decoder())}, ConfigError, "pass one of the two"),
        ([[1], []], {"draft": Draft(decoder())}, InputError, "prompt 2 is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once(prompts, settings, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        generate(decoder(), prompts, **{"max_new_tokens": 4, **settings})


@pytest.mark.parametrize("begin", [[], [VOCAB], [1, -1]], ids=str)
def test_an_answer_cannot_begin_with_what_is_no_token(begin: list[int]) -> None:
    with pytest.raises(InputError, match=f"begin: expected at least one token id, from 0 to {VOCAB - 1}"):
        generate(encoder_decoder(), [[1]], max_new_tokens=4, begin=begin)


def test_a_model_that_does_not_write_is_refused() -> None:
    sizes = {"vocab_size": 9, "d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8, "max_len": 8}
    with pytest.raises(ConfigError, match="a Bert does not write"):
        generate(Bert(BertConfig(**sizes)), [[1]], max_new_tokens=1)
    with pytest.raises(ConfigError, match="in training mode"):
        generate(GPTForCausalLM(TINY).train(), [[1]], max_new_tokens=1)


def test_sounds_of_unequal_size_are_refused() -> None:
    model = EncoderDecoder(ENCODER_DECODERS["sound"]).eval()
    with pytest.raises(InputError, match="of one size"):
        generate(model, [torch.zeros(5, 14), torch.zeros(5, 12)], max_new_tokens=1)


def test_the_longest_answer_that_fits_is_written() -> None:
    [row] = answers(generate(decoder(), texts(40), max_new_tokens=9), 1)
    assert len(row) == 9


def test_no_prompts_give_no_steps() -> None:
    assert list(generate(decoder(), [], max_new_tokens=3)) == []


def test_a_token_is_plain_numbers() -> None:
    [[token]] = generate(decoder(), texts(3), max_new_tokens=1)
    assert isinstance(token, Token) and type(token.id) is int and type(token.logprob) is float
