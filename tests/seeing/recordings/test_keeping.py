"""Only what was asked for is kept, keys of a growing cache once; what does not fit is named and the model runs on."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from clearhead.attention import CAUSAL, MultiHeadAttention
from clearhead.errors import WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.seeing import Recording, watch

CONFIG = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_len=64)


@pytest.fixture
def bert() -> Bert:
    return Bert(CONFIG).eval()


def seen_of(model: nn.Module, *inputs: Tensor, **options: Any) -> Recording:
    with torch.no_grad(), watch(model, **options) as seen:
        model(*inputs)
    return seen


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("rows", [slice(-3, None), [0, 5, -1], slice(None, None, -2), (7,)])
def test_kept_rows_are_those_rows_of_the_whole_recording(bert: Bert, rows: Any) -> None:
    tokens, lengths = torch.randint(0, 50, (2, 9)), torch.tensor([9, 6])
    whole, some = seen_of(bert, tokens, lengths), seen_of(bert, tokens, lengths, rows=rows)
    kept = sorted(range(9)[rows] if isinstance(rows, slice) else {row % 9 for row in rows})
    assert (some.layers[0].n_queries, some.layers[0].n_rows) == (9, len(kept))
    assert torch.equal(some.map(1, 2, batch=1), whole.map(1, 2, kept, batch=1))
    assert torch.equal(some.map(1, 2, [kept[-1] - 9]), whole.map(1, 2, [kept[-1]]))
    assert some.entropy(1) == pytest.approx(whole.entropy(1)[:, kept], abs=1e-6)
    assert some.received(1).sum(1) == pytest.approx(len(kept))
    assert some.overview(1, 0, size=2).sum().item() == pytest.approx(len(kept))


def test_kept_rows_of_a_causal_mask_look_from_where_they_stand() -> None:
    class Fused(nn.Module):
        def forward(self, x: Tensor, **how: Any) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, **how)

    model, x = Fused(), torch.randn(1, 2, 12, 8)
    for how in ({"is_causal": True}, {"attn_mask": torch.randn(12, 12)}, {"attn_mask": torch.rand(12, 12) < 0.6}):
        with watch(model) as whole, watch(model, rows=[3, 8, 9]) as some:
            model(x, **how)
        assert torch.equal(some.map(0, 1), whole.map(0, 1, [3, 8, 9]))
    habits = [(h.sink, h.previous, h.itself) for h in some.heads()]
    table = whole.map(0, 0)
    assert habits[0][1] == pytest.approx(sum(table[i, i - 1].item() for i in (3, 8, 9)) / 3)


def test_a_row_that_was_not_kept_is_refused_by_its_number(bert: Bert) -> None:
    some = seen_of(bert, torch.randint(0, 50, (1, 9)), rows=slice(-3, None))
    with pytest.raises(WatchError, match="query 2 was not kept: rows= kept 3 of 9, from 6 to 8"):
        some.map(0, 0, [7, 2])
    with pytest.raises(WatchError, match="there is no query 9"):
        some.map(0, 0, [9])
    assert [link.query for link in some.links(0, 0, -1)][:1] == [8]


def test_rows_that_no_call_has_leave_nothing(bert: Bert) -> None:
    with pytest.raises(WatchError, match="layers= or rows= left out all"):
        seen_of(bert, torch.randint(0, 50, (1, 9)), rows=[40]).map(0, 0)


def test_options_that_make_no_sense_are_refused_before_the_run(bert: Bert) -> None:
    for options, said in (
        ({"dtype": torch.int8}, "dtype= expects a floating dtype"),
        ({"budget": -1}, "budget= expects"),
    ):
        with pytest.raises(WatchError, match=said), watch(bert, **options):
            pass


# ---------------------------------------------------------------- precision, place, room


def test_a_smaller_dtype_takes_half_and_is_said(bert: Bert) -> None:
    tokens = torch.randint(0, 50, (1, 9))
    whole, half = seen_of(bert, tokens), seen_of(bert, tokens, dtype=torch.bfloat16)
    assert half.layers[0].dtype == torch.bfloat16
    assert half.layers[0].nbytes == 9 * (2 * 32 * 2 + 4 * 4)
    assert half.notes == ["queries and keys were kept in torch.bfloat16: maps are of that precision"]
    assert half.map(1, 1) == pytest.approx(whole.map(1, 1), abs=0.02)
    assert seen_of(bert, tokens, dtype=torch.float32).notes == []


def test_copies_on_the_cpu_are_the_same(bert: Bert) -> None:
    tokens, lengths = torch.randint(0, 50, (2, 9)), torch.tensor([9, 6])
    here, there = seen_of(bert, tokens, lengths), seen_of(bert, tokens, lengths, to="cpu")
    assert torch.equal(here.map(2, 3, batch=1), there.map(2, 3, batch=1))


def test_what_does_not_fit_is_named_with_what_to_ask_for_and_the_model_runs_on(bert: Bert) -> None:
    tokens = torch.randint(0, 50, (1, 9))
    one = seen_of(bert, tokens).layers[0].nbytes
    with torch.no_grad():
        blind = bert(tokens)
        with watch(bert, budget=2 * one) as seen:
            assert torch.equal(bert(tokens), blind)
    assert [layer.name for layer in seen.layers] == ["blocks.0.attention", "blocks.1.attention"]
    assert [unseen.name for unseen in seen.unseen] == ["blocks.2.attention"]
    assert "layers=, heads= or rows=" in seen.unseen[0].reason
    with pytest.raises(WatchError, match=r"only 10 bytes more may be used: .*dtype=, or to=\"disk\""):
        seen_of(bert, tokens, budget=10).map(0, 0)


# ---------------------------------------------------------------- generation


def llama(**more: Any) -> Any:
    kind, config = transformers.LlamaForCausalLM, transformers.LlamaConfig
    if "sliding_window" in more:
        kind, config = transformers.MistralForCausalLM, transformers.MistralConfig
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return kind(config(vocab_size=60, intermediate_size=48, **sizes, **more)).eval()


def generate(model: Any, n_new: int = 8, **options: Any) -> tuple[Recording, list[tuple[int, int]], list[Tensor]]:
    """Return the recording of a generation, and the weights of its own eager path, step by step."""
    prompt = options.pop("prompt", torch.randint(1, 60, (1, 5)))
    how = {"max_new_tokens": n_new, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    with watch(model) as seen:
        model.generate(prompt, **how)
    model.set_attn_implementation("eager")
    eager = model.generate(prompt, **how, output_attentions=True, return_dict_in_generate=True).attentions
    return seen, prompt, eager


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("padded", [False, True])
def test_every_key_of_a_generation_is_kept_once(cache: str | None, padded: bool) -> None:
    model = llama()
    options: dict[str, Any] = {"cache_implementation": cache} if cache else {}
    if padded:
        options["prompt"] = torch.randint(1, 60, (2, 5))
        options["attention_mask"] = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    seen, prompt, eager = generate(model, **options)
    assert [layer.calls for layer in seen.layers] == [8, 8]
    for step, weights in enumerate(eager):
        for text in range(len(prompt)):
            have = torch.stack([seen.map(1, head, batch=text, call=step) for head in range(4)])
            rows = options.get("attention_mask", torch.ones(2, 5))[text].bool() if step == 0 else slice(None)
            n_keys = min(have.shape[2], weights[1].shape[-1])
            assert have[:, rows, :n_keys] == pytest.approx(weights[1][text][:, rows, :n_keys], abs=1e-5)
            assert have[..., n_keys:].sum() == 0
    places = {call.k.data_ptr() for call in seen.calls[0]}
    assert len(places) == 1
    n_keys = seen.call(0).n_keys
    queries = (5 + 7) * len(prompt) * (4 * 8 + 4) * 4
    assert seen.layers[0].nbytes == queries + len(prompt) * 2 * n_keys * 8 * 4
    assert seen.layers[0].nbytes <= seen.calls[0][-1].k.untyped_storage().nbytes() + queries  # no slack is left


@pytest.mark.parametrize("cache", [None, "static"])
def test_a_window_that_slides_out_of_its_cache_is_kept_as_it_was_at_every_step(cache: str | None) -> None:
    model = llama(sliding_window=6)
    seen, _, eager = generate(model, n_new=12, **({"cache_implementation": cache} if cache else {}))
    assert seen.layers[0].calls == 12
    for step, weights in enumerate(eager):
        have = torch.stack([seen.map(1, head, call=step) for head in range(4)])
        n_keys = min(have.shape[2], weights[1].shape[-1])
        assert have[..., :n_keys] == pytest.approx(weights[1][0][..., :n_keys], abs=1e-5)


def test_beams_that_change_places_are_right() -> None:
    model, prompt = llama(), torch.randint(1, 60, (1, 5))
    how = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    caught: list[tuple[Tensor, Tensor]] = []

    class Catch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.scaled_dot_product_attention:
                caught.append((args[0].clone(), args[1].clone()))
            return func(*args, **(kwargs or {}))

    with watch(model) as seen, Catch():
        model.generate(prompt, **how)
    calls = [call for step in zip(seen.calls[0], seen.calls[1], strict=True) for call in step]
    assert len(calls) == len(caught) == 16
    for call, (q, k) in zip(calls, caught, strict=True):
        assert torch.equal(call.q, q)
        assert torch.equal(call.k.repeat_interleave(k.shape[1] // call.k.shape[1], 1), k)


def test_keys_written_over_in_place_show_as_they_were() -> None:
    class Rotating(nn.Module):
        """A cache of four places in which the oldest key gives way."""

        def forward(self, step: int, cache: Tensor) -> Tensor:
            cache[:, :, step % 4] = torch.randn(1, 2, 8)
            return F.scaled_dot_product_attention(torch.randn(1, 2, 1, 8), cache, cache)

    model, cache, expected = Rotating(), torch.randn(1, 2, 4, 8), []
    with watch(model) as seen:
        for step in range(10):
            model(step, cache)
            expected.append(cache.clone())
    assert all(torch.equal(call.k, k) for call, k in zip(seen.calls[0], expected, strict=True))


def test_forwards_say_where_in_the_text_they_began() -> None:
    seen, _, _ = generate(llama(), n_new=3)
    assert [(one.index, one.first, one.n_queries) for one in seen.forwards] == [(0, 0, 5), (1, 5, 1), (2, 6, 1)]
    assert seen.forwards[2].calls == {0: 2, 1: 2}


def test_a_static_cache_with_padding_begins_where_it_begins() -> None:
    lowest = torch.finfo(torch.float32).min  # what a slow path adds, and what hides all of a row of padding
    mask = torch.full((2, 1, 4, 7), lowest).triu(1)
    mask[1, ..., :2] = lowest

    class Slow(nn.Module):
        def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k, mask)

    with watch(model := Slow()) as seen:
        model(torch.randn(2, 2, 4, 8), torch.randn(2, 2, 7, 8), mask)
    assert (seen.map(0, 0, batch=1)[0] - 1 / 7).abs().max() < 1e-6  # the padded row does look at the empty places
    assert seen.forwards[0].first == 0


@pytest.mark.parametrize("make", [lambda: MultiHeadAttention(16, 2)])
def test_forwards_of_a_plain_model_all_begin_at_the_start(make: Callable[[], MultiHeadAttention]) -> None:
    model = make()
    with watch(model) as seen:
        for n in (4, 7):
            model(torch.randn(1, n, 16), mask=CAUSAL)
    assert [(one.first, one.n_queries) for one in seen.forwards] == [(0, 4), (0, 7)]


def test_what_was_refused_takes_nothing_from_the_budget() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.big_attn, self.small_attn = MultiHeadAttention(64, 2), MultiHeadAttention(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.small_attn(self.big_attn(x)[:, :4])

    model, x = Two().eval(), torch.randn(1, 16, 64)
    with torch.no_grad():
        with watch(model, layers=["small_attn"]) as alone:
            model(x)
        with watch(model) as whole:
            model(x)
        budget = (alone.layers[0].nbytes + whole.layers[0].nbytes) // 2 + 512  # the queries of the large one fit
        with watch(model, budget=budget) as seen:
            model(x)
    assert [layer.name for layer in seen.layers] == ["small_attn"]
    assert [unseen.name for unseen in seen.unseen] == ["big_attn"]


def test_heads_that_no_layer_has_are_said(bert: Bert) -> None:
    with torch.no_grad(), watch(bert, heads=[-1]) as seen:
        bert(torch.randint(0, 50, (1, 5)))
    with pytest.raises(WatchError, match="heads= names none of its 4 heads"):
        seen.map(0, 0)
