"""DistilBERT checkpoints (`model_type: distilbert`; Sanh et al. 2019): BERT's mathematics under names of its own.

What differs: no segments, and the text classifier's pooler is a relu called pre_classifier.
"""

from collections.abc import Collection
from typing import Any

from clearhead.checkpoints.bert import CLASSIFIER, SETTLED
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
from clearhead.models.bert import (
    Bert,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)

TRUNK = Table(
    rules=(
        Rule("embeddings.word_embeddings.weight", "embeddings.words.weight"),
        Rule("embeddings.position_embeddings.weight", "embeddings.positions.weight"),
        Rule("embeddings.LayerNorm.{p}", "embeddings.norm.{p}"),
        Rule("transformer.layer.{i}.attention.q_lin.{p}", "blocks.{i}.attention.q_proj.{p}"),
        Rule("transformer.layer.{i}.attention.k_lin.{p}", "blocks.{i}.attention.k_proj.{p}"),
        Rule("transformer.layer.{i}.attention.v_lin.{p}", "blocks.{i}.attention.v_proj.{p}"),
        Rule("transformer.layer.{i}.attention.out_lin.{p}", "blocks.{i}.attention.out_proj.{p}"),
        Rule("transformer.layer.{i}.sa_layer_norm.{p}", "blocks.{i}.attention_norm.{p}"),
        Rule("transformer.layer.{i}.ffn.lin1.{p}", "blocks.{i}.feed_forward.up_proj.{p}"),
        Rule("transformer.layer.{i}.ffn.lin2.{p}", "blocks.{i}.feed_forward.down_proj.{p}"),
        Rule("transformer.layer.{i}.output_layer_norm.{p}", "blocks.{i}.feed_forward_norm.{p}"),
    ),
    ignored=(Ignored("embeddings.position_ids", "0, 1, 2, ...: counted here, not stored"),),
)
BODY = TRUNK.under("distilbert.", "bert.")
MASKED_LM = Table(
    rules=(
        Rule("vocab_transform.{p}", "dense.{p}"),
        Rule("vocab_layer_norm.{p}", "norm.{p}"),
        Rule("vocab_projector.bias", "bias"),
    ),
    aliases=(Alias("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),),
)

FIELDS = (
    Field("vocab_size", "vocab_size", 30_522),
    Field("dim", "d_model", 768),
    Field("n_heads", "n_heads", 12),
    Field("n_layers", "n_layers", 6),
    Field("hidden_dim", "d_ff", 3_072),
    Field("max_position_embeddings", "max_len", 512),
    Field("pad_token_id", "pad_id", 0),
    Field("activation", "activation", "gelu", ACTIVATIONS),
    Field("dropout", "dropout", 0.1),
    Field("attention_dropout", "attention_dropout", 0.1),
    Field("seq_classif_dropout", "classifier_dropout", 0.2),
)

HARMLESS = frozenset({"qa_dropout", "sinusoidal_pos_embds", "tie_weights_", "tie_word_embeddings"})


def read_config(config: Json, architecture: str, names: Collection[str]) -> BertConfig:
    """Return the config of a published DistilBERT; its norms add 1e-12, which no key says."""
    if architecture.endswith("ForMaskedLM"):
        require_tied_words(config)
    pooler = "relu" if architecture.endswith("ForSequenceClassification") else None
    labels = read_labels(config, architecture)
    values = read_fields(config, FIELDS, settled=SETTLED, harmless=HARMLESS)
    return BertConfig(**values, n_segments=0, norm_eps=1e-12, pooler=pooler, labels=labels)


def write_config(config: BertConfig) -> dict[str, Any]:
    """Return `config` in DistilBERT's words."""
    return write_fields(config, FIELDS)


DISTILBERT = Family(
    model_type="distilbert",
    prefix="distilbert.",
    architectures={
        "DistilBertModel": Bert,
        "DistilBertForMaskedLM": BertForMaskedLM,
        "DistilBertForSequenceClassification": BertForSequenceClassification,
        "DistilBertForTokenClassification": BertForTokenClassification,
    },
    tables={
        Bert: TRUNK,
        BertForMaskedLM: BODY + MASKED_LM,
        BertForSequenceClassification: BODY
        + Table(rules=(Rule("pre_classifier.{p}", "bert.pooler.{p}"),))
        + CLASSIFIER,
        BertForTokenClassification: BODY + CLASSIFIER,
    },
    read_config=read_config,
    write_config=write_config,
    pooler="relu",
)
