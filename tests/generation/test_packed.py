"""Facts about generation/packed.py: the same numbers from weights laid out otherwise, or close ones from fewer bits."""

import pytest
import torch

from clearhead.errors import ConfigError
from clearhead.generation import Beams, answers, generate
from clearhead.generation.packed import Int8Linear, PlainLinear, fastest, obstacle, pack_decoder, rebuilt
from clearhead.models.gpt import GPTForCausalLM
from clearhead.seeing import watch

from .models import DECODERS, ENCODER_DECODERS, PAIR, TINY, decoder, encoder_decoder, texts

MODELS = {name: decoder(config) for name, config in DECODERS.items()} | {
    name: encoder_decoder(config) for name, config in ENCODER_DECODERS.items() if config.n_mels is None
}


def needs(dtype: torch.dtype) -> None:
    """Skip where this processor has no packed weights of that kind."""
    if reason := obstacle(MODELS["gpt2"], dtype):
        pytest.skip(reason)


def logits(model) -> torch.Tensor:
    """Return the model's numbers for some text."""
    tokens = torch.tensor(texts(13, 13))
    with torch.no_grad():
        return model(tokens) if isinstance(model, GPTForCausalLM) else model(tokens, tokens[:, :5])


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_rebuilt_model_says_the_same(model) -> None:
    twin = rebuilt(model, PlainLinear)
    torch.testing.assert_close(logits(twin), logits(model), atol=1e-5, rtol=1e-5)
    ours = {parameter.data_ptr() for parameter in model.parameters()}
    assert {parameter.data_ptr() for parameter in twin.parameters()} <= ours  # what is not rebuilt is shared


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_packed_float32_writes_the_same(model) -> None:
    needs(torch.float32)
    fast, prompts = pack_decoder(model), texts(4, 9)
    torch.testing.assert_close(logits(fast), logits(model), atol=2e-5, rtol=1e-5)
    for choose in ({}, {"choose": Beams(3)}):
        expected = answers(generate(model, prompts, max_new_tokens=9, **choose), 2)
        assert answers(generate(fast, prompts, max_new_tokens=9, **choose), 2) == expected


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.int8, 0.04)], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "grouped queries, rotary, windows", "learned"])
def test_fewer_bits_move_logits_by_a_small_part_of_their_spread(name: str, dtype: torch.dtype, bound: float) -> None:
    needs(dtype)
    exact = logits(MODELS[name])
    moved = (logits(pack_decoder(MODELS[name], dtype)) - exact).square().mean().sqrt() / exact.std()
    assert 0 < moved < bound


def test_int8_weights_are_within_half_a_step_and_scales_exact() -> None:
    weight = torch.randn(64, 48) * torch.logspace(-4, 2, 64)[:, None]
    layer = Int8Linear(weight, None, None)
    scale = layer.scale.float().unsqueeze(1)
    assert ((layer.whole[:, :48] * scale - weight).abs() <= scale / 2 + 1e-6 * scale).all()
    assert layer.whole.abs().amax(1).min() >= 120  # the byte is used


def test_a_row_of_zeros_stays_zeros() -> None:
    assert (Int8Linear(torch.zeros(3, 32), None, None)(torch.randn(1, 32)) == 0).all()


def test_what_is_packed_is_still_watched() -> None:
    needs(torch.float32)
    fast = pack_decoder(MODELS["gpt2"])
    with watch(fast) as seen, torch.no_grad():
        fast(torch.tensor(texts(6)))
    assert len(seen.layers) == TINY.n_layers
    assert torch.allclose(seen.map(layer=1, head=2).sum(-1), torch.ones(6), atol=1e-5)


def test_the_model_stays_as_it_was() -> None:
    model = decoder()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(generate(pack_decoder(model, torch.int8), texts(4), max_new_tokens=3))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.head is None


@pytest.mark.parametrize(
    ("model", "dtype", "reason"),
    [
        (lambda: GPTForCausalLM(TINY), None, "call model.eval"),
        (lambda: decoder().bfloat16(), torch.bfloat16, "load it with dtype=torch.float32"),
        (lambda: decoder(), torch.float16, "expected float32, bfloat16 or int8"),
    ],
)
def test_what_cannot_be_packed_runs_as_it_is_and_says_why(model, dtype: torch.dtype | None, reason: str) -> None:
    plain = model()
    run, note = fastest(plain, dtype)
    assert run is plain and note.startswith("the model as it is: ") and reason in note
    with pytest.raises(ConfigError, match=reason):
        pack_decoder(plain, dtype)


def test_the_note_says_what_runs() -> None:
    needs(torch.bfloat16)
    assert fastest(encoder_decoder(PAIR), torch.bfloat16)[1] == "oneDNN's packed weights, bfloat16"
    assert fastest(decoder(), torch.int8)[1] == "int8 weights"
