"""Facts about positions.py."""

import math

import pytest
import torch

from clearhead.errors import ConfigError, ShapeError
from clearhead.positions import ALiBi, LearnedPositions, Order, RelativeBias, SinusoidalPositions


def test_sinusoids_are_those_of_the_paper() -> None:
    ours = SinusoidalPositions(6)(torch.arange(50))
    for position in (0, 1, 49):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            assert ours[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-5)
            assert ours[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-5)


def test_sines_before_cosines_are_the_same_numbers_in_another_order() -> None:
    paper = SinusoidalPositions(6)(torch.arange(50))
    ours = SinusoidalPositions(6, interleaved=False)(torch.arange(50))
    assert torch.equal(ours, torch.cat((paper[:, 0::2], paper[:, 1::2]), dim=-1))


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
    q, k = torch.randn(1, 4, 3, 4), torch.randn(1, 2, 3, 4)
    turned = Order().turn(q, k, torch.arange(3)[None])
    assert turned[0] is q and turned[1] is k
    assert Order().bias(torch.arange(3), torch.arange(3)) is None


def test_learned_positions_start_at_their_first_row_and_end_at_max_len() -> None:
    table = LearnedPositions(4, 2, first=2)
    assert torch.equal(table(torch.arange(4)), table.weight[2:])
    with pytest.raises(ShapeError, match="5 tokens, but this model has 4 learned positions"):
        table(torch.arange(5))


def test_an_odd_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="d_model must be even"):
        SinusoidalPositions(7)
