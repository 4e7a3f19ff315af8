"""Llama checkpoints (`model_type: llama`; Touvron et al. 2023), which Mistral (Jiang et al. 2023) follows name by name.

SmolLM, TinyLlama and many others are published as a llama.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.decoders import RESPELLED, plain, read_decoder, take_rotary, write_decoder
from clearhead.checkpoints.family import ACTIVATIONS, Family, Field, Json, with_defaults
from clearhead.checkpoints.mapping import Alias, Ignored, Rule, Table
from clearhead.errors import CheckpointError
from clearhead.models.gpt import GPT, GPTConfig, GPTForCausalLM

BLOCK = Table(
    rules=(
        Rule("embed_tokens.weight", "words.weight"),
        Rule("layers.{i}.self_attn.q_proj.{p}", "blocks.{i}.attention.q_proj.{p}"),
        Rule("layers.{i}.self_attn.k_proj.{p}", "blocks.{i}.attention.k_proj.{p}"),
        Rule("layers.{i}.self_attn.v_proj.{p}", "blocks.{i}.attention.v_proj.{p}"),
        Rule("layers.{i}.self_attn.o_proj.{p}", "blocks.{i}.attention.out_proj.{p}"),
        Rule("layers.{i}.mlp.gate_proj.{p}", "blocks.{i}.feed_forward.gate_proj.{p}"),
        Rule("layers.{i}.mlp.up_proj.{p}", "blocks.{i}.feed_forward.up_proj.{p}"),
        Rule("layers.{i}.mlp.down_proj.{p}", "blocks.{i}.feed_forward.down_proj.{p}"),
        Rule("norm.weight", "norm.weight"),
    ),
    ignored=(Ignored("layers.{i}.self_attn.rotary_emb.inv_freq", "the frequencies, computed here"),),
)
TRUNK = BLOCK + Table(
    rules=(
        Rule("layers.{i}.input_layernorm.weight", "blocks.{i}.attention_norm.weight"),
        Rule("layers.{i}.post_attention_layernorm.weight", "blocks.{i}.feed_forward_norm.weight"),
    )
)
HEAD = Table(
    rules=(Rule("lm_head.weight", "head.weight"),), aliases=(Alias("lm_head.weight", "model.embed_tokens.weight"),)
)

FIELDS = (
    Field("vocab_size", "vocab_size", 32_000),
    Field("hidden_size", "d_model", 4_096),
    Field("num_attention_heads", "n_heads", 32),
    Field("num_key_value_heads", "n_kv_heads", None, optional=int),
    Field("head_dim", "d_head", None, optional=int),
    Field("num_hidden_layers", "n_layers", 32),
    Field("intermediate_size", "d_ff", 11_008),
    Field("max_position_embeddings", "max_len", 2_048),
    Field("rms_norm_eps", "norm_eps", 1e-6),
    Field("hidden_act", "activation", "silu", ACTIVATIONS),
    Field("attention_dropout", "attention_dropout", 0.0),
    Field("tie_word_embeddings", "tied", False),
)
BIASES = (Field("attention_bias", "attention_bias", False), Field("mlp_bias", "mlp_bias", False))


def tables(trunk: Table) -> dict[Any, Table]:
    """Return the tables of a trunk alone and under the head that guesses words."""
    return {GPT: trunk, GPTForCausalLM: trunk.under("model.", "gpt.") + HEAD}


MISTRAL_FIELDS = (
    *with_defaults(FIELDS, n_kv_heads=8, d_ff=14_336, max_len=131_072),
    Field("sliding_window", "window", 4_096, optional=int),
)


def read_llama(config: Json, architecture: str, names: Collection[str]) -> GPTConfig:
    """Return the config of a published Llama."""
    values = read_decoder(config, FIELDS + BIASES)
    attention, feed_forward = values.pop("attention_bias"), values.pop("mlp_bias")
    if feed_forward and not attention:
        raise CheckpointError("mlp_bias without attention_bias is not built here: biases everywhere, or in attention")
    values["biases"] = "all" if feed_forward else "attention" if attention else "none"
    return GPTConfig(rotary=take_rotary(values), **values)


def write_llama(config: GPTConfig) -> dict[str, Any]:
    """Return `config` in Llama's words."""
    biases = {"attention_bias": config.biases in ("all", "attention"), "mlp_bias": config.biases == "all"}
    return {**write_decoder(config, FIELDS), **biases}


def read_mistral(config: Json, architecture: str, names: Collection[str]) -> GPTConfig:
    """Return the config of a published Mistral: every layer sees a window, unless sliding_window is null."""
    values = read_decoder(config, MISTRAL_FIELDS)
    return GPTConfig(rotary=take_rotary(values), windows=(values.pop("window"),), **values)


def write_mistral(config: GPTConfig) -> dict[str, Any]:
    """Return `config` in Mistral's words."""
    return {**write_decoder(config, FIELDS), "sliding_window": config.windows[0]}


LLAMA = Family(
    model_type="llama",
    prefix="model.",
    architectures={"LlamaModel": GPT, "LlamaForCausalLM": GPTForCausalLM},
    tables=tables(TRUNK),
    read_config=read_llama,
    write_config=write_llama,
    plain=plain,
    respelled=RESPELLED,
)
MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architectures={"MistralModel": GPT, "MistralForCausalLM": GPTForCausalLM},
    read_config=read_mistral,
    write_config=write_mistral,
)
