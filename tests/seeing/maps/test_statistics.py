"""Statistics from sweeps over tiles equal those of the dense map in float64."""

import math

import pytest
import torch
from torch import Tensor, nn

from clearhead.attention import Mask, attend, attention_map
from clearhead.seeing import Recording, watch
from clearhead.seeing.maps import products

MASKS = {
    "everywhere": Mask(),
    "causal": Mask(causal=True),
    "lengths": Mask(key_lengths=torch.tensor([40, 25])),
    "some blind rows": Mask(allowed=(torch.arange(40) % 5 > 0)[None, None, :, None] & torch.ones(40, dtype=torch.bool)),
    "bias": Mask(bias=torch.linspace(-3, 3, 1600).view(1, 1, 40, 40)),
}


class Attend(nn.Module):
    def forward(self, q: Tensor, k: Tensor, mask: Mask) -> Tensor:
        return attend(q, k, k, mask)


def see(q: Tensor, k: Tensor, mask: Mask) -> Recording:
    model = Attend()
    with watch(model) as seen:
        model(q, k, mask)
    return seen


@pytest.mark.parametrize("room", [products.ROOM["cpu"], (300, 17)])
@pytest.mark.parametrize("mask", MASKS)
def test_statistics_equal_those_of_the_dense_map(
    mask: str, room: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(products.ROOM, "cpu", room)  # the second: one head, a few rows and 17 keys at a time
    q, k = 3 * torch.randn(2, 3, 40, 8), torch.randn(2, 3, 40, 8)
    seen, dense = see(q, k, MASKS[mask]), attention_map(q.double(), k.double(), MASKS[mask])[1]
    assert seen.entropy(0, batch=1).double() == pytest.approx(torch.special.entr(dense).sum(-1), abs=1e-5)
    real = torch.arange(40) < (25 if mask == "lengths" else 40)  # rows of padding do not count
    assert seen.received(0, batch=1).double() == pytest.approx(dense[:, real].sum(1), abs=1e-4)
    habits = seen.heads(batch=1, separators=[7, 11])
    rows = real & (dense.sum(-1) > 0)
    rows &= (dense > 0).sum(-1) > 1
    for head, habit in enumerate(habits):
        one, use = dense[head], rows[head]
        diagonal = [
            torch.cat([torch.zeros(1), one.diagonal(-1)]),
            one.diagonal(),
            torch.cat([one.diagonal(1), torch.zeros(1)]),
        ]
        expected = [one[:, 0], one[:, [7, 11]].sum(-1), *diagonal]
        expected.append(torch.special.entr(one).sum(-1) / (one > 0).sum(-1).clamp(min=2).log())
        have = [habit.sink, habit.separator, habit.previous, habit.itself, habit.next, habit.spread]
        assert have == pytest.approx([e[use].mean().item() for e in expected], abs=1e-5)


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.7, 0.99, 1.0])
def test_links_are_the_fewest_that_cover(coverage: float) -> None:
    seen = see(2 * torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8), Mask(causal=True))
    row = seen.row(0, 1, 15)
    links = seen.links(0, 1, 15, coverage)
    weights = [link.weight for link in links]
    assert weights == sorted(weights, reverse=True)
    assert all(
        link.weight == row[link.key].item() and (link.query, link.layer, link.head) == (15, 0, 1) for link in links
    )
    assert sum(weights) >= coverage - 1e-5
    assert sum(weights[:-1]) < coverage
    assert len({link.key for link in links}) == len(links) <= 16


def test_a_query_that_looks_nowhere_has_no_links() -> None:
    seen = see(torch.randn(1, 1, 4, 8), torch.randn(1, 1, 4, 8), Mask(key_lengths=torch.tensor([0])))
    assert seen.links(0, 0, 2) == []
    assert seen.entropy(0).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("kind", "offset"),
    [("previous", -1), ("self", 0), ("next", 1), ("sink", None), ("diffuse", "flat"), ("mixed", "two")],
)
def test_heads_are_named_after_where_their_weight_goes(kind: str, offset: int | str | None) -> None:
    n, bias = 30, torch.zeros(30, 30)
    place = torch.arange(n)
    if offset == "two":
        for distance in (-9, -5, 5):
            bias[place, (place + distance) % n] = 9
    elif offset is None:
        bias[:, 0] = 9
    elif offset != "flat":
        bias[place, (place + offset).clamp(0, n - 1)] = 9
    seen = see(torch.zeros(1, 1, n, 4), torch.zeros(1, 1, n, 4), Mask(bias=bias[None, None]))
    assert [habit.kind for habit in seen.heads()] == [kind]


def test_a_head_on_the_separators_is_named_so_once_they_are_told() -> None:
    bias = torch.zeros(1, 1, 10, 10)
    bias[..., [6, 9]] = 9
    seen = see(torch.zeros(1, 1, 10, 4), torch.zeros(1, 1, 10, 4), Mask(bias=bias))
    assert seen.heads()[0].kind == "mixed"
    assert seen.heads(separators=[6, 9])[0].kind == "separator"


def test_entropy_is_in_nats() -> None:
    seen = see(torch.zeros(1, 1, 8, 4), torch.zeros(1, 1, 8, 4), Mask())
    assert seen.entropy(0) == pytest.approx(torch.full((1, 8), math.log(8)))
