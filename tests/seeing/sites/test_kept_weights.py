"""Attention by hand that queries and keys do not tell is recorded with the model's own weights, and answers as any."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gumbel_softmax, pad

import clearhead
from clearhead.errors import WatchError
from clearhead.seeing import edit, estimate, watch
from clearhead.seeing.recorder import KEPT, NOT_NUMBERS

FORBIDDEN = torch.ones(6, 6).triu(1).bool()
ALIKE = torch.Generator().manual_seed(0)  # made once, before any test is seeded
BIAS = torch.randn(4, 6, 6, generator=ALIKE)
MIX = nn.Parameter(torch.randn(4, 4, generator=ALIKE))
ACROSS, DOWN = torch.randn(8, 2, 3, 1, 2, generator=ALIKE), torch.randn(8, 2, 3, 3, 1, generator=ALIKE)


def halves(x: Tensor, each: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([each(half) for half in x.chunk(2, 1)], 1)


def divided(e: Tensor, dim: int = -1) -> Tensor:
    return e / e.sum(dim=dim, keepdim=True)


def relative(q: Tensor, k: Tensor) -> Tensor:  # as in Segment Anything: rows and columns of a picture as axes
    scores = (q @ k.mT / 4).view(8, 2, 3, 3, 2) + DOWN + ACROSS
    return scores.view(2, 4, 6, 6).softmax(-1)


def without_one_key(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[..., 2] = -torch.inf
    return scores.softmax(-1)


def talking(x: Tensor) -> Tensor:  # heads talk to each other through a linear layer
    return nn.functional.linear(x.permute(0, 2, 3, 1), MIX).permute(0, 3, 1, 2)


def talking_after(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhij,hg->bgij", (q @ k.mT).softmax(-1), MIX)


def scores_through_a_view(q: Tensor, k: Tensor) -> Tensor:
    scores = q @ k.mT
    scores[:, :, 2].mul_(0)  # neither the first row, nor the middle one, nor the last
    return scores.softmax(-1)


def weights_through_a_view(q: Tensor, k: Tensor) -> Tensor:
    weights = (q @ k.mT).softmax(-1)
    weights.diagonal(dim1=-2, dim2=-1).zero_()
    return weights


def queries_after_the_softmax(q: Tensor, k: Tensor) -> Tensor:
    q = q.clone()
    weights = (q @ k.mT).softmax(-1)
    q.mul_(3)
    return weights


def mask_after_the_softmax(q: Tensor, k: Tensor) -> Tensor:
    mask = FORBIDDEN.clone()
    weights = (q @ k.mT).masked_fill(mask, -1e9).softmax(-1)
    mask.zero_()
    return weights


CHANGED = "its weights were changed between the softmax and the values"
WAYS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "times a mask": (lambda q, k: (q @ k.mT).softmax(-1) * ~FORBIDDEN, CHANGED),
    "times a mask, and divided again": (lambda q, k: divided((q @ k.mT).softmax(-1) * ~FORBIDDEN), CHANGED),
    "squared": (lambda q, k: (q @ k.mT).softmax(-1).square(), CHANGED),
    "below zero": (lambda q, k: (q @ k.mT).softmax(-1) - 0.1, CHANGED),
    "over queries, divided over keys": (lambda q, k: divided((k @ q.mT).softmax(-1), -2).mT, CHANGED),
    "five axes": (relative, "the axes of its scores were mixed"),
    "without one key": (without_one_key, "some of its scores were set by index"),
    "heads talk before and after": (lambda q, k: talking(talking(q @ k.mT).softmax(-1)), "went through permute"),
    "heads talk after": (talking_after, "were mixed with each other before they met the values"),
    "heads talk after and are normalized": (  # as DeepViT does it (Zhou et al. 2021)
        lambda q, k: nn.functional.layer_norm(talking((q @ k.mT).softmax(-1)).permute(0, 2, 3, 1), (4,)).permute(
            0, 3, 1, 2
        ),
        CHANGED,
    ),
    "a column in front": (lambda q, k: pad(q @ k.mT, (1, 0)).softmax(-1)[..., 1:], "its scores went through pad"),
    "a table where hidden": (
        lambda q, k: torch.where(FORBIDDEN, torch.full((6, 6), -1e9), q @ k.mT).softmax(-1),
        "replaced by a table of others",
    ),
    "scaled key by key": (lambda q, k: (q @ k.mT * BIAS).softmax(-1), "multiplied by a tensor that differs"),
    "rolled": (lambda q, k: (q @ k.mT).roll(1, 1).softmax(-1), "its scores went through roll"),
    "tanh of a sum": (lambda q, k: (q @ k.mT + BIAS).tanh().softmax(-1), "a tanh after something was added"),
    "half hidden": (lambda q, k: (q @ k.mT).masked_fill(FORBIDDEN, -3.0).softmax(-1), "replaced by -3"),
    "masked exponentials": (lambda q, k: divided((q @ k.mT / 4).exp() * ~FORBIDDEN), "changed before their sum"),
    "drawn": (lambda q, k: gumbel_softmax(q @ k.mT, dim=-1), "came of gumbel_softmax"),
    "over heads": (lambda q, k: (q @ k.mT).softmax(1), "over neither its keys nor its queries"),
    "over queries": (lambda q, k: (q @ k.mT).softmax(-2), "on the side of their queries"),
    "scores in halves": (lambda q, k: halves(q @ k.mT, lambda s: s.softmax(-1)), "scores were taken apart"),
    "weights in halves": (lambda q, k: halves((q @ k.mT).softmax(-1), lambda w: w * 1), "weights were taken apart"),
    "scores through a view": (scores_through_a_view, "written to in a way that was not followed"),
    "weights through a view": (weights_through_a_view, "its weights were written to before the values"),
    "queries overwritten": (queries_after_the_softmax, "overwritten before its weights met the values"),
    "mask overwritten": (mask_after_the_softmax, "overwritten before its weights met the values"),
}


class ByHand(nn.Module):
    """Attention whose weights come of `way`."""

    num_heads = 4

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.weights = way, torch.empty(0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.weights = self.way(q, k)
        return self.weights @ v


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, 4, 6, 16, requires_grad=True) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_that_multiplied_the_values(way: str) -> None:
    make, reason = WAYS[way]
    model, given = ByHand(make), inputs()
    learns = "written" not in reason  # torch itself runs no such model backwards

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        with torch.set_grad_enabled(learns):
            out = model(*given)
        return [out, *(torch.autograd.grad(out.square().sum(), given) if learns else ())]

    blind = run()
    with watch(model) as seen:
        watched = run()
    assert all(torch.equal(a, b) for a, b in zip(blind, watched, strict=True))
    assert seen.unseen == ()
    assert len(seen.notes) == 1 and seen.notes[0].startswith(KEPT) and reason in seen.notes[0]
    (layer,) = seen.layers
    assert layer.weights_kept and (layer.batch, layer.n_heads, layer.n_kv_heads) == (2, 4, 4)
    assert torch.equal(seen.to_dense(0), model.weights.detach())
    assert layer.nbytes == model.weights.numel() * 4


SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "nan_to_num": lambda w: w.nan_to_num(0),
    "masked again": lambda w: w.masked_fill(FORBIDDEN, 0),
    "where it is a number": lambda w: torch.where(w.isnan(), torch.zeros_like(w), w),
    "twice": lambda w: (w.nan_to_num(0) * ~FORBIDDEN).mT.mT,
}


@pytest.mark.parametrize("guard", SAME)
def test_a_guard_that_changed_nothing_leaves_attention_computed_from_queries_and_keys(guard: str) -> None:
    model = ByHand(lambda q, k: SAME[guard]((q @ k.mT / 4).masked_fill(FORBIDDEN, -1e9).softmax(-1)))
    with watch(model) as seen:
        model(*inputs())
    assert seen.notes == [] and not seen.layers[0].weights_kept
    torch.testing.assert_close(seen.to_dense(0), model.weights.detach(), rtol=0, atol=5e-6)


def test_what_lends_its_shape_alone_is_no_scores() -> None:
    def expanded(q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.mT
        return (scores + BIAS[:, :1].expand_as(scores) + torch.zeros_like(scores)).softmax(-1)

    with watch(model := ByHand(expanded)) as seen:
        model(*inputs())
    assert seen.notes == [] and not seen.layers[0].weights_kept
    torch.testing.assert_close(seen.to_dense(0), model.weights.detach(), rtol=0, atol=5e-6)


def test_every_question_answers_from_kept_weights() -> None:
    model, given = ByHand(lambda q, k: (q @ k.mT).softmax(-1) * ~FORBIDDEN), inputs()
    with watch(model, values=True, outputs=True, gradients=True) as seen:
        model(*given).square().sum().backward()
    weights, v = model.weights.detach(), given[2].detach()
    one = weights[1, 2]
    close = torch.testing.assert_close
    assert torch.equal(seen.map(0, 2, batch=1), one)
    assert torch.equal(seen.map(0, 2, rows=slice(1, 4), cols=[0, -1], batch=1), one[1:4, [0, -1]])
    assert torch.equal(seen.row(0, 2, 3, batch=1), one[3])
    close(seen.map(0, 2, of="values", batch=1), one * v[1, 2].norm(dim=-1))
    by_weight = 2 * (one @ v[1, 2]) @ v[1, 2].mT
    close(seen.map(0, 2, of="gradient", batch=1), one * by_weight)
    close(seen.overview(0, 2, size=3, of="gradient", batch=1), blocks(one * by_weight))
    close(seen.output(0, 2, batch=1), one @ v[1, 2])
    close(seen.overview(0, 2, size=3, batch=1), blocks(one))
    close(seen.overview(0, 2, size=3, of="values", batch=1), blocks(one * v[1, 2].norm(dim=-1)))
    close(seen.overview(0, 2, size=6, mode="max", batch=1), one)
    close(seen.pyramid(0, 2, size=2, batch=1).levels[0], one.sum().view(1, 1))
    close(seen.entropy(0, batch=1), -torch.xlogy(weights[1], weights[1]).sum(-1))
    close(seen.received(0, batch=1), weights[1].sum(1))
    close(seen.offset(0, -1, batch=1)[:, 1:], weights[1].diagonal(-1, 1, 2))
    close(seen.rollout(batch=1), 0.5 * torch.eye(6) + 0.5 * weights[1].mean(0))
    assert [link.key for link in seen.links(0, 2, query=0, batch=1)] == [0]
    best = seen.strongest(1, batch=1)[0]
    assert best.weight == weights[1].max() == weights[1, best.head, best.query, best.key]
    assert sum(sink.share >= 0.3 for sink in seen.sinks(batch=1)) == len(seen.sinks(batch=1))
    assert [habit.queries for habit in seen.heads(batch=1)] == [5] * 4  # the first has one key alone to look at
    assert torch.equal(seen.cache()["blocks.0.attn.hook_pattern"], weights)


def blocks(x: Tensor) -> Tensor:
    return x.view(3, 2, 3, 2).sum((1, 3))


def test_kept_weights_are_saved_counted_and_cut_like_the_rest(tmp_path: Path) -> None:
    model, given = ByHand(lambda q, k: (q @ k.mT).softmax(-1) - 0.1), inputs()
    with watch(model, heads=[1, 3], rows=[0, -1], to=tmp_path / "some.seen") as some:
        model(*given)
    some.save(tmp_path / "again.seen")
    for seen in (some, *(clearhead.open_recording(tmp_path / name) for name in ("some.seen", "again.seen"))):
        assert torch.equal(seen.to_dense(0), model.weights.detach()[:, [1, 3]][:, :, [0, 5]])
        assert torch.equal(seen.map(0, 3, rows=[5], batch=1), model.weights.detach()[1, 3, 5:])
    with watch(model, dtype=torch.bfloat16) as halved:
        model(*given)
    assert torch.equal(halved.to_dense(0), model.weights.detach().bfloat16().float())
    with watch(model, budget=2 * 4 * 36 * 4 - 1) as refused:
        model(*given)
    assert refused.calls == {} and "may be used" in refused.unseen[0].reason
    with watch(model) as whole:
        model(*given)
    assert estimate(whole, 12, batch=2).nbytes == 4 * whole.nbytes


def test_edits_act_on_kept_weights() -> None:
    model, given = ByHand(lambda q, k: (q @ k.mT).softmax(-1) * ~FORBIDDEN), inputs()
    blind, weights, v = model(*given), model.weights.detach(), given[2]
    with edit(model) as change:
        change.cut(0, 1, query=4, key=2, batch=0)
        change.cut(0, 2, query=4, key=2, batch=0, renormalise=False)
        change.switch_off(0, 3, batch=0)
        edited = model(*given)
    row, left = weights[0, 1, 4], weights[0, 1, 4].index_fill(0, torch.tensor(2), 0)
    torch.testing.assert_close(edited[0, 1, 4], left * row.sum() / left.sum() @ v[0, 1])
    torch.testing.assert_close(edited[0, 2, 4], weights[0, 2, 4].index_fill(0, torch.tensor(2), 0) @ v[0, 2])
    assert not edited[0, 3].any()
    assert torch.equal(edited[1], blind[1]) and torch.equal(
        edited[0, :, :4], blind[0, :, :4] * torch.tensor([1, 1, 1, 0])[:, None, None]
    )


def test_gradients_flow_through_an_edit_of_kept_weights() -> None:
    model, given = ByHand(lambda q, k: (q @ k.mT).softmax(-1) * ~FORBIDDEN), inputs()

    def cut_by_hand(q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1) * ~FORBIDDEN * (torch.arange(6) != 1)

    expected = torch.autograd.grad(ByHand(cut_by_hand)(*given).square().sum(), given)
    with edit(model) as change:
        change.cut(0, None, query=None, key=1, renormalise=False)
        gradients = torch.autograd.grad(model(*given).square().sum(), given)
    for have, want in zip(gradients, expected):
        torch.testing.assert_close(have, want)


def test_rows_that_are_no_numbers_are_none_in_maps_and_left_out_of_sums() -> None:
    padded = torch.tensor([0, 1, 1, 1, 1, 1]).bool()
    model = ByHand(lambda q, k: (q @ k.mT).masked_fill(FORBIDDEN | ~padded, -torch.inf).softmax(-1))
    with torch.no_grad(), watch(model) as seen:
        model(*inputs())
    assert [note == NOT_NUMBERS or note.startswith(KEPT) for note in seen.notes] == [True, True]
    weights = model.weights
    assert weights[:, :, 0].isnan().all()
    torch.testing.assert_close(seen.to_dense(0), weights, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(seen.received(0), weights[0].nan_to_num(0).sum(1))
    torch.testing.assert_close(seen.overview(0, size=6), weights[0].nan_to_num(0))
    assert seen.entropy(0).isfinite().all()
    assert all(habit.spread == habit.spread for habit in seen.heads())
    assert seen.strongest(1)[0].weight == weights[0].nan_to_num(0).max()


def test_weights_are_those_before_dropout() -> None:
    class Dropped(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self.weights = (q @ k.mT).roll(1, 1).softmax(-1)
            return dropout(self.weights, 0.5) @ v

    with watch(model := Dropped()) as seen:
        model(*inputs())
    assert torch.equal(seen.to_dense(0), model.weights.detach()) and seen.call(0).dropout == 0.5
    with pytest.raises(WatchError, match="drops weights at random"), edit(model) as change:
        change.cut(0, 0, 1, 1)
        model(*inputs())


def gate(x: Tensor) -> Tensor:
    return x.softmax(-1) * x


def experts(x: Tensor) -> Tensor:
    weights = nn.functional.linear(x, torch.ones(3, 16)).softmax(-1)
    return (weights[..., None] * torch.stack([x, x + 1, x * 2], -2)).sum(-2)


def pool(x: Tensor) -> Tensor:  # over pairs, whose square table looks as weights do
    pairs = x[:, :, :, :6]
    return nn.functional.linear(pairs.softmax(-1) @ pairs, torch.eye(16)[:, :6])


@pytest.mark.parametrize("before", [gate, experts, pool])
def test_attention_behind_a_softmax_of_another_kind_is_seen(before: Callable[[Tensor], Tensor]) -> None:
    model = ByHand(lambda q, k: (before(q) @ before(k).mT).softmax(-1))
    with watch(model) as seen:
        model(*inputs())
    layer = seen.layers[-1]
    assert not layer.weights_kept and seen.notes == []
    torch.testing.assert_close(seen.to_dense(layer.index), model.weights.detach(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_padding_in_half_precision_is_left_out_as_in_others(dtype: torch.dtype) -> None:
    hidden = FORBIDDEN | (torch.arange(6) < 2)
    mask = torch.zeros(6, 6, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)
    model, given = ByHand(lambda q, k: (q @ k.mT / 4 + mask).softmax(-1)), [x.to(dtype) for x in inputs()]
    with torch.no_grad(), watch(model) as seen:
        model(*given)
    assert seen.unseen == () and seen.layers[0].weights_kept == (dtype == torch.float16)
    close = {"rtol": 0, "atol": 5e-3 if dtype == torch.bfloat16 else 1e-5}
    torch.testing.assert_close(seen.to_dense(0)[0, :, 2:], model.weights[0, :, 2:].float(), **close)
    torch.testing.assert_close(seen.received(0), model.weights[0, :, 2:].float().sum(1), rtol=0, atol=2e-2)
    assert [habit.queries for habit in seen.heads()] == [3] * 4  # two are padding, one has a single key
