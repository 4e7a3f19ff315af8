"""Facts about attention.py: the fused call is the formula, for every mask, dtype, head layout and gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clearhead.attention import CAUSAL, EVERYWHERE, Mask, MultiHeadAttention, attend, attention_map
from clearhead.cache import KVCache
from clearhead.errors import ConfigError
from clearhead.positions import ALiBi, RelativeBias
from clearhead.rotary import Rotary

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> tuple[Tensor, Tensor]:
    """Return weights and output by loops over every single pair, in float64: slow, and impossible to get wrong."""
    batch, heads, n_queries, n_keys = *q.shape[:3], k.shape[2]
    group = heads // k.shape[1]
    weights = torch.zeros(batch, heads, n_queries, n_keys, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(n_queries):
                scores = {}
                for j in range(n_keys):
                    if may_look(mask, b, h, i, j, n_queries, n_keys):
                        scores[j] = scale * float(q[b, h, i].double() @ k[b, h // group, j].double())
                        scores[j] += 0.0 if mask.bias is None else float(pick(mask.bias, b, h, i, j))
                top = max(scores.values(), default=-math.inf)
                total = sum(math.exp(s - top) for s in scores.values()) if top > -math.inf else 1.0
                for j, s in scores.items():
                    weights[b, h, i, j] = math.exp(s - top) / total if top > -math.inf else 0.0
    return weights, weights @ v.double().repeat_interleave(group, 1)


def pick(rule: Tensor, *index: int) -> Tensor:
    return rule[tuple(i if size > 1 else 0 for i, size in zip(index, rule.shape, strict=True))]


def may_look(mask: Mask, b: int, h: int, i: int, j: int, n_queries: int, n_keys: int) -> bool:
    ahead = j - (i + n_keys - n_queries)
    return not (
        (mask.causal and ahead > 0)
        or (mask.window is not None and not -mask.window[0] <= ahead <= mask.window[1])
        or (mask.key_starts is not None and j < int(mask.key_starts[b]))
        or (mask.key_lengths is not None and j >= int(mask.key_lengths[b]))
        or (mask.allowed is not None and not bool(pick(mask.allowed, b, h, i, j)))
    )


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...]) -> tuple[Tensor, Tensor, Tensor, Mask, float]:
    """Draw q, k, v, a mask made of any subset of the rules (rows that may look nowhere included), and a scale."""
    dtype = draw(st.sampled_from(dtypes))
    batch, kv_heads, group = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    n_queries, n_keys = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    d_head, heads = draw(st.sampled_from([1, 2, 8])), kv_heads * group
    torch.manual_seed(draw(st.integers(0, 2**31)))
    q = torch.randn(batch, heads, n_queries, d_head, dtype=dtype)
    k, v = (torch.randn(batch, kv_heads, n_keys, d_head, dtype=dtype) for _ in range(2))
    full = (batch, heads, n_queries, n_keys)
    shape = tuple(draw(st.sampled_from([1, size])) for size in full)
    rows = st.lists(st.integers(0, n_keys), min_size=batch, max_size=batch).map(torch.tensor)
    mask = Mask(
        causal=draw(st.booleans()),
        window=draw(st.none() | st.tuples(st.integers(0, 3), st.integers(0, 3))),
        key_starts=draw(st.none() | rows),
        key_lengths=draw(st.none() | rows),
        allowed=torch.rand(shape) > 0.4 if draw(st.booleans()) else None,
        bias=torch.randn(shape, dtype=dtype) if draw(st.booleans()) else None,
    )
    return q, k, v, mask, draw(st.sampled_from([d_head**-0.5, 1.0, 0.1]))


@given(cases(dtypes=(torch.float32, torch.bfloat16, torch.float64)))
def test_attend_is_the_attention_map_times_v(case: tuple[Tensor, Tensor, Tensor, Mask, float]) -> None:
    q, k, v, mask, scale = case
    weights, output = reference(q, k, v, mask, scale)
    ours_map = attention_map(q, k, mask, scale=scale)
    ours = attend(q, k, v, mask, scale=scale)
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(ours_map.double(), weights, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(ours.double(), output, atol=tolerance, rtol=tolerance)
    spread_v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    torch.testing.assert_close(ours, ours_map @ spread_v, atol=2 * tolerance, rtol=2 * tolerance)


@given(cases(dtypes=(torch.float32, torch.float64)), st.sampled_from([0.3, 1.0, 50.0]))
def test_a_softcap_bends_scores_and_nothing_else(case: tuple[Tensor, Tensor, Tensor, Mask, float], cap: float) -> None:
    q, k, v, mask, scale = case
    group = q.shape[1] // k.shape[1]
    scores = cap * torch.tanh(scale * q @ k.repeat_interleave(group, 1).transpose(-2, -1) / cap)
    expected = attention_map(torch.zeros_like(q), k, mask.with_bias(scores))
    ours = attention_map(q, k, mask, scale=scale, softcap=cap)
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)
    spread_v, output = v.repeat_interleave(group, 1), attend(q, k, v, mask, scale=scale, softcap=cap)
    torch.testing.assert_close(output, ours @ spread_v, atol=2 * tolerance, rtol=2 * tolerance)


@given(cases(dtypes=(torch.float32, torch.float64)), st.sampled_from([None, 0.7]))
def test_gradients_of_attend_are_those_of_the_formula(
    case: tuple[Tensor, Tensor, Tensor, Mask, float], cap: float | None
) -> None:
    q, k, v, mask, scale = case
    for t in (q, k, v):
        t.requires_grad_()
    spread_v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    direction = torch.randn(q.shape[:3] + v.shape[3:], dtype=q.dtype)
    fused = torch.autograd.grad((attend(q, k, v, mask, scale=scale, softcap=cap) * direction).sum(), (q, k, v))
    weights = attention_map(q, k, mask, scale=scale, softcap=cap)
    formula = torch.autograd.grad((weights @ spread_v * direction).sum(), (q, k, v))
    for one, other in zip(fused, formula, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, atol=20 * TOLERANCE[q.dtype], rtol=20 * TOLERANCE[q.dtype])


@given(cases(dtypes=(torch.float32,)))
def test_rows_of_the_map_sum_to_one_or_to_zero(case: tuple[Tensor, Tensor, Tensor, Mask, float]) -> None:
    q, k, _, mask, scale = case
    sums = attention_map(q, k, mask, scale=scale).sum(-1)
    assert ((sums - 1).abs().lt(1e-5) | sums.eq(0)).all()


def test_causal_aligns_the_last_query_with_the_last_key() -> None:
    weights = attention_map(torch.randn(1, 1, 2, 4), torch.randn(1, 1, 5, 4), CAUSAL)
    assert (weights[0, 0] > 0).tolist() == [[True, True, True, True, False], [True] * 5]


def test_a_sliding_window_of_two_sees_itself_and_one_before() -> None:
    weights = attention_map(torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4), Mask(causal=True, window=(1, 0)))
    assert (weights[0, 0] > 0).tolist() == [[True, False, False], [True, True, False], [False, True, True]]


def test_a_plain_causal_mask_is_never_made_into_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a time x time mask was made")

    monkeypatch.setattr(Mask, "dense", refuse)
    q = torch.randn(1, 2, 7, 4)
    attend(q, q, q, CAUSAL)
    attend(q[:, :, -1:], q, q, CAUSAL)  # one new token sees everything
    with pytest.raises(AssertionError, match="time x time"):
        attend(q[:, :, -2:], q, q, CAUSAL)


def test_dropout_drops_weights_and_keeps_the_mean() -> None:
    q, k = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 6, 8)
    v = torch.eye(6)[None, None]  # the output is then the weights themselves
    plain = attention_map(q, k)
    dropped = torch.stack([attend(q, k, v, dropout=0.5) for _ in range(2000)])
    kept = dropped[dropped > 0]
    assert 0.45 < kept.numel() / dropped.numel() < 0.55
    torch.testing.assert_close(dropped.mean(0), plain, atol=0.05, rtol=0.1)
    torch.testing.assert_close(dropped.amax(0), 2 * plain, atol=1e-5, rtol=1e-5)  # survivors are scaled by 1/(1-p)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_multi_head_attention_is_its_heads_concatenated_and_projected(n_kv_heads: int) -> None:
    layer = MultiHeadAttention(16, 4, n_kv_heads=n_kv_heads, d_head=6)
    x = torch.randn(2, 5, 16)
    q = layer.q_proj(x).view(2, 5, 4, 6)
    k, v = (projection(x).view(2, 5, n_kv_heads, 6) for projection in (layer.k_proj, layer.v_proj))
    heads = []
    for head in range(4):
        group = head // (4 // n_kv_heads)
        scores = q[:, :, head] @ k[:, :, group].transpose(1, 2) / math.sqrt(6)
        heads.append(scores.softmax(-1) @ v[:, :, group])
    torch.testing.assert_close(layer(x), layer.out_proj(torch.cat(heads, -1)), atol=1e-6, rtol=1e-5)


def test_cross_attention_takes_keys_and_values_from_memory() -> None:
    layer, x = MultiHeadAttention(8, 2), torch.randn(1, 3, 8)
    memory = torch.randn(1, 5, 8)
    full, short = layer(x, memory, mask=Mask(key_lengths=torch.tensor([4]))), layer(x, memory[:, :4])
    torch.testing.assert_close(full, short, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(full, layer(x))


def orders() -> dict[str, object]:
    return {"none": None, "rotary": Rotary(8), "alibi": ALiBi(4), "relative": RelativeBias(4, two_sided=False)}


@pytest.mark.parametrize("order", ["none", "rotary", "alibi", "relative"])
@pytest.mark.parametrize("window", [None, (2, 0)])
def test_cached_decoding_equals_the_full_forward(order: str, window: tuple[int, int] | None) -> None:
    layer = MultiHeadAttention(32, 4, n_kv_heads=2, order=orders()[order])
    if order == "relative":
        torch.nn.init.normal_(layer.order.weight)
    x, mask = torch.randn(2, 9, 32), Mask(causal=True, window=window)
    cache = KVCache(n_layers=1, batch=2, n_kv_heads=2, max_len=9, d_head=8)
    with torch.inference_mode():
        pieces = [layer(part, mask=mask, cache=cache[0]) for part in x.split([4, 1, 3, 1], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, 1), layer(x, mask=mask), atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    layer, x = MultiHeadAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="d_model 10 does not divide into 4 heads"):
        MultiHeadAttention(10, 4)
    with pytest.raises(ConfigError, match="4 query heads cannot share 3"):
        MultiHeadAttention(8, 4, n_kv_heads=3)
    with pytest.raises(ConfigError, match="cross-attention with order=None"):
        MultiHeadAttention(8, 2, order=Rotary(4))(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8))


@pytest.mark.parametrize("kind", ["plain", "causal", "lengths", "bias"])
def test_attend_on_a_gpu_is_the_formula(kind: str, cuda: torch.device) -> None:
    q, k, v = (torch.randn(2, heads, 130, 64, device=cuda, dtype=torch.bfloat16) for heads in (8, 2, 2))
    masks = {
        "plain": EVERYWHERE,
        "causal": CAUSAL,
        "lengths": Mask(key_lengths=torch.tensor([130, 3], device=cuda)),
        "bias": Mask(bias=torch.randn(1, 8, 130, 130, device=cuda)),
    }
    exact = attention_map(q.double(), k.double(), masks[kind]) @ v.double().repeat_interleave(4, 1)
    torch.testing.assert_close(attend(q, k, v, masks[kind]).double(), exact, atol=2e-2, rtol=2e-2)
