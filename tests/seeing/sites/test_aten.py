"""Kernels behind the fused call that a model calls by itself are seen and edited as that call, or named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearhead.attention import attention_map
from clearhead.mask import CAUSAL
from clearhead.seeing import edit, watch

aten = torch.ops.aten
MASK = torch.randn(1, 2, 6, 6)
SEEN: dict[str, Callable[[Tensor], Any]] = {
    "packet": lambda x: aten._scaled_dot_product_flash_attention_for_cpu(x, x, x, 0.0, True),
    "overload": lambda x: aten._scaled_dot_product_flash_attention_for_cpu.default(x, x, x, is_causal=True),
    "by torch": lambda x: torch._scaled_dot_product_flash_attention_for_cpu(x, x, x, 0.0, True),
    "without a fused kernel": lambda x: torch._scaled_dot_product_attention_math(x, x, x, None, 0.0, True),
}


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x)[0]
        return out


@pytest.mark.parametrize("how", SEEN)
def test_a_kernel_called_by_itself_is_seen_and_edited(how: str) -> None:
    model, x = Calls(SEEN[how]), torch.randn(1, 2, 6, 8)
    blind = model(x)
    with watch(model, outputs=True) as seen:
        assert torch.equal(model(x), blind)
    assert seen.unseen == ()
    torch.testing.assert_close(seen.map(0, 1), attention_map(x, x, CAUSAL)[0, 1], atol=1e-6, rtol=0)
    assert torch.equal(seen.output(0, 1), blind[0, 1])
    assert (seen.call(0).lse is None) == (how == "without a fused kernel")
    with edit(model) as change:
        change.switch_off(0, 1)
        out = model(x)
    assert torch.equal(out[0, 0], blind[0, 0]) and not out[0, 1].any()


def test_its_mask_and_scale_are_read() -> None:
    x = torch.randn(1, 2, 6, 8)
    model = Calls(lambda x: aten._scaled_dot_product_flash_attention_for_cpu(x, x, x, attn_mask=MASK, scale=0.5))
    with watch(model) as seen:
        model(x)
    expected = (0.5 * x @ x.mT + MASK).softmax(-1)
    torch.testing.assert_close(seen.map(0, 1), expected[0, 1], atol=1e-6, rtol=0)


def test_a_kernel_that_holds_a_whole_layer_is_named() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.MultiheadAttention(16, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            own = self.own
            weights = own.in_proj_weight, own.in_proj_bias, own.out_proj.weight, own.out_proj.bias
            return torch._native_multi_head_attention(x, x, x, 16, 2, *weights, need_weights=False)[0]  # type: ignore[arg-type]  # theirs

    model = Layer().eval()
    with torch.no_grad(), watch(model) as seen:
        model(torch.randn(1, 5, 16))
    assert [(one.kind, one.reason) for one in seen.unseen] == [
        (
            "Layer",
            "torch.ops.aten._native_multi_head_attention was called by itself: call torch's functions for attention",
        )
    ]
