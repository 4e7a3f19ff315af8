"""Facts about block.py. That it is BERT's block when told so is in parity/test_bert.py."""

import pytest
import torch
from torch import nn

from clearhead.attention import CAUSAL, MultiHeadAttention
from clearhead.block import ACTIVATIONS, Block, FeedForward, activation, post_norm, pre_norm
from clearhead.errors import ConfigError, ShapeError


def block(residual: object = pre_norm, *, cross: bool = False, dropout: float = 0.0) -> Block:
    return Block(
        MultiHeadAttention(8, 2),
        FeedForward(8, 16),
        norm=lambda: nn.LayerNorm(8),
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
