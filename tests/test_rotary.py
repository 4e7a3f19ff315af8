"""Facts about rotary.py: what turning promises, and that every stretch is that of transformers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clearhead.block import RMSNorm
from clearhead.errors import ConfigError
from clearhead.positions import Order
from clearhead.rotary import DynamicNTK, Linear, Llama3, NormedQueriesAndKeys, Rotary, Stretch, Yarn

STRETCHES: list[Stretch | None] = [
    None,
    Linear(factor=4.0),
    DynamicNTK(factor=2.0, trained_len=8),
    Llama3(trained_len=64),
    Yarn(factor=4.0, trained_len=32),
]


def turn(rotary: Order, x: Tensor, positions: Tensor) -> Tensor:
    return rotary.turn(x, x, positions)[0]


# Positions that a text of 2,000 tokens has, so that DynamicNTK sees the same length in both calls.
@given(st.sampled_from(STRETCHES), st.integers(0, 500), st.integers(0, 500), st.integers(0, 1_000))
def test_scores_depend_on_distance_alone(stretch: Stretch | None, query: int, key: int, shift: int) -> None:
    torch.manual_seed(0)
    rotary, q, k = Rotary(16, stretch=stretch), torch.randn(1, 1, 3, 16), torch.randn(1, 1, 3, 16)

    def score(offset: int) -> Tensor:
        places = torch.tensor([[query + offset, key + offset, 2_000]])
        turned_q, turned_k = rotary.turn(q, k, places)
        return (turned_q[0, 0, 0] * turned_k[0, 0, 1]).sum()

    torch.testing.assert_close(score(shift), score(0), atol=2e-3, rtol=1e-3)  # angles of 2,000 radians in float32


@given(st.sampled_from(STRETCHES), st.integers(0, 100_000))
def test_turning_keeps_lengths_but_for_yarns_gain(stretch: Stretch | None, first: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 8)
    turned = turn(Rotary(8, stretch=stretch), x, first + torch.arange(7)[None])
    gain = 0.1 * math.log(4) + 1 if isinstance(stretch, Yarn) else 1.0
    torch.testing.assert_close(turned.norm(dim=-1), gain * x.norm(dim=-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stretch", STRETCHES[:-1], ids=str)
def test_position_zero_is_left_alone(stretch: Stretch | None) -> None:
    x = torch.randn(2, 3, 1, 8)
    assert torch.equal(turn(Rotary(8, stretch=stretch), x, torch.zeros(1, 1, dtype=torch.long)), x)


@pytest.mark.parametrize("stretch", STRETCHES, ids=str)
def test_a_text_is_turned_alike_whatever_stands_beside_it(stretch: Stretch | None) -> None:
    x, positions = torch.randn(3, 2, 30, 8), torch.stack([torch.arange(30), torch.arange(30) // 6, torch.arange(30)])
    rotary = Rotary(8, stretch=stretch)
    together = turn(rotary, x, positions)
    alone = [turn(rotary, x[b : b + 1], positions[b : b + 1]) for b in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_half_precision_tells_neighbours_far_out_apart() -> None:
    x = torch.ones(1, 1, 2, 8, dtype=torch.bfloat16)
    turned = turn(Rotary(8), x, torch.tensor([[4_096, 4_097]]))
    assert turned.dtype == torch.bfloat16
    angles = torch.tensor([4_096.0, 4_097.0])
    expected = (angles.cos() - angles.sin()).bfloat16()
    torch.testing.assert_close(turned[0, 0, :, 0], expected, atol=1e-2, rtol=1e-2)


def test_normed_queries_are_normalised_first_and_turned_then() -> None:
    q, k, positions = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.arange(5)[None]
    q_norm, k_norm = RMSNorm(8), RMSNorm(8)
    torch.nn.init.normal_(q_norm.weight)
    turned_q, turned_k = NormedQueriesAndKeys(q_norm, k_norm, Rotary(8)).turn(q, k, positions)
    expected_q, expected_k = Rotary(8).turn(q_norm(q), k_norm(k), positions)
    assert torch.equal(turned_q, expected_q) and torch.equal(turned_k, expected_k)


# ---------------------------------------------------------------- against transformers

PUBLISHED: list[tuple[dict[str, Any], Stretch | None]] = [
    ({"rope_type": "default"}, None),
    ({"rope_type": "linear", "factor": 4.0}, Linear(factor=4.0)),
    ({"rope_type": "dynamic", "factor": 2.5}, DynamicNTK(factor=2.5, trained_len=128)),
    (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        Llama3(trained_len=64),
    ),
    (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        Yarn(factor=4.0, trained_len=32),
    ),
    (
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 100,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": False,
            "attention_factor": 0.8,
        },
        Yarn(factor=8.0, trained_len=100, beta_fast=20.0, beta_slow=2.0, round_ramp=False, gain=0.8),
    ),
]


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
@pytest.mark.parametrize("length", [20, 300])
@pytest.mark.parametrize("published, stretch", PUBLISHED, ids=lambda value: getattr(value, "__name__", None))
def test_turning_is_that_of_llama(published: dict[str, Any], stretch: Stretch | None, length: int, base: float) -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="transformers absent")
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=128,
        rope_parameters={**published, "rope_theta": base},
    )
    q, k, positions = torch.randn(1, 2, length, 32), torch.randn(1, 1, length, 32), torch.arange(length)[None]
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, positions)
    expected_q, expected_k = llama.apply_rotary_pos_emb(q, k, cos, sin)
    turned_q, turned_k = Rotary(32, base=base, stretch=stretch).turn(q, k, positions)
    torch.testing.assert_close(turned_q, expected_q, atol=1e-4, rtol=0)  # the last bit of a frequency, times 300
    torch.testing.assert_close(turned_k, expected_k, atol=1e-4, rtol=0)


@given(
    st.floats(1.0, 40.0),
    st.integers(16, 8_192),
    st.floats(1_000.0, 1_000_000.0),
    st.sampled_from([8, 64, 128]),
    st.sampled_from(["linear", "llama3", "yarn"]),
)
def test_frequencies_are_those_of_transformers(factor: float, trained: int, base: float, d: int, kind: str) -> None:
    rope = pytest.importorskip("transformers.modeling_rope_utils", reason="transformers absent")
    from transformers import LlamaConfig

    parameters: dict[str, Any] = {"rope_type": kind, "factor": factor, "rope_theta": base}
    stretch: Stretch = Linear(factor=factor)
    if kind != "linear":
        parameters["original_max_position_embeddings"] = trained
        stretch = Yarn(factor=factor, trained_len=trained)
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        stretch = Llama3(factor=factor, trained_len=trained)
    config = LlamaConfig(hidden_size=2 * d, num_attention_heads=2, max_position_embeddings=2 * trained)
    config.rope_parameters = parameters
    theirs, their_gain = rope.ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    ours, gain = stretch.apply(d, base, torch.zeros(1, 1, dtype=torch.long))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    assert gain == pytest.approx(their_gain, rel=1e-6)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "build, said",
    [
        (lambda: Rotary(7), "d_head must be even"),
        (lambda: Linear(factor=0.0), "Linear: factor must be positive, got 0.0"),
        (lambda: Yarn(factor=2.0, trained_len=0), "Yarn: trained_len must be positive"),
        (lambda: DynamicNTK(factor=math.inf, trained_len=8), "DynamicNTK: factor must be positive, got inf"),
        (lambda: Llama3(low=4.0, high=4.0), "high must be more turns than low"),
    ],
)
def test_what_cannot_be_turned_is_refused(build: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build()
