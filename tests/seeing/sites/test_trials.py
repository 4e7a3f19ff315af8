"""A module that is only named like attention is not called unseen; one that may have attended in any way is."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearhead.seeing import Recording, watch


class Projects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm, self.scale = nn.Linear(8, 8), nn.LayerNorm(8), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, rest: Tensor) -> dict[str, Tensor]:
        made = self.dense(x).relu().transpose(1, 2).contiguous().mT
        return {"made": self.norm(made + rest) * self.scale}


class Gates(nn.Module):
    def forward(self, x: Tensor, rest: Tensor) -> Tensor:
        return x * rest


class Mixes(nn.Module):
    def forward(self, x: Tensor, rest: Tensor) -> Tensor:
        return (x @ rest.mT) @ x


class OutOfSight(nn.Module):
    """A kernel that no mode sees writes what this gives."""

    def forward(self, x: Tensor, rest: Tensor) -> Tensor:
        y = x + rest
        with torch._C.DisableTorchFunction():
            return (y @ y.mT).softmax(-1) @ y


class Writes(nn.Module):
    """A kernel writes over a copy of what it was given."""

    def forward(self, x: Tensor, rest: Tensor) -> Tensor:
        y = x.clone()
        y.copy_(torch.exp(x) * rest)
        return y


class Sets(nn.Module):
    def forward(self, x: Tensor, rest: Tensor) -> Tensor:
        y = x + rest
        y[:, 1:] = torch.exp(x)[:, :-1] * rest[:, 1:]
        return y


class PassesOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Mixes()

    def forward(self, x: Tensor, rest: Tensor) -> Tensor:
        return self.attention(x, rest) + x


class Model(nn.Module):
    """Something that is called attention."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.attention = inside

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x.relu())


def seen_of(inside: nn.Module) -> Recording:
    model = Model(inside)
    with watch(model) as seen:
        model(torch.randn(2, 5, 8))
        model(torch.randn(2, 5, 8))
    return seen


def test_fixed_numbers_alone_are_no_attention() -> None:
    assert seen_of(Projects()).unseen == ()


@pytest.mark.parametrize("inside", [Gates, Mixes, OutOfSight, Writes, Sets])
def test_whatever_may_have_attended_is_named(inside: type[nn.Module]) -> None:
    assert [(one.name, one.kind) for one in seen_of(inside()).unseen] == [("attention", inside.__name__)]


def test_a_module_is_not_cleared_by_what_is_inside_it() -> None:
    assert [one.name for one in seen_of(PassesOn()).unseen] == ["attention.attention"]


def test_another_forward_is_another_trial() -> None:
    class Sometimes(nn.Module):
        gates = False

        def forward(self, x: Tensor, rest: Tensor) -> Tensor:
            return x * rest if self.gates else x + rest

    model = Model(Sometimes())
    with watch(model) as seen:
        model(torch.randn(2, 5, 8))
        assert seen.unseen == ()
        model.attention.gates = True
        model(torch.randn(2, 5, 8))
    assert [one.name for one in seen.unseen] == ["attention"]
