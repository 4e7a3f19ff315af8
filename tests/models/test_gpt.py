"""Facts about models/gpt.py that need no other implementation; parity/test_decoders.py compares with transformers."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from clearhead.attention import CAUSAL, attention_map
from clearhead.errors import ConfigError, ShapeError
from clearhead.models.gpt import GPT, SIZES, GPTConfig, GPTForCausalLM, RotaryConfig
from clearhead.rotary import DynamicNTK, Linear, Llama3, Yarn
from clearhead.seeing import watch

TINY = GPTConfig(vocab_size=50, d_model=16, n_heads=4, n_layers=3, d_ff=24, max_len=40)
ROTARY = replace(TINY, rotary=RotaryConfig(), norm="rms", feed_forward="gated", activation="silu", biases="none")
CONFIGS = {
    "gpt2": TINY,
    "llama": replace(ROTARY, n_kv_heads=2, tied=False),
    "wide heads": replace(ROTARY, n_kv_heads=1, d_head=6),
    "mistral": replace(ROTARY, windows=(3,)),
    "qwen2": replace(ROTARY, biases="qkv", windows=(None, None, 4)),
    "qwen3": replace(ROTARY, normed_queries=True, biases="attention"),
    "gemma2": replace(
        ROTARY, norm="rms_from_one", norms="around", windows=(2, None), score_softcap=1.5, logit_softcap=2.0, scale=0.4
    ),
    "gemma3": replace(
        ROTARY,
        norm="rms_from_one",
        norms="around",
        normed_queries=True,
        windows=(2, 2, None),
        rotary_local=RotaryConfig(base=100.0),
        embedding_scale=4.0,
    ),
    "learned and windows": replace(TINY, windows=(5, 1), activation="relu_squared"),
    "linear": replace(ROTARY, rotary=RotaryConfig(stretch=Linear(factor=3.0))),
    "yarn": replace(ROTARY, rotary=RotaryConfig(stretch=Yarn(factor=4.0, trained_len=8))),
    "llama3": replace(ROTARY, rotary=RotaryConfig(stretch=Llama3(trained_len=16))),
    "dynamic": replace(ROTARY, rotary=RotaryConfig(stretch=DynamicNTK(factor=2.0, trained_len=16))),
}


def build(config: GPTConfig) -> GPTForCausalLM:
    """Return a model whose every parameter matters: fresh norms and biases would hide mistakes."""
    torch.manual_seed(1)
    model = GPTForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def texts(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts that end together, and where each starts."""
    starts = torch.tensor([max(lengths) - length for length in lengths])
    tokens = torch.randint(1, 50, (len(lengths), max(lengths)))
    return tokens.masked_fill(torch.arange(max(lengths)) < starts[:, None], 0), starts


@pytest.mark.parametrize("name", CONFIGS)
def test_every_gpt_can_be_trained_in_bfloat16(name: str) -> None:
    model, (tokens, _) = build(replace(CONFIGS[name], sinks=True)), texts(12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(tokens)
    (scores.float().logsumexp(-1) - scores.float().mean(-1)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- reading from left to right


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_nobody_looks_ahead(config: GPTConfig) -> None:
    model, (tokens, _) = build(config), texts(12)
    changed = tokens.clone()
    changed[0, 7] = 0
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], atol=1e-6, rtol=1e-6)
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


@pytest.mark.parametrize("pieces", [[6, 1, 1, 1, 4, 1], [1, 1, 1, 11]], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_cached_decoding_equals_full_forward(config: GPTConfig, pieces: list[int]) -> None:
    # DynamicNTK here stays within what it was trained on: beyond, older keys are turned by an older base.
    model, (tokens, starts) = build(config), texts(14, 11, 1)
    with torch.inference_mode():
        expected, cache = model(tokens, starts), model.new_cache(3, 14)
        came = torch.cat([model(piece, starts, cache=cache) for piece in tokens.split(pieces, dim=1)], dim=1)
    inside = torch.arange(14) >= starts[:, None]
    torch.testing.assert_close(came[inside], expected[inside], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_on_the_left_changes_nothing(config: GPTConfig) -> None:
    model, (tokens, starts) = build(config), texts(20, 13, 1)
    together = model(tokens, starts)
    for row, start in enumerate(starts.tolist()):
        alone = model(tokens[row : row + 1, start:])
        torch.testing.assert_close(together[row : row + 1, start:], alone, atol=1e-5, rtol=1e-5)


def test_a_layer_with_a_window_sees_only_that() -> None:
    def seen(config: GPTConfig) -> list[int]:
        model, (tokens, _) = build(replace(config, n_layers=1)), texts(12)
        words = model.gpt.words(tokens).detach().requires_grad_()
        model.gpt.words.forward = lambda _: words  # type: ignore[method-assign]
        model(tokens)[0, -1].sum().backward()
        return words.grad[0].abs().sum(-1).nonzero().flatten().tolist()

    assert seen(CONFIGS["mistral"]) == [9, 10, 11]
    assert seen(CONFIGS["llama"]) == list(range(12))
    assert [CONFIGS["gemma3"].window(layer) for layer in range(5)] == [2, 2, None, 2, 2]


def test_layers_without_a_window_turn_by_the_other_base() -> None:
    blocks = build(CONFIGS["gemma3"]).gpt.blocks
    assert [block.attention.order.then.base for block in blocks] == [100.0, 100.0, 10_000.0]


# ---------------------------------------------------------------- the parts


def test_words_are_guessed_by_the_word_embedding_itself_where_tied() -> None:
    tied, untied = build(TINY), build(CONFIGS["llama"])
    assert {name for name, _ in tied.named_parameters()} == {f"gpt.{name}" for name, _ in tied.gpt.named_parameters()}
    assert untied.head is not None and untied.head.weight.shape == (50, 16)
    hidden = torch.randn(2, 16)
    torch.testing.assert_close(tied.logits(hidden), hidden @ tied.gpt.words.weight.T)


def test_softcaps_bound_scores_and_logits() -> None:
    model = build(CONFIGS["gemma2"])
    assert model.logits(1_000 * torch.randn(3, 16)).abs().max() <= 2.0
    assert model.gpt.blocks[0].attention.softcap == 1.5


def test_watching_sees_scores_under_their_softcap() -> None:
    model, (tokens, _) = build(CONFIGS["gemma2"]), texts(9)
    attention, given = model.gpt.blocks[1].attention, []
    attention.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.inference_mode(), watch(model) as seen:
        model(tokens)
        q, (k, _) = attention.queries(given[0]), attention.keys_and_values(given[0])
        q, k = attention.order.turn(q, k, torch.arange(9)[None])
        expected = attention_map(q, k, CAUSAL, scale=0.4, softcap=1.5)
    for head in range(4):
        torch.testing.assert_close(seen.map(1, head), expected[0, head], atol=1e-6, rtol=1e-6)


def test_the_embedding_scale_is_rounded_to_the_weights_dtype() -> None:
    # Gemma's sqrt(3072) = 55.4 is 55.5 in bfloat16, and that is what it was trained with.
    model = GPT(replace(ROTARY, d_model=3_072, n_heads=16, embedding_scale=3_072**0.5, n_layers=1)).bfloat16().eval()
    model.blocks, model.norm = torch.nn.ModuleList(), torch.nn.Identity()
    torch.testing.assert_close(model(torch.tensor([[7]])), model.words.weight[7][None, None] * 55.5, rtol=0, atol=0)


def test_what_is_added_by_each_layer_starts_smaller_the_more_layers_there_are() -> None:
    model = GPT(replace(TINY, d_model=128, d_ff=512, n_layers=8))
    assert model.blocks[3].attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for projection in (model.blocks[3].attention.out_proj, model.blocks[3].feed_forward.down_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_biases_are_where_they_are_asked_for() -> None:
    def biases(config: GPTConfig) -> set[str]:
        names = (name.removesuffix(".bias") for name, _ in GPT(config).blocks[0].named_parameters() if "bias" in name)
        return {name.rpartition(".")[2] for name in names}

    qkv = {"q_proj", "k_proj", "v_proj"}
    assert biases(ROTARY) == set()
    assert biases(replace(ROTARY, biases="qkv")) == qkv
    assert biases(replace(ROTARY, biases="attention")) == qkv | {"out_proj"}
    assert biases(replace(ROTARY, biases="all")) == qkv | {"out_proj", "gate_proj", "up_proj", "down_proj"}


def test_sizes_are_those_of_the_paper() -> None:
    # Radford et al. 2019, table 2, says 117M, 345M, 762M and 1542M; with the embeddings counted it is these.
    with torch.device("meta"):
        counts = [sum(p.numel() for p in GPT(config).parameters()) for config in SIZES.values()]
    assert [round(count / 1e6) for count in counts] == [124, 355, 774, 1_558]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "change, said",
    [
        ({"n_layers": 0}, "expected positive numbers, got n_layers 0"),
        ({"n_kv_heads": 0, "d_head": -1}, "got n_kv_heads 0, d_head -1"),
        ({"scale": 0.0}, "got scale 0.0"),
        ({"logit_softcap": 0.0}, "got logit_softcap 0.0"),
        ({"attention_dropout": 1.0}, "attention_dropout must be in"),
        ({"windows": (4, 0)}, "windows are numbers of keys from 1, or None"),
        ({"windows": ()}, "windows are numbers of keys from 1, or None"),
        ({"activation": "silo"}, "unknown activation 'silo'; did you mean 'silu'"),
        ({"n_heads": 5}, "d_model 16 does not divide into 5 heads"),
        ({"n_kv_heads": 3}, "4 query heads cannot share 3 key/value heads"),
        ({"rotary": RotaryConfig(), "d_head": 5}, "d_head must be even"),
    ],
)
def test_what_cannot_be_built_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GPT(replace(TINY, **change))


def test_a_base_of_one_turns_nothing_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="base must be more than 1"):
        RotaryConfig(base=1.0)


def test_a_text_longer_than_its_learned_positions_is_refused() -> None:
    model, (tokens, _) = build(TINY), texts(41)
    with pytest.raises(ShapeError, match="41 tokens, but this model has 40 learned positions"):
        model(tokens)
    with pytest.raises(ShapeError, match="41 tokens, but this model has 40 learned positions"):
        model.new_cache(1, 41)
    assert build(ROTARY)(tokens).shape == (1, 41, 50)


def test_a_model_reads_as_far_as_its_stretch_reaches() -> None:
    def reach(stretch: Any) -> int | None:
        return replace(ROTARY, max_len=16, rotary=RotaryConfig(stretch=stretch)).context_len

    assert replace(ROTARY, max_len=16, rotary=None).context_len == 16
    assert reach(None) == reach(Linear(factor=4.0)) == 16
    assert reach(Yarn(factor=4.0, trained_len=16)) == reach(Llama3(factor=4.0, trained_len=16)) == 64
    assert reach(Yarn(factor=2.0, trained_len=4)) == 16  # max_len counts the stretch already
    assert reach(DynamicNTK(factor=2.0, trained_len=16)) is None
