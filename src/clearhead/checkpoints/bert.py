"""BERT checkpoints (`model_type: bert`), as transformers and the original publish them.

`ENCODER` and `POOLER` are used by RoBERTa as well. Files from 2018 call a norm's weight gamma and its bias beta.
"""

from collections.abc import Collection
from typing import Any

from clearhead.checkpoints.family import (
    ACTIVATIONS,
    Family,
    Field,
    Json,
    read_fields,
    read_labels,
    require_tied_words,
    write_fields,
)
from clearhead.checkpoints.mapping import Alias, Ignored, Rule, Table
from clearhead.errors import CheckpointError
from clearhead.models.bert import (
    Bert,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)


def norm_aliases(norm: str) -> tuple[Alias, Alias]:
    """Return the names that `norm` had in 2018."""
    return Alias(f"{norm}.gamma", f"{norm}.weight"), Alias(f"{norm}.beta", f"{norm}.bias")


ENCODER = Table(
    rules=(
        Rule("embeddings.word_embeddings.weight", "embeddings.words.weight"),
        Rule("embeddings.position_embeddings.weight", "embeddings.positions.weight"),
        Rule("embeddings.token_type_embeddings.weight", "embeddings.segments.weight"),
        Rule("embeddings.LayerNorm.{p}", "embeddings.norm.{p}"),
        Rule("encoder.layer.{i}.attention.self.query.{p}", "blocks.{i}.attention.q_proj.{p}"),
        Rule("encoder.layer.{i}.attention.self.key.{p}", "blocks.{i}.attention.k_proj.{p}"),
        Rule("encoder.layer.{i}.attention.self.value.{p}", "blocks.{i}.attention.v_proj.{p}"),
        Rule("encoder.layer.{i}.attention.output.dense.{p}", "blocks.{i}.attention.out_proj.{p}"),
        Rule("encoder.layer.{i}.attention.output.LayerNorm.{p}", "blocks.{i}.attention_norm.{p}"),
        Rule("encoder.layer.{i}.intermediate.dense.{p}", "blocks.{i}.feed_forward.up_proj.{p}"),
        Rule("encoder.layer.{i}.output.dense.{p}", "blocks.{i}.feed_forward.down_proj.{p}"),
        Rule("encoder.layer.{i}.output.LayerNorm.{p}", "blocks.{i}.feed_forward_norm.{p}"),
    ),
    aliases=(
        *norm_aliases("embeddings.LayerNorm"),
        *norm_aliases("encoder.layer.{i}.attention.output.LayerNorm"),
        *norm_aliases("encoder.layer.{i}.output.LayerNorm"),
    ),
    ignored=(Ignored("embeddings.position_ids", "0, 1, 2, ...: counted here, not stored"),),
)
POOLER = Table(rules=(Rule("pooler.dense.{p}", "pooler.{p}"),))
BODY = (ENCODER + POOLER).under("bert.", "bert.")
CLASSIFIER = Table(rules=(Rule("classifier.{p}", "classifier.{p}"),))
MASKED_LM = Table(
    rules=(
        Rule("cls.predictions.transform.dense.{p}", "dense.{p}"),
        Rule("cls.predictions.transform.LayerNorm.{p}", "norm.{p}"),
        Rule("cls.predictions.bias", "bias"),
    ),
    aliases=(
        *norm_aliases("cls.predictions.transform.LayerNorm"),
        Alias("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        Alias("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    ignored=(Ignored("cls.seq_relationship.{p}", "the head of next-sentence prediction, BERT's other first task"),),
)

FIELDS = (
    Field("vocab_size", "vocab_size", 30_522),
    Field("hidden_size", "d_model", 768),
    Field("num_attention_heads", "n_heads", 12),
    Field("num_hidden_layers", "n_layers", 12),
    Field("intermediate_size", "d_ff", 3_072),
    Field("max_position_embeddings", "max_len", 512),
    Field("type_vocab_size", "n_segments", 2),
    Field("pad_token_id", "pad_id", 0),
    Field("hidden_act", "activation", "gelu", ACTIVATIONS),
    Field("layer_norm_eps", "norm_eps", 1e-12),
    Field("hidden_dropout_prob", "dropout", 0.1),
    Field("attention_probs_dropout_prob", "attention_dropout", 0.1),
    Field("classifier_dropout", "classifier_dropout", 0.1),
)

SETTLED = {"position_embedding_type": ("absolute",)}
HARMLESS = frozenset(
    """
    directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type
    tie_word_embeddings
    """.split()
)


def read_values(config: Json, architecture: str, fields: tuple[Field, ...]) -> dict[str, Any]:
    """Return what BERT and RoBERTa say in the same words."""
    values = read_fields(config, fields, settled=SETTLED, harmless=HARMLESS)
    if config.get("classifier_dropout") is None:
        values["classifier_dropout"] = values["dropout"]
    if values["n_segments"] == 0:
        raise CheckpointError("type_vocab_size is 0: this family always adds a segment; DistilBERT has none")
    if architecture.endswith("ForMaskedLM"):
        require_tied_words(config)
    return {**values, "labels": read_labels(config, architecture)}


def pooler(architecture: str, names: Collection[str], prefix: str) -> str | None:
    """Return how a BERT or a RoBERTa pools: text classifiers always do, others where the file has what for."""
    there = any(f"{under}pooler.dense.weight" in names for under in ("", prefix))
    return "tanh" if there or architecture.endswith("ForSequenceClassification") else None


def read_config(config: Json, architecture: str, names: Collection[str]) -> BertConfig:
    """Return the config of a published BERT; token classifiers and language models come without a pooler."""
    return BertConfig(**read_values(config, architecture, FIELDS), pooler=pooler(architecture, names, "bert."))


def write_config(config: BertConfig) -> dict[str, Any]:
    """Return `config` in BERT's words."""
    return write_fields(config, FIELDS)


BERT = Family(
    model_type="bert",
    prefix="bert.",
    architectures={
        "BertModel": Bert,
        "BertForMaskedLM": BertForMaskedLM,
        "BertForPreTraining": BertForMaskedLM,
        "BertForSequenceClassification": BertForSequenceClassification,
        "BertForTokenClassification": BertForTokenClassification,
    },
    tables={
        Bert: ENCODER + POOLER,
        BertForMaskedLM: BODY + MASKED_LM,
        BertForSequenceClassification: BODY + CLASSIFIER,
        BertForTokenClassification: BODY + CLASSIFIER,
    },
    read_config=read_config,
    write_config=write_config,
    pooler="tanh",
)
