"""Facts about generation/packed.py: the same numbers from weights laid out otherwise, or close ones from fewer bits."""

import copy
import pickle

import pytest
import torch

from clearhead.checkpoints import save
from clearhead.errors import ConfigError
from clearhead.generation import Beams, answers, generate, linear
from clearhead.generation.linear import (
    BytesLinear,
    HalfLinear,
    Int8Linear,
    TwoHalvesLinear,
    float32_linear,
)
from clearhead.generation.packed import fastest, obstacle, pack_decoder, rebuilt
from clearhead.models.gpt import GPTForCausalLM
from clearhead.packed import OneDNNLinear, PlainLinear
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
def test_every_weight_is_laid_out_once(model) -> None:
    # Half of the time and of the memory, once: what had been replaced was packed too.
    laid_out: list[int] = []

    def linear(weight, bias, then) -> PlainLinear:
        laid_out.append(weight.numel())
        return PlainLinear(weight, bias, then)

    rebuilt(model, linear)
    layers = [each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear)]
    if model.head is None:
        layers.append((model.gpt if isinstance(model, GPTForCausalLM) else model).words.weight.numel())
    assert sum(laid_out) == sum(layers)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_packed_float32_writes_the_same(model) -> None:
    needs(torch.float32)
    fast, prompts = pack_decoder(model), texts(4, 9)
    torch.testing.assert_close(logits(fast), logits(model), atol=2e-5, rtol=1e-5)
    for choose in ({}, {"choose": Beams(3)}):
        expected = answers(generate(model, prompts, max_new_tokens=9, **choose), 2)
        assert answers(generate(fast, prompts, max_new_tokens=9, **choose), 2) == expected


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 0.02), (torch.int8, 0.05)], ids=str
)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8], ids=str)
def test_a_weight_that_lies_turned_is_laid_out_like_any_other(dtype: torch.dtype) -> None:
    needs(dtype)
    columns = torch.randn(48, 96).T.chunk(3)[1]  # as a frozen GPT-2 has them
    x = torch.randn(2, 48)
    makers = {linear.layout(dtype, None)[0], linear.layout(dtype, 1)[0]}
    for make in makers | ({Int8Linear} if dtype == torch.int8 else set()):
        assert torch.equal(make(columns, None, None)(x), make(columns.contiguous(), None, None)(x))


def test_a_row_of_zeros_stays_zeros() -> None:
    assert (Int8Linear(torch.zeros(3, 32), None, None)(torch.randn(1, 32)) == 0).all()
    if not linear.bytes_obstacle():
        assert (BytesLinear(torch.zeros(3, 32), None, None)(torch.randn(1, 32)) == 0).all()
        assert (BytesLinear(torch.randn(3, 32), None, None)(torch.zeros(2, 32)) == 0).all()


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
        (lambda: decoder(), torch.float64, "expected float32, float16, bfloat16 or int8"),
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
    needs(torch.float16)
    assert fastest(decoder(), torch.float16)[1] == "float16 weights, by FBGEMM"
    assert fastest(decoder(), tokens=20)[1] == "oneDNN's packed weights, float32"
    assert fastest(decoder())[1].startswith("float32 in two halves")
    assert fastest(decoder(), torch.int8)[1].startswith("int8 weights")


@pytest.mark.parametrize("rows", [1, linear.FEW, linear.FEW + 1, 70])
@pytest.mark.parametrize("shape", [(96, 64), (50, 20), (7, 130)], ids=str)
@pytest.mark.parametrize(
    ("kind", "bound"), [(TwoHalvesLinear, 3e-6), (HalfLinear, 1e-3), (BytesLinear, 0.03), (Int8Linear, 0.03)]
)
def test_a_layer_is_as_exact_as_its_bytes(kind, bound: float, rows: int, shape: tuple[int, int]) -> None:
    needs(torch.int8 if kind is Int8Linear else torch.float16)
    if kind is BytesLinear and (reason := linear.bytes_obstacle()):
        pytest.skip(reason)
    torch.manual_seed(0)
    size = torch.logspace(-3, 1, shape[0])
    weight, bias = torch.randn(shape) * size[:, None], torch.randn(shape[0]) * size
    x = torch.randn(rows, 1, shape[1]) * torch.logspace(-2, 2, rows)[:, None, None]
    for then in (None, torch.nn.functional.gelu):
        exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        came = kind(weight, bias, then)(x)
        assert came.shape == (rows, 1, shape[0]) and came.dtype == torch.float32
        wrong = (came - (exact if then is None else then(exact))).abs().amax((0, 1))
        scale = x.double().norm(dim=-1).max() * weight.double().norm(dim=1) + bias.abs()
        assert (wrong / scale).max() < bound


@pytest.mark.parametrize("kind", [HalfLinear, TwoHalvesLinear, BytesLinear])
def test_a_row_does_not_depend_on_its_neighbours(kind) -> None:
    needs(torch.float16)
    torch.manual_seed(0)
    layer, x = kind(torch.randn(48, 64), torch.randn(48), None), torch.randn(3, 1, 64)
    together = layer(torch.cat([x, x[:1] * 1e3]))
    alone = torch.cat([layer(row[None]) for row in x])
    torch.testing.assert_close(together[:3], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 1e-5, 1e-6, 1e-9])
@pytest.mark.parametrize("rows", [1, linear.FEW + 1])
def test_small_weights_are_as_exact_as_any(size: float, rows: int) -> None:
    needs(torch.float16)
    torch.manual_seed(0)
    weight, x = torch.randn(32, 64) * size, torch.randn(rows, 64)
    exact = x.double() @ weight.double().T
    came = float32_linear(weight, None, None)(x)
    assert ((came - exact).abs() / (x.norm(dim=-1, keepdim=True) * weight.norm(dim=1))).max() < 5e-7
    if size < 1e-4:
        with pytest.raises(ConfigError, match=r"too small for float16.*bfloat16"):
            HalfLinear(weight, None, None)
    assert float(HalfLinear(weight * 0, None, None)(x).abs().max()) == 0, "nothing is lost of zeros"


def test_weights_beyond_float16_are_refused_or_laid_out_otherwise() -> None:
    needs(torch.float16)
    weight = torch.eye(4) * 1e5
    assert isinstance(float32_linear(weight, None, None), OneDNNLinear)
    assert isinstance(float32_linear(weight / 2, None, None), TwoHalvesLinear)
    for wrong in (weight, weight * torch.nan):
        with pytest.raises(ConfigError, match=r"beyond float16.*bfloat16"):
            HalfLinear(wrong, None, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8], ids=str)
def test_what_is_packed_writes_under_autocast_too(dtype: torch.dtype) -> None:
    # Attention then gives bfloat16, which FBGEMM's kernels do not read.
    needs(dtype)
    fast = pack_decoder(MODELS["gpt2"], dtype)
    tokens = torch.tensor(texts(3))
    with torch.no_grad():
        exact = fast(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            assert (fast(tokens) - exact).square().mean().sqrt() < 0.05 * exact.std()


def test_what_is_packed_is_not_saved_without_its_weights(tmp_path) -> None:
    needs(torch.float32)
    for lose in (lambda fast: fast.state_dict(), lambda fast: save(fast, tmp_path / "model")):
        with pytest.raises(ConfigError, match="save the model it was made from"):
            lose(pack_decoder(MODELS["gpt2"]))
    assert not (tmp_path / "model").exists()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # pickled by torch, of weights in bytes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8], ids=str)
def test_what_is_packed_is_copied_and_sent_to_other_processes(dtype: torch.dtype) -> None:
    # oneDNN's order of memory is one that torch can neither copy nor pickle.
    needs(dtype)
    fast = pack_decoder(MODELS["gpt2"], dtype)
    for twin in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert torch.equal(logits(twin), logits(fast))


@pytest.mark.parametrize("kind", [OneDNNLinear, TwoHalvesLinear, HalfLinear, BytesLinear, Int8Linear])
def test_no_texts_give_no_logits(kind) -> None:
    needs(torch.int8 if kind is Int8Linear else torch.float16)
    if kind is BytesLinear and (reason := linear.bytes_obstacle()):
        pytest.skip(reason)
    assert rebuilt(MODELS["gpt2"], kind)(torch.zeros(0, 3, dtype=torch.long)).shape == (0, 3, TINY.vocab_size)


def test_what_is_packed_is_not_packed_again() -> None:
    needs(torch.float16)
    fast = pack_decoder(MODELS["gpt2"], torch.float16)
    with pytest.raises(ConfigError, match="packed already"):
        pack_decoder(fast, torch.int8)


def test_another_engine_is_named_as_the_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    needs(torch.float16)
    monkeypatch.setattr(torch.backends.quantized, "engine", "qnnpack")
    model = decoder()
    run, note = fastest(model, torch.float16)
    assert run is model and "'qnnpack': set it to 'x86'" in note
    assert fastest(model)[1] == "oneDNN's packed weights, float32"
    assert fastest(model, torch.int8)[1] == "int8 weights"
