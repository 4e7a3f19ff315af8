"""Attention written out in Python is computed again from queries and keys, or named; the model never notices."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from clearhead.seeing import edit, watch

FORBIDDEN = torch.ones(6, 6).triu(1).bool()
ALIKE = torch.Generator().manual_seed(0)  # made once, before any test is seeded
BIAS = torch.randn(4, 6, 6, generator=ALIKE)
WHAT_IT_IS = (
    "attention by hand that cannot be told exactly: "
    "its softmax was over something else than a product of queries and keys that could be followed"
)
SINKS = torch.randn(1, 4, 1, 1, generator=ALIKE)


def with_sinks(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.cat([q @ k.mT / 4, SINKS.expand(2, 4, 6, 1)], -1)
    return (scores - scores.amax(-1, keepdim=True)).softmax(-1)[..., :-1]


def divided(e: Tensor) -> Tensor:
    return e / e.sum(dim=-1, keepdim=True)


def in_place(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
    scores *= 0.25
    scores = scores.view(2, 4, 6, 6)
    scores.masked_fill_(FORBIDDEN, -1e9)
    return torch.softmax(scores.view(8, 6, 6), dim=-1).view(2, 4, 6, 6)


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": lambda q, k: (q @ k.transpose(-2, -1) / 4).softmax(-1),
    "einsum": lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k).mul(0.25).softmax(dim=-1),
    "bias before the scale": lambda q, k: ((q @ k.mT + BIAS) * 0.25).softmax(-1),
    "softcap": lambda q, k: (2 * torch.tanh(q @ k.mT / 8) + BIAS).softmax(-1),
    "where": lambda q, k: torch.where(FORBIDDEN, torch.finfo(q.dtype).min, q @ k.mT).softmax(-1),
    "rows hidden whole": lambda q, k: (q @ k.mT).masked_fill(torch.arange(6)[:, None] > 3, -1e9).softmax(-1),
    "a scale a head": lambda q, k: (q @ k.mT * BIAS[:, :1, :1].sigmoid()).softmax(-1, dtype=torch.float64).to(q.dtype),
    "clamped": lambda q, k: (q @ k.mT + FORBIDDEN * -1e30).clamp(min=-1e20).softmax(-1),
    "multiplied by a mask": lambda q, k: (q @ k.mT * ~FORBIDDEN + FORBIDDEN * -1e4).softmax(-1),
    "in place, on one axis": in_place,
    "sinks": with_sinks,
    "negated": lambda q, k: (-(q @ k.mT / -4)).softmax(-1),
    "keys before queries": lambda q, k: (k @ q.mT / 4 + BIAS.mT).masked_fill(FORBIDDEN.mT, -1e9).softmax(-2).mT,
    "exponentials and their sum": lambda q, k: divided((q @ k.mT / 4 - (q @ k.mT / 4).amax(-1, keepdim=True)).exp()),
    "less the logsumexp": lambda q, k: (q @ k.mT / 4 - (q @ k.mT / 4).logsumexp(-1, keepdim=True)).exp(),
    "log_softmax": lambda q, k: log_softmax(q @ k.mT / 4, dim=-1).exp(),
    "multiplied and summed": lambda q, k: (q[..., :, None, :] * k[..., None, :, :]).sum(-1).mul(0.25).softmax(-1),
    "a bias that is not read": lambda q, k: (
        torch.baddbmm(torch.full((8, 6, 6), torch.nan), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0, alpha=0.25)
        .view(2, 4, 6, 6)
        .softmax(-1)
    ),
}
REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "never divided": (lambda q, k: (q @ k.mT / 4).exp(), "met the values before they were divided by their sum"),
    "distances": (lambda q, k: (-torch.cdist(q, k)).softmax(-1), "over something else than a product"),
    "some rows": (lambda q, k: (q @ k.mT).softmax(-1)[:, :, :3], "only some of its weights met these values"),
    "a mean over heads": (
        lambda q, k: (q @ k.mT).softmax(-1).mean(1, True),
        "only some of its weights met these values",
    ),
    "queries in halves": (
        lambda q, k: torch.cat([half.softmax(-1) for half in (q @ k.mT).chunk(2, 2)], 2),
        "scores were taken apart",
    ),
}


class ByHand(nn.Module):
    """Attention whose weights come of `way`."""

    def __init__(self, way: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.way, self.num_heads, self.weights = way, 4, torch.empty(0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.weights = self.way(q, k)
        return self.weights @ v


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(2, 4, 6, 16, requires_grad=True) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("way", WAYS)
def test_it_is_recorded_as_it_was(way: str) -> None:
    model, given = ByHand(WAYS[way]), inputs()
    blind = model(*given)
    expected = torch.autograd.grad(blind.square().sum(), given)
    with watch(model) as outer, watch(model) as seen:
        watched = model(*given)
        gradients = torch.autograd.grad(watched.square().sum(), given)
    assert torch.equal(blind, watched)
    assert all(torch.equal(a, b) for a, b in zip(expected, gradients))
    assert seen.unseen == outer.unseen == ()
    assert (seen.layers[0].batch, seen.layers[0].n_heads) == (2, 4)
    for batch, head in ((0, 0), (1, 3)):
        wanted = model.weights[batch, head].detach()
        assert seen.map(0, head, batch=batch) == pytest.approx(wanted, abs=5e-6)
        assert torch.equal(outer.map(0, head, batch=batch), seen.map(0, head, batch=batch))


@pytest.mark.parametrize("way", REFUSED)
def test_what_cannot_be_told_exactly_is_refused_with_the_reason(way: str) -> None:
    make, reason = REFUSED[way]
    model, given = ByHand(make), inputs()
    with watch(model) as seen:
        model(*given)
    assert len(seen.unseen) == 1
    assert reason in seen.unseen[0].reason


TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "transpose": lambda w: w.transpose(-2, -1),
    "mT": lambda w: w.mT,
    "permute": lambda w: w.permute(0, 1, 3, 2).contiguous(),
    "twice": lambda w: torch.swapaxes(w.mT.double().float().mT, 2, 3),
}


class ValuesFirst(nn.Module):
    """Attention in pictures: channels before places, and so the weights behind the values."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn, self.weights = turn, torch.empty(0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.weights = (q @ k.mT / 4).softmax(-1)
        return (v.mT @ self.turn(self.weights)).view(2, -1, q.shape[2])


@pytest.mark.parametrize("n", [6, 1])
@pytest.mark.parametrize("turn", TURNS)
def test_weights_that_were_turned_are_followed_behind_the_values(turn: str, n: int) -> None:
    model, given = ValuesFirst(TURNS[turn]), [x[:, :, :n] for x in inputs()]
    blind = model(*given)
    with watch(model, values=True, outputs=True) as seen:
        assert torch.equal(model(*given), blind)
    assert seen.unseen == () and (seen.layers[0].batch, seen.layers[0].n_heads) == (2, 4)
    assert seen.map(0, 3, batch=1) == pytest.approx(model.weights[1, 3].detach(), abs=5e-6)
    assert torch.equal(seen.call(0).v, given[2].detach())
    assert seen.output(0, 3, batch=1) == pytest.approx((model.weights @ given[2])[1, 3].detach(), abs=5e-6)
    with edit(model) as change:
        change.switch_off(0, 2, batch=1)
        out = model(*given)
    assert out[1, 32:48].abs().sum() == 0 and torch.equal(out[0], blind[0])
    assert torch.equal(out[1, :32], blind[1, :32])


def test_operands_by_name_do_not_disturb_the_model() -> None:
    class Named(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.matmul(input=torch.softmax(input=torch.matmul(input=q, other=k.mT), dim=-1), other=v)

    model, given = Named(), inputs()
    blind = model(*given)
    with watch(model):
        assert torch.equal(model(*given), blind)


PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "matmul": lambda q, k, v: (q @ k.mT).softmax(-1) @ v,
    "one axis": lambda q, k, v: torch.bmm((q @ k.mT).softmax(-1).flatten(0, 1), v.flatten(0, 1)),
    "turned": lambda q, k, v: v.mT @ (q @ k.mT).softmax(-1).mT,
    "einsum": lambda q, k, v: torch.einsum("bhij,bhjd->bihd", (q @ k.mT).softmax(-1), v),
    "einsum without an arrow": lambda q, k, v: torch.einsum(
        "...ij,...jk", torch.einsum("...id,...jd", q, k).softmax(-1), v
    ),
    "multiplied and summed": lambda q, k, v: ((q @ k.mT).softmax(-1)[..., None] * v[..., None, :, :]).sum(-2),
    "keys before queries": lambda q, k, v: (v.mT @ (k @ q.mT).softmax(-2)).mT,
    "keys before queries, einsum": lambda q, k, v: torch.einsum("bhji,bhjd->bhid", (k @ q.mT).softmax(2), v),
    "by name": lambda q, k, v: torch.matmul(torch.matmul(input=q, other=k.mT).softmax(-1), other=v),
}


@pytest.mark.parametrize("how", PRODUCTS)
def test_the_gradient_by_its_output_is_kept(how: str) -> None:
    class Model(nn.Module):
        num_heads = 4

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return PRODUCTS[how](q, k, v)

    model = Model()
    with watch(model, gradients=True, outputs=True) as seen:
        model(*inputs()).square().sum().backward()
    call = seen.call(0)
    assert call.gradient is not None
    assert call.out is not None
    assert torch.allclose(call.gradient, 2 * call.out, atol=1e-6)


class Mixture(nn.Module):
    """Experts that a softmax weighs for every token: no attention."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights, which = q.softmax(-1).topk(2)
        return (weights * which.eq(0)).sum(-1, keepdim=True) * v


class HeadsLast(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("bihd,bjhd->bijh", q, k)
        return torch.einsum("bijh,bjhd->bihd", scores.softmax(2), v)


class Linear(nn.Module):
    """Queries and keys through softmaxes of their own: no weights of queries on keys."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 4, 8))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = (torch.einsum("bhid,dne->bhie", x, self.w) for x in (q, k))
        return q.softmax(-1) @ (k.softmax(-2).mT @ v)


@pytest.mark.parametrize(("kind", "named"), [(Mixture, 0), (HeadsLast, 1), (Linear, 1)])
def test_a_softmax_over_anything_else_is_named_once_if_it_met_values(kind: type[nn.Module], named: int) -> None:
    model, given = kind(), inputs()
    blind = model(*given)
    with watch(model) as seen:
        assert torch.equal(model(*given), blind)
    assert seen.calls == {}
    assert [one.reason for one in seen.unseen] == [WHAT_IT_IS] * named


def test_what_is_refused_inside_a_module_is_not_named_twice() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = HeadsLast()

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.inner(q, k, v)

    model = Attention()
    with watch(model) as seen:
        model(*inputs())
    assert [one.name for one in seen.unseen] == ["inner"]


class Scaled(nn.Module):
    """Attention twice: by hand, then by the fused call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("forbidden", FORBIDDEN.clone())

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ x.transpose(-2, -1) / 4).masked_fill(self.forbidden, -torch.inf)
        x = scores.softmax(-1) @ x
        return torch.nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
@pytest.mark.parametrize("taken_apart", [False, True])
def test_an_exported_model_is_seen_as_its_original(taken_apart: bool) -> None:
    model, x = Scaled(), torch.randn(2, 4, 6, 16)
    exported = torch.export.export(model, (x,))
    program = (exported.run_decompositions() if taken_apart else exported).module()
    with torch.no_grad(), watch(model) as original:
        out = model(x)
    with torch.no_grad(), watch(program) as seen:
        assert torch.allclose(program(x), out, atol=1e-6)
    assert seen.map(0, 3, batch=1) == pytest.approx(original.map(0, 3, batch=1), abs=5e-6)
    assert seen.map(1, 3, batch=1) == pytest.approx(original.map(1, 3, batch=1), abs=5e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_tracing_is_left_alone_and_said() -> None:
    model, x = Scaled(), torch.randn(2, 4, 6, 16)
    with torch.no_grad(), watch(model) as seen:
        traced = torch.jit.trace(model, (x,))
    assert torch.equal(traced(x), model(x))
    assert "while torch.jit.trace ran the model it was not watched" in seen.notes


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_what_is_within_torchscript_is_said_once() -> None:
    model, x = nn.Sequential(nn.Sequential(Scaled())), torch.randn(2, 4, 6, 16)
    with torch.no_grad(), watch(nn.Sequential(torch.jit.trace(model, (x,)), nn.Identity())) as seen:
        pass
    assert seen.notes == ["0 is TorchScript, which runs out of sight: watch its original"]


def test_a_device_without_numbers_is_the_reason_that_is_given() -> None:
    model = Scaled().to("meta")
    with torch.no_grad(), watch(model) as seen:
        model(torch.randn(2, 4, 6, 16, device="meta"))
    (one,) = seen.unseen
    assert (one.reason, one.how_often) == ("it ran on the meta device, which holds no numbers", "2 times")


class Runs(nn.Module):
    """Calls a function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Tensor) -> Tensor:
        return self.function(*given)


def nested(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    x = torch.nested.nested_tensor([q[0, 0], k[0, 0, :3]])
    return torch.nested.to_padded_tensor((x * x).softmax(-1) * x, 0.0)


def summed_by_name(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.sum(input=q[..., :, None, :] * k[..., None, :, :], dim=-1)
    return torch.sum(input=scores.softmax(-1)[..., None] * v[..., None, :, :], dim=-2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(("function", "n_layers"), [(nested, 0), (summed_by_name, 1)])
def test_models_of_other_tensors_and_named_operands_run(function: Callable[..., Tensor], n_layers: int) -> None:
    model, given = Runs(function), [x.detach() for x in inputs()]
    blind = model(*given)
    with watch(model) as seen:
        assert torch.equal(model(*given), blind)
    assert len(seen.calls) == n_layers
