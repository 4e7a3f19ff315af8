"""The families of decoders: configs as they were published, tensors under their older names, and every refusal."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead.checkpoints import DECODERS, FAMILIES, load, origin, save
from clearhead.checkpoints.decoders import shortest
from clearhead.checkpoints.family import HARMLESS
from clearhead.errors import CheckpointError
from clearhead.generation.packed import fastest
from clearhead.models.gpt import GPT, GPTConfig, GPTForCausalLM, RotaryConfig
from clearhead.rotary import DynamicNTK, Linear, Llama3, Yarn
from published import DECODERS as ARCHITECTURES
from published import TRUNKS, continuations, edit, make_decoder, padded, reopen_decoder

WEIGHTS = "model.safetensors"
ROOM = [str(i) for i in range(100)]  # at least as many tensor names as any of these configs has layers

# config.json as published, but for keys that every config has and that change nothing.
PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.1,
        "summary_activation": None,
        "summary_first_dropout": 0.1,
        "summary_proj_to_labels": True,
        "summary_type": "cls_index",
        "summary_use_proj": True,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "vocab_size": 50257,
    },
    "SmolLM2-135M": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "Llama-3.2-1B": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "Mistral-7B-v0.1": {
        "architectures": ["MistralForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "Qwen2.5-0.5B": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "Qwen3-0.6B": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gemma-2-27b": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 30.0,
        "head_dim": 128,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 32,
        "num_hidden_layers": 46,
        "num_key_value_heads": 16,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 144,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma-3-1b-it": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "cache_implementation": "hybrid",
        "eos_token_id": [1, 106],
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
}
FACTS: dict[str, dict[str, Any]] = {
    "gpt2": vars(GPTConfig()),  # whose defaults it is
    "SmolLM2-135M": {"rotary": RotaryConfig(base=100_000.0), "tied": True, "n_kv_heads": 3, "biases": "none"},
    "Llama-3.2-1B": {"rotary": RotaryConfig(base=500_000.0, stretch=Llama3(factor=32.0)), "d_head": 64},
    "Mistral-7B-v0.1": {"windows": (4_096,), "norm_eps": 1e-5, "tied": False},
    "Qwen2.5-0.5B": {"windows": (None,), "biases": "qkv", "rotary": RotaryConfig(base=1_000_000.0)},
    "Qwen3-0.6B": {"windows": (None,), "normed_queries": True, "d_head": 128},
    "gemma-2-27b": {"windows": (4_096, None), "scale": 144**-0.5, "score_softcap": 50.0, "logit_softcap": 30.0},
    "gemma-3-1b-it": {
        "windows": (512, 512, 512, 512, 512, None),
        "rotary": RotaryConfig(base=1_000_000.0),
        "rotary_local": RotaryConfig(base=10_000.0),
        "embedding_scale": 1_152**0.5,
        "score_softcap": None,
        "logit_softcap": None,
        "tied": True,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_written_again(name: str) -> None:
    published = PUBLISHED[name]
    family, architecture = FAMILIES[published["model_type"]], published["architectures"][0]
    config = family.read_config(published, architecture, ROOM)
    assert {key: getattr(config, key) for key in FACTS[name]} == FACTS[name]
    plain = family.plain(config)
    written = {"model_type": family.model_type, **family.write_config(plain)}
    assert family.plain(family.read_config(written, architecture, ROOM)) == plain


# ---------------------------------------------------------------- tensors


def test_the_published_gpt2_leaves_the_prefix_out_and_keeps_its_triangles(tmp_path: Path) -> None:
    theirs = make_decoder("GPT2LMHeadModel")
    theirs.save_pretrained(tmp_path)
    modern = load(tmp_path).state_dict()
    old = {name.removeprefix("transformer."): tensor for name, tensor in load_file(tmp_path / WEIGHTS).items()}
    for layer in range(3):
        old[f"h.{layer}.attn.bias"] = torch.ones(64, 64).tril()[None, None]
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = old["wte.weight"].clone()
    save_file(old, tmp_path / WEIGHTS)
    legacy = load(tmp_path)
    assert legacy.state_dict().keys() == modern.keys()
    assert all(torch.equal(legacy.state_dict()[name], modern[name]) for name in modern)
    save(legacy, tmp_path / "new")
    reopen_decoder(tmp_path / "new", "GPT2LMHeadModel")


def save_gpt2(folder: Path) -> None:
    """Save a random GPT-2 whose matrices are large enough to stay in the file's map."""
    sizes = {"vocab_size": 300, "d_model": 256, "n_heads": 4, "n_layers": 1, "d_ff": 512, "max_len": 64}
    save(GPTForCausalLM(GPTConfig(**sizes, dropout=0.0, attention_dropout=0.0)), folder, family="gpt2")


def test_gpt2_trains_after_loading(tmp_path: Path) -> None:
    # Fused optimisers reckon silently wrong on views of columns, which is how the file keeps queries, keys and values.
    save_gpt2(tmp_path)
    tokens, after = padded(9)[0], []
    for fused in (False, True):
        model = load(tmp_path).train()
        assert all(parameter.is_contiguous() for parameter in model.parameters())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3, fused=fused)
        model(tokens).logsumexp(-1).sum().backward()
        optimizer.step()
        after.append(torch.nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(after[0], after[1], atol=1e-5, rtol=1e-5)


def test_a_frozen_gpt2_is_the_same_model_and_stays_in_its_file(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "a")
    plain, frozen = load(tmp_path / "a"), load(tmp_path / "a", frozen=True)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert frozen.gpt.blocks[0].attention.k_proj.weight.stride() == (1, 3 * 256)  # columns of what the file holds
    assert frozen.gpt.blocks[0].feed_forward.up_proj.weight.stride() == (1, 512)
    assert all(torch.equal(tensor, frozen.state_dict()[name]) for name, tensor in plain.state_dict().items())
    tokens = padded(9)[0]
    for reader in (frozen, fastest(frozen)[0], copy.deepcopy(frozen).double()):
        torch.testing.assert_close(reader(tokens).float(), plain(tokens).detach(), atol=1e-4, rtol=1e-4)
    save(frozen, tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_a_second_name_of_a_window_is_read_where_it_says_the_same(tmp_path: Path) -> None:
    make_decoder("MistralForCausalLM").save_pretrained(tmp_path)
    window = load(tmp_path).config.windows
    edit(tmp_path, sliding_window_size=5)
    assert load(tmp_path).config.windows == window == (5,)
    edit(tmp_path, sliding_window_size=6)
    with pytest.raises(CheckpointError, match="unknown key 'sliding_window_size'"):
        load(tmp_path)


@pytest.mark.parametrize("architecture", ["LlamaModel", "GPT2Model", "LlamaForCausalLM"])
def test_a_decoder_comes_with_or_without_its_prefix(architecture: str, tmp_path: Path) -> None:
    make_decoder(architecture).save_pretrained(tmp_path)
    expected, prefix = load(tmp_path), "transformer." if architecture == "GPT2Model" else "model."
    tensors = load_file(tmp_path / "model.safetensors")
    if architecture.endswith("Model"):
        tensors = {prefix + name: x for name, x in tensors.items()} | {"lm_head.weight": torch.ones(61, 32)}
    else:
        tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = load(tmp_path).state_dict()
    assert all(torch.equal(found[name], x) for name, x in expected.state_dict().items())


def test_frequencies_that_old_files_hold_are_ignored(tmp_path: Path) -> None:
    make_decoder("LlamaForCausalLM").save_pretrained(tmp_path)
    tensors, without = load_file(tmp_path / WEIGHTS), load(tmp_path)
    for layer in range(4):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    save_file(tensors, tmp_path / WEIGHTS)
    tokens = padded(9)[0]
    assert torch.equal(load(tmp_path).eval()(tokens), without.eval()(tokens))


@pytest.mark.parametrize(
    "architecture, words", [("GPT2LMHeadModel", "transformer.wte"), ("Qwen3ForCausalLM", "model.embed_tokens")]
)
def test_a_tied_matrix_is_one_and_an_untied_one_its_own(architecture: str, words: str, tmp_path: Path) -> None:
    make_decoder(architecture, tie_word_embeddings=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert "lm_head.weight" not in tensors
    save_file({**tensors, "lm_head.weight": tensors[f"{words}.weight"].clone()}, tmp_path / WEIGHTS)
    assert load(tmp_path).head is None
    other = 1.001 * tensors[f"{words}.weight"]
    save_file({**tensors, "lm_head.weight": other}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"'lm_head.weight' should equal '{words}.weight'"):
        load(tmp_path)
    edit(tmp_path, tie_word_embeddings=False)
    untied = load(tmp_path)
    assert torch.equal(untied.head.weight, other)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"missing 'lm_head.weight'"):
        load(tmp_path)


# ---------------------------------------------------------------- saving what was built by hand

BY_HAND = GPTConfig(vocab_size=61, d_model=32, n_heads=4, n_layers=4, d_ff=37, max_len=64)
LLAMA = replace(
    BY_HAND,
    rotary=RotaryConfig(base=500.0, stretch=Yarn(factor=2.0, trained_len=32, gain=0.9)),
    norm="rms",
    norm_eps=1e-6,
    feed_forward="gated",
    activation="silu",
    biases="none",
)
GEMMA = replace(LLAMA, norm="rms_from_one", norms="around", embedding_scale=32**0.5, windows=(5, None))
KINDS: dict[str, GPTConfig] = {
    "gpt2": replace(BY_HAND, activation="relu_squared", scale=1.0, tied=False),
    "llama": replace(LLAMA, biases="attention"),
    "mistral": replace(LLAMA, n_kv_heads=2, windows=(5,), tied=False),
    "qwen2": replace(LLAMA, biases="qkv", windows=(None, None, None, 7)),
    "qwen3": replace(LLAMA, normed_queries=True, d_head=12, windows=(7, None)),
    "gemma2": replace(GEMMA, score_softcap=5.0, scale=24**-0.5),
    "gemma3_text": replace(GEMMA, normed_queries=True, rotary_local=RotaryConfig(base=99.0), n_kv_heads=1),
}


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("head", [GPT, GPTForCausalLM])
def test_what_is_built_by_hand_opens_in_transformers_and_here(family: str, head: type, tmp_path: Path) -> None:
    ours = head(KINDS[family]).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save(ours, tmp_path)  # in the first family that has words for it
    again = load(tmp_path)
    assert origin(again).family == family
    assert FAMILIES[family].plain(again.config) == FAMILIES[family].plain(ours.config)
    name = next(name for name, known in FAMILIES[family].architectures.items() if known is head)
    theirs, (tokens, starts) = reopen_decoder(tmp_path, name), padded(17, 9)
    inside = torch.arange(17) >= starts[:, None]
    with torch.inference_mode():
        mine = ours(tokens, starts)[inside]
        torch.testing.assert_close(mine, continuations(theirs, tokens, starts)[inside], rtol=0, atol=1e-5)
        assert torch.equal(again(tokens, starts)[inside], mine)


@pytest.mark.parametrize(
    "kind, change, family, said",
    [
        ("gpt2", {"norm": "rms"}, "gpt2", "norm 'rms' would be read as 'layer'"),
        ("gpt2", {"windows": (4,)}, "gpt2", "windows (4,) would be read as (None,)"),
        ("gpt2", {"scale": 0.3}, "gpt2", "scale 0.3 would be read as 0.35"),
        ("llama", {"logit_softcap": 5.0}, "llama", "logit_softcap 5.0 would be read as None"),
        ("llama", {"windows": (4, None)}, "llama", "windows (4, None) would be read as (None,)"),
        ("llama", {"embedding_scale": 2.0}, "llama", "embedding_scale 2.0 would be read as 1.0"),
        ("llama", {"rotary": RotaryConfig(stretch=DynamicNTK(factor=2.0, trained_len=9))}, "llama", "trained_len=64"),
        ("mistral", {"windows": (4, None)}, "mistral", "windows (4, None) would be read as (4,)"),
        ("qwen2", {"windows": (4, 5)}, "qwen2", "windows (4, 5) would be read as (4,)"),
        ("qwen3", {"biases": "qkv"}, "qwen3", "biases 'qkv' would be read as 'none'"),
        ("gemma2", {"embedding_scale": 1.0}, "gemma2", "embedding_scale 1.0 would be read as 5.65"),
        ("gemma2", {"scale": 0.3}, "gemma2", "scale 0.3 would be read as"),
        ("gemma3_text", {"score_softcap": 5.0}, "gemma3_text", "score_softcap 5.0 would be read as None"),
        ("llama", {}, "gpt2", "no place for 'gpt.blocks.0.feed_forward.gate_proj.weight'"),
        ("llama", {"logit_softcap": 5.0}, None, "no family has words for this model. this family has no place for"),
    ],
)
def test_a_family_that_cannot_describe_a_model_says_so(
    kind: str, change: dict[str, Any], family: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        save(GPTForCausalLM(replace(KINDS[kind], **change)), tmp_path / "new", family=family)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_windows_of_a_gemma_without_a_base_of_their_own_get_that_of_the_others(tmp_path: Path) -> None:
    config = replace(KINDS["gemma3_text"], rotary=RotaryConfig(base=500.0), rotary_local=None)
    save(GPT(config), tmp_path)
    assert load(tmp_path).config.rotary_local == config.rotary


def test_windows_are_as_short_a_sequence_as_repeats() -> None:
    assert shortest((4, 4, 4)) == (4,)
    assert shortest((4, None, 4, None, 4)) == (4, None)
    assert shortest((None, None, 7)) == (None, None, 7)


# ---------------------------------------------------------------- configs of other models

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GPT2LMHeadModel", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
    ("GPT2LMHeadModel", {"embd_pdrop": 0.2}, "embd_pdrop 0.2 is not resid_pdrop 0.1"),
    ("GPT2LMHeadModel", {"add_cross_attention": True}, "add_cross_attention is True"),
    ("GPT2LMHeadModel", {"activation_function": "quick_gelu"}, "activation_function 'quick_gelu' is unknown"),
    ("GPT2LMHeadModel", {"n_head": 5}, "d_model 32 does not divide into 5 heads"),
    ("GPT2LMHeadModel", {"architectures": ["GPT2DoubleHeadsModel"]}, "expected one of GPT2Model, GPT2LMHeadModel"),
    ("LlamaForCausalLM", {"mlp_bias": True}, "mlp_bias without attention_bias"),
    ("LlamaForCausalLM", {"num_key_value_heads": 3}, "4 query heads cannot share 3 key/value heads"),
    ("LlamaForCausalLM", {"sliding_window": 4}, "unknown key 'sliding_window' (4)"),
    ("LlamaForCausalLM", {"quantization_config": {"bits": 4}}, "unknown key 'quantization_config'"),
    ("LlamaForCausalLM", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ("LlamaForCausalLM", {"rope_interleaved": True}, "rope_interleaved is True"),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope' is not computed here"),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_type": "linear"}}, "Linear: factor must be positive, got 0.0"),
    ("LlamaForCausalLM", {"rope_parameters": {"factor": 2.0}}, "rope_parameters: unknown key 'factor' (2.0)"),
    ("LlamaForCausalLM", {"rope_parameters": {"rope_theta": 1.0}}, "base must be more than 1, got 1.0"),
    ("LlamaForCausalLM", {"rope_parameters": [1]}, "rope_parameters: expected an object, got [1]"),
    ("LlamaForCausalLM", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "say different things"),
    (
        "LlamaForCausalLM",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        "partial_rotary_factor is 0.25",
    ),
    ("MistralForCausalLM", {"sliding_window": 0}, "windows are numbers of keys from 1"),
    ("MistralForCausalLM", {"layer_types": ["full_attention"] * 4}, "unknown key 'layer_types'"),
    ("Qwen2ForCausalLM", {"layer_types": ["full_attention"] * 3}, "for each of 4 layers"),
    ("Qwen2ForCausalLM", {"layer_types": ["sliding_attention"] * 4}, "sliding_window does not say how large"),
    ("Qwen3ForCausalLM", {"layer_types": ["linear_attention"] * 4}, "expected full_attention or sliding_attention"),
    ("Qwen3ForCausalLM", {"use_mrope": True}, "use_mrope is True"),
    ("Gemma2ForCausalLM", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ("Gemma2ForCausalLM", {"query_pre_attn_scalar": 0}, "expected whole numbers from 1"),
    ("Gemma3ForCausalLM", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, which is another model"),
    ("Gemma3ForCausalLM", {"sliding_window_pattern": 0, "layer_types": None}, "expected whole numbers from 1"),
    ("Gemma3ForCausalLM", {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters: unknown key 'rope_theta'"),
]


@pytest.mark.parametrize("architecture, keys, said", REFUSED, ids=str)
def test_a_config_of_another_model_is_refused(
    architecture: str, keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    make_decoder(architecture).save_pretrained(tmp_path)
    edit(tmp_path, **keys)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


STRANGE = (None, True, 0, -1, 1.5, 2**31 - 1, 10**30, 1e400, "", "x", [], [None], {}, {"0": None}, {"a": {}})
ROPES: list[dict[str, Any]] = [
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "beta_fast": 9.0, "mscale": 1.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
]


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_no_value_of_any_key_escapes_the_checks(architecture: str, tmp_path: Path) -> None:
    make_decoder(architecture).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    counts = [key for key in config if key not in HARMLESS]
    changes = [{key: value} for key in (*counts, "rope_theta", "rope_scaling") for value in STRANGE]
    if architecture == "LlamaForCausalLM":
        changes += [{"rope_scaling": {**one, key: value}} for one in ROPES for key in one for value in STRANGE]
    for change in changes:
        changed = {**config, **({"rope_parameters": None} if "rope_scaling" in change else {}), **change}
        (tmp_path / "config.json").write_text(json.dumps(changed).replace("Infinity", "1e400"))
        try:
            load(tmp_path)
        except CheckpointError as error:
            assert str(tmp_path) in str(error)


def test_every_decoder_is_listed_and_tested() -> None:
    tested = {make_decoder(name).config.model_type for name in ARCHITECTURES}
    assert tested == {family.model_type for family in DECODERS} == set(KINDS)
    architectures = {name for family in DECODERS for name in family.architectures}
    assert architectures == {*ARCHITECTURES, *TRUNKS}


@pytest.mark.parametrize(
    "scaling, stretch",
    [
        (None, None),
        ({"type": "linear", "factor": 2}, Linear(factor=2.0)),
        ({"type": "dynamic", "factor": 2.0, "rope_type": "dynamic"}, DynamicNTK(factor=2.0, trained_len=64)),
        ({"rope_type": "yarn", "factor": 4.0}, Yarn(factor=4.0, trained_len=64)),
    ],
    ids=str,
)
def test_rotary_positions_in_the_words_of_transformers_4(scaling: Any, stretch: Any, tmp_path: Path) -> None:
    make_decoder("LlamaForCausalLM").save_pretrained(tmp_path)
    edit(tmp_path, rope_parameters=None, rope_theta=5e5, rope_scaling=scaling)
    assert load(tmp_path).config.rotary == RotaryConfig(base=5e5, stretch=stretch)
