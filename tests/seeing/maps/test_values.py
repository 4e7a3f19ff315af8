"""Values and gradients are kept when asked for, as the call had them, and change nothing."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clearhead.errors import WatchError
from clearhead.seeing import Recording, watch
from seeing.dense import Fused


def see(q: Tensor, k: Tensor, v: Tensor, **how: object) -> Recording:
    model = Fused()
    with watch(model, values=True) as seen:
        model(q, k, v, **how)
    return seen


def test_values_are_kept_only_when_asked_for_and_counted() -> None:
    q, k, v = torch.randn(3, 2, 4, 6, 8)
    model = Fused()
    with watch(model) as without, watch(model, values=True) as seen, watch(model, values=True, heads=[3, 1]) as some:
        model(q, k, v)
    assert without.call(0).v is None
    kept = seen.call(0).v
    assert kept is not None and torch.equal(kept, v) and kept.data_ptr() != v.data_ptr()
    assert seen.nbytes == without.nbytes + v.numel() * 4
    few = some.call(0).v
    assert few is not None and torch.equal(few, v[:, [1, 3]])


def test_grouped_values_are_kept_ungrown_and_one_for_all_once() -> None:
    q, k, v = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    kept = see(q, k, v, enable_gqa=True).call(0).v
    assert kept is not None and torch.equal(kept, v)
    kept = see(q, k[:, :1].expand(-1, 4, -1, -1), torch.cat([v, v], 1)).call(0).v
    assert kept is not None and torch.equal(kept, torch.cat([v, v], 1))  # one head of keys, four of values


@pytest.mark.parametrize("heads", [None, [2]])
def test_the_gradient_by_the_output_is_kept_and_changes_nothing(heads: list[int] | None) -> None:
    q, k, v = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    model, target = Fused(), torch.randn(2, 4, 6, 8)

    def backwards() -> list[Tensor]:
        return list(torch.autograd.grad((model(q, k, v, is_causal=True) * target).sum(), (q, k, v)))

    blind = backwards()
    with watch(model, gradients=True, heads=heads) as seen:
        watched = backwards()
    assert all(torch.equal(a, b) for a, b in zip(blind, watched, strict=True))
    gradient, kept = seen.call(0).gradient, seen.call(0).v
    assert gradient is not None and torch.equal(gradient, target if heads is None else target[:, heads])
    assert kept is not None


def test_without_a_backward_run_there_is_no_gradient() -> None:
    model = Fused()
    q = torch.randn(1, 1, 3, 4, requires_grad=True)
    with watch(model, gradients=True) as seen:
        model(q, q, q)
    assert seen.call(0).gradient is None


class GivesNone(torch.autograd.Function):
    """Something behind attention through which no gradient comes back."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> None:
        return None


def test_where_no_gradient_comes_back_the_backward_run_goes_on() -> None:
    model = Fused()
    q = torch.randn(1, 1, 3, 4, requires_grad=True)
    with watch(model, gradients=True) as seen:
        (GivesNone.apply(model(q, q, q)).sum() + q.sum()).backward()
    assert torch.equal(q.grad, torch.ones_like(q))
    assert seen.call(0).gradient is None


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.attention, self.use_reentrant = Fused(), use_reentrant

    def forward(self, q: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.attention, q, q, q, use_reentrant=self.use_reentrant)
        return out


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_layer_keeps_its_gradient_or_a_note_says_why_not(use_reentrant: bool) -> None:
    q, model = torch.randn(1, 2, 5, 8, requires_grad=True), Checkpointed(use_reentrant)
    with watch(model, gradients=True) as seen:
        model(q).sum().backward()
    gradient = seen.call(0).gradient
    if use_reentrant:
        assert gradient is None and ["use_reentrant=False keeps them" in note for note in seen.notes] == [True]
        with pytest.raises(WatchError, match="notes say where none could be kept"):
            seen.map(0, 0, of="gradient")
    else:
        assert gradient is not None and torch.equal(gradient, torch.ones(1, 2, 5, 8)) and not seen.notes
