"""A token is hidden in the layers whose keys it is, from all positions but its own."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from clearhead.errors import InputError, WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing import edit, effect, watch

PAIR = EncoderDecoderConfig(vocab_size=50, d_model=16, n_heads=2, n_encoder_layers=2, n_decoder_layers=2, d_ff=32)


class Towers(nn.Module):
    """A tower for a picture of 8 patches, whose mean is put before a text, which nobody in it reads backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.text = (nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))
        self.table, self.out = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        first = self.patches(patches, patches, patches, need_weights=False)[0].mean(1, keepdim=True)
        x = torch.cat([first, self.table(tokens)], 1)
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)
        return self.out(self.text(x, x, x, attn_mask=mask, need_weights=False)[0][:, -1])


def test_of_several_texts_the_one_that_is_meant_must_be_named() -> None:
    given = [torch.randint(0, 50, (1, 5)), torch.randn(1, 8, 16)]
    with pytest.raises(
        InputError, match=r"8 keys of layer 0 'patches'; 6 keys of layer 1 'text'\. Name one of the layers"
    ):
        effect(Towers().eval(), given, 1, "tokens")


def test_tokens_of_one_tower_are_those_of_its_layers_alone() -> None:
    model, given = Towers().eval(), [torch.randint(0, 50, (1, 5)), torch.randn(1, 8, 16)]
    text = effect(model, given, 1, "tokens", layer=1)
    assert sorted(row.key for row in text) == list(range(6))
    assert "tokens are the 6 keys of layer 1 'text': no other layer looks at them" in text.notes
    last = next(row for row in text if row.key == 5)
    assert last.effect == pytest.approx(0, abs=1e-6)  # nobody but itself looks at the last token of a causal text
    patches = effect(model, given, 1, "tokens", layer=0)
    assert sorted(row.key for row in patches) == list(range(8))
    with edit(model) as change, torch.no_grad():
        change.cut(0, None, [0, 1, 3, 4, 5, 6, 7], 2)
        after = float(model(*given)[0, 1])
    assert next(row for row in patches if row.key == 2).after == pytest.approx(after, abs=1e-6)


def test_source_tokens_are_hidden_in_the_encoder_and_from_the_target_whose_own_are_left() -> None:
    model, given = EncoderDecoder(PAIR).eval(), [torch.randint(3, 50, (1, 5)), torch.randint(3, 50, (1, 5))]
    with watch(model) as seen, torch.no_grad():
        model(*given)
    names = {layer.name: layer.index for layer in seen.layers}
    source = [index for name, index in names.items() if "cross" in name or "encoder" in name.split(".")[0]]
    decoder = next(index for name, index in names.items() if index not in source)
    assert len(source) == 4 and len(names) == 6
    with pytest.raises(InputError, match="looks at several"):
        effect(model, given, 7, "tokens")  # the two are of one length here: names tell them apart
    for layer in source:
        found = {row.key: row.after for row in effect(model, given, 7, "tokens", layer=layer)}
    with edit(model) as change, torch.no_grad():
        for index in source:
            others = None if "cross" in seen.name(index) else [0, 1, 3, 4]
            change.cut(index, None, others, 2)
        assert found[2] == pytest.approx(float(model(*given)[0, -1, 7]), abs=1e-5)
    target = effect(model, given, 7, "tokens", layer=decoder)
    assert next(row for row in target if row.key == 4).effect == pytest.approx(0, abs=1e-5)


class Prefixed(nn.Module):
    """Puts three learned keys before every text, as prefix tuning does."""

    def __init__(self) -> None:
        super().__init__()
        sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
        config = transformers.LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, **sizes)
        self.inner = transformers.LlamaForCausalLM(config)
        self.prefix = nn.Parameter(torch.randn(2, 2, 1, 2, 3, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        cache = transformers.DynamicCache()
        for i, (k, v) in enumerate(self.prefix):
            cache.update(k.expand(len(tokens), -1, -1, -1), v.expand(len(tokens), -1, -1, -1), i)
        logits: Tensor = self.inner(tokens, past_key_values=cache).logits
        return logits


@pytest.mark.parametrize("at_once", [1, 32])
def test_keys_of_a_learned_prefix_are_no_tokens(at_once: int) -> None:
    found = effect(Prefixed().eval(), torch.randint(0, 50, (1, 5)), 7, "tokens", at_once=at_once)
    assert sorted(row.key for row in found) == [3, 4, 5, 6, 7]
    assert next(row for row in found if row.key == 7).effect == pytest.approx(0, abs=1e-6)
    assert any(note.startswith("the first 3 keys stand before the first token") for note in found.notes)


def test_tokens_that_a_cache_holds_are_hidden_from_those_that_are_read_now() -> None:
    model = GPTForCausalLM(GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_len=64)).eval()
    tokens, cache = torch.randint(0, 50, (1, 6)), model.new_cache(1, 12)
    with torch.no_grad():
        model(tokens[:, :5], cache=cache)
    found = {row.key: row for row in effect(model, {"tokens": tokens[:, 5:], "cache": cache}, 7, "tokens")}
    assert sorted(found) == list(range(6))
    assert found[5].effect == pytest.approx(0, abs=1e-6)
    with edit(model) as change, torch.no_grad():
        change.cut(None, None, 5, 2)  # of the whole text: only the last token is read without it
        assert found[2].after == pytest.approx(float(model(tokens)[0, -1, 7]), abs=1e-5)


@pytest.mark.parametrize("at_once", [1, 32])
def test_empty_places_of_a_cache_are_no_tokens(at_once: int) -> None:
    sizes: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    config = transformers.LlamaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, **sizes)
    model, tokens, found = transformers.LlamaForCausalLM(config).eval(), torch.randint(0, 50, (2, 6)), []
    for cache in (transformers.DynamicCache(config=config), transformers.StaticCache(config, max_cache_len=11)):
        with torch.no_grad():
            model(tokens[:, :4], past_key_values=cache)
        given = {"input_ids": tokens[:, 4:], "past_key_values": cache}
        found.append({row.key: row.after for row in effect(model, given, 7, "tokens", at_once=at_once)})
    assert sorted(found[0]) == list(range(6)) and found[1] == pytest.approx(found[0], abs=1e-6)


class Latents(nn.Module):
    """Learned latents look at the patches of a picture."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.flat, self.latents = flat, nn.Parameter(torch.randn(4, 16))

    def forward(self, picture: Tensor) -> Tensor:
        patches = picture.unflatten(1, (9, 16)) if self.flat else picture
        return F.scaled_dot_product_attention(
            self.latents.expand(len(picture), 1, 4, 16), patches[:, None], patches[:, None]
        )[:, 0]


class Resampled(nn.Module):
    """Four latents stand before a text."""

    def __init__(self, *, flat: bool) -> None:
        super().__init__()
        self.resampler, self.text = Latents(flat=flat), nn.MultiheadAttention(16, 2, batch_first=True)
        self.table, self.out = nn.Embedding(50, 16), nn.Linear(16, 4)

    def forward(self, tokens: Tensor, picture: Tensor) -> Tensor:
        x = torch.cat([self.resampler(picture), self.table(tokens)], 1)
        return self.out(self.text(x, x, x, need_weights=False)[0][:, -1])


def test_layers_of_which_nothing_tells_their_tokens_do_not_stand_in_the_way_of_others() -> None:
    model, given = Resampled(flat=True).eval(), [torch.randint(0, 50, (1, 5)), torch.randn(1, 9 * 16)]
    with pytest.raises(WatchError, match="'resampler': which tokens its keys are is not known"):
        effect(model, given, 1, "tokens")
    assert sorted(row.key for row in effect(model, given, 1, "tokens", layer=1)) == list(range(9))


def test_patches_that_latents_look_at_are_not_the_text_of_that_length_behind_them() -> None:
    model, given = Resampled(flat=False).eval(), [torch.randint(0, 50, (1, 5)), torch.randn(1, 9, 16)]
    with pytest.raises(InputError, match=r"9 keys of layer 0 'resampler'; 9 keys of layer 1 'text'\."):
        effect(model, given, 1, "tokens")


@pytest.fixture
def bert() -> Bert:
    return Bert(BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=1, d_ff=64)).eval()


def test_hiding_a_token_is_cutting_it_from_the_others_and_its_own_row_keeps_its_bits(bert: Bert) -> None:
    tokens, found = torch.arange(7)[None], []
    for how in ("plain", "hide", "cut"):
        with edit(bert) as change, watch(bert, outputs=True) as seen, torch.no_grad():
            if how == "hide":
                change.hide(0, 3)
            if how == "cut":
                change.cut(0, None, [0, 1, 2, 4, 5, 6], 3)
            bert(tokens)
        found.append(seen.output(0, 1))
    plain, hidden, cut = found
    assert torch.equal(hidden, cut) and torch.equal(hidden[3], plain[3]) and not torch.equal(hidden, plain)


def test_each_of_several_hidden_tokens_still_sees_itself(bert: Bert) -> None:
    tokens = torch.arange(7)[None]
    with edit(bert) as change, watch(bert, outputs=True, values=True) as seen, torch.no_grad():
        change.hide(0, [3, 5])
        bert(tokens)
    gone = torch.zeros(7, 7, dtype=torch.bool)
    gone[:, [3, 5]] = True
    weights = seen.map(0, 1).masked_fill(gone & ~torch.eye(7, dtype=torch.bool), 0)
    weights /= weights.sum(1, keepdim=True)
    torch.testing.assert_close(seen.output(0, 1), weights @ seen.call(0).v[0, 1])


def test_modules_that_attend_more_than_once_are_taken_to_look_at_one_text_and_a_note_says_so() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = x + self.layer(x, x, x, need_weights=False)[0]
            return self.out(x[:, 0])

    found = effect(Shared().eval(), torch.randn(1, 5, 16), 1, "tokens")
    assert len(found) == 5 and any("attend more than once" in note for note in found.notes)
