"""Facts about positions.py."""

import math

import pytest
import torch

from clearhead.errors import ConfigError, ShapeError
from clearhead.positions import ALiBi, LearnedPositions, Order, RelativeBias, Rotary, SinusoidalPositions


def test_sinusoids_are_those_of_the_paper() -> None:
    ours = SinusoidalPositions(6)(torch.arange(50))
    for position in (0, 1, 49):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert ours[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert ours[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_rotary_scores_depend_on_distance_alone() -> None:
    rotary, q, k = Rotary(16), torch.randn(1, 2, 1, 16), torch.randn(1, 2, 1, 16)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        turned_q = rotary.turn(q, torch.tensor([[query_position]]))
        return (turned_q * rotary.turn(k, torch.tensor([[key_position]]))).sum(-1)

    torch.testing.assert_close(score(5, 2), score(1005, 1002), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(score(5, 2), score(5, 3), atol=1e-3)


def test_rotary_keeps_lengths_and_leaves_position_zero_alone() -> None:
    x = torch.randn(2, 3, 7, 8)
    turned = Rotary(8).turn(x, torch.arange(7)[None])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])


def test_rotary_is_that_of_llama() -> None:
    llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason="transformers absent")
    from transformers import LlamaConfig

    config = LlamaConfig(hidden_size=32, num_attention_heads=2)
    q, k, positions = torch.randn(1, 2, 9, 16), torch.randn(1, 2, 9, 16), torch.arange(9)[None]
    cos, sin = llama.LlamaRotaryEmbedding(config)(q, positions)
    theirs_q, theirs_k = llama.apply_rotary_pos_emb(q, k, cos, sin)
    torch.testing.assert_close(Rotary(16).turn(q, positions), theirs_q)
    torch.testing.assert_close(Rotary(16).turn(k, positions), theirs_k)


@pytest.mark.parametrize("two_sided", [True, False])
def test_relative_bias_buckets_are_those_of_t5(two_sided: bool) -> None:
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="transformers absent")
    distance = torch.arange(-300, 300)[None]
    theirs = t5.T5Attention._relative_position_bucket(distance, bidirectional=two_sided)
    assert torch.equal(RelativeBias(4, two_sided=two_sided)._bucket(distance), theirs)


@pytest.mark.parametrize("n_heads", [1, 2, 8, 12, 6])
def test_alibi_slopes_are_those_of_the_paper(n_heads: int) -> None:
    build = pytest.importorskip(
        "transformers.models.bloom.modeling_bloom", reason="transformers absent"
    ).build_alibi_tensor
    theirs = build(torch.ones(1, 2), n_heads, torch.float32).view(n_heads, 2)[:, 1]
    torch.testing.assert_close(ALiBi(n_heads).slopes, theirs)


def test_alibi_lowers_scores_with_distance_and_not_at_home() -> None:
    bias = ALiBi(2).bias(torch.arange(3), torch.arange(3))
    assert torch.equal(bias[0], -ALiBi(2).slopes[0] * torch.tensor([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]]))


def test_the_empty_order_changes_nothing() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert Order().turn(x, torch.arange(3)[None]) is x
    assert Order().bias(torch.arange(3), torch.arange(3)) is None


def test_learned_positions_start_at_their_first_row_and_end_at_max_len() -> None:
    table = LearnedPositions(4, 2, first=2)
    assert torch.equal(table(torch.arange(4)), table.weight[2:])
    with pytest.raises(ShapeError, match="5 tokens, but this model has 4 learned positions"):
        table(torch.arange(5))


def test_odd_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="d_head must be even"):
        Rotary(7)
    with pytest.raises(ConfigError, match="d_model must be even"):
        SinusoidalPositions(7)
