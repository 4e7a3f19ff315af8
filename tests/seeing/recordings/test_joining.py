"""A joined generation equals one forward over the whole text, row by row, or is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from clearhead import InputError, WatchError, open_recording, watch
from clearhead.seeing.recordings.recording import Recording

STEPS: dict[str, Any] = {
    "max_new_tokens": 6,
    "return_dict_in_generate": True,
    "output_scores": True,
    "do_sample": False,
}


def decoder(path: str = "sdpa", window: int | None = None) -> Any:
    config = transformers.MistralConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        sliding_window=window,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.MistralForCausalLM._from_config(config, attn_implementation=path).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "self_attn" in name:
                weight.mul_(8)  # or all weights are nearly alike
    return model


def prompts() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(1, 60, (2, 6))
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    return tokens, mask


def in_one_forward(model: Any, text: Tensor, mask: Tensor, **how: Any) -> tuple[Recording, Tensor]:
    """Return a recording of all of a text but its last token, and which positions are no padding."""
    n = text.shape[1] - 1 - mask.shape[1]
    mask = torch.cat([mask, torch.ones(len(mask), n, dtype=torch.long)], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), watch(model, **how) as seen:
        model(text[:, :-1], attention_mask=mask, position_ids=places, use_cache=False)
    return seen, mask.bool()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("path", ["sdpa", "eager"])
def test_a_generation_read_step_by_step_joins_to_the_map_of_one_forward(
    path: str, cache: str, chunk: int | None, window: int | None
) -> None:
    model, (tokens, mask) = decoder(path, window), prompts()
    how = {"cache_implementation": cache, "prefill_chunk_size": chunk, "disable_compile": True}
    with torch.no_grad(), watch(model, values=True, outputs=True) as seen:
        made = model.generate(tokens, attention_mask=mask, **STEPS, **how)
    whole = seen.joined()
    one, real = in_one_forward(model, made.sequences, mask, values=True, outputs=True)
    assert whole.forwards[0].n_queries == 11 and len(whole.forwards) == 1
    for text in range(2):
        for layer, head in ((0, 0), (1, 3)):
            have, want = (each.map(layer, head, batch=text)[real[text]] for each in (whole, one))
            torch.testing.assert_close(have, want, atol=2e-5, rtol=0)
            have, want = (each.map(layer, head, of="values", batch=text)[real[text]] for each in (whole, one))
            torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)
            have, want = (each.output(layer, head, batch=text)[real[text]] for each in (whole, one))
            torch.testing.assert_close(have, want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(whole.received(1, batch=text), one.received(1, batch=text), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            whole.overview(0, size=4, batch=text), one.overview(0, size=4, batch=text), atol=1e-4, rtol=1e-4
        )
        have_all, want_all = ([vars(h) for h in each.heads(batch=text)] for each in (whole, one))
        for mine, theirs in zip(have_all, want_all):
            assert mine == pytest.approx(theirs, abs=1e-4)
    steps = [seen.map(0, 0, [-1], call=i)[0] for i in range(len(seen.forwards))]
    last = seen.call(0).positions.columns(torch.arange(11))
    torch.testing.assert_close(whole.map(0, 0)[10][last >= 0], steps[-1][last[last >= 0]], atol=1e-6, rtol=0)


def test_a_returned_sequence_is_followed_through_its_beams() -> None:
    model, (tokens, mask) = decoder(), prompts()
    with torch.no_grad(), watch(model) as seen:
        made = model.generate(tokens, attention_mask=mask, num_beams=4, num_return_sequences=2, **STEPS)
    assert any(len(set(row)) > 1 for row in made.beam_indices.tolist())  # beams did change places
    whole = seen.joined(beam_indices=made.beam_indices)
    one, real = in_one_forward(model, made.sequences, mask.repeat_interleave(2, 0))
    assert whole.call(0).batch == 4
    for text in range(4):
        for layer in range(2):
            for head in range(4):
                have, want = (each.map(layer, head, batch=text)[real[text]] for each in (whole, one))
                torch.testing.assert_close(have, want, atol=2e-5, rtol=0)


def test_beams_that_are_not_followed_or_followed_wrongly_are_refused() -> None:
    model, (tokens, mask) = decoder(), prompts()
    with torch.no_grad(), watch(model) as seen:
        made = model.generate(tokens, attention_mask=mask, num_beams=4, num_return_sequences=2, **STEPS)
    with pytest.raises(WatchError, match="beam_indices="):
        seen.joined()
    with pytest.raises(WatchError, match="a token has other keys"):
        seen.joined(beam_indices=(made.beam_indices + 1) % 4)
    with pytest.raises(InputError, match="names row 9 of the batch, which had 8"):
        seen.joined(beam_indices=made.beam_indices + 9 - made.beam_indices.max())


def test_a_sequence_that_ended_early_has_no_rows_after_its_end() -> None:
    model, (tokens, mask) = decoder(), prompts()
    with torch.no_grad(), watch(model) as seen:
        made = model.generate(tokens, attention_mask=mask, num_beams=2, num_return_sequences=2, **STEPS)
    ended = made.beam_indices.clone()
    ended[0, 4:] = -1
    whole, full = seen.joined(beam_indices=ended), seen.joined(beam_indices=made.beam_indices)
    assert torch.equal(whole.map(0, 0)[:9], full.map(0, 0)[:9]) and whole.map(0, 0)[9:].sum() == 0
    assert torch.equal(whole.map(1, 2, batch=1), full.map(1, 2, batch=1))
    assert [one.queries for one in whole.heads()[:1] + full.heads()[:1]] == [8, 10]


def test_an_encoder_decoder_joins_its_own_and_its_cross_attention() -> None:
    config = transformers.BartConfig(
        vocab_size=60,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        eos_token_id=None,
        forced_eos_token_id=None,
    )
    model, source = transformers.BartForConditionalGeneration(config).eval(), torch.randint(3, 60, (2, 7))
    mask = torch.ones_like(source)
    mask[1, 5:] = 0
    with torch.no_grad(), watch(model) as seen:
        made = model.generate(source, attention_mask=mask, num_beams=3, **STEPS)
    whole = seen.joined(beam_indices=made.beam_indices)
    with torch.no_grad(), watch(model) as one:
        model(input_ids=source, attention_mask=mask, decoder_input_ids=made.sequences[:, :-1])
    for layer in one.layers:
        for text in range(2):
            have, want = (each.map(layer.name, 2, batch=text) for each in (whole, one))
            torch.testing.assert_close(have, want, atol=2e-5, rtol=0)


def test_a_rejected_draft_has_the_rows_that_were_read_last() -> None:
    model, tokens, cache = decoder(), torch.randint(1, 60, (1, 9)), transformers.DynamicCache()
    with torch.no_grad(), watch(model) as seen:
        model(tokens[:, :5], past_key_values=cache)
        model(torch.randint(1, 60, (1, 3)), past_key_values=cache)
        cache.crop(-3)
        model(tokens[:, 5:], past_key_values=cache)
    one, _ = in_one_forward(model, torch.cat([tokens, tokens[:, :1]], 1), torch.ones(1, 9, dtype=torch.long))
    torch.testing.assert_close(seen.joined().map(1, 1), one.map(1, 1), atol=2e-5, rtol=0)


def test_of_several_texts_the_latest_is_joined() -> None:
    model, texts = decoder(), torch.randint(1, 60, (2, 6))
    with torch.no_grad():
        with watch(model) as both:
            for text in texts:
                model.generate(text[None], **STEPS)
        with watch(model) as second:
            model.generate(texts[1:], **STEPS)
    assert torch.equal(both.joined().map(1, 0), second.joined().map(1, 0))


def test_rows_that_were_not_kept_are_not_in_it(tmp_path: Path) -> None:
    model, (tokens, mask) = decoder(), prompts()
    with torch.no_grad(), watch(model, rows=[-1], heads=[1, 2]) as seen:
        made = model.generate(tokens, attention_mask=mask, **STEPS)
    whole = seen.joined()
    one, _ = in_one_forward(model, made.sequences, mask)
    assert whole.call(0).rows.tolist() == [5, 6, 7, 8, 9, 10]
    torch.testing.assert_close(whole.map(0, 2, batch=1), one.map(0, 2, range(5, 11), batch=1), atol=2e-5, rtol=0)
    whole.save(tmp_path / "whole.seen", words=[f"token {i}" for i in range(11)])
    again = open_recording(tmp_path / "whole.seen")
    assert torch.equal(again.map(0, 2), whole.map(0, 2)) and again.call(0).positions == whole.call(0).positions


def test_a_text_whose_beginning_was_not_watched_is_refused() -> None:
    model, tokens, cache = decoder(), torch.randint(1, 60, (1, 9)), transformers.DynamicCache()
    with torch.no_grad():
        model(tokens[:, :5], past_key_values=cache)
        with watch(model) as seen:
            model(tokens[:, 5:], past_key_values=cache)
    assert seen.forwards[0].first == 5
    with pytest.raises(WatchError, match="begins at position 5: watch the prompt too"):
        seen.joined()


def test_keys_that_a_cache_turns_have_no_one_axis() -> None:
    model, tokens, cache = decoder(), torch.randint(1, 60, (1, 9)), transformers.DynamicCache()
    with torch.no_grad(), watch(model) as seen:
        model(tokens[:, :5], past_key_values=cache)
        cache.layers[0].keys = cache.layers[0].keys.flip(-1)
        model(tokens[:, 5:], past_key_values=cache)
    with pytest.raises(WatchError, match=r"layer 0 .* a token has other keys in one forward than in another"):
        seen.joined()


class Guarded(nn.Module):
    """Attention by hand with a cache of its own; its weights after a prompt are not those of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)
        self.past: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, start_pos: int) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        if self.past is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(self.past, (k, v)))
        self.past = k, v
        n, m = q.shape[2], k.shape[2]
        scores = (q @ k.mT).masked_fill(torch.ones(n, m).tril(m - n) == 0, -torch.inf)
        weights = scores.softmax(-1)
        if n > 1:
            weights = weights.clamp(max=0.5)
        out: Tensor = (weights @ v).transpose(1, 2).flatten(2)
        return out


def test_weights_that_were_kept_join_with_those_that_are_computed() -> None:
    model, x = Guarded(), torch.randn(2, 7, 16) * 3
    with torch.no_grad(), watch(model) as seen:
        for first, last in ((0, 5), (5, 6), (6, 7)):
            model(x[:, first:last], first)
    assert [call.weights is None for call in seen.calls[0]] == [False, True, True]
    whole = seen.joined()
    for head in range(2):
        for call, rows in ((0, range(5)), (1, [5]), (2, [6])):
            want = seen.map(0, head, batch=1, call=call)
            torch.testing.assert_close(whole.map(0, head, rows, range(want.shape[1]), batch=1), want)
    assert whole.map(0, 0)[:5].max() <= 0.5
