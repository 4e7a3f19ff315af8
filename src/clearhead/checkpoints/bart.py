"""BART and Marian checkpoints (Lewis et al. 2019; Junczys-Dowmunt et al. 2018), and what encoder-decoders share.

`{i}` counts the encoder's layers, `{j}` the decoder's. The published bart-base is the trunk alone, without `model.`
and without a bias of the logits; its output words are its input words all the same. Marian's positions are sinusoids,
which some files hold as a tensor.

Next: `whisper.py`, the same layers behind two convolutions; `t5.py`, other words.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.family import ACTIVATIONS, Family, Field, Json, read_fields, with_defaults, write_fields
from clearhead.checkpoints.mapping import Alias, Ignored, Op, Rule, Table
from clearhead.errors import CheckpointError
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

HALVES = (("encoder", "{i}"), ("decoder", "{j}"))
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
PARTS = {
    **{f"self_attn.{name}": f"attention.{name}" for name in PROJECTIONS},
    "self_attn_layer_norm": "attention_norm",
    **{f"encoder_attn.{name}": f"cross_attention.{name}" for name in PROJECTIONS},
    "encoder_attn_layer_norm": "cross_attention_norm",
    "fc1": "feed_forward.up_proj",
    "fc2": "feed_forward.down_proj",
    "final_layer_norm": "feed_forward_norm",
}
LAYERS = Table(
    tuple(
        Rule(f"{half}.layers.{layer}.{theirs}.{{p}}", f"{half}.blocks.{layer}.{ours}.{{p}}")
        for half, layer in HALVES
        for theirs, ours in PARTS.items()
    )
)
TRUNK = LAYERS + Table(
    rules=(
        Rule("shared.weight", "words.weight"),
        *(Rule(f"{half}.embed_positions.weight", f"{half}.positions.weight") for half, _ in HALVES),
        *(Rule(f"{half}.layernorm_embedding.{{p}}", f"{half}.embedding_norm.{{p}}") for half, _ in HALVES),
    ),
    aliases=tuple(Alias(f"{half}.embed_tokens.weight", "shared.weight") for half, _ in HALVES),
)
WITHOUT_PREFIX = Table(
    aliases=tuple(Alias(name, f"model.{name}") for name in [rule.theirs for rule in TRUNK.rules])
    + tuple(Alias(alias.theirs, f"model.{alias.same_as}") for alias in TRUNK.aliases)
)
LOGITS = Table(
    rules=(Rule("final_logits_bias", "logit_bias", Op(lambda theirs: (theirs[0],), lambda ours: ours[0][None])),),
    aliases=(Alias("lm_head.weight", "model.shared.weight"),),
)
SINUSOIDS = Table(
    ignored=tuple(Ignored(f"model.{half}.embed_positions.weight", "sinusoids, computed here") for half, _ in HALVES)
)


FIELDS = (  # Whisper has them too
    Field("vocab_size", "vocab_size", 50_265),
    Field("d_model", "d_model", 1_024),
    Field("encoder_layers", "n_encoder_layers", 12),
    Field("decoder_layers", "n_decoder_layers", 12),
    Field("encoder_attention_heads", "n_heads", 16),
    Field("encoder_ffn_dim", "d_ff", 4_096),
    Field("activation_function", "activation", "gelu", ACTIVATIONS),
    Field("dropout", "dropout", 0.1),
    Field("attention_dropout", "attention_dropout", 0.0),
    Field("pad_token_id", "pad_id", 1),
    Field("decoder_start_token_id", "start_id", 2),
    Field("eos_token_id", "end_id", 2),
)
MARIAN_FIELDS = with_defaults(FIELDS, vocab_size=58_101, pad_id=58_100, start_id=58_100, end_id=0)
OTHERS = (Field("max_position_embeddings", "max_len", 1_024), Field("scale_embedding", "scaled", False))
SETTLED: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (True,),
    "tie_word_embeddings": (True,),
    "normalize_before": (False,),
    "add_final_layer_norm": (False,),
    "add_bias_logits": (False,),
}
MARIAN_SETTLED: dict[str, tuple[Any, ...]] = {
    "share_encoder_decoder_embeddings": (True,),
    "normalize_embedding": (False,),
    "static_position_embeddings": (True,),
}
HARMLESS = frozenset(
    """
    activation_dropout classif_dropout classifier_dropout decoder_layerdrop encoder_layerdrop extra_pos_embeddings
    force_bos_token_to_be_generated init_std num_hidden_layers save_step
    """.split()
)


def read_alike(
    config: Json,
    rows: tuple[Field, ...],
    settled: Mapping[str, tuple[Any, ...]] = {},
    harmless: Collection[str] = (),
) -> dict[str, Any]:
    """Return what a config says whose two halves are alike but for the number of layers; here they have to be."""
    alike = [row for row in rows if row.ours in ("n_heads", "d_ff")]
    twins = [replace(row, theirs=row.theirs.replace("encoder", "decoder"), ours=row.theirs) for row in alike]
    values = read_fields(config, (*rows, *twins), settled={**SETTLED, **settled}, harmless=HARMLESS.union(harmless))
    for row, twin in zip(alike, twins, strict=True):
        if (said := values.pop(twin.ours)) != values[row.ours]:
            raise CheckpointError(
                f"{twin.theirs} {said} is not {row.theirs} {values[row.ours]}: here they are one number"
            )
    return values


def read_lengths(config: Json, rows: tuple[Field, ...], settled: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Return the same of a config that has one greatest length and may scale its embeddings by sqrt(d_model)."""
    values = read_alike(config, (*rows, *OTHERS), settled)
    values["max_source_len"] = values["max_target_len"] = values.pop("max_len")
    values["embedding_scale"] = None if values.pop("scaled") else 1.0
    return values


def read_bart(config: Json, architecture: str, names: Collection[str]) -> EncoderDecoderConfig:
    """Return the config of a published BART."""
    values = read_lengths(config, FIELDS, {"normalize_embedding": (True,)})
    logit_bias = "final_logits_bias" in names
    return EncoderDecoderConfig(
        **values, positions="learned", first_position=2, embedding_norm=True, logit_bias=logit_bias
    )


def read_marian(config: Json, architecture: str, names: Collection[str]) -> EncoderDecoderConfig:
    """Return the config of a published Marian."""
    words = config.get("vocab_size") or MARIAN_FIELDS[0].default
    values = read_lengths(config, MARIAN_FIELDS, {**MARIAN_SETTLED, "decoder_vocab_size": (words,)})
    return EncoderDecoderConfig(**values, logit_bias="final_logits_bias" in names)


def write_alike(config: EncoderDecoderConfig, rows: tuple[Field, ...]) -> dict[str, Any]:
    """Return what `read_alike` reads."""
    twins = {"decoder_attention_heads": config.n_heads, "decoder_ffn_dim": config.d_ff}
    return {**write_fields(config, rows), **twins, "is_encoder_decoder": True}


def write_lengths(config: EncoderDecoderConfig, rows: tuple[Field, ...]) -> dict[str, Any]:
    """Return what `read_lengths` reads."""
    others = {"max_position_embeddings": config.max_source_len, "scale_embedding": config.embedding_scale != 1.0}
    return {**write_alike(config, rows), **others}


def write_bart(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Return `config` in BART's words."""
    return write_lengths(config, FIELDS)


def write_marian(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Return `config` in Marian's words."""
    return {**write_lengths(config, MARIAN_FIELDS), "decoder_vocab_size": config.vocab_size}


def two_stacks(config: EncoderDecoderConfig) -> tuple[int, ...]:
    """Return how many layers `{i}` and `{j}` stand for."""
    return config.n_encoder_layers, config.n_decoder_layers


def spelled_out(config: EncoderDecoderConfig) -> EncoderDecoderConfig:
    """Return `config` with nothing left to its defaults."""
    d_head = config.d_head or config.d_model // config.n_heads
    return replace(
        config,
        d_head=d_head,
        scale=d_head**-0.5 if config.scale is None else config.scale,
        embedding_scale=config.d_model**0.5 if config.embedding_scale is None else config.embedding_scale,
        attention_dropout=config.dropout if config.attention_dropout is None else config.attention_dropout,
    )


BART = Family(
    model_type="bart",
    architectures={"BartForConditionalGeneration": EncoderDecoder, "BartModel": EncoderDecoder},
    tables={EncoderDecoder: TRUNK.under("model.", "") + WITHOUT_PREFIX + LOGITS},
    read_config=read_bart,
    write_config=write_bart,
    n_layers=two_stacks,
    plain=spelled_out,
)
MARIAN = replace(
    BART,
    model_type="marian",
    architectures={"MarianMTModel": EncoderDecoder},
    tables={EncoderDecoder: TRUNK.under("model.", "") + LOGITS + SINUSOIDS},
    read_config=read_marian,
    write_config=write_marian,
)
