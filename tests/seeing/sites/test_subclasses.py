"""A mask that is a subclass of Tensor is read as what it means, never as what its memory happens to hold."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias, causal_lower_right, causal_upper_left

from clearhead.errors import WatchError
from clearhead.seeing import edit, watch


class Attends(nn.Module):
    """The fused call alone."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


class Named(Tensor):
    """A subclass that holds its numbers as any tensor does."""


class Opaque(Tensor):
    """A subclass whose numbers are in its code."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return func(*args, **{**(kwargs or {}), "attn_mask": None, "is_causal": True})
        return super().__torch_function__(func, types, args, kwargs)


def inputs(n_queries: int, n_keys: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, 2, n_queries, 8), torch.randn(1, 2, n_keys, 8), torch.randn(1, 2, n_keys, 8)


@pytest.mark.parametrize("n_queries", [8, 3])
@pytest.mark.parametrize("make", [causal_upper_left, causal_lower_right])
def test_causal_masks_of_torch_are_causal(make: Any, n_queries: int) -> None:
    bias: CausalBias = make(n_queries, 8)
    q, k, v = inputs(n_queries, 8)
    model = Attends(bias)
    blind = model(q, k, v)
    with torch.no_grad(), watch(model) as seen:
        assert torch.equal(model(q, k, v), blind)
    allowed = bias._materialize()  # type: ignore[no-untyped-call]  # torch's
    expected = (q @ k.mT / 8**0.5).masked_fill(~allowed, -torch.inf).softmax(-1)
    assert type(seen.map(0, 1)) is Tensor
    torch.testing.assert_close(seen.map(0, 1), expected[0, 1])
    assert seen.call(0).rule.tables == {} and "1 layer" in str(seen)
    with torch.no_grad(), edit(model) as change:
        change.cut(0, 1, query=n_queries - 1, key=0)
        edited = model(q, k, v)
    row = expected[0, 1, -1].index_fill(0, torch.tensor(0), 0)
    torch.testing.assert_close(edited[0, 1, -1], row / row.sum() @ v[0, 1])
    assert torch.equal(edited[0, 0], blind[0, 0])


def test_a_subclass_that_overrides_nothing_is_read_as_its_numbers() -> None:
    mask = torch.randn(5, 5).as_subclass(Named)
    q, k, v = inputs(5, 5)
    with torch.no_grad(), watch(model := Attends(mask)) as seen:
        model(q, k, v)
    expected = (q @ k.mT / 8**0.5 + mask.as_subclass(Tensor)).softmax(-1)
    assert type(seen.map(0, 1)) is Tensor
    torch.testing.assert_close(seen.map(0, 1), expected[0, 1])


def test_a_subclass_with_code_of_its_own_is_refused_by_name() -> None:
    model, given = Attends(torch.empty(5, 5).as_subclass(Opaque)), inputs(5, 5)
    with torch.no_grad(), watch(model) as seen:
        model(*given)
    assert seen.calls == {}
    assert "its mask came as Opaque" in seen.unseen[0].reason
    with torch.no_grad(), pytest.raises(WatchError, match="Opaque"), edit(model) as change:
        change.switch_off(0)
        model(*given)
