"""Whisper checkpoints (Radford et al. 2022): BART's layers, norms first, behind two convolutions over sound.

The encoder's sinusoids are kept as weights, so they are learned positions that nobody has trained.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.bart import BART, FIELDS, HALVES, LAYERS, read_alike, write_alike
from clearhead.checkpoints.family import Field, Json, with_defaults
from clearhead.checkpoints.mapping import Alias, Rule, Table
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

TRUNK = LAYERS + Table(
    rules=(
        Rule("decoder.embed_tokens.weight", "words.weight"),
        Rule("encoder.conv1.{p}", "front.first.{p}"),
        Rule("encoder.conv2.{p}", "front.second.{p}"),
        *(Rule(f"{half}.embed_positions.weight", f"{half}.positions.weight") for half, _ in HALVES),
        *(Rule(f"{half}.layer_norm.{{p}}", f"{half}.norm.{{p}}") for half, _ in HALVES),
    )
)
LOGITS = Table(aliases=(Alias("proj_out.weight", "model.decoder.embed_tokens.weight"),))

WHISPER_FIELDS = (
    *with_defaults(
        FIELDS,
        vocab_size=51_865,
        d_model=384,
        n_encoder_layers=4,
        n_decoder_layers=4,
        n_heads=6,
        d_ff=1_536,
        dropout=0.0,
        pad_id=50_256,
        start_id=50_257,
        end_id=50_256,
    ),
    Field("num_mel_bins", "n_mels", 80),
    Field("max_source_positions", "max_source_len", 1_500),
    Field("max_target_positions", "max_target_len", 448),
)
SETTLED: dict[str, tuple[Any, ...]] = {"use_weighted_layer_sum": (False,)}
# How to train, how to generate, and a scale that transformers reads and never uses.
HARMLESS = """
    apply_spec_augment classifier_proj_size forced_decoder_ids mask_feature_length mask_feature_min_masks
    mask_feature_prob mask_time_length mask_time_min_masks mask_time_prob median_filter_width scale_embedding
""".split()


def read_config(config: Json, architecture: str, names: Collection[str]) -> EncoderDecoderConfig:
    """Return the config of a published Whisper."""
    values = read_alike(config, WHISPER_FIELDS, SETTLED, HARMLESS)
    parts: dict[str, Any] = {
        "positions": "learned",
        "norms": "before",
        "biases": "all_but_keys",
        "embedding_scale": 1.0,
    }
    return EncoderDecoderConfig(**values, **parts)


def write_config(config: EncoderDecoderConfig) -> dict[str, Any]:
    """Return `config` in Whisper's words."""
    return write_alike(config, WHISPER_FIELDS)


WHISPER = replace(
    BART,
    model_type="whisper",
    architectures={"WhisperForConditionalGeneration": EncoderDecoder},
    tables={EncoderDecoder: TRUNK.under("model.", "") + LOGITS},
    read_config=read_config,
    write_config=write_config,
)
