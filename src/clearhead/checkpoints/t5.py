"""T5 checkpoints (Raffel et al. 2019), version 1.1 and Flan-T5: relative positions, no biases, scores not scaled.

T5 ties the output words to the input words and shrinks what goes into them; version 1.1 does neither. Until
transformers 4, `tie_word_embeddings: false` says both; since 5, `scale_decoder_outputs` says whether it shrinks, and
whether the words are tied is seen from the tensors alone.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.bart import HALVES, spelled_out, two_stacks
from clearhead.checkpoints.family import ACTIVATIONS, Family, Field, Json, read_fields, write_fields
from clearhead.checkpoints.mapping import Alias, Ignored, Rule, Table
from clearhead.errors import CheckpointError, nearest
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def half(name: str, layer: str, thinking: int) -> Table:
    """Return the tensors of a half, whose sublayers are numbered: `thinking` is the feed-forward's number."""
    theirs, ours = f"{name}.block.{layer}.layer", f"{name}.blocks.{layer}"
    attentions = [(0, "SelfAttention", "attention"), (1, "EncDecAttention", "cross_attention")][:thinking]
    parts = {f"{n}.{them}.{p}": f"{us}.{q}" for n, them, us in attentions for p, q in PROJECTIONS.items()}
    parts |= {f"{n}.layer_norm": f"{us}_norm" for n, _, us in attentions}
    think = f"{thinking}.DenseReluDense"
    parts |= {
        f"{think}.wi_0": "feed_forward.gate_proj",
        f"{think}.wo": "feed_forward.down_proj",
        f"{thinking}.layer_norm": "feed_forward_norm",
    }
    rules = [Rule(f"{theirs}.{them}.weight", f"{ours}.{us}.weight") for them, us in parts.items()]
    rules += [
        Rule(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{name}.order.weight"),
        Rule(f"{name}.final_layer_norm.weight", f"{name}.norm.weight"),
    ]
    return Table(tuple(rules), aliases=(Alias(f"{name}.embed_tokens.weight", "shared.weight"),))


def table(config: EncoderDecoderConfig) -> Table:
    """Return all tensors; what widens is `wi_1` beside a gate and `wi` without one."""
    wide = "wi_1" if config.feed_forward == "gated" else "wi"
    ups = tuple(
        Rule(
            f"{name}.block.{i}.layer.{n}.DenseReluDense.{wide}.weight", f"{name}.blocks.{i}.feed_forward.up_proj.weight"
        )
        for (name, i), n in zip(HALVES, (1, 2), strict=True)
    )
    words = Table(
        (Rule("shared.weight", "words.weight"), Rule("lm_head.weight", "head.weight"), *ups),
        aliases=(Alias("lm_head.weight", "shared.weight"),),
        ignored=(
            Ignored(
                "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
                "distances between two texts, which the first T5 had weights for and did not use",
            ),
        ),
    )
    return half("encoder", "{i}", 1) + half("decoder", "{j}", 2) + words


FIELDS = (
    Field("vocab_size", "vocab_size", 32_128),
    Field("d_model", "d_model", 512),
    Field("d_kv", "d_head", 64),
    Field("d_ff", "d_ff", 2_048),
    Field("num_layers", "n_encoder_layers", 6),
    Field("num_decoder_layers", "n_decoder_layers", None, optional=int),
    Field("num_heads", "n_heads", 8),
    Field("relative_attention_num_buckets", "n_buckets", 32),
    Field("relative_attention_max_distance", "max_distance", 128),
    Field("dropout_rate", "dropout", 0.1),
    Field("layer_norm_epsilon", "norm_eps", 1e-6),
    Field("pad_token_id", "pad_id", 0),
    Field("eos_token_id", "end_id", 1),
    Field("decoder_start_token_id", "start_id", None, optional=int),
)
OTHERS = (
    Field("feed_forward_proj", "feed_forward", "relu"),
    Field("dense_act_fn", "activation", None, optional=str),
    Field("is_gated_act", "gated", None, optional=bool),
    Field("tie_word_embeddings", "tied", True),
    Field("scale_decoder_outputs", "shrinks", None, optional=bool),
)
SETTLED: dict[str, tuple[Any, ...]] = {"is_encoder_decoder": (True,)}
HARMLESS = frozenset({"classifier_dropout", "initializer_factor", "n_positions"})
GATED = "gated-"
BENDS = {"gelu": "gelu_python", "gelu_tanh": "gelu_new", "relu_squared": "relu2"}  # "gated-gelu" says the second


def read_config(config: Json, architecture: str, names: Collection[str]) -> EncoderDecoderConfig:
    """Return the config of a published T5."""
    values = read_fields(config, FIELDS + OTHERS, settled=SETTLED, harmless=HARMLESS)
    for name, other in (("n_decoder_layers", "n_encoder_layers"), ("start_id", "pad_id")):
        values[name] = values[other] if values[name] is None else values[name]
    said = values["feed_forward"]
    gated, bend = values.pop("gated"), values["activation"] or said.removeprefix(GATED)
    if said == "gated-gelu" and values["activation"] is None:
        bend = "gelu_new"  # what version 1.1 was trained with
    if bend not in ACTIVATIONS:
        raise CheckpointError(f"feed_forward_proj {said!r}: {bend!r} is unknown{nearest(bend, list(ACTIVATIONS))}")
    values["activation"] = ACTIVATIONS[bend]
    values["feed_forward"] = "gated" if (said.startswith(GATED) if gated is None else gated) else "plain"
    tied, shrinks = values.pop("tied"), values.pop("shrinks")
    shrinks = tied if shrinks is None else shrinks
    values["tied"] = shrinks or "lm_head.weight" not in names
    values["logit_scale"] = values["d_model"] ** -0.5 if shrinks and values["d_model"] else 1.0
    parts: dict[str, Any] = {"positions": "relative", "norm": "rms", "norms": "before", "biases": "none"}
    return EncoderDecoderConfig(**values, **parts, scale=1.0, embedding_scale=1.0)


def write_config(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Return `config` in T5's words, those of transformers 4 and 5."""
    bend = BENDS.get(config.activation, config.activation)
    shrinks = config.logit_scale != 1.0
    return {
        **write_fields(config, FIELDS),
        "feed_forward_proj": (GATED if config.feed_forward == "gated" else "") + bend,
        "tie_word_embeddings": config.tied,
        "is_encoder_decoder": True,
        **({} if shrinks == config.tied else {"scale_decoder_outputs": shrinks}),
    }


def plain(config: EncoderDecoderConfig) -> EncoderDecoderConfig:
    """Return `config` spelled out, and without the lengths that relative positions do not have."""
    return replace(spelled_out(config), max_source_len=1_024, max_target_len=1_024)


T5 = Family(
    model_type="t5",
    architectures={"T5ForConditionalGeneration": EncoderDecoder},
    tables={EncoderDecoder: table},
    read_config=read_config,
    write_config=write_config,
    n_layers=two_stacks,
    plain=plain,
    respelled=("dense_act_fn", "is_gated_act", "scale_decoder_outputs"),
)
