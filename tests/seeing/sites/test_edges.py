"""Attention over the edges of a graph is named; other exponentials and sums by node are not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clearhead.seeing import watch
from clearhead.seeing.sites.edges import REASON

SOURCE, TARGET = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 3, 0]])
N_NODES = 5


def summed(x: Tensor, how: str) -> Tensor:
    """Return sums over the edges of each node, each edge with those of its own node."""
    if how == "scatter_add":
        index = TARGET[:, None].expand_as(x)
        return x.new_zeros(N_NODES, x.shape[1]).scatter_add_(0, index, x)
    if how == "index_add":
        return torch.zeros(N_NODES, x.shape[1]).index_add(0, TARGET, x)
    return torch.zeros(N_NODES, x.shape[1]).scatter_reduce(0, TARGET[:, None].expand_as(x), x, "sum")


class Convolution(nn.Module):
    """Graph attention (Shi et al. 2021) of four heads: every node looks at those that have an edge to it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.projection, self.how = nn.Linear(8, 3 * 32), how

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.projection(x).unflatten(-1, (3, 4, 8)).unbind(1)
        weights = self.weights((q[TARGET] * k[SOURCE]).sum(-1) / 8**0.5)
        return summed((v[SOURCE] * weights[..., None]).flatten(1), self.how)

    def weights(self, scores: Tensor) -> Tensor:
        highest = scores.new_full((N_NODES, 4), -torch.inf)
        highest = highest.scatter_reduce(0, TARGET[:, None].expand_as(scores), scores, "amax")
        exponentials = (scores - highest[TARGET]).exp()
        sums = summed(exponentials, self.how) + 1e-16
        return torch.dropout(exponentials / sums.index_select(0, TARGET), 0.1, self.training)


class Net(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x)


@pytest.mark.parametrize("how", ["scatter_add", "index_add", "scatter_reduce"])
def test_a_softmax_over_the_edges_of_each_node_is_named_if_it_weighs_values(how: str) -> None:
    model, x = Net(Convolution(how)).eval(), torch.randn(N_NODES, 8)
    blind = model(x)
    with watch(model) as seen:
        assert torch.equal(model(x), blind)
    assert [(one.name, one.kind, one.reason) for one in seen.unseen] == [("inside", "Convolution", REASON)]


class Runs(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean of neighbours": lambda x: summed(x[SOURCE], "index_add") / summed(torch.ones(7, 1), "index_add"),
    "distances": lambda x: summed((-x[SOURCE].square()).exp() * x[TARGET], "index_add"),
    "sampling": lambda x: x + (0.5 * x).exp() * torch.randn_like(x),
    "weights alone": lambda x: x.exp()[TARGET] / summed(x[SOURCE].exp(), "index_add")[TARGET] * 2,
}


@pytest.mark.parametrize("how", OTHERS)
def test_other_exponentials_and_sums_are_not(how: str) -> None:
    with watch(model := Net(Runs(OTHERS[how]))) as seen:
        model(torch.randn(N_NODES, 8))
    assert seen.unseen == ()
