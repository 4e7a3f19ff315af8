"""A recording answers in the shapes and names of other libraries, and says beforehand what a long one takes."""

import pytest
import torch
import transformers
from torch import Tensor, nn

from clearhead.attention import attention_map
from clearhead.errors import WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.seeing import Recording, estimate, watch

CONFIG = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_len=512)


@pytest.fixture
def bert() -> Bert:
    return Bert(CONFIG).eval()


def seen_of(model: nn.Module, *inputs: Tensor, **options: object) -> Recording:
    with torch.no_grad(), watch(model, **options) as seen:  # type: ignore[arg-type]
        model(*inputs)
    return seen


# ---------------------------------------------------------------- other libraries


def test_dense_tables_are_what_transformers_returns() -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = transformers.GPT2Model(transformers.GPT2Config(vocab_size=60, **sizes)).eval()
    tokens, kept = torch.randint(0, 60, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    kept[1, 6:] = 0
    with torch.no_grad(), watch(model) as seen:
        model(tokens, attention_mask=kept)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(tokens, attention_mask=kept, output_attentions=True).attentions
    tables = seen.to_dense()
    assert isinstance(tables, tuple) and len(tables) == len(expected)
    for have, want in zip(tables, expected, strict=True):
        assert have.shape == want.shape
        assert have[0] == pytest.approx(want[0], abs=1e-6)
        assert have[1, :, :6] == pytest.approx(want[1, :, :6], abs=1e-6)
    one = seen.to_dense(1, batch=1)
    assert isinstance(one, Tensor) and torch.equal(one, tables[1][1:])
    stacked = torch.stack([table.squeeze(0) for table in seen.to_dense(batch=0)])  # what BertViz does with them
    assert stacked.shape == (2, 4, 9, 9)


def test_dense_tables_too_large_are_refused_unless_asked_for_twice(bert: Bert) -> None:
    seen = seen_of(bert, torch.randint(0, 50, (1, 20)))
    with pytest.raises(WatchError, match=r"4,800 weights, 18.8 KiB, more than 4,000: .*overview.*limit=None"):
        seen.to_dense(limit=4000)
    assert len(seen.to_dense(0, limit=4000)) == 1
    assert len(seen.to_dense(limit=None)) == 3
    with pytest.raises(WatchError, match="no text 1"):
        seen.to_dense(batch=1)


def test_activations_have_the_names_of_transformer_lens(bert: Bert) -> None:
    seen = seen_of(bert, torch.randint(0, 50, (2, 9)), torch.tensor([9, 5]), outputs=True)
    cache, call = seen.cache(), seen.call(1)
    assert list(cache)[:3] == [f"blocks.0.attn.hook_{what}" for what in ("pattern", "attn_scores", "z")]
    assert len(cache) == 9
    pattern = cache["blocks.1.attn.hook_pattern"]
    assert torch.equal(pattern, seen.to_dense(1))
    assert torch.equal(pattern, cache["pattern", 1])
    assert cache["attn_scores", 1].softmax(-1) == pytest.approx(pattern, abs=1e-6)
    assert cache["attn_scores", 1][1, :, :, 5:].eq(-torch.inf).all()
    assert cache["z", 1].shape == (2, 9, 4, 8)
    assert torch.equal(cache["z", 1][0, :, 2], seen.output(1, 2))
    assert pattern[0] == pytest.approx(attention_map(call.q[:1], call.k[:1])[0], abs=1e-6)
    assert "blocks.9.attn.hook_pattern" not in cache
    with pytest.raises(KeyError, match="hook_mlp"):
        cache["blocks.0.hook_mlp"]


# ---------------------------------------------------------------- estimates


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": [0, 2], "heads": [1, 3]},
        {"rows": slice(-100, None)},
        {"dtype": torch.bfloat16},
        {"rows": [0, 5], "heads": [2], "dtype": torch.float16},
    ],
)
def test_an_estimate_from_nine_tokens_is_what_three_hundred_take(bert: Bert, options: dict[str, object]) -> None:
    short = seen_of(bert, torch.randint(0, 50, (1, 9)))
    expected = seen_of(bert, torch.randint(0, 50, (2, 300)), **options).nbytes
    rows = 8 * len(range(300)[options["rows"]]) if isinstance(options.get("rows"), slice) else 16  # which rows
    said = estimate(short, 300, 2, **options)  # type: ignore[arg-type]
    assert said.nbytes == expected - (rows if "rows" in options else 0)
    assert said.dense == 2 * len(said.layers) * 4 * 300 * 300 * 4
    assert said.fits


def test_an_estimate_knows_that_a_mask_without_a_rule_grows_with_the_square() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.rand(x.shape[2], x.shape[2], generator=torch.manual_seed(1)) < 0.5
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    model = Masked()
    short, long = seen_of(model, torch.randn(1, 2, 16, 8)), seen_of(model, torch.randn(3, 2, 160, 8))
    assert estimate(short, 160, 3).nbytes == long.nbytes


def test_what_does_not_fit_is_said_with_what_to_ask_for(bert: Bert) -> None:
    said = estimate(seen_of(bert, torch.randint(0, 50, (1, 9))), 10**12)
    assert not said.fits
    assert said.per_token == 3 * (2 * 32 * 4 + 4 * 4)
    assert str(said).startswith("742.1 TiB for 1 x 1,000,000,000,000 tokens in 3 layers, 816 bytes a token; ")
    assert 'It does not fit: ask for fewer layers=, heads= or rows=, a smaller dtype=, or to="disk"' in str(said)
    with pytest.raises(WatchError, match="at least one token"):
        estimate(seen_of(bert, torch.randint(0, 50, (1, 9))), 0)
