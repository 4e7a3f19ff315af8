"""Facts about generation/recorded.py and the cache of fixed shapes. tests/compiled/ has the compiled step."""

import pytest
import torch

from clearhead.cache import FixedLayerCache
from clearhead.errors import InputError
from clearhead.generation import Beams, Draft, Sampled, answers, generate
from clearhead.generation.recorded import Recorded
from clearhead.models.gpt import GPTConfig

from .models import DECODERS, ENCODER_DECODERS, decoder, encoder_decoder, texts

N = 10


@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)
def test_a_cache_of_fixed_shapes_gives_the_same_numbers(config: GPTConfig) -> None:
    model, tokens = decoder(config), torch.tensor(texts(14, 14))
    starts = torch.tensor([0, 5])
    with torch.no_grad():
        expected = model(tokens, starts)
        for pieces in ([14], [6, 1, 1, 4, 1, 1]):
            cache = model.new_cache(2, 40, FixedLayerCache)
            came = torch.cat([model(piece, starts, cache=cache) for piece in tokens.split(pieces, 1)], 1)
            torch.testing.assert_close(came[0], expected[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(came[1, 5:], expected[1, 5:], atol=1e-5, rtol=1e-5)
            assert cache.length == 14


@pytest.mark.parametrize("config", ENCODER_DECODERS.values(), ids=ENCODER_DECODERS)
def test_an_encoder_decoder_too(config) -> None:
    model, target = encoder_decoder(config), torch.tensor(texts(9, 9))
    source = torch.randn(2, 5, 12) if config.n_mels else torch.tensor(texts(7, 7, seed=3))
    with torch.no_grad():
        memory = model.encode(source)
        expected, cache = model.decode(target, memory), model.new_cache(2, 30, FixedLayerCache)
        came = torch.cat([model.decode(piece, memory, cache=cache) for piece in target.split([1, 5, 1, 2], 1)], 1)
    torch.testing.assert_close(came, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", DECODERS.values(), ids=DECODERS)
def test_a_recorded_model_writes_the_same_again_and_again(config: GPTConfig) -> None:
    model, prompts = decoder(config), texts(3, 9, 1)
    recorded = Recorded(model, rows=4, max_len=20)
    whole = answers(generate(model, prompts, max_new_tokens=N), 3)
    requests = [
        {},
        {"stop": {whole[0][2], whole[1][5]}},
        {"choose": Sampled(seed=1)},
        {"draft": Draft(decoder(DECODERS["gpt2"], seed=3), 3)},
    ]
    for request in requests:
        expected = answers(generate(model, prompts, max_new_tokens=N, **request), 3)
        assert answers(generate(recorded, prompts, max_new_tokens=N, **request), 3) == expected
    expected = answers(generate(model, prompts[:1], max_new_tokens=N, choose=Beams(4)), 1)
    assert answers(generate(recorded, prompts[:1], max_new_tokens=N, choose=Beams(4)), 1) == expected


def test_no_shape_changes_from_step_to_step() -> None:
    recorded, shapes = Recorded(decoder(), rows=2, max_len=20), set()
    recorded.model.gpt.words.register_forward_hook(lambda _, inputs, __: shapes.add(inputs[0].shape))
    list(generate(recorded, texts(3), max_new_tokens=N))
    assert shapes == {(2, 3), (2, 1)}


def test_a_graph_writes_the_same(cuda: torch.device) -> None:
    model, prompts = decoder(), texts(3, 9, 1)
    expected = answers(generate(model, prompts, max_new_tokens=N), 3)
    recorded = Recorded(model.to(cuda), rows=3, max_len=20)
    for _ in range(2):
        assert answers(generate(recorded, prompts, max_new_tokens=N), 3) == expected


@pytest.mark.parametrize(
    ("prompts", "n_new"), [([[1]] * 3, 2), ([[1] * 19], 4)], ids=["too many rows", "too many tokens"]
)
def test_more_than_was_recorded_for_is_refused(prompts, n_new: int) -> None:
    with pytest.raises(InputError, match="rows=2, max_len=20: record with more"):
        generate(Recorded(decoder(), rows=2, max_len=20), prompts, max_new_tokens=n_new)


def test_more_beams_than_rows_are_refused() -> None:
    with pytest.raises(InputError, match="3 beams, but this was recorded for rows=2"):
        generate(Recorded(decoder(), rows=2, max_len=20), texts(3), max_new_tokens=4, choose=Beams(3))
