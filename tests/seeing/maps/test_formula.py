"""A map computed from a recording is the attention map, for every mask, dtype, head layout and kernel."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.attention import Mask, attend, attention_map
from clearhead.errors import WatchError
from clearhead.seeing import Recording, watch
from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula, products, pyramid
from clearhead.seeing.rule import Rule

MASKS: dict[str, Callable[[int, int], Mask]] = {
    "everywhere": lambda q, k: Mask(),
    "causal": lambda q, k: Mask(causal=True),
    "window": lambda q, k: Mask(causal=True, window=(3, 0)),
    "lengths": lambda q, k: Mask(key_lengths=torch.tensor([k, k - 4])),
    "causal and lengths": lambda q, k: Mask(causal=True, key_lengths=torch.tensor([k - 2, k])),
    "allowed": lambda q, k: Mask(allowed=torch.rand(2, 4, q, k) < 0.6),
    "allowed, one for all": lambda q, k: Mask(allowed=torch.rand(1, 1, q, k) < 0.6),
    "bias": lambda q, k: Mask(bias=torch.randn(1, 4, q, k)),
    "bias and causal": lambda q, k: Mask(bias=torch.randn(2, 1, q, k), causal=True),
    "blind rows": lambda q, k: Mask(key_lengths=torch.tensor([0, k])),
    "lowest number added": lambda q, k: Mask(bias=(torch.rand(2, 1, 1, k) < 0.4) * torch.finfo(torch.float32).min),
    "lowest number everywhere": lambda q, k: Mask(bias=torch.full((2, 1, q, k), torch.finfo(torch.float32).min)),
}


class Fused(nn.Module):
    """A model that is nothing but one fused call."""

    def __init__(self, function: Callable[..., Tensor], *rest: Any, **options: Any) -> None:
        super().__init__()
        self.call = lambda q, k, v: function(q, k, v, *rest, **options)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.call(q, k, v)


def see(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Recording:
    model = Fused(function, *rest, **options)
    with watch(model) as seen:
        model(q, k, v)
    return seen


def whole(seen: Recording, batch: int, n_heads: int) -> Tensor:
    return torch.stack([torch.stack([seen.map(0, h, batch=b) for h in range(n_heads)]) for b in range(batch)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("n_queries", [11, 7, 1])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("mask", MASKS)
def test_a_recorded_map_is_the_attention_map(mask: str, n_kv_heads: int, n_queries: int, dtype: torch.dtype) -> None:
    rule = MASKS[mask](n_queries, 11)
    q = torch.randn(2, 4, n_queries, 16, dtype=dtype)
    k, v = torch.randn(2, 2, n_kv_heads, 11, 16, dtype=dtype)
    seen = see(attend, q, k, v, rule)
    exact = torch.promote_types(dtype, torch.float32)
    if rule.bias is not None:  # attend rounds a bias to the dtype of q, and so recorded it
        bias = rule.bias.to(dtype)
        rule = Mask(causal=rule.causal, bias=bias.to(exact))
    expected = attention_map(q.to(exact), k.to(exact), rule)
    assert whole(seen, 2, 4) == pytest.approx(expected, abs=2e-5 if dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("dropout", lambda q, k, v: see(F.scaled_dot_product_attention, q, k, v, dropout_p=0.3)),
        ("narrow values", lambda q, k, v: see(F.scaled_dot_product_attention, q, k, v[..., :8])),
        ("three axes", lambda q, k, v: see(F.scaled_dot_product_attention, q[0], k[0], v[0])),
        ("scale", lambda q, k, v: see(F.scaled_dot_product_attention, q, k, v, scale=0.25)),
        ("math kernel", lambda q, k, v: in_math(q, k, v)),
        (
            "mask with gradient",
            lambda q, k, v: see(attend, q, k, v, Mask(bias=torch.zeros(1, 4, 7, 7).requires_grad_())),
        ),
    ],
)
def test_maps_are_exact_where_the_kernel_gives_no_normaliser(name: str, make: Callable[..., Recording]) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 16)
    seen = make(q, k, v)
    if name != "three axes":  # which torch 2.14 gives to the same kernel as four
        assert (seen.call(0).lse is None) == (name != "scale")
    assert seen.map(0, 3) == pytest.approx(attention_map(q, k)[0, 3], abs=1e-6)


def in_math(q: Tensor, k: Tensor, v: Tensor) -> Recording:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return see(F.scaled_dot_product_attention, q, k, v)


def test_torchs_causal_flag_counts_from_the_first_key() -> None:
    q, k, v = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    seen = see(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    allowed = torch.ones(4, 6, dtype=torch.bool).tril()[None, None]
    assert seen.map(0, 0) == pytest.approx(attention_map(q, k, Mask(allowed=allowed))[0, 0], abs=1e-6)


def test_five_axes_are_texts_then_heads() -> None:
    q, k, v = torch.randn(3, 2, 3, 4, 5, 8)
    allowed = torch.rand(2, 3, 1, 5, 5) < 0.7
    seen = see(F.scaled_dot_product_attention, q, k, v, attn_mask=allowed)
    expected = attention_map(q.flatten(0, 1), k.flatten(0, 1), Mask(allowed=allowed.flatten(0, 1)))
    assert seen.layers[0].batch == 6
    assert whole(seen, 6, 4) == pytest.approx(expected, abs=1e-6)


def test_one_key_head_shown_to_all_is_kept_once() -> None:
    q, k = torch.randn(1, 4, 6, 8), torch.randn(1, 1, 6, 8)
    seen = see(F.scaled_dot_product_attention, q, k.expand(1, 4, 6, 8), k.expand(1, 4, 6, 8))
    assert seen.layers[0].n_kv_heads == 1
    assert seen.map(0, 2) == pytest.approx(attention_map(q, k)[0, 2], abs=1e-6)


def test_what_the_kernel_broadcasts_is_recorded_at_full_size() -> None:
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(3, 1, 6, 8), torch.randn(3, 4, 6, 8)
    seen = see(F.scaled_dot_product_attention, q, k, v)
    assert (seen.layers[0].batch, seen.layers[0].n_kv_heads) == (3, 1)
    assert whole(seen, 3, 4) == pytest.approx(attention_map(q.expand(3, -1, -1, -1), k), abs=1e-6)
    seen = see(F.scaled_dot_product_attention, q[:, :1], v, v)
    assert whole(seen, 3, 4) == pytest.approx(attention_map(q[:, :1].expand(3, 4, -1, -1), v), abs=1e-6)


def test_a_recording_made_in_inference_mode_answers_outside() -> None:
    with torch.inference_mode():
        q, k, v = torch.randn(3, 1, 2, 6, 8)
        seen = see(attend, q, k, v, Mask(allowed=torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()))
        expected = attention_map(q, k, Mask(causal=True))
    assert seen.map(0, 1) == pytest.approx(expected[0, 1], abs=1e-6)
    assert seen.overview(0, 1, size=2).sum().item() == pytest.approx(6, abs=1e-5)


# ---------------------------------------------------------------- tiles and overviews


@pytest.fixture
def seen() -> Recording:
    q, k, v = torch.randn(3, 1, 3, 100, 16)
    return see(attend, 2 * q, k, v, Mask(causal=True))


def test_any_tile_is_that_part_of_the_map(seen: Recording) -> None:
    full = seen.map(0, 1)
    part = seen.map(0, 1, [5, 90, -1], slice(10, 70, 7))
    assert part == pytest.approx(full[[5, 90, 99]][:, 10:70:7], abs=1e-6)
    assert seen.row(0, 1, 42) == pytest.approx(full[42], abs=1e-6)
    assert torch.equal(seen.map(0, 1, range(3), []), full[:3, :0])


def test_an_overview_is_the_sum_of_the_weights_in_each_block(seen: Recording) -> None:
    full, blocks = seen.map(0, 2).double(), list(itertools.pairwise(pyramid.edges(100, 7)))
    expected = [[full[a:b, c:d].sum().item() for c, d in blocks] for a, b in blocks]
    assert seen.overview(0, 2, size=7) == pytest.approx(torch.tensor(expected), abs=1e-4)
    assert seen.overview(0, size=7)[2] == pytest.approx(seen.overview(0, 2, size=7), abs=1e-4)


@pytest.mark.parametrize("size", [3, 5, 16, 25])
def test_zoom_levels_add_up(seen: Recording, size: int) -> None:
    near, far = seen.overview(0, 0, size=2 * size), seen.overview(0, 0, size=size)
    assert near.unflatten(0, (size, 2)).unflatten(2, (size, 2)).sum((1, 3)) == pytest.approx(far, abs=1e-4)
    assert far.sum().item() == pytest.approx(100, abs=1e-3)


def test_an_overview_finer_than_the_text_is_the_map(seen: Recording) -> None:
    assert seen.overview(0, 0, size=1000) == pytest.approx(seen.map(0, 0), abs=1e-6)


def test_a_long_text_is_swept_in_small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 2, 6000, 8)
    seen = see(attend, q, k, v, Mask(causal=True))
    seen.row(0, 0, 0)  # makes the normaliser
    largest, empty = 0, torch.empty

    def watched(*size: int, **rest: Any) -> Tensor:
        nonlocal largest
        largest = max(largest, math.prod(size))
        return empty(*size, **rest)

    monkeypatch.setattr(torch, "empty", watched)  # a sweep makes room for its tiles once
    overview = seen.overview(0, 1, size=8)
    monkeypatch.undo()
    assert overview.sum().item() == pytest.approx(6000, abs=0.1)
    assert 0 < largest <= products.ROOM["cpu"][0] < 6000 * 6000
    rows = seen.map(0, 1, range(5250, 6000)).double()
    assert overview[-1] == pytest.approx(rows.unflatten(1, (8, 750)).sum((0, 2)).float(), abs=1e-3)


def test_a_map_too_large_to_be_meant_is_refused() -> None:
    q, k, v = torch.randn(3, 1, 1, 9000, 4)
    seen = see(attend, q, k, v)
    with pytest.raises(WatchError, match=r"9000 x 9000 weights in one map.*overview"):
        seen.map(0, 0)


def test_a_row_that_is_not_a_number_is_one_in_all_answers_and_others_are_not() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    q[0, 0, 3, 0] = torch.nan
    mask = torch.zeros(5, 5)
    mask[1, 2] = torch.nan
    seen, out = see(F.scaled_dot_product_attention, q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask)
    for head in range(2):
        assert torch.equal(seen.map(0, head).isnan(), out[0, head].isnan().any(-1)[:, None].expand(5, 5))
        assert torch.equal(seen.overview(0, head).isnan(), seen.map(0, head).isnan())
        assert torch.equal(seen.entropy(0)[head].isnan(), out[0, head].isnan().any(-1))


@pytest.mark.parametrize("n_queries", [0, 3])
def test_of_no_keys_there_is_nothing_to_say_and_no_crash(n_queries: int) -> None:
    seen = see(F.scaled_dot_product_attention, torch.randn(1, 2, n_queries, 4), *torch.zeros(2, 1, 2, 0, 4))
    assert seen.map(0, 0).shape == (n_queries, 0) and seen.to_dense(0).numel() == 0
    assert seen.offset(0, -1).sum() == 0 and seen.heads() == [] and seen.strongest() == []
    if not n_queries:
        assert seen.rollout().shape == (0, 0)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.map(3, 0), "layer 3 is not in this recording, which has 0 ''"),
        (lambda s: s.map(0, 3), "no head 3"),
        (lambda s: s.map(0, 0, batch=1), "saw 1 text, counted from 0: there is no text 1"),
        (lambda s: s.map(0, 0, call=1), "called 1 time: there is no call 1"),
        (lambda s: s.row(0, 0, 100), "there is no query 100: the call had 100"),
        (lambda s: s.map(0, 0, None, [-101]), "there is no key -101"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    seen: Recording, ask: Callable[[Recording], object], message: str
) -> None:
    with pytest.raises(WatchError, match=message):
        ask(seen)


def test_maps_are_exact_whatever_precision_the_model_was_allowed(seen: Recording) -> None:
    before = torch.get_float32_matmul_precision()
    expected = seen.map(0, 0)
    torch.set_float32_matmul_precision("medium")
    try:
        assert seen.map(0, 0) == pytest.approx(expected, abs=1e-6)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_softcaps_and_sinks_are_part_of_the_formula() -> None:
    q, k, sinks = 3 * torch.randn(2, 4, 6, 8), torch.randn(2, 2, 9, 8), torch.randn(1, 4, 1)
    call = Call(q, k, Rule(reach=3), 0.5, (0, 1, 2, 3), (0, 0, 1, 1), 4, 2, None, softcap=2.0, sinks=sinks)
    products = 0.5 * q.double() @ k.double().repeat_interleave(2, 1).mT
    scores = (2 * (products / 2).tanh()).masked_fill(~torch.ones(6, 9).tril(3).bool(), -torch.inf)
    expected = torch.cat([scores, sinks[..., None].expand(2, 4, 6, 1)], -1).softmax(-1)[..., :-1]
    heads, rows, cols = torch.tensor([1, 3]), torch.tensor([0, 5]), torch.arange(9)
    for batch in range(2):
        have = formula.weights(call, batch, heads, rows, cols)
        assert have == pytest.approx(expected[batch][heads][:, rows].float(), abs=1e-6)
        assert (have.sum(-1) < 0.99).all()
