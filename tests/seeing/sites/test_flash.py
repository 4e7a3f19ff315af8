"""flash_attn's functions and torch's varlen are seen with their own normaliser, every text by itself, and edited.

The package's kernels are for GPUs: `flash_attn_in_torch` computes what they do. One test runs the real ones.
"""

import math
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearhead.errors import WatchError
from clearhead.seeing import edit, watch
from clearhead.seeing.sites import texts

LENGTHS = [(5, 9), (7, 7), (1, 4)]  # queries and keys of three texts


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the package, imported as a model would have imported it."""
    from seeing import flash_attn_in_torch

    return flash_attn_in_torch.install(monkeypatch)


class Runs(nn.Module):
    """A module that calls a function by a name of its own, bound before anybody watched."""

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *tensors: Any) -> Any:
        return self.function(*tensors, **self.options)


def expected(q: Tensor, k: Tensor, *, causal: bool = False, window: tuple[int, int] = (-1, -1), **how: Any) -> Tensor:
    """Return the weights of one text, (time, heads, d_head), written out in float64: head x query x key."""
    left, right = window[0], 0 if causal else window[1]
    q, k = q.detach().double().transpose(0, 1), k.detach().double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.permute(1, 2, 0) * how.get("scale", q.shape[-1] ** -0.5)
    if "softcap" in how:
        scores = how["softcap"] * (scores / how["softcap"]).tanh()
    stands = torch.arange(q.shape[1])[:, None] + k.shape[0] - q.shape[1]
    apart = stands - torch.arange(k.shape[0])
    if "slopes" in how:
        scores = scores - how["slopes"][:, None, None] * apart.abs()
    if left >= 0:
        scores = scores.masked_fill(apart > left, -math.inf)
    if right >= 0:
        scores = scores.masked_fill(apart < -right, -math.inf)
    return scores.softmax(-1).nan_to_num(0)


def assert_shows(seen: Any, text: int, weights: Tensor, layer: int = 0) -> None:
    """Compare the maps of one text; what is beyond its end is empty."""
    have = torch.stack([seen.map(layer, head, batch=text) for head in range(len(weights))]).double()
    n_queries, n_keys = weights.shape[1:]
    torch.testing.assert_close(have[:, :n_queries, :n_keys], weights, rtol=0, atol=2e-6)
    assert have[:, n_queries:].sum() == 0 and have[:, :, n_keys:].sum() == 0


def packed(lengths: list[tuple[int, int]] = LENGTHS, n_kv_heads: int = 2) -> tuple[Any, ...]:
    """Return queries, keys and values of some texts, where each ends, and the longest."""
    n_q, n_k = (sum(n) for n in zip(*lengths))
    q, k, v = torch.randn(n_q, 4, 8), torch.randn(n_k, n_kv_heads, 8), torch.randn(n_k, n_kv_heads, 8)
    ends = [torch.tensor([0, *(sum(n[:i]) for i in range(1, len(n) + 1))], dtype=torch.int32) for n in zip(*lengths)]
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), *ends, *(max(n) for n in zip(*lengths))


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.06])
HOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({"causal": True}, {"causal": True}),
    "window": ({"causal": True, "window_size": (2, 2)}, {"causal": True, "window": (2, 2)}),
    "both sides": ({"window_size": (3, 1)}, {"window": (3, 1)}),
    "scale": ({"softmax_scale": 0.7}, {"scale": 0.7}),
    "softcap": ({"softcap": 0.8, "causal": True}, {"softcap": 0.8, "causal": True}),
    "alibi": ({"alibi_slopes": SLOPES}, {"slopes": SLOPES}),
    "causal alibi": ({"alibi_slopes": SLOPES, "causal": True}, {"slopes": SLOPES, "causal": True}),
}


def unchanged(model: Callable[..., Tensor], inputs: tuple[Any, ...]) -> Any:
    """Run a model blind and watched, and return the recording: outputs and gradients have to be the same bits."""

    def run() -> list[Tensor]:
        out = model(*inputs)
        of = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        return [out, *torch.autograd.grad(out.square().sum(), of)]

    blind = run()
    with watch(model) as seen:  # type: ignore[arg-type]
        watched = run()
    assert all(torch.equal(a, b) for a, b in zip(blind, watched, strict=True))
    assert seen.unseen == () and seen.notes == []
    return seen


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("n_queries", [9, 4])
def test_a_batch_is_seen_with_its_normaliser(flash_attn: ModuleType, how: str, n_queries: int) -> None:
    given, formula = HOW[how]
    q, k, v = torch.randn(2, n_queries, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 8)
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    seen = unchanged(Runs(flash_attn.flash_attn_func, **given), (q, k, v))
    assert (seen.layers[0].n_heads, seen.layers[0].n_kv_heads) == (4, 2)
    assert (seen.call(0).lse is None) == ("alibi" in how)
    assert seen.call(0).rule.spans is None and seen.call(0).rule.packed is None
    for text in range(2):
        assert_shows(seen, text, expected(q[text], k[text], **formula))


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("lengths", [LENGTHS, [(6, 6), (2, 2)], [(4, 4), (4, 4)]], ids=["cross", "self", "equal"])
def test_of_texts_in_one_row_each_is_seen_by_itself(
    flash_attn: ModuleType, how: str, lengths: list[tuple[int, int]]
) -> None:
    given, formula = HOW[how]
    q, k, v, *ends = packed(lengths)
    seen = unchanged(Runs(flash_attn.flash_attn_varlen_func, **given), (q, k, v, *ends))
    assert seen.layers[0].batch == len(lengths)
    assert (seen.call(0).lse is None) == ("alibi" in how)
    first_q, first_k, *_ = (end.tolist() for end in ends[:2])
    for text, (n_q, n_k) in enumerate(lengths):
        at_q, at_k = first_q[text], first_k[text]
        assert_shows(seen, text, expected(q[at_q : at_q + n_q], k[at_k : at_k + n_k], **formula))


def test_functions_that_take_queries_keys_and_values_as_one_are_seen(flash_attn: ModuleType) -> None:
    qkv, q, kv = torch.randn(2, 6, 3, 4, 8), torch.randn(2, 6, 4, 8), torch.randn(2, 7, 2, 2, 8)
    qkv, q, kv = (x.requires_grad_() for x in (qkv, q, kv))
    seen = unchanged(Runs(flash_attn.flash_attn_qkvpacked_func, causal=True), (qkv,))
    assert_shows(seen, 1, expected(qkv[1, :, 0], qkv[1, :, 1], causal=True))
    seen = unchanged(Runs(flash_attn.flash_attn_kvpacked_func), (q, kv))
    assert_shows(seen, 1, expected(q[1], kv[1, :, 0]))
    ends = torch.tensor([0, 5, 12], dtype=torch.int32)
    row, kv_row = (x.detach().flatten(0, 1).requires_grad_() for x in (qkv, kv))
    seen = unchanged(Runs(flash_attn.flash_attn_varlen_qkvpacked_func, causal=True), (row, ends, 7))
    assert_shows(seen, 1, expected(row[5:, 0], row[5:, 1], causal=True))
    queries, ends_k = q.detach().flatten(0, 1).requires_grad_(), torch.tensor([0, 6, 14], dtype=torch.int32)
    seen = unchanged(Runs(flash_attn.flash_attn_varlen_kvpacked_func), (queries, kv_row, ends, ends_k, 7, 8))
    assert_shows(seen, 0, expected(queries[:5], kv_row[:6, 0]))


def test_statistics_leave_out_what_a_shorter_text_does_not_have(flash_attn: ModuleType) -> None:
    q, k, v, *ends = packed([(6, 6), (2, 2)])
    with watch(model := Runs(flash_attn.flash_attn_varlen_func, causal=True)) as seen:
        model(q, k, v, *ends)
    assert seen.received(0, batch=1).sum(-1) == pytest.approx(2 * torch.ones(4))  # two queries give a weight of 1 each
    assert seen.overview(0, 0, size=2, batch=1).sum() == pytest.approx(2)
    call = seen.call(0)
    assert (call.rule.reach, call.rule.keys.tolist()) == (0, [[0, 6], [0, 2]])


def test_keys_in_a_cache_are_seen_as_far_as_it_is_filled(flash_attn: ModuleType) -> None:
    cache_k, cache_v = torch.randn(3, 16, 2, 8), torch.randn(3, 16, 2, 8)
    q, k, v = torch.randn(2, 2, 4, 8), torch.randn(2, 2, 2, 8), torch.randn(2, 2, 2, 8)
    used, index = torch.tensor([5, 9], dtype=torch.int32), torch.tensor([2, 0], dtype=torch.int32)
    model = Runs(flash_attn.flash_attn_with_kvcache, cache_seqlens=used, cache_batch_idx=index, causal=True)
    blind = model(q, cache_k.clone(), cache_v.clone(), k, v)
    with watch(model) as seen:
        assert torch.equal(model(q, cache_k, cache_v, k, v), blind)
    for text, (row, n) in enumerate(((2, 5), (0, 9))):
        assert torch.equal(cache_k[row, n : n + 2], k[text])
        assert_shows(seen, text, expected(q[text], cache_k[row, : n + 2], causal=True))
    assert (seen.call(0).lse is None, seen.call(0).n_keys) == (False, 11)
    model = Runs(flash_attn.flash_attn_with_kvcache, cache_leftpad=torch.tensor([1, 3]), cache_seqlens=8)
    with watch(model) as padded:
        model(q, cache_k[:2], cache_v[:2])
    have = padded.map(0, 3, batch=1)[:, 3:].double()
    torch.testing.assert_close(have, expected(q[1], cache_k[1, 3:8])[3], rtol=0, atol=2e-6)


def test_keys_in_pages_are_seen_in_order(flash_attn: ModuleType) -> None:
    pages_k, pages_v = torch.randn(6, 4, 2, 8), torch.randn(6, 4, 2, 8)
    table, used = torch.tensor([[3, 0, 1], [5, 2, 4]], dtype=torch.int32), torch.tensor([7, 10], dtype=torch.int32)
    q = torch.randn(2, 1, 4, 8)
    model = Runs(flash_attn.flash_attn_with_kvcache, cache_seqlens=used, block_table=table, causal=True)
    with watch(model) as seen:
        model(q, pages_k, pages_v)
    several = Runs(flash_attn.flash_attn_varlen_func, block_table=table, causal=True)
    ends = torch.tensor([0, 1, 2], dtype=torch.int32), torch.tensor([0, 7, 17], dtype=torch.int32)
    with watch(several) as packed_seen:
        several(q.flatten(0, 1), pages_k, pages_v, *ends, 1, 10)
    for text, n in enumerate(used.tolist()):
        weights = expected(q[text], pages_k[table[text].long()].flatten(0, 1)[:n])
        assert_shows(seen, text, weights)
        assert_shows(packed_seen, text, weights)


def test_what_cannot_be_told_is_refused_by_name(flash_attn: ModuleType) -> None:
    cache, q, turn = torch.randn(1, 16, 2, 8), torch.randn(1, 1, 2, 8), torch.randn(16, 4)
    model = nn.Sequential()
    model.attention = Runs(
        flash_attn.flash_attn_with_kvcache, cache_seqlens=3, rotary_cos=turn, rotary_sin=turn, k=q, v=q
    )
    model.forward = lambda *x: model.attention(*x)  # type: ignore[method-assign]
    with watch(model) as seen:
        model(q, cache.clone(), cache.clone())
    reason = "flash attention that cannot be told exactly: its queries are rotated inside the kernel (rotary_cos)"
    assert [(one.name, one.reason) for one in seen.unseen] == [("attention", reason)]
    with pytest.raises(WatchError, match="rotary_cos"), edit(model) as change:
        change.switch_off(0)
        model(q, cache.clone(), cache.clone())


def test_texts_that_would_be_mostly_padding_stay_in_one_row(
    flash_attn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "ALWAYS", 0)
    q, k, v, *ends = (x.detach() if isinstance(x, Tensor) else x for x in packed([(40, 40), *[(1, 1)] * 9]))
    with watch(model := Runs(flash_attn.flash_attn_varlen_func, causal=True)) as seen:
        model(q, k, v, *ends)
    assert seen.layers[0].batch == 1 and seen.layers[0].n_queries == 49
    assert "one text with several documents in it" in seen.notes[0]
    weights = torch.block_diag(expected(q[:40], k[:40], causal=True)[1], torch.eye(9).double())
    assert seen.map(0, 1).double().numpy() == pytest.approx(weights.numpy(), abs=2e-6)


class Ring(torch.autograd.Function):
    """A function of somebody's own around the operator, as in ring attention."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = torch.ops.flash_attn._flash_attn_forward(q, k, v, 0.0, 0.3, True, -1, -1, 0.0, None, False)[0]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None, None


def test_the_operator_itself_is_seen_and_edited_where_that_reaches_the_gradient(flash_attn: ModuleType) -> None:
    q, k, v = torch.randn(3, 1, 5, 2, 8)
    model = Runs(Ring.apply)
    with watch(model) as seen:
        model(q.requires_grad_(), k, v)
    assert_shows(seen, 0, expected(q[0], k[0], causal=True, scale=0.3))
    with pytest.raises(WatchError, match="below autograd"), edit(model) as change:
        change.switch_off(0)
        model(q, k, v)
    with edit(model) as change, torch.no_grad():
        change.switch_off(0, 1)
        out = model(q.detach(), k, v)
    assert out[:, :, 1].abs().sum() == 0 and out[:, :, 0].abs().sum() > 0


def test_a_package_imported_while_watching_is_seen_by_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    from seeing import flash_attn_in_torch

    q, k, v = torch.randn(3, 1, 5, 2, 8).requires_grad_()
    model = Runs(flash_attn_in_torch.flash_attn_func, causal=True)
    with watch(model) as seen:
        flash_attn_in_torch.install(monkeypatch)
        model(q, k, v)
    assert len(seen.layers) == 1
    assert_shows(seen, 0, expected(q[0], k[0], causal=True))


def test_layers_share_what_was_read_of_their_texts(flash_attn: ModuleType) -> None:
    q, k, v, *ends = packed()
    model = Runs(flash_attn.flash_attn_varlen_func, causal=True)
    with watch(model) as seen:
        model(q, k, v, *ends)
        model(q, k, v, *(end.clone() if isinstance(end, Tensor) else end for end in ends))
    assert seen.call(0, 0).rule is seen.call(0, 1).rule


def test_everything_is_put_back(flash_attn: ModuleType) -> None:
    interface = sys.modules["flash_attn.flash_attn_interface"]
    kernels, applied = interface.flash_attn_gpu, interface.FlashAttnFunc.apply
    model, q = Runs(flash_attn.flash_attn_func), torch.randn(1, 5, 2, 8)
    with pytest.raises(ValueError, match="out"), watch(model) as outer, watch(model) as inner:
        model(q, q, q)
        raise ValueError("out")
    assert len(outer.layers) == len(inner.layers) == 1
    assert "apply" not in vars(interface.FlashAttnFunc) and interface.FlashAttnFunc.apply == applied
    assert interface.flash_attn_gpu is kernels


def by_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def test_edits_and_their_gradients_are_those_of_the_fused_call(flash_attn: ModuleType) -> None:
    found = []
    q, k, v = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 2, 8), torch.randn(2, 6, 2, 8)
    ends = torch.tensor([0, 6, 12], dtype=torch.int32)

    def in_one_row(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        row = (x.flatten(0, 1) for x in (q, k, v))
        out: Tensor = flash_attn.flash_attn_varlen_func(*row, ends, ends, 6, 6, causal=True)
        return out.unflatten(0, (2, 6))

    for function in (Runs(flash_attn.flash_attn_func, causal=True), Runs(in_one_row), Runs(by_sdpa)):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        with edit(function) as change, watch(function, outputs=True, gradients=True) as seen:
            change.cut(0, 1, slice(3, None), 2)
            change.cut(0, 3, 4, [0, 1], renormalise=False, batch=1)
            change.switch_off(0, 0, batch=0)
            out = function(*inputs)
            gradients = torch.autograd.grad(out.square().sum(), inputs)
        assert seen.output(0, 0).abs().sum() == 0
        found.append([out, *gradients, seen.map(0, 1, batch=1, of="gradient")])
    for have in found[:2]:
        for a, b in zip(have, found[2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_an_edit_of_a_shorter_text_touches_only_its_tokens(flash_attn: ModuleType) -> None:
    q, k, v, *ends = (x.detach() if isinstance(x, Tensor) else x for x in packed([(6, 6), (2, 2), (4, 4)]))
    model = Runs(flash_attn.flash_attn_varlen_func, causal=True)
    plain = model(q, k, v, *ends)
    with edit(model) as change:
        change.cut(0, 2, 1, 0, batch=1)
        out = model(q, k, v, *ends)
    changed = (out != plain).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [7]
    torch.testing.assert_close(out[7, 2], v[7, 1])  # all that is left to it is itself


def test_a_real_gpu_kernel_gives_its_normaliser(cuda: torch.device) -> None:
    flash = pytest.importorskip("flash_attn", reason="flash_attn absent: its kernels are built for a GPU")
    q, k, v, *ends = packed([(50, 70), (64, 64), (1, 33)])
    q, k, v = (
        torch.randn(len(x), x.shape[1], 64, device=cuda, dtype=torch.bfloat16).requires_grad_() for x in (q, k, v)
    )
    ends[:2] = [end.to(cuda) for end in ends[:2]]
    seen = unchanged(Runs(flash.flash_attn_varlen_func, causal=True), (q, k, v, *ends))
    assert seen.call(0).lse is not None
    for text, (a, b) in enumerate(((0, 50), (50, 114), (114, 115))):
        c, d = ((0, 70), (70, 134), (134, 167))[text]
        weights = expected(q[a:b].cpu(), k[c:d].cpu(), causal=True)
        have = torch.stack([seen.map(0, head, batch=text).cpu() for head in range(4)])[:, : b - a, : d - c]
        torch.testing.assert_close(have.double(), weights, rtol=0, atol=1e-4)
