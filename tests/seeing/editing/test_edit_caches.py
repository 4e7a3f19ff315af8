"""Positions are those of the whole text, whatever cache a model reads it with."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from clearhead import WatchError
from clearhead.seeing import edit

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
STEPS = {"max_new_tokens": 7, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def decoder(window: int | None) -> Any:
    config = transformers.MistralConfig(**SIZES, sliding_window=window, eos_token_id=None, pad_token_id=0)
    return transformers.MistralForCausalLM(config).eval()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("path", ["sdpa", "eager"])
def test_a_link_cut_step_by_step_is_the_link_of_one_forward(path: str, cache: str, window: int | None) -> None:
    model, prompt = decoder(window), torch.randint(1, 60, (2, 5))
    model.set_attn_implementation(path)
    links = ([3, 6, 8, 9], [2, 5, 7])
    with edit(model) as change, torch.no_grad():
        change.cut(None, [0, 3], *links)
        steps = model.generate(prompt, cache_implementation=cache, **STEPS)
    text = steps.sequences[:, :-1]
    with torch.no_grad():
        plain = model(text, use_cache=False).logits[:, 4:]
        with edit(model) as change:
            change.cut(None, [0, 3], *links)
            whole = model(text, use_cache=False).logits[:, 4:]
    torch.testing.assert_close(torch.stack(steps.logits, 1), whole, atol=1e-5, rtol=1e-5)
    moved = (whole - plain).abs().amax((0, 2))
    assert moved[[2, 4, 5]].min() > 1e-6  # positions 6, 8 and 9


def test_beams_that_change_places_go_on_counting() -> None:
    model, prompt = decoder(None), torch.randint(1, 60, (1, 5))
    with edit(model) as change, torch.no_grad():
        change.cut(None, None, slice(6, None), slice(0, 6))
        steps = model.generate(prompt, num_beams=3, **{**STEPS, "output_scores": True})
        whole = model(steps.sequences[:, :-1], use_cache=False).logits[:, 4:].log_softmax(-1)
    written = steps.sequences[:, 5:]
    score = whole.gather(-1, written[..., None]).sum() / written.shape[1]
    torch.testing.assert_close(steps.sequences_scores[0], score, atol=1e-5, rtol=1e-5)


def test_a_second_text_counts_from_its_own_beginning() -> None:
    model, texts = decoder(None), torch.randint(1, 60, (2, 5))

    def write(text: Tensor) -> Tensor:
        return torch.stack(model.generate(text, **STEPS).logits)

    with torch.no_grad():
        with edit(model) as change:
            change.cut(None, None, [1, 6], 0)
            write(texts[:1])
            second = write(texts[1:])
        with edit(model) as change:
            change.cut(None, None, [1, 6], 0)
            assert torch.equal(second, write(texts[1:]))


def test_queries_that_look_at_another_text_stand_in_their_own() -> None:
    config = transformers.BartConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        eos_token_id=None,
        forced_eos_token_id=None,
    )
    model, source = transformers.BartForConditionalGeneration(config).eval(), torch.randint(3, 60, (2, 7))
    with edit(model) as change, torch.no_grad():
        change.cut("*encoder_attn", None, [2, 5], [3, 4])
        steps = model.generate(source, num_beams=1, **STEPS)
    with torch.no_grad():
        text = steps.sequences[:, :-1]
        plain = model(input_ids=source, decoder_input_ids=text).logits
        with edit(model) as change:
            change.cut("*encoder_attn", None, [2, 5], [3, 4])
            whole = model(input_ids=source, decoder_input_ids=text).logits
    torch.testing.assert_close(torch.stack(steps.logits, 1), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(whole[:, :2], plain[:, :2]) and (whole - plain)[:, [2, 5]].abs().max() > 1e-6


@pytest.mark.parametrize("window", [None, 6])
def test_a_cut_holds_after_a_rejected_draft(window: int | None) -> None:
    model, prompt = decoder(window), torch.randint(1, 60, (1, 4)).repeat(1, 3)  # drafts are looked up in the prompt
    links = (slice(9, None), [8, 10])
    with edit(model) as change, torch.no_grad():
        change.cut(None, None, *links)
        steps = model.generate(prompt, **{**STEPS, "prompt_lookup_num_tokens": 3})
        plain = model.generate(prompt, **STEPS)
        whole = model(plain.sequences[:, :-1], use_cache=False).logits[:, 11:]
    assert torch.equal(steps.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(steps.logits, 1), whole, atol=1e-5, rtol=1e-5)


def test_a_cut_holds_after_the_cache_was_cropped() -> None:
    model, text, cache = decoder(None), torch.randint(1, 60, (1, 12)), transformers.DynamicCache()
    with torch.no_grad(), edit(model) as change:
        change.cut(None, None, slice(9, None), 2)
        whole = model(text, use_cache=False).logits[:, 9:]
        model(text[:, :9], past_key_values=cache)
        model(torch.randint(1, 60, (1, 5)), past_key_values=cache)
        cache.crop(-5)
        torch.testing.assert_close(model(text[:, 9:], past_key_values=cache).logits, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_an_edit_opened_after_the_prompt_counts_the_prompt(window: int | None) -> None:
    model, text = decoder(window), torch.randint(1, 60, (1, 12))
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        with edit(model) as change:
            change.cut(None, None, [10, 11], 9)
            whole = model(text, use_cache=False).logits[:, 9:]
        model(text[:, :9], past_key_values=cache)
        with pytest.raises(WatchError, match="its last call had positions 9 to 9"), edit(model) as change:
            change.cut(None, None, 1, 0)
            model(text[:, 9:10], past_key_values=cache)
        with edit(model) as change:
            change.cut(None, None, [10, 11], 9)
            steps = [model(text[:, i : i + 1], past_key_values=cache).logits for i in (10, 11)]
    torch.testing.assert_close(torch.cat(steps, 1), whole[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("path", ["sdpa", "eager"])
def test_a_prompt_read_in_chunks_beside_a_padded_one_keeps_its_positions(path: str, window: int | None) -> None:
    model, prompt = decoder(window), torch.randint(1, 60, (2, 11))
    model.set_attn_implementation(path)
    mask = torch.ones_like(prompt)
    mask[1, :6] = 0
    how = {"cache_implementation": "static", "prefill_chunk_size": 4, "disable_compile": True}
    with torch.no_grad(), edit(model) as change:
        change.cut(None, None, slice(5, 8), 4, batch=0)
        steps = model.generate(prompt, attention_mask=mask, **STEPS, **how)
        whole = model(steps.sequences[:1, :-1], use_cache=False).logits[0, 10:]
    torch.testing.assert_close(torch.stack(steps.logits, 1)[0], whole, atol=1e-5, rtol=1e-5)
    assert change.notes == []
