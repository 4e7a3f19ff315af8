"""What the caller of `effect` gives stays as it was, every run gets the same, and a batch holds it for every row."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from clearhead.errors import InputError, WatchError
from clearhead.models.bert import BertConfig, BertForSequenceClassification
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing import edit, effect

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "eos_token_id": None,
}
CACHES: dict[str, Callable[[Any], Any]] = {
    "dynamic": lambda config: transformers.DynamicCache(config=config),
    "static": lambda config: transformers.StaticCache(config, max_cache_len=12),
}


@pytest.fixture
def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()


def read(model: Any, cache: Any, tokens: Tensor) -> None:
    with torch.no_grad():
        model(tokens, past_key_values=cache)


@pytest.mark.parametrize("at_once", [1, 32])
@pytest.mark.parametrize("n_texts", [1, 2])
@pytest.mark.parametrize("cache", list(CACHES))
def test_effects_behind_a_cache_are_those_of_a_fresh_copy_of_it(
    llama: Any, cache: str, n_texts: int, at_once: int
) -> None:
    tokens = torch.randint(0, 50, (n_texts, 7))
    past = CACHES[cache](llama.config)
    read(llama, past, tokens[:, :5])
    found = effect(llama, {"input_ids": tokens[:, 5:], "past_key_values": past}, 7, at_once=at_once)
    assert len(found) == 8 and not found.notes
    assert int(past.get_seq_length()) == 5
    for row in (found[0], found[-1]):
        again = CACHES[cache](llama.config)
        read(llama, again, tokens[:, :5])
        with edit(llama) as change, torch.no_grad():
            change.switch_off(row.layer, row.head)
            logits = llama(tokens[:, 5:], past_key_values=again).logits[:, -1, 7]
        assert row.after == pytest.approx(float(logits.mean()), abs=1e-6)


def test_a_cache_of_the_house_is_copied_like_any_other() -> None:
    model = GPTForCausalLM(GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_len=64)).eval()
    tokens, cache = torch.randint(0, 50, (2, 7)), model.new_cache(2, 12)
    with torch.no_grad():
        model(tokens[:, :5], cache=cache)
    given = {"tokens": tokens[:, 5:], "cache": cache}
    together, alone = (effect(model, given, 7, at_once=n) for n in (32, 1))
    assert cache.length == 5 and not together.notes
    assert together.before == pytest.approx(effect(model, tokens, 7).before, abs=1e-5)
    expected = {(row.layer, row.head): row.after for row in alone}
    assert {(row.layer, row.head): row.after for row in together} == pytest.approx(expected, abs=1e-5)


def test_states_of_an_encoder_are_repeated_with_the_texts() -> None:
    sizes = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = transformers.BartConfig(vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, **sizes)
    model = transformers.BartForConditionalGeneration(config).eval()
    source, target = torch.randint(3, 50, (2, 2, 6))
    with torch.no_grad():
        states = model.model.encoder(source)
    whole = effect(model, {"input_ids": source, "decoder_input_ids": target}, 7)
    given = {"encoder_outputs": states, "decoder_input_ids": target}
    for one in (given, {**given, "encoder_outputs": (states[0],)}):
        found = effect(model, one, 7)
        assert not found.notes and found.before == pytest.approx(whole.before, abs=1e-6)
        expected = {(row.layer - 1, row.head): row.after for row in whole if row.layer}
        assert {(row.layer, row.head): row.after for row in found} == pytest.approx(expected, abs=1e-6)


class Gathers(nn.Module):
    """Reads a dict of tensors in lists, and changes what it is given, as careless models do."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=1, d_ff=32, labels=("bad", "good"))
        self.inner = BertForSequenceClassification(config)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        tokens = batch["parts"].pop()
        tokens += 1
        return {"scores": self.inner(tokens)}


def test_nested_inputs_are_copied_for_each_run_and_batched() -> None:
    model, tokens = Gathers().eval(), torch.randint(0, 49, (2, 5))
    kept = tokens.clone()
    batch = {"parts": [tokens]}
    found = effect(model, [batch], 1)
    assert torch.equal(batch["parts"][0], kept) and not found.notes
    with edit(model) as change, torch.no_grad():
        change.switch_off(found[0].layer, found[0].head)
        after = model({"parts": [kept.clone()]})["scores"][:, 1].mean()
    assert found[0].after == pytest.approx(float(after), abs=1e-6)


class Packed(nn.Module):
    """Has the patches of all pictures in one row, and a grid that says how many belong to each."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        x = torch.stack(patches.split(grid.prod(1).tolist()))
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


def test_inputs_that_cannot_be_repeated_are_run_one_at_a_time_and_a_note_says_why() -> None:
    model = Packed().eval()
    given = {"patches": torch.randn(8, 16), "grid": torch.tensor([[2, 4]])}
    found = effect(model, given, 1)
    assert len(found) == 2 and any("did not take the inputs repeated" in note for note in found.notes)
    assert found.rows == effect(model, given, 1, at_once=1).rows


def test_a_generator_is_refused_before_it_is_used_up() -> None:
    rows = (row for row in torch.zeros(2, 3))
    with pytest.raises(InputError, match="hold a generator, which the first run would use up"):
        effect(Packed().eval(), [torch.zeros(1, 3), rows])
    assert len(list(rows)) == 2


def test_an_open_file_is_refused_by_its_name() -> None:
    with (
        Path(__file__).open() as file,
        pytest.raises(InputError, match=r"inputs\['grid'\] holds something that cannot"),
    ):
        effect(Packed().eval(), {"patches": torch.randn(8, 16), "grid": SimpleNamespace(file=file)})


@pytest.mark.parametrize("draws", [True, False])
def test_a_model_that_answers_differently_each_time_is_refused(draws: bool) -> None:
    class Changes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.runs = Packed(), 0

        def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
            self.runs += 1
            return self.inner(patches, grid) + (torch.randn(1) if draws else self.runs)

    with pytest.raises(WatchError, match="keeps something from run to run"):
        effect(Changes().eval(), {"patches": torch.randn(8, 16), "grid": torch.tensor([[2, 4]])}, 1)
