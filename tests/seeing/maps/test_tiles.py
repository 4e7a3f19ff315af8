"""Sweeps, overviews and statistics equal those of the dense map in float64, for rules of every kind."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula, habits, products, pyramid, rollout, sight, statistics, tiles
from clearhead.seeing.rule import Rule
from seeing.dense import call, dense, rules

HEADS = [0, 1, 2, 3]
KINDS = list(rules(12, 12))
SIZES = [(12, 12), (9, 14), (14, 9)]


@pytest.fixture(params=[(2**18, 1024), (60, 5)], ids=["one tile", "small tiles"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(products.ROOM, "cpu", request.param)


def close(have: Tensor, want: Tensor, within: float = 2e-5) -> None:
    assert have.shape == want.shape
    assert (have.double() - want).abs().max().item() <= within


def whole(one: Call, batch: int, part: tiles.Part = tiles.WHOLE) -> Tensor:
    found = torch.zeros(4, one.n_queries, one.n_keys)
    for tile in tiles.sweep(one, batch, HEADS, part):
        assert (found[tile.heads, tile.rows, tile.cols] == 0).all()  # no weight comes twice
        found[tile.heads, tile.rows, tile.cols] = tile.weights
    return found


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_statistics_of_every_rule_equal_those_of_the_dense_map(kind: str, sizes: tuple[int, int], room: None) -> None:
    one = call(rules(*sizes)[kind], *sizes)
    want, queries = dense(one), torch.arange(sizes[0])
    for batch in range(2):
        weights, may, real = want.weights[batch], want.may[batch], want.real[batch]
        close(whole(one, batch), weights)
        counted = sight.counted(one, batch)
        assert torch.equal(torch.ones_like(real) if counted is None else counted, real)
        close(statistics.entropy(one, batch, HEADS), torch.special.entr(weights).sum(-1))
        close(statistics.received(one, batch, HEADS), weights.sum(1))
        counts = torch.rand(1, sizes[0])
        close(statistics.received(one, batch, HEADS, counts), (counts[..., None] * weights).sum(1))
        close(sight.choices(one, batch, HEADS).expand(4, -1), may.expand(4, -1, -1).sum(-1))
        close(
            sight.audience(one, batch, HEADS, counts[0]).expand(4, -1),
            (counts[..., None] * may.expand(4, -1, -1)).sum(1),
        )
        for offset in (-2, 0, 1):
            keys = queries + sizes[1] - sizes[0] + offset
            inside = (keys >= 0) & (keys < sizes[1])
            there = weights[:, queries, keys.clamp(0, sizes[1] - 1)] * inside
            close(statistics.at_offset(one, batch, HEADS, offset), there)
        rows, cols = torch.randint(sizes[0], (20,)), torch.randint(sizes[1], (20,))
        close(formula.pairs(one, batch, HEADS, rows, cols), weights[:, rows, cols])
        close(formula.window(one, batch, 2, slice(2, 7), slice(1, 8)), weights[2, 2:7, 1:8])


@pytest.mark.parametrize("mode", ["sum", "max"])
@pytest.mark.parametrize("kind", KINDS)
def test_overviews_of_every_rule_equal_those_of_the_dense_map(kind: str, mode: pyramid.Mode, room: None) -> None:
    one = call(rules(12, 12)[kind], 12, 12)
    want = dense(one)
    for batch, size in itertools.product(range(2), (1, 3, 5, 12)):
        cuts, counted = pyramid.edges(12, size), sight.counted(one, batch)
        have = pyramid.pooled(one, batch, HEADS, cuts, cuts, mode=mode, part=tiles.Part(counted=counted))
        close(have, blocks(want.weights[batch] * want.real[batch, :, None], cuts, cuts, mode))


def blocks(weights: Tensor, row_cuts: list[int], col_cuts: list[int], mode: str) -> Tensor:
    found = weights.new_zeros(len(weights), len(row_cuts) - 1, len(col_cuts) - 1)
    for i, (a, b) in enumerate(itertools.pairwise(row_cuts)):
        for j, (c, d) in enumerate(itertools.pairwise(col_cuts)):
            if b > a and d > c:
                block = weights[:, a:b, c:d].flatten(1)
                found[:, i, j] = block.sum(1) if mode == "sum" else block.amax(1)
    return found


@pytest.mark.parametrize("more", [{"softcap": 1.5}, {"sinks": torch.tensor([[[1.0], [2.0], [-1.0], [0.0]]])}])
@pytest.mark.parametrize("kind", ["causal", "padding left", "table", "bias", "window"])
def test_softcaps_and_sinks_are_in_every_statistic(kind: str, more: dict[str, object], room: None) -> None:
    one = call(rules(9, 14)[kind], 9, 14, **more)
    weights = dense(one).weights[1]
    close(whole(one, 1), weights)
    close(statistics.entropy(one, 1, HEADS), torch.special.entr(weights).sum(-1))
    close(formula.pairs(one, 1, HEADS, torch.arange(9), torch.arange(9)), weights[:, range(9), range(9)])
    close(formula.window(one, 1, 3, slice(0, 9), slice(0, 14)), weights[3])


@pytest.mark.parametrize("n_kv_heads", [1, 4])
def test_heads_that_share_keys_and_heads_that_do_not(n_kv_heads: int, room: None) -> None:
    one = call(Rule(reach=0), 12, 12, n_kv_heads=n_kv_heads)
    close(whole(one, 0), dense(one).weights[0])


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.one_of(st.none(), st.integers(-5, 40)),
    st.one_of(st.none(), st.integers(-40, 5)),
    st.one_of(st.none(), st.tuples(st.integers(0, 20), st.integers(0, 40))),
    st.integers(1, 64),
)
def test_any_stretch_of_keys_is_swept_once_and_pooled_exactly(
    n_queries: int, n_keys: int, reach: int | None, since: int | None, keys: tuple[int, int] | None, size: int
) -> None:
    inside = None if keys is None else torch.tensor([[min(at, n_keys) for at in keys]])
    one = call(Rule(reach=reach, since=since, keys=inside), n_queries, n_keys)
    weights = dense(one).weights[0]
    before, products.ROOM["cpu"] = products.ROOM["cpu"], (70, 6)
    try:
        close(whole(one, 0), weights)
        row_cuts, col_cuts = pyramid.cuts(n_queries, size), pyramid.cuts(n_keys, size)
        for mode in ("sum", "max"):
            have = pyramid.pooled(one, 0, HEADS, row_cuts, col_cuts, mode=mode)  # type: ignore[arg-type]
            close(have, blocks(weights, row_cuts, col_cuts, mode))
    finally:
        products.ROOM["cpu"] = before


@pytest.mark.parametrize("mode", ["sum", "max"])
@pytest.mark.parametrize("size", [1, 6, 8, 32])
def test_every_level_of_a_pyramid_is_made_of_the_four_below(size: int, mode: pyramid.Mode) -> None:
    one = call(Rule(reach=2), 11, 13)
    found = pyramid.pyramid(one, 0, 2, size, mode=mode)
    want = blocks(dense(one).weights[0, 2:3], list(found.row_cuts), list(found.col_cuts), mode)[0]
    close(found.levels[-1], want)
    for far, near in itertools.pairwise(found.levels):
        four = near.reshape(len(far), 2, len(far), 2)
        close(four.sum((1, 3)) if mode == "sum" else four.amax((1, 3)), far.double(), 1e-5)
    assert [len(level) for level in found.levels] == [2**z for z in range(len(found.levels))]
    assert size <= len(found.levels[-1]) < max(2 * size, 2)


@pytest.mark.parametrize("apart", [0, 2])
@pytest.mark.parametrize("kind", ["none", "causal", "padding left", "table", "bias"])
def test_the_strongest_links_are_the_largest_weights(kind: str, apart: int, room: None) -> None:
    one = call(rules(12, 12)[kind], 12, 12)
    want = dense(one)
    weights = (want.weights[1] * want.real[1, :, None]).float().clone()
    places = torch.arange(12)
    weights[:, (places[:, None] - places).abs() < apart] = 0
    weights[:, :, [5]] = 0
    found = statistics.strongest(one, 1, HEADS, 30, apart=apart, without=[5], counted=sight.counted(one, 1))
    assert len({link[:3] for link in found}) == 30
    assert [link[3] for link in found] == pytest.approx(weights.flatten().topk(30).values.tolist(), abs=1e-6)
    for head, row, key, weight in found:
        assert weights[head, row, key].item() == pytest.approx(weight, abs=1e-6)
    assert statistics.strongest(one, 1, HEADS, 0) == []


def test_a_key_that_draws_much_weight_is_a_sink_among_those_who_can_see_it() -> None:
    bias = torch.zeros(1, 4, 20, 20)
    bias[:, 1, :, 0], bias[:, 2, 10:, 9], bias[:, 3, 18:, 17] = 9, 9, 9
    one = call(Rule(reach=0, bias=bias), 20, 20)
    one.q.zero_()
    found = statistics.sinks(one, 0, HEADS, 0.3, None)
    assert sorted(place for *place, _ in found) == [[1, 0], [2, 9]]  # key 17 is seen by 3 of 20 only
    weights = dense(one).weights[0]
    assert dict(((h, key), share) for h, key, share in found)[1, 0] == pytest.approx(weights[1, :, 0].mean().item())


# ---------------------------------------------------------------- habits


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_head_does_is_counted_exactly(kind: str, room: None) -> None:
    one = call(rules(40, 40)[kind], 40, 40)
    want, places = dense(one), torch.arange(40)
    for batch in range(2):
        weights, may = want.weights[batch], want.may[batch].expand(4, -1, -1)
        said = ((may.sum(-1) > 1) & want.real[batch]).double()
        away = (places[:, None] - places).abs()
        first = int(want.may[batch].any(0).any(0).float().argmax()) if one.rule.bias is None else 0
        found = habits.habits(one, batch, HEADS, 7, [3, 8], None, sight.counted(one, batch))
        rows = {
            "sink": weights[:, :, first],
            "separator": weights[:, :, [3, 8]].sum(-1),
            "itself": weights.diagonal(0, 1, 2),
            "distance": (weights * away).sum(-1),
            "near": (weights * (away <= habits.NEAR)).sum(-1),
            "spread": torch.special.entr(weights).sum(-1) / may.sum(-1).clamp(min=2).log(),
        }
        count = said.sum(1).clamp(min=1)
        for name, values in rows.items():
            if kind in ("nobody", "table", "bits", "blind rows") and name == "sink":
                continue  # there the first key is that of the key mask
            expected = ((values * said).sum(1) / count).tolist()
            assert [getattr(habit, name) for habit in found] == pytest.approx(expected, abs=3e-5), name
        got = (weights * said[..., None]).sum(1) / count[:, None]
        assert [habit.heaviest_share for habit in found] == pytest.approx(got.amax(1).tolist(), abs=1e-5)
        assert {habit.layer for habit in found} == {7}


def test_repeats_look_back_to_the_same_token_and_to_what_came_after() -> None:
    text = torch.randint(0, 6, (30,))
    one = call(Rule(reach=0), 30, 30)
    weights = dense(one).weights[0]
    same, after = (torch.zeros(4, 30, dtype=torch.float64) for _ in range(2))
    for i in range(30):
        earlier = [j for j in range(i) if text[j] == text[i]][-habits.EARLIER :]
        same[:, i] = weights[:, i, earlier].sum(-1)
        after[:, i] = weights[:, i, [j + 1 for j in earlier if j + 1 < i]].sum(-1)
    have = habits.repeats(one, 0, HEADS, text)
    close(have[0], same)
    close(have[1], after)


def test_an_induction_head_is_named_so_on_a_text_said_twice() -> None:
    text, places = torch.arange(20).repeat(2), torch.arange(40)
    bias = torch.zeros(1, 4, 40, 40)
    bias[:, 0, places[20:], places[20:] - 19] = 20
    bias[:, 1, places[20:], places[20:] - 20] = 20
    bias[:, 2, places, (places - 4).clamp(min=0)] = 20
    bias[:, 2, places, (places - 5).clamp(min=0)] = 20
    bias[:, 3, places, 11] = 20
    one = call(Rule(bias=bias), 40, 40)
    one.q.zero_()
    kinds = [habit.kind for habit in habits.habits(one, 0, HEADS, 0, [], text)]
    assert kinds[2:] == ["local", "sink"]
    twice = call(Rule(bias=bias[:, :, 20:]), 20, 40)
    twice.q.zero_()
    kinds = [habit.kind for habit in habits.habits(twice, 0, HEADS, 0, [], text)]
    assert kinds == ["induction", "duplicate", "local", "sink"]


# ---------------------------------------------------------------- weighed maps and rollout


def test_maps_weighed_by_values_projections_and_gradients(room: None) -> None:
    one, projection = call(Rule(reach=0), 12, 12), torch.randn(10, 24)
    weights, v = dense(one).weights[1], one.v[1].double()[list(one.kv_of)]  # type: ignore[index]
    lengths = torch.stack([(v[h] @ projection[:, 6 * h : 6 * h + 6].double().T).norm(dim=-1) for h in HEADS])
    gradient = one.gradient[1].double() @ v.mT  # type: ignore[index]
    for of, factor in (("values", v.norm(dim=-1)[:, None]), (projection, lengths[:, None]), ("gradient", gradient)):
        close(whole(one, 1, tiles.part_of(one, 1, HEADS, of, None)), weights * factor, 1e-4)


def test_a_rollout_is_the_product_of_the_layers(room: None) -> None:
    calls = [call(Rule(reach=0), 12, 12) for _ in range(3)]
    product, relevance = torch.eye(12).double(), torch.eye(12).double()
    for one in calls:
        weights = dense(one).weights[0]
        v = one.v[0].double()[list(one.kv_of)]  # type: ignore[index]
        product = (0.5 * weights.mean(0) + 0.5 * torch.eye(12)) @ product
        moved = (weights * (one.gradient[0].double() @ v.mT)).clamp(min=0).mean(0)  # type: ignore[index]
        relevance = relevance + moved @ relevance
    close(rollout.rows(calls, 0, torch.eye(12)), product)
    close(rollout.rows(calls, 0, torch.eye(12)[[3, 11]]), product[[3, 11]])
    close(rollout.rows(calls, 0, torch.eye(12), "gradient"), relevance, 2e-4)
    cuts = pyramid.edges(12, 5)
    close(rollout.overview(calls, 0, 5), blocks(product[None], cuts, cuts, "sum")[0])


def test_what_was_not_recorded_is_refused() -> None:
    one = call(Rule(), 5, 5)
    one.gradient = None
    with pytest.raises(WatchError, match=r"watch\(model, gradients=True\)"):
        tiles.part_of(one, 0, HEADS, "gradient", None)
        next(tiles.sweep(one, 0, HEADS, tiles.Part(gradient=True)))
    with pytest.raises(WatchError, match=r"shape \(d_model, 24\).*got \(24, 7\)"):
        tiles.part_of(one, 0, HEADS, torch.zeros(24, 7), None)
    one.v = None
    with pytest.raises(WatchError, match=r"values=True"):
        tiles.part_of(one, 0, HEADS, "values", None)


def test_at_a_length_where_no_table_fits_zoom_levels_and_single_tiles_agree() -> None:
    torch.manual_seed(3)
    q, k = torch.randn(2, 1, 1, 20_000, 8)
    one = Call(2 * q, k, Rule(reach=0), 0.35, (0,), (0,), 1, 1, None)
    fine = pyramid.pooled(one, 0, [0], cuts := pyramid.edges(20_000, 100), cuts)[0]
    assert fine.sum(1).tolist() == pytest.approx([200.0] * 100, abs=0.01)
    for i, j in ((99, 0), (50, 50), (70, 13), (3, 60)):
        tile = formula.window(one, 0, 0, slice(200 * i, 200 * i + 200), slice(200 * j, 200 * j + 200))
        assert fine[i, j].item() == pytest.approx(tile.double().sum().item(), abs=1e-3)
    received = statistics.received(one, 0, [0])[0]
    assert received.reshape(100, 200).sum(1) == pytest.approx(fine.sum(0), abs=0.02)
