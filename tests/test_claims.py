"""What examples/claims.py says was found is found again here, in small: its words cannot outlive its numbers."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def claims(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", repository / "examples" / "claims.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------- a


@pytest.mark.parametrize("d_head", [16, 256])
def test_only_one_over_root_d_keeps_the_scores_near_one(claims: ModuleType, d_head: int) -> None:
    stds = {name: claims.measure_scale(d_head, scale(d_head))["scores"] for name, scale in claims.SCALES.items()}
    assert stds["1/√D"] == pytest.approx(1, rel=0.03)
    assert stds["none"] == pytest.approx(math.sqrt(d_head), rel=0.03)
    assert stds["1/D"] == pytest.approx(1 / math.sqrt(d_head), rel=0.03)


def test_outputs_are_near_one_only_where_softmax_has_collapsed(claims: ModuleType) -> None:
    unscaled, scaled = claims.measure_scale(1024, 1.0), claims.measure_scale(1024, 1024**-0.5)
    assert unscaled["output"] > 0.9 and unscaled["alike"] < 1.5
    # E[exp(2z)] / (T E[exp(z)]^2) = e / T for scores z of standard deviation 1
    assert scaled["output"] == pytest.approx(math.sqrt(math.e / 64), rel=0.1)


def test_the_typical_gradient_vanishes_without_a_scale_and_under_one_over_d(claims: ModuleType) -> None:
    typical = {name: claims.measure_scale(1024, scale(1024))["typical"] for name, scale in claims.SCALES.items()}
    assert typical["1/√D"] > 20 * typical["none"]
    assert typical["1/√D"] > 20 * typical["1/D"]


def test_the_slope_is_the_norm_of_the_softmax_jacobian(claims: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 16, 5, 8, generator=generator), torch.randn(1, 16, 5, 8, generator=generator)
    w = (0.3 * q @ k.transpose(-2, -1)).softmax(-1)
    jacobian = torch.diag_embed(w) - w[..., :, None] * w[..., None, :]
    measured = claims.measure_scale(8, 0.3, words=5, seed=0)["slope"]
    assert measured == pytest.approx(jacobian.flatten(-2).norm(dim=-1).mean().item(), rel=1e-5)


# ---------------------------------------------------------------- b


def test_the_four_sentences_of_a_pair_hold_the_same_words(claims: ModuleType) -> None:
    sentences = claims.pairings("shabby", "bright", ("attention", "plot"))
    assert len({tuple(sorted(text.split())) for text, _ in sentences}) == 1
    assert [label for _, label in sentences] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("attentive", "ordered", "solved"), [(False, True, False), (True, True, True), (True, False, False)]
)
def test_only_attention_that_knows_the_order_tells_the_pairings_apart(
    claims: ModuleType, attentive: bool, ordered: bool, solved: bool
) -> None:
    accuracy = claims.read_pairings(0, attentive=attentive, ordered=ordered, steps=120)
    assert accuracy > 0.95 if solved else accuracy == pytest.approx(0.5, abs=0.02)


# ---------------------------------------------------------------- c


def test_models_with_other_heads_start_from_the_same_numbers(claims: ModuleType) -> None:
    models = []
    for n_heads in (1, 2, 4, 8):
        torch.manual_seed(3)
        models.append(dict(claims.SmallTransformer(50, 12, n_heads).named_parameters()))
    for other in models[1:]:
        assert other.keys() == models[0].keys()
        assert all(torch.equal(other[name], parameter) for name, parameter in models[0].items())


def test_training_side_by_side_computes_what_each_model_computes_alone(claims: ModuleType) -> None:
    models = [claims.SmallTransformer(50, 12, n_heads=2).eval() for _ in range(3)]
    tokens, lengths = torch.randint(50, (3, 5, 12)), torch.randint(1, 13, (3, 5))
    with torch.no_grad():
        alone = torch.stack([model(t, n) for model, t, n in zip(models, tokens, lengths)])
        together = claims.Ensemble(models, torch.device("cpu"))(tokens, lengths, training=False)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_small_transformers_learn_and_are_measured_after_every_epoch(claims: ModuleType) -> None:
    tokens = torch.randint(2, 40, (400, 10))
    labels = (tokens == 5).any(1).long()
    data = (tokens, torch.full((400,), 10), labels, 40)
    run = claims.train_heads(2, data, seeds=2, epochs=3, device=torch.device("cpu"))
    assert {name: tensor.shape for name, tensor in run.items()} == dict.fromkeys(run, torch.Size([3, 2]))
    assert (run["loss"][-1] < run["loss"][0]).all()


def test_sign_flips_give_the_exact_p_value(claims: ModuleType) -> None:
    assert claims.sign_flip_p(torch.tensor([1.0, 2.0, 3.0])) == 2 / 8
    assert claims.sign_flip_p(torch.tensor([1.0, -1.0])) == 1.0
    assert claims.sign_flip_p(torch.ones(10)) == pytest.approx(2 / 1024)
