"""Models of transformers, unmodified and watched, give the maps that their own slow path gives."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from clearhead.seeing import watch

MAKE: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(
        transformers.BertConfig(
            vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
        )
    ),
    "gpt2": lambda: transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ),
    "llama, grouped": lambda: transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=60,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
        )
    ),
}


def text(padding: str) -> dict[str, Tensor]:
    kept = torch.ones(2, 9, dtype=torch.long)
    if padding == "right":
        kept[1, 6:] = 0
    if padding == "left":
        kept[1, :3] = 0
    return {"input_ids": torch.randint(0, 60, (2, 9)), "attention_mask": kept}


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", MAKE)
def test_maps_equal_those_of_the_eager_path(name: str, padding: str) -> None:
    model, inputs = MAKE[name]().eval(), text(padding)
    with torch.no_grad():
        blind = model(**inputs).last_hidden_state
        with watch(model) as seen:
            watched = model(**inputs).last_hidden_state
        model.set_attn_implementation("eager")
        eager = model(**inputs, output_attentions=True).attentions
    assert torch.equal(blind, watched)
    assert seen.unseen == ()
    assert len(seen.layers) == len(eager) == 2
    for layer, expected in enumerate(eager):
        for batch in range(2):
            rows = inputs["attention_mask"][batch].bool()  # rows of padding mean nothing, and paths differ there
            for head in range(4):
                have = seen.map(layer, head, batch=batch)
                assert have[rows] == pytest.approx(expected[batch, head][rows], abs=1e-6)


def test_grouped_keys_stay_grouped() -> None:
    model = MAKE["llama, grouped"]().eval()
    with torch.no_grad(), watch(model) as seen:
        model(torch.randint(0, 60, (1, 7)))
    assert (seen.layers[0].n_heads, seen.layers[0].n_kv_heads) == (4, 2)


def test_every_step_of_generation_is_a_call() -> None:
    model = transformers.GPT2LMHeadModel(MAKE["gpt2"]().config).eval()
    with watch(model) as seen:
        model.generate(
            torch.randint(1, 60, (1, 5)), max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    assert [layer.calls for layer in seen.layers] == [4, 4]
    assert [tuple(seen.map(1, 0, call=i).shape) for i in range(4)] == [(5, 5), (1, 6), (1, 7), (1, 8)]


def test_the_eager_path_is_seen_as_it_runs() -> None:
    model, tokens = MAKE["llama, grouped"]().eval(), text("left")
    model.set_attn_implementation("eager")
    with torch.no_grad(), watch(model) as seen:
        watched = model(**tokens, output_attentions=True)
    assert seen.unseen == ()
    assert torch.equal(watched.last_hidden_state, model(**tokens).last_hidden_state)
    assert (seen.layers[1].n_heads, seen.layers[1].n_kv_heads) == (4, 2)  # as they were before they were repeated
    for batch in range(2):
        rows = tokens["attention_mask"][batch].bool()
        for head in range(4):
            expected = watched.attentions[1][batch, head][rows].detach()
            assert seen.map(1, head, batch=batch)[rows] == pytest.approx(expected, abs=1e-6)
