"""RoBERTa checkpoints (`model_type: roberta` and `xlm-roberta`; Liu et al. 2019): BERT's tensors under another roof.

What differs: positions start at row `pad_id + 1`, the text classifier brings its own pooler, and the language model
always bends with gelu.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.bert import CLASSIFIER, ENCODER, FIELDS, POOLER, pooler, read_values
from clearhead.checkpoints.family import Family, Json, with_defaults, write_fields
from clearhead.checkpoints.mapping import Alias, Ignored, Rule, Table
from clearhead.errors import CheckpointError
from clearhead.models.bert import (
    Bert,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)

BODY = (ENCODER + POOLER).under("roberta.", "bert.")
MASKED_LM = Table(
    rules=(
        Rule("lm_head.dense.{p}", "dense.{p}"),
        Rule("lm_head.layer_norm.{p}", "norm.{p}"),
        Rule("lm_head.bias", "bias"),
    ),
    aliases=(
        Alias("lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        Alias("lm_head.decoder.bias", "lm_head.bias"),
    ),
)
TEXT_CLASSIFIER = Table(
    rules=(
        Rule("classifier.dense.{p}", "bert.pooler.{p}"),
        Rule("classifier.out_proj.{p}", "classifier.{p}"),
    ),
    ignored=(Ignored("roberta.pooler.dense.{p}", "left over from pretraining: the classifier has its own"),),
)

ROBERTA_FIELDS = with_defaults(FIELDS, vocab_size=50_265, pad_id=1)


def read_config(config: Json, architecture: str, names: Collection[str]) -> BertConfig:
    """Return the config of a published RoBERTa; of its `max_position_embeddings` rows, pad_id + 1 are no positions."""
    values = read_values(config, architecture, ROBERTA_FIELDS)
    if architecture.endswith("ForMaskedLM") and values["activation"] != "gelu":
        raise CheckpointError(f"hidden_act {config['hidden_act']!r}: a RoBERTa language model's head always uses gelu")
    first = values["pad_id"] + 1
    values |= {"first_position": first, "max_len": values["max_len"] - first}
    return BertConfig(**values, pooler=pooler(architecture, names, "roberta."))


def write_config(config: BertConfig) -> dict[str, Any]:
    """Return `config` in RoBERTa's words."""
    written = write_fields(config, ROBERTA_FIELDS)
    return {**written, "max_position_embeddings": config.max_len + config.first_position}


ROBERTA = Family(
    model_type="roberta",
    prefix="roberta.",
    architectures={
        "RobertaModel": Bert,
        "RobertaForMaskedLM": BertForMaskedLM,
        "RobertaForSequenceClassification": BertForSequenceClassification,
        "RobertaForTokenClassification": BertForTokenClassification,
    },
    tables={
        Bert: ENCODER + POOLER,
        BertForMaskedLM: BODY + MASKED_LM,
        BertForSequenceClassification: ENCODER.under("roberta.", "bert.") + TEXT_CLASSIFIER,
        BertForTokenClassification: BODY + CLASSIFIER,
    },
    read_config=read_config,
    write_config=write_config,
    pooler="tanh",
)
XLM_ROBERTA = replace(  # the same for a hundred languages (Conneau et al. 2019)
    ROBERTA,
    model_type="xlm-roberta",
    architectures={f"XLM{name}": model for name, model in ROBERTA.architectures.items()},
)
