"""Attention over two axes, tokens x channels, by whatever torch has for a product: seen, or named with the reason."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.seeing import edit, watch
from clearhead.seeing.sites.steps import UNKNOWN
from clearhead.seeing.sites.weights import CHOSEN

Heads = Callable[[Tensor, Tensor, Tensor], Tensor]
SEEN: dict[str, Heads] = {
    "linear": lambda q, k, v: F.linear(F.linear(q, k).softmax(-1), v.T),
    "linear, by name": lambda q, k, v: F.linear(input=F.linear(input=q, weight=k).softmax(-1), weight=v.T),
    "values first": lambda q, k, v: F.linear(v.T, F.linear(q, k).softmax(-1)).T,
    "addmm": lambda q, k, v: torch.addmm(torch.zeros(1), q, k.T).softmax(-1) @ v,
    "tensordot": lambda q, k, v: torch.tensordot(torch.tensordot(q, k, dims=([1], [1])).softmax(-1), v, dims=1),
}


def largest(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores, which = (q @ k.T).topk(2)
    return (scores.softmax(-1)[..., None] * v[which]).sum(-2)


def largest_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores, which = torch.topk(q @ k.T, 2, -1)
    return torch.einsum("qk,qkd->qd", scores.softmax(-1), v[which])


def largest_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights, which = (q @ k.T).softmax(-1).topk(2)
    weights = weights / weights.sum(-1, keepdim=True)
    return (weights.unsqueeze(1) @ v[which]).squeeze(1)


def gathered(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    which = (q @ k.T).argsort(-1)[:, :2]
    return ((q @ k.T).gather(-1, which).softmax(-1).unsqueeze(-1) * v[which]).sum(1)


def sparse_weights(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sparse.mm((q @ k.T).softmax(-1).to_sparse(), v)


def sparse_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.sparse.mm(torch.sparse.softmax((q @ k.T).to_sparse(), 1), v)


def sparse_from_the_start(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    links = torch.tensor([[0, 0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 4]])
    scores = torch.sparse_coo_tensor(links, (q[links[0]] * k[links[1]]).sum(-1), (5, 5), check_invariants=True)
    return torch.sparse.mm(torch.sparse.softmax(scores, 1), v)


def added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.addmm(v, (q @ k.T).softmax(-1), v)


NAMED: dict[Heads, str] = {
    **dict.fromkeys([largest, largest_by_einsum, largest_weights, gathered, sparse_weights, sparse_scores], CHOSEN),
    sparse_from_the_start: UNKNOWN,
    added: "its weights met something that is not the values of its keys alone",
}


def experts(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights, which = q[:, :5].softmax(-1).topk(2)
    return (weights[..., None] * v[which]).sum(-2)


class Mixer(nn.Module):
    """One head of one text; named like no attention."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.projection, self.heads = nn.Linear(8, 24), heads

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(*self.projection(x).chunk(3, -1))


X = torch.randn(5, 8)


@torch.no_grad()
@pytest.mark.parametrize("how", SEEN)
def test_it_is_seen_and_edited(how: str) -> None:
    model = Mixer(SEEN[how])
    blind = model(X)
    q, k, _ = model.projection(X).chunk(3, -1)
    with watch(model) as seen:
        assert torch.equal(model(X), blind)
    torch.testing.assert_close(seen.map(0, 0), (q @ k.T).softmax(-1), atol=1e-6, rtol=0)
    with edit(model) as change:
        change.switch_off(0, 0)
        assert not model(X).any()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("heads", NAMED)
def test_it_is_named_with_the_reason(heads: Heads) -> None:
    model = Mixer(heads)
    blind = model(X)
    with watch(model) as seen:
        assert torch.equal(model(X), blind)
    assert seen.calls == {}
    assert [one.reason.partition(": ")[2] for one in seen.unseen] == [NAMED[heads]]


def test_a_mask_made_of_the_largest_scores_is_a_mask() -> None:
    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.T
        return scores.masked_fill(scores < scores.topk(2)[0][:, -1:], -torch.inf).softmax(-1) @ v

    with torch.no_grad(), watch(model := Mixer(masked)) as seen:
        model(X)
    assert seen.unseen == () and (seen.map(0, 0) > 0).sum(-1).tolist() == [2] * 5


def test_experts_that_were_chosen_are_no_attention() -> None:
    with watch(model := Mixer(experts)) as seen:
        model(X)
    assert seen.unseen == ()
