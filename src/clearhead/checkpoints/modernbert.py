"""ModernBERT checkpoints (Warner et al. 2024): queries, keys and values in one tensor, gate and values in another."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.decoders import ROPE, STRETCHES, WINDOWS, read_rotary, read_windows, shortest
from clearhead.checkpoints.family import (
    ACTIVATIONS,
    Family,
    Field,
    Json,
    read_fields,
    read_labels,
    read_nested,
    require_tied_words,
    write_fields,
)
from clearhead.checkpoints.mapping import Alias, Rule, Table, stacked
from clearhead.errors import CheckpointError
from clearhead.models.modernbert import (
    ModernBert,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)

QKV = tuple(f"blocks.{{i}}.attention.{name}_proj.{{p}}" for name in "qkv")
GATED = tuple(f"blocks.{{i}}.feed_forward.{name}_proj.{{p}}" for name in ("gate", "up"))
TRUNK = Table(
    rules=(
        Rule("embeddings.tok_embeddings.weight", "words.weight"),
        Rule("embeddings.norm.{p}", "words_norm.{p}"),
        Rule("layers.{i}.attn_norm.{p}", "blocks.{i}.attention_norm.{p}"),
        Rule("layers.{i}.attn.Wqkv.{p}", QKV, stacked(3)),
        Rule("layers.{i}.attn.Wo.{p}", "blocks.{i}.attention.out_proj.{p}"),
        Rule("layers.{i}.mlp_norm.{p}", "blocks.{i}.feed_forward_norm.{p}"),
        Rule("layers.{i}.mlp.Wi.{p}", GATED, stacked(2)),
        Rule("layers.{i}.mlp.Wo.{p}", "blocks.{i}.feed_forward.down_proj.{p}"),
        Rule("final_norm.{p}", "norm.{p}"),
    )
)
HEAD = Table(rules=(Rule("head.dense.{p}", "head.dense.{p}"), Rule("head.norm.{p}", "head.norm.{p}")))
WORDS = Table(
    rules=(Rule("decoder.bias", "bias"),),
    aliases=(Alias("decoder.weight", "model.embeddings.tok_embeddings.weight"),),
)
CLASSIFIER = Table(rules=(Rule("classifier.{p}", "classifier.{p}"),))
BODY = TRUNK.under("model.", "bert.") + HEAD

FIELDS = (
    Field("vocab_size", "vocab_size", 50_368),
    Field("hidden_size", "d_model", 768),
    Field("num_attention_heads", "n_heads", 12),
    Field("num_hidden_layers", "n_layers", 22),
    Field("intermediate_size", "d_ff", 1_152),
    Field("max_position_embeddings", "max_len", 8_192),
    Field("pad_token_id", "pad_id", 50_283, optional=int),
    Field("hidden_activation", "activation", "gelu", ACTIVATIONS),
    Field("norm_eps", "norm_eps", 1e-5),
    Field("norm_bias", "norm_bias", False),
    Field("attention_bias", "attention_bias", False),
    Field("mlp_bias", "feed_forward_bias", False),
    Field("classifier_pooling", "pool", "cls", {"cls": "cls", "mean": "mean"}),
    Field("classifier_bias", "head_bias", False),
    Field("classifier_activation", "head_activation", "gelu", ACTIVATIONS),
    Field("decoder_bias", "word_bias", True),
    Field("mlp_dropout", "dropout", 0.0),
    Field("attention_dropout", "attention_dropout", 0.0),
    Field("classifier_dropout", "classifier_dropout", 0.0),
)
LOCAL = Field("local_attention", "window", 128)  # both sides together
OTHERS = (
    LOCAL,
    Field("layer_types", "kinds", None, optional=list),
    Field("global_attn_every_n_layers", "every", 3),
    Field("global_rope_theta", "global_base", 160_000.0),
    Field("local_rope_theta", "local_base", 10_000.0),
    Field("embedding_dropout", "embedding_dropout", 0.0),
    next(field for field in ROPE if field.theirs == "rope_parameters"),
)
BOTH = (Field("full_attention", "full", {}), Field("sliding_attention", "local", {}))
HARMLESS = frozenset(
    """
    cls_token_id deterministic_flash_attn gradient_checkpointing initializer_cutoff_factor layer_norm_eps
    position_embedding_type reference_compile repad_logits_with_grad sparse_pred_ignore_index sparse_prediction
    tie_word_embeddings
    """.split()
)


def read_config(config: Json, architecture: str, names: Collection[str]) -> ModernBertConfig:
    """Return the config of a published ModernBERT, as transformers 4 or 5 wrote it."""
    values = read_fields(config, FIELDS + OTHERS, harmless=HARMLESS)
    window, kinds, every, global_base, local_base, embedding_dropout, both = (
        values.pop(field.ours) for field in OTHERS
    )
    values["pad_id"] = values["pad_id"] or 0  # null: nothing is padding, and any token can fill a row up
    if architecture.endswith("ForMaskedLM"):
        require_tied_words(config)
    if embedding_dropout != values["dropout"]:
        raise CheckpointError(
            f"embedding_dropout {embedding_dropout} is not mlp_dropout {values['dropout']}: here they are one number"
        )
    if every < 1 or window < 2:
        raise CheckpointError("global_attn_every_n_layers counts from 1 and local_attention from 2")
    n_layers = min(values["n_layers"], 4_096)
    if kinds is None:
        kinds = [WINDOWS[layer % every != 0] for layer in range(n_layers)]
    nested = read_nested(both, BOTH, where="rope_parameters")
    max_len, where = values["max_len"], "rope_parameters of {}"
    return ModernBertConfig(
        **values,
        windows=read_windows(kinds, window // 2, n_layers),
        rotary=read_rotary(nested["full"], global_base, max_len, where.format("full_attention")),
        rotary_local=read_rotary(nested["local"], local_base, max_len, where.format("sliding_attention")),
        labels=read_labels(config, architecture),
    )


def write_config(config: ModernBertConfig) -> dict[str, Any]:
    """Return `config` in ModernBERT's words, those of transformers 4; of several sizes of window, one."""
    windows = [config.window(layer) for layer in range(config.n_layers)]
    size = next((window for window in windows if window is not None), LOCAL.default // 2)
    return {
        **write_fields(config, FIELDS),
        LOCAL.theirs: 2 * size,
        "layer_types": [WINDOWS[window is not None] for window in windows],
        "embedding_dropout": config.dropout,
        "rope_parameters": {
            "full_attention": _write_rotary(config.rotary),
            "sliding_attention": _write_rotary(config.rotary_local),
        },
    }


def plain(config: ModernBertConfig) -> ModernBertConfig:
    """Return `config` with the windows of its layers and no more."""
    return replace(config, windows=shortest(tuple(map(config.window, range(config.n_layers)))))


def _write_rotary(rotary: Any) -> dict[str, Any]:
    kinds = {stretch: (kind, fields) for kind, (stretch, fields) in STRETCHES.items()}
    kind, fields = kinds.get(type(rotary.stretch), ("default", ()))
    return {"rope_type": kind, "rope_theta": rotary.base, **write_fields(rotary.stretch, fields)}


MODERNBERT = Family(
    model_type="modernbert",
    prefix="model.",
    architectures={
        "ModernBertModel": ModernBert,
        "ModernBertForMaskedLM": ModernBertForMaskedLM,
        "ModernBertForSequenceClassification": ModernBertForSequenceClassification,
        "ModernBertForTokenClassification": ModernBertForTokenClassification,
    },
    tables={
        ModernBert: TRUNK,
        ModernBertForMaskedLM: BODY + WORDS,
        ModernBertForSequenceClassification: BODY + CLASSIFIER,
        ModernBertForTokenClassification: BODY + CLASSIFIER,
    },
    read_config=read_config,
    write_config=write_config,
    plain=plain,
    respelled=("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"),
)
