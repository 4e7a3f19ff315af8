"""Gemma 2 and 3 text checkpoints (Gemma Team 2024, 2025): norms on both sides, windows in most layers.

What differs from Llama: norm weights are stored less one, a sublayer's output is normalised too, embeddings are
multiplied by the square root of their width, and layers that see a window alternate with layers that see everything.
Gemma 2 bends scores and logits by a softcap; Gemma 3 normalises queries and keys and turns windows by another base.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.decoders import (
    ROPE,
    WINDOWS,
    read_decoder,
    read_rotary,
    read_windows,
    take_rotary,
    write_decoder,
    write_windows,
)
from clearhead.checkpoints.family import ACTIVATIONS, Field, Json, read_nested, with_defaults
from clearhead.checkpoints.llama import BLOCK, FIELDS, LLAMA, tables
from clearhead.checkpoints.mapping import Rule, Table
from clearhead.checkpoints.qwen import QK_NORMS
from clearhead.errors import CheckpointError
from clearhead.models.gpt import GPT, GPTConfig, GPTForCausalLM, RotaryConfig

TRUNK = BLOCK + Table(
    rules=(
        Rule("layers.{i}.input_layernorm.weight", "blocks.{i}.attention_norm.before.weight"),
        Rule("layers.{i}.post_attention_layernorm.weight", "blocks.{i}.attention_norm.after.weight"),
        Rule("layers.{i}.pre_feedforward_layernorm.weight", "blocks.{i}.feed_forward_norm.before.weight"),
        Rule("layers.{i}.post_feedforward_layernorm.weight", "blocks.{i}.feed_forward_norm.after.weight"),
    )
)

GEMMA2_FIELDS = (
    *with_defaults(
        tuple(field for field in FIELDS if field.ours != "activation"),
        vocab_size=256_000,
        d_model=2_304,
        n_heads=8,
        n_kv_heads=4,
        d_head=256,
        n_layers=26,
        d_ff=9_216,
        max_len=8_192,
        tied=True,
    ),
    Field("hidden_activation", "activation", "gelu_tanh", ACTIVATIONS),
    Field("final_logit_softcapping", "logit_softcap", 30.0, optional=float),
)
GEMMA3_FIELDS = with_defaults(GEMMA2_FIELDS, vocab_size=262_208, max_len=131_072, logit_softcap=None)
SCORES = Field("attn_logit_softcapping", "score_softcap", 50.0, optional=float)
OTHERS = (
    Field("attention_bias", "bias", False),
    Field("query_pre_attn_scalar", "query_scale", 256),
    Field("sliding_window", "window", 4_096, optional=int),
    Field("layer_types", "kinds", None, optional=list),
)
PATTERN = Field("sliding_window_pattern", "pattern", 6)  # of so many layers the last sees everything
UNUSED = ("hidden_act", "_sliding_window_pattern")  # beside hidden_activation and layer_types, which count
LOCAL = Field("rope_local_base_freq", "local_base", 10_000.0)
BOTH = (Field("full_attention", "full", {}), Field("sliding_attention", "local", {}))


def finish(values: dict[str, Any], pattern: int, n_tensors: int) -> GPTConfig:
    """Return the config, from what Gemma 2 and 3 say in the same words; there are no more layers than tensors."""
    names = ("kinds", "window", "query_scale", "bias")
    kinds, window, query_scale, bias = (values.pop(name) for name in names)
    n_layers = min(values["n_layers"], n_tensors)
    if query_scale < 1 or pattern < 1:
        raise CheckpointError("query_pre_attn_scalar and sliding_window_pattern: expected whole numbers from 1")
    if kinds is None:
        kinds = [WINDOWS[(layer + 1) % pattern != 0] for layer in range(n_layers)]
    values |= {"norm": "rms_from_one", "norms": "around", "biases": "attention" if bias else "none"}
    values |= {"scale": query_scale**-0.5, "embedding_scale": values["d_model"] ** 0.5}
    return GPTConfig(**values, windows=read_windows(kinds, window, n_layers))


def read_gemma2(config: Json, architecture: str, names: Collection[str]) -> GPTConfig:
    """Return the config of a published Gemma 2: every second layer sees everything."""
    values = read_decoder(config, (*GEMMA2_FIELDS, SCORES, *OTHERS), harmless=UNUSED)
    values["rotary"] = take_rotary(values)
    return finish(values, 2, len(names))


def read_gemma3(config: Json, architecture: str, names: Collection[str]) -> GPTConfig:
    """Return the config of a published Gemma 3: what has a window turns by a base of its own, and unstretched."""
    ours = (*GEMMA3_FIELDS, *OTHERS, PATTERN, LOCAL)
    values = read_decoder(config, ours, settled={SCORES.theirs: (None,)}, harmless=UNUSED)
    base, scaling, parameters = (values.pop(field.ours) for field in ROPE)
    both = read_nested(parameters, BOTH, where="rope_parameters")
    max_len, base = values["max_len"], 1_000_000.0 if base is None else base
    values["rotary"] = read_rotary(both["full"] | scaling, base, max_len, "rope_parameters of full_attention")
    local_base, where = values.pop("local_base"), "rope_parameters of sliding_attention"
    values["rotary_local"] = read_rotary(both["local"], local_base, max_len, where)
    values["normed_queries"] = True
    return finish(values, values.pop("pattern"), len(names))


def write_gemma2(config: GPTConfig) -> dict[str, Any]:
    """Return `config` in Gemma 2's words."""
    assert config.scale is not None  # spelled out
    windows = write_windows(config)
    if windows["sliding_window"] is None:  # transformers wants a size, of windows that no layer has too
        del windows["sliding_window"]
    return {
        **write_decoder(config, (*GEMMA2_FIELDS, SCORES)),
        **windows,
        "attention_bias": config.biases == "attention",
        "query_pre_attn_scalar": round(config.scale**-2),
    }


def write_gemma3(config: GPTConfig) -> dict[str, Any]:
    """Return `config` in Gemma 3's words."""
    written = write_gemma2(config) | {LOCAL.theirs: (config.rotary_local or RotaryConfig()).base}
    return {key: value for key, value in written.items() if key != SCORES.theirs}


GEMMA2 = replace(
    LLAMA,
    model_type="gemma2",
    architectures={"Gemma2Model": GPT, "Gemma2ForCausalLM": GPTForCausalLM},
    tables=tables(TRUNK),
    read_config=read_gemma2,
    write_config=write_gemma2,
)
GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    architectures={"Gemma3TextModel": GPT, "Gemma3ForCausalLM": GPTForCausalLM},
    tables=tables(TRUNK + QK_NORMS),
    read_config=read_gemma3,
    write_config=write_gemma3,
)
