"""Which token each query and key of a call is, told by caches, arguments, masks and keys: never by shapes alone."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from clearhead import WatchError, edit, watch
from clearhead.cache import FixedLayerCache, LayerCache
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing.positions import Stretch
from clearhead.seeing.recordings.recording import Recording


def gpt2() -> Any:
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=None)
    return transformers.GPT2LMHeadModel(config).eval()


def stretches(seen: Recording, call: int, layer: int = 0) -> tuple[int, list[tuple[int, int, int]]]:
    found = seen.call(layer, call).positions
    assert not found.unknown
    return found.first, [(one.column, one.position, one.length) for one in found.keys]


class SinkLayer(DynamicLayer):
    """Keeps the first two tokens and the last four, and says how many it keeps, not how many it read."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states)
        if keys.shape[2] > 6:
            self.keys, self.values = (torch.cat([x[:, :, :2], x[:, :, -4:]], 2) for x in (keys, values))
        return keys, values


class TurningLayer(SinkLayer):
    """Also turns the keys that it keeps, as if they stood where they now are."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = super().update(key_states, value_states)
        self.keys = torch.cat([self.keys[:, :, :2], self.keys[:, :, 2:].flip(-1)], 2)
        return given


def cache_of(kind: type[DynamicLayer]) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = [kind(), kind()]
    return cache


def read(model: Any, tokens: Tensor, sizes: list[int], cache: Any) -> None:
    at = 0
    for n in sizes:
        places = torch.arange(at, at + n)
        mask = torch.ones(1, min(at, 6) + n, dtype=torch.long)
        model(tokens[:, at : at + n], past_key_values=cache, position_ids=places[None], attention_mask=mask)
        at += n


@pytest.mark.parametrize("implementation", [None, "static"])
def test_a_decoding_step_stands_behind_what_was_read(implementation: str | None) -> None:
    model, tokens = gpt2(), torch.randint(1, 60, (2, 5))
    with torch.no_grad(), watch(model) as seen:
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=4,
            do_sample=False,
            cache_implementation=implementation,
            disable_compile=True,
        )
    assert [(one.first, one.n_queries) for one in seen.forwards] == [(0, 5), (5, 1), (6, 1), (7, 1)]
    assert stretches(seen, 2) == (6, [(0, 0, 7)])  # a cache of fixed size has empty places behind them


def test_a_rejected_draft_is_read_again_at_the_same_positions() -> None:
    model, tokens, cache = gpt2(), torch.randint(1, 60, (1, 12)), DynamicCache()
    with torch.no_grad(), watch(model) as seen:
        model(tokens[:, :5], past_key_values=cache)
        model(tokens[:, 5:9], past_key_values=cache)
        cache.crop(-3)
        model(tokens[:, 6:8], past_key_values=cache)
    assert [stretches(seen, i) for i in range(3)] == [(0, [(0, 0, 5)]), (5, [(0, 0, 9)]), (6, [(0, 0, 8)])]


def test_a_cache_that_keeps_first_and_last_tokens_says_by_its_keys_which_they_are() -> None:
    model, tokens = gpt2(), torch.randint(1, 60, (1, 11))
    with torch.no_grad(), watch(model) as seen:
        read(model, tokens, [5, 3, 1, 1, 1], cache_of(SinkLayer))
    assert stretches(seen, 1) == (5, [(0, 0, 8)])
    assert stretches(seen, 2) == (8, [(0, 0, 2), (2, 4, 5)])
    assert stretches(seen, 4) == (10, [(0, 0, 2), (2, 6, 5)])
    one = seen.call(0, 4)
    assert one.positions.of_columns(one.n_keys).tolist() == [0, 1, 6, 7, 8, 9, 10]
    weights = seen.map(0, 0, call=4)[0]
    assert seen.offset(0, -1, call=4)[0, 0] == weights[5] and seen.offset(0, -9, call=4)[0, 0] == weights[1]
    assert seen.offset(0, -7, call=4)[0, 0] == 0  # dropped
    away = torch.tensor([10, 9, 4, 3, 2, 1, 0.0])
    assert seen.heads(call=4)[0].distance == pytest.approx(float(weights @ away), abs=1e-5)


def test_a_cut_of_a_dropped_token_is_not_the_cut_of_another() -> None:
    model, tokens = gpt2(), torch.randint(1, 60, (1, 11))

    def last(key: int | None) -> Tensor:
        cache = cache_of(SinkLayer)
        with torch.no_grad(), edit(model) as change:
            if key is not None:
                change.cut(None, None, slice(5, None), key)
            read(model, tokens[:, :10], [5, 3, 1, 1], cache)
            mask = torch.ones(1, 7, dtype=torch.long)
            return model(
                tokens[:, 10:], past_key_values=cache, position_ids=torch.tensor([[10]]), attention_mask=mask
            ).logits

    def by_hand(columns: dict[int, int]) -> Tensor:
        """Hide, in the forward that begins at each position, one key column."""
        cache, at = cache_of(SinkLayer), 0
        with torch.no_grad():
            for n in [5, 3, 1, 1, 1]:
                mask = torch.ones(1, min(at, 6) + n, dtype=torch.long)
                if at in columns:
                    mask[0, columns[at]] = 0
                places = torch.arange(at, at + n)[None]
                out = model(
                    tokens[:, at : at + n], past_key_values=cache, position_ids=places, attention_mask=mask
                ).logits
                at += n
        return out

    # token 4 is column 4, then 2 once tokens 2 and 3 are dropped, then nowhere
    torch.testing.assert_close(last(4), by_hand({5: 4, 8: 2}), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(last(1), by_hand({5: 1, 8: 1, 9: 1, 10: 1}), atol=1e-6, rtol=1e-5)
    assert (last(4) - last(None)).abs().max() > 1e-6


def test_keys_that_a_cache_turns_are_refused_where_positions_are_asked_for() -> None:
    model, tokens = gpt2(), torch.randint(1, 60, (1, 10))
    refused = pytest.raises(WatchError, match=r"layer 0 .* not known. It has 3 queries and 8 keys")
    with refused, torch.no_grad(), edit(model) as change:
        change.cut(None, None, slice(5, None), 1)
        read(model, tokens, [5, 3, 1, 1], cache_of(TurningLayer))
    with torch.no_grad(), edit(model) as change:
        change.switch_off(0, 1)  # needs no positions
        read(model, tokens, [5, 3, 1, 1], cache_of(TurningLayer))
    with torch.no_grad(), watch(model) as seen:
        read(model, tokens, [5, 3, 1, 1], cache_of(TurningLayer))
    assert seen.map(0, 0).sum() == pytest.approx(1)
    with pytest.raises(WatchError, match="nothing says which token is which"):
        seen.offset(0, -1)
    with pytest.raises(WatchError, match="apart= is about positions"):
        seen.strongest(apart=1)
    assert {(habit.distance, habit.previous, habit.near) for habit in seen.heads()} == {(0, 0, 0)}


class Cached(nn.Module):
    """Attention with a cache of its own, of which no argument says anything."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.project, self.causal = nn.Linear(16, 48), causal
        self.past: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if self.past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(self.past, (k, v)))
        self.past = k, v
        n, m = q.shape[2], k.shape[2]
        mask = torch.ones(n, m, dtype=torch.bool).tril(m - n) if self.causal and n > 1 else None
        out: Tensor = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        return out


def test_without_a_word_from_the_model_its_keys_tell_what_is_the_same_text() -> None:
    model, x = Cached(), torch.randn(2, 9, 16)
    with torch.no_grad(), watch(model) as seen:
        model(x[:, :5])
        model(x[:, 5:7])
        assert model.past is not None
        model.past = tuple(kept[:, :, :6] for kept in model.past)  # type: ignore[assignment]
        model(x[:, 6:7])
    assert [seen.call(0, i).positions.first for i in range(3)] == [0, 5, 6]


def test_a_causal_mask_tells_where_queries_stand_and_a_lone_query_is_refused() -> None:
    x = torch.randn(1, 8, 16)
    for n, refused in ((3, False), (1, True)):
        model = Cached()
        with torch.no_grad():
            model(x[:, :4])
            with edit(model) as change:
                change.cut(0, None, 4, 2)
                if refused:
                    with pytest.raises(WatchError, match="Begin before the text is read"):
                        model(x[:, 4 : 4 + n])
                    change.edits.clear()
                else:
                    model(x[:, 4 : 4 + n])


@pytest.mark.parametrize("argument", ["cache_position", "input_pos", "start_pos"])
def test_arguments_that_say_the_place_are_believed(argument: str) -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Cached()

        def forward(self, x: Tensor, **where: Any) -> Tensor:
            out: Tensor = self.attention(x)
            return out

    model, x = Placed(), torch.randn(1, 8, 16)
    where: Any = 4 if argument == "start_pos" else torch.tensor([4])
    with torch.no_grad():
        model(x[:, :4])
        with watch(model) as seen:
            model(x[:, 4:5], **{argument: where})
    assert stretches(seen, 0) == (4, [(0, 0, 5)])


@pytest.mark.parametrize("window", [None, 4])
def test_our_own_caches_tell_too(window: int | None) -> None:
    config = GPTConfig(vocab_size=40, d_model=16, n_heads=2, n_layers=2, d_ff=32, max_len=32, windows=(window,))
    model, tokens = GPTForCausalLM(config).eval(), torch.randint(40, (1, 9))
    for kind in (LayerCache, FixedLayerCache):
        cache = model.new_cache(1, 12, kind)
        with torch.no_grad(), watch(model) as seen:
            for a, b in ((0, 5), (5, 6), (6, 9)):
                model(tokens[:, a:b], cache=cache)
        assert [one.first for one in seen.forwards] == [0, 5, 6]
        assert seen.call(1, 2).positions.end == 9


@pytest.mark.parametrize(("add_zero_attn", "add_bias_kv"), [(True, False), (False, True), (True, True)])
def test_keys_that_torchs_attention_adds_are_no_tokens(add_zero_attn: bool, add_bias_kv: bool) -> None:
    model = nn.MultiheadAttention(64, 1, batch_first=True, add_zero_attn=add_zero_attn, add_bias_kv=add_bias_kv).eval()
    x = torch.eye(64)[None, :10].contiguous()
    with torch.no_grad():
        assert model.in_proj_weight is not None
        model.in_proj_weight.copy_(torch.cat([torch.eye(64) * 30, torch.eye(64).roll(1, 1) * 30, torch.eye(64)]))
        model.in_proj_bias.zero_()
        with watch(model) as seen:
            model(x, x, x)
    assert stretches(seen, 0) == (0, [(0, 0, 10)])
    weights = seen.map(0, 0)
    looks = int(weights[5].argmax()) - 5
    assert abs(looks) == 1 and seen.offset(0, looks)[0, 5] == weights[5, 5 + looks] > 0.9
    (habit,) = seen.heads()
    places = torch.arange(10)
    away = (weights[:, :10] * (places[:, None] - places).abs()).sum(-1)  # what goes to added keys goes no distance
    assert habit.kind == ("next" if looks == 1 else "previous") and habit.distance == pytest.approx(float(away.mean()))
    assert all(abs(link.query - link.key) > 1 or link.key > 9 for link in seen.strongest(apart=2) if link.weight > 0)


def test_pooled_keys_have_no_distances_and_say_so() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            short = F.avg_pool1d(x.mT, 2).mT
            return F.scaled_dot_product_attention(x[None], short[None], short[None])

    with watch(model := Pooled()) as seen:
        model(torch.randn(2, 8, 16))
    with pytest.raises(WatchError, match="pooled or merged keys"):
        seen.offset(0, 0)
    assert all(habit.distance == 0 and habit.kind not in ("self", "previous", "next") for habit in seen.heads())


def test_a_query_that_pools_a_text_counts_from_zero_and_keys_are_the_text() -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = nn.Parameter(torch.randn(1, 1, 16))

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.query.expand(len(x), -1, -1), x, x)

    model, x = Pool(), torch.randn(2, 7, 16)
    with torch.no_grad(), watch(model) as seen:
        model(x)
    weights = seen.map(0, 0)
    with torch.no_grad(), edit(model) as change:
        change.cut(0, 0, 0, 3)
        out = model(x)
    kept = weights[0].clone()
    kept[3] = 0
    torch.testing.assert_close(out[0, 0], (kept / kept.sum()) @ x[0])
    assert seen.call(0).positions.keys == (Stretch(0, 0, 7),)
