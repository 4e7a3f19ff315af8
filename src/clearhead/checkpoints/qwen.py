"""Qwen2 and Qwen3 checkpoints (Yang et al. 2024, 2025): Llama's names; biases on q, k and v, or normalised q and k.

Their configs can ask for windows from layer `max_window_layers` on; few published ones do.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.decoders import (
    WINDOWS,
    read_decoder,
    read_windows,
    take_rotary,
    write_decoder,
    write_windows,
)
from clearhead.checkpoints.family import Field, Json, with_defaults
from clearhead.checkpoints.llama import FIELDS, LLAMA, TRUNK, tables
from clearhead.checkpoints.mapping import Rule, Table
from clearhead.models.gpt import GPT, GPTConfig, GPTForCausalLM

QK_NORMS = Table(
    rules=(
        Rule("layers.{i}.self_attn.q_norm.weight", "blocks.{i}.attention.order.q_norm.weight"),
        Rule("layers.{i}.self_attn.k_norm.weight", "blocks.{i}.attention.order.k_norm.weight"),
    )
)

QWEN2_FIELDS = (
    *with_defaults(FIELDS, vocab_size=151_936, n_kv_heads=32, d_ff=22_016, max_len=32_768),
    Field("use_sliding_window", "use_window", False),
    Field("sliding_window", "window", 4_096, optional=int),
    Field("max_window_layers", "first_window", 28),
    Field("layer_types", "kinds", None, optional=list),
)
QWEN3_FIELDS = (*with_defaults(QWEN2_FIELDS, d_head=128), Field("attention_bias", "bias", False))


def read_values(config: Json, fields: tuple[Field, ...], n_tensors: int) -> dict[str, Any]:
    """Return what Qwen2 and Qwen3 say in the same words; there are no more layers than tensors."""
    values = read_decoder(config, fields)
    used, window, first, kinds = (values.pop(name) for name in ("use_window", "window", "first_window", "kinds"))
    window, n_layers = window if used else None, min(values["n_layers"], n_tensors)
    if kinds is None:
        kinds = [WINDOWS[window is not None and layer >= first] for layer in range(n_layers)]
    values["rotary"] = take_rotary(values)
    return {**values, "windows": read_windows(kinds, window, n_layers)}


def read_qwen2(config: Json, architecture: str, names: Collection[str]) -> GPTConfig:
    """Return the config of a published Qwen2."""
    return GPTConfig(**read_values(config, QWEN2_FIELDS, len(names)) | {"biases": "qkv"})


def read_qwen3(config: Json, architecture: str, names: Collection[str]) -> GPTConfig:
    """Return the config of a published Qwen3."""
    values = read_values(config, QWEN3_FIELDS, len(names))
    values["biases"] = "attention" if values.pop("bias") else "none"
    return GPTConfig(**values, normed_queries=True)


def write_qwen2(config: GPTConfig) -> dict[str, Any]:
    """Return `config` in Qwen2's words."""
    windows = write_windows(config)
    return {
        **write_decoder(config, FIELDS),
        **windows,
        "use_sliding_window": windows["sliding_window"] is not None,
    }


def write_qwen3(config: GPTConfig) -> dict[str, Any]:
    """Return `config` in Qwen3's words."""
    return {**write_qwen2(config), "attention_bias": config.biases == "attention"}


QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architectures={"Qwen2Model": GPT, "Qwen2ForCausalLM": GPTForCausalLM},
    read_config=read_qwen2,
    write_config=write_qwen2,
)
QWEN3 = replace(
    QWEN2,
    model_type="qwen3",
    architectures={"Qwen3Model": GPT, "Qwen3ForCausalLM": GPTForCausalLM},
    tables=tables(TRUNK + QK_NORMS),
    read_config=read_qwen3,
    write_config=write_qwen3,
)
