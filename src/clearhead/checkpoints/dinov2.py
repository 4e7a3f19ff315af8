"""DINOv2 checkpoints (`model_type: dinov2`, `dinov2_with_registers`; Oquab et al. 2023, Darcet et al. 2023).

The width of the feed-forward is published as a ratio; a gated one takes two thirds of it, in whole eights. The
classifier reads the class token and the mean of the patches side by side. The variant with registers filters when it
resamples positions to fewer patches. transformers drops sublayers equally often
in every layer, here `drop_path_rate` is the last layer's: a difference in training only.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from clearhead.checkpoints.family import Family, Field, Json, read_fields, read_labels, write_fields
from clearhead.checkpoints.mapping import Rule, Table, stacked
from clearhead.checkpoints.vit import CLASSIFIER, EMBEDDINGS_AND_ATTENTION, IMAGE, SIZES, image_size, in_sides
from clearhead.errors import CheckpointError
from clearhead.models.vit import ViT, ViTConfig, ViTForImageClassification

TRUNK = EMBEDDINGS_AND_ATTENTION + Table(
    rules=(
        Rule("embeddings.mask_token", "embeddings.mask_token"),
        Rule("embeddings.register_tokens", "embeddings.registers"),
        Rule("encoder.layer.{i}.norm1.{p}", "blocks.{i}.attention_norm.before.{p}"),
        Rule("encoder.layer.{i}.layer_scale1.lambda1", "blocks.{i}.attention_norm.after.0.weight"),
        Rule("encoder.layer.{i}.norm2.{p}", "blocks.{i}.feed_forward_norm.before.{p}"),
        Rule("encoder.layer.{i}.layer_scale2.lambda1", "blocks.{i}.feed_forward_norm.after.0.weight"),
    )
)
PLAIN = Table(
    rules=(
        Rule("encoder.layer.{i}.mlp.fc1.{p}", "blocks.{i}.feed_forward.up_proj.{p}"),
        Rule("encoder.layer.{i}.mlp.fc2.{p}", "blocks.{i}.feed_forward.down_proj.{p}"),
    )
)
GATE_AND_UP = ("blocks.{i}.feed_forward.gate_proj.{p}", "blocks.{i}.feed_forward.up_proj.{p}")
GATED = Table(
    rules=(
        Rule("encoder.layer.{i}.mlp.weights_in.{p}", GATE_AND_UP, stacked(2)),
        Rule("encoder.layer.{i}.mlp.weights_out.{p}", "blocks.{i}.feed_forward.down_proj.{p}"),
    )
)

FIELDS = (
    *SIZES,
    Field("layer_norm_eps", "norm_eps", 1e-6),
    Field("layerscale_value", "layer_scale", 1.0),
    Field("drop_path_rate", "stochastic_depth", 0.0),
)
OTHERS = (IMAGE, Field("mlp_ratio", "ratio", 4.0), Field("use_swiglu_ffn", "gated", False))
WITHOUT_REGISTERS = (Field("patch_size", "patch_size", 14), Field("use_mask_token", "mask_token", True))
WITH_REGISTERS = (Field("patch_size", "patch_size", 16), Field("num_register_tokens", "n_registers", 4))
SETTLED = {"hidden_dropout_prob": (0.0,)}
HARMLESS = frozenset({"apply_layernorm", "reshape_hidden_states", "out_features", "out_indices", "stage_names"})


def width(d_model: int, ratio: float, *, gated: bool) -> int:
    """Return d_ff, as published: of three matrices instead of two each is a third smaller, rounded up to eights."""
    d_ff = int(d_model * ratio)
    return (int(d_ff * 2 / 3) + 7) // 8 * 8 if gated else d_ff


def read_config(config: Json, architecture: str, names: Collection[str], *, own: tuple[Field, ...]) -> ViTConfig:
    """Return the config of a published DINOv2; `own` are the fields of one of the two variants."""
    values = read_fields(in_sides(config), FIELDS + OTHERS + own, settled=SETTLED, harmless=HARMLESS)
    gated, ratio = values.pop("gated"), values.pop("ratio")
    if ratio > 64:
        raise CheckpointError(f"mlp_ratio: expected how much wider than hidden_size a feed-forward is, got {ratio}")
    values["d_ff"] = width(values["d_model"], ratio, gated=gated)
    values["image_size"] = tuple(values["image_size"])
    if gated:
        values |= {"feed_forward": "gated", "activation": "silu"}  # whatever hidden_act says
    if architecture.endswith("Classification"):
        values |= {"pool": "class_and_mean"}
    if own == WITH_REGISTERS:
        values |= {"antialias": True, "mask_token": True}
    return ViTConfig(**values, labels=read_labels(config, architecture))


def write_config(config: ViTConfig, *, own: tuple[Field, ...]) -> dict[str, Any]:
    """Return `config` in DINOv2's words; a width that no whole ratio gives does not read back, and is refused."""
    gated = config.feed_forward == "gated"
    ratio = max(1, round(config.d_ff / config.d_model * (1.5 if gated else 1)))
    others = {"image_size": image_size(config), "mlp_ratio": ratio, "use_swiglu_ffn": gated}
    return {**write_fields(config, FIELDS + own), **others}


def plain(config: ViTConfig) -> ViTConfig:
    """Return `config` without the dropout of sublayers, which DINOv2 has no words for."""
    return replace(config, dropout=0.0)


def table(config: ViTConfig) -> Table:
    """Return the tensors of a trunk."""
    return TRUNK + (GATED if config.feed_forward == "gated" else PLAIN)


def family(model_type: str, name: str, own: tuple[Field, ...]) -> Family[ViTConfig]:
    """Return one of the two variants."""
    return Family(
        model_type=model_type,
        prefix=f"{model_type}.",
        architectures={f"{name}Model": ViT, f"{name}ForImageClassification": ViTForImageClassification},
        tables={
            ViT: table,
            ViTForImageClassification: lambda config: table(config).under(f"{model_type}.", "vit.") + CLASSIFIER,
        },
        read_config=partial(read_config, own=own),
        write_config=partial(write_config, own=own),
        plain=plain,
        respelled=("stage_names", "out_features", "out_indices"),  # which count the layers
    )


DINOV2 = family("dinov2", "Dinov2", WITHOUT_REGISTERS)
DINOV2_WITH_REGISTERS = family("dinov2_with_registers", "Dinov2WithRegisters", WITH_REGISTERS)
