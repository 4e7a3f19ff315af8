"""Facts about block.py. That it is BERT's block when told so is in parity/test_bert.py."""

import pytest
import torch
from torch import nn

from clearhead.attention import CAUSAL, MultiHeadAttention
from clearhead.block import (
    ACTIVATIONS,
    Around,
    Block,
    FeedForward,
    GatedFeedForward,
    LayerScale,
    RMSNorm,
    StochasticDepth,
    activation,
    around,
    post_norm,
    pre_norm,
)
from clearhead.errors import ConfigError, ShapeError


def block(residual: object = pre_norm, *, cross: bool = False, dropout: float = 0.0, norm: object = None) -> Block:
    return Block(
        MultiHeadAttention(8, 2),
        FeedForward(8, 16),
        norm=norm or (lambda: nn.LayerNorm(8)),
        residual=residual,
        cross_attention=MultiHeadAttention(8, 2) if cross else None,
        dropout=dropout,
    )


def test_pre_norm_leaves_the_residual_path_untouched() -> None:
    layer, x = block(), torch.randn(1, 3, 8)
    middle = x + layer.attention(layer.attention_norm(x))
    torch.testing.assert_close(layer(x), middle + layer.feed_forward(layer.feed_forward_norm(middle)))


def test_post_norm_normalises_every_sum() -> None:
    layer, x = block(post_norm), torch.randn(1, 3, 8)
    middle = layer.attention_norm(x + layer.attention(x))
    torch.testing.assert_close(layer(x), layer.feed_forward_norm(middle + layer.feed_forward(middle)))


def test_around_normalises_what_goes_in_and_what_comes_out() -> None:
    layer, x = block(around, norm=lambda: Around(nn.LayerNorm(8), LayerScale(8, 0.3))), torch.randn(1, 3, 8)
    middle = x + 0.3 * layer.attention(layer.attention_norm.before(x))
    expected = middle + 0.3 * layer.feed_forward(layer.feed_forward_norm.before(middle))
    torch.testing.assert_close(layer(x), expected)


def test_cross_attention_reads_the_memory_between_the_two() -> None:
    layer, x, memory = block(cross=True), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    x1 = x + layer.attention(layer.attention_norm(x), mask=CAUSAL)
    x2 = x1 + layer.cross_attention(layer.cross_attention_norm(x1), memory)
    expected = x2 + layer.feed_forward(layer.feed_forward_norm(x2))
    torch.testing.assert_close(layer(x, memory, mask=CAUSAL), expected)


def test_a_memory_that_nobody_reads_is_refused_and_so_is_a_missing_one() -> None:
    x = torch.randn(1, 3, 8)
    with pytest.raises(ShapeError, match="a block without cross-attention was given a memory"):
        block()(x, x)
    with pytest.raises(ShapeError, match="a block with cross-attention was given no memory"):
        block(cross=True)(x)


def test_dropout_acts_on_what_a_sublayer_adds() -> None:
    layer, x = block(dropout=0.999999), torch.randn(1, 3, 8)
    torch.testing.assert_close(layer(x), x)  # everything added was dropped; what came in still comes out


def test_an_unknown_activation_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown activation 'gelo'; did you mean 'gelu'"):
        activation("gelo")
    assert set(ACTIVATIONS) == {"gelu", "gelu_tanh", "relu", "relu_squared", "silu"}


def test_relu_squared_is_the_square_of_relu() -> None:
    assert activation("relu_squared")(torch.tensor([-2.0, 0.5, 3.0])).tolist() == [0.0, 0.25, 9.0]


# ---------------------------------------------------------------- what came after 2017


def test_a_closed_gate_lets_nothing_pass() -> None:
    layer, x = GatedFeedForward(8, 16), torch.randn(2, 3, 8)
    gated = torch.nn.functional.silu(layer.gate_proj(x)) * layer.up_proj(x)
    torch.testing.assert_close(layer(x), layer.down_proj(gated))
    nn.init.zeros_(layer.gate_proj.weight)
    assert not layer(x).any()


def test_rms_norm_divides_by_the_root_mean_square() -> None:
    x, norm = 5 * torch.randn(2, 3, 8), RMSNorm(8, eps=0.0)
    torch.testing.assert_close(norm(x).square().mean(-1), torch.ones(2, 3))
    torch.testing.assert_close(norm(7 * x), norm(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "offset, peer", [(0.0, "llama.modeling_llama.LlamaRMSNorm"), (1.0, "gemma2.modeling_gemma2.Gemma2RMSNorm")]
)
def test_rms_norm_rounds_as_the_model_it_is_of(offset: float, peer: str, dtype: torch.dtype) -> None:
    module, _, name = peer.rpartition(".")
    theirs = getattr(pytest.importorskip(f"transformers.models.{module}"), name)(32, eps=1e-6).to(dtype)
    ours = RMSNorm(32, eps=1e-6, offset=offset).to(dtype)
    assert torch.equal(ours.weight, theirs.weight)  # both begin by changing nothing
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x = 3 * torch.randn(4, 32, dtype=dtype)
    assert torch.equal(ours(x), theirs(x))


def test_stochastic_depth_drops_whole_texts_in_training_and_keeps_the_mean() -> None:
    drop, x = StochasticDepth(0.25), torch.ones(4_000, 2, 3)
    rows = drop(x).flatten(1)
    assert ((rows == 0).all(1) | (rows == 1 / 0.75).all(1)).all()
    assert rows.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop.eval()(x) is x
