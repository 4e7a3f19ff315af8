"""ViT and DeiT checkpoints (`model_type: vit`, `deit`; Dosovitskiy et al. 2020, Touvron et al. 2020).

A DeiT is a ViT with a second class token, which learned from another model; DeiTs without one are published as ViT.

Next: `dinov2.py`, the same patches with other words around them.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any

from clearhead.checkpoints.family import ACTIVATIONS, Family, Field, Json, read_fields, read_labels, write_fields
from clearhead.checkpoints.mapping import Ignored, Rule, Table
from clearhead.errors import CheckpointError
from clearhead.models.vit import DistilledViTForImageClassification, ViT, ViTConfig, ViTForImageClassification

EMBEDDINGS_AND_ATTENTION = Table(
    rules=(
        Rule("embeddings.cls_token", "embeddings.class_token"),
        Rule("embeddings.position_embeddings", "embeddings.positions"),
        Rule("embeddings.patch_embeddings.projection.{p}", "embeddings.patches.{p}"),
        Rule("encoder.layer.{i}.attention.attention.query.{p}", "blocks.{i}.attention.q_proj.{p}"),
        Rule("encoder.layer.{i}.attention.attention.key.{p}", "blocks.{i}.attention.k_proj.{p}"),
        Rule("encoder.layer.{i}.attention.attention.value.{p}", "blocks.{i}.attention.v_proj.{p}"),
        Rule("encoder.layer.{i}.attention.output.dense.{p}", "blocks.{i}.attention.out_proj.{p}"),
        Rule("layernorm.{p}", "norm.{p}"),
    )
)
TRUNK = EMBEDDINGS_AND_ATTENTION + Table(
    rules=(
        Rule("embeddings.distillation_token", "embeddings.distilled_token"),
        Rule("encoder.layer.{i}.layernorm_before.{p}", "blocks.{i}.attention_norm.before.{p}"),
        Rule("encoder.layer.{i}.layernorm_after.{p}", "blocks.{i}.feed_forward_norm.before.{p}"),
        Rule("encoder.layer.{i}.intermediate.dense.{p}", "blocks.{i}.feed_forward.up_proj.{p}"),
        Rule("encoder.layer.{i}.output.dense.{p}", "blocks.{i}.feed_forward.down_proj.{p}"),
    )
)
POOLER = Table(rules=(Rule("pooler.dense.{p}", "pooler.{p}"),))
UNUSED_POOLER = Table(ignored=(Ignored("pooler.dense.{p}", "a classifier reads the class token itself"),))
CLASSIFIER = Table(rules=(Rule("classifier.{p}", "classifier.{p}"),))
TWO_CLASSIFIERS = Table(
    rules=(
        Rule("cls_classifier.{p}", "classifier.{p}"),
        Rule("distillation_classifier.{p}", "distilled_classifier.{p}"),
    )
)

SIZES = (
    Field("hidden_size", "d_model", 768),
    Field("num_attention_heads", "n_heads", 12),
    Field("num_hidden_layers", "n_layers", 12),
    Field("num_channels", "n_channels", 3),
    Field("hidden_act", "activation", "gelu", ACTIVATIONS),
    Field("qkv_bias", "qkv_bias", True),
    Field("attention_probs_dropout_prob", "attention_dropout", 0.0),
)
IMAGE = Field("image_size", "image_size", [224, 224])
FIELDS = (
    *SIZES,
    Field("patch_size", "patch_size", 16),
    Field("intermediate_size", "d_ff", 3_072),
    Field("layer_norm_eps", "norm_eps", 1e-12),
    Field("hidden_dropout_prob", "dropout", 0.0),
)
POOLED = Field("pooler_output_size", "pooled", None, optional=int)
SETTLED = {"pooler_act": ("tanh",)}
HARMLESS = frozenset({"encoder_stride"})  # of the head that paints masked patches


def in_sides(config: Json) -> Json:
    """Return `config` with image_size a height and a width, and patch_size one number; each is published as either."""
    image, patch = config.get("image_size"), config.get("patch_size")
    image = [image, image] if isinstance(image, int) else image
    if isinstance(image, list) and (
        len(image) != 2 or any(type(side) is not int or not 0 < side < 2**16 for side in image)
    ):
        raise CheckpointError(f"image_size: expected one whole number or two, height and width, got {image!r}")
    if isinstance(patch, list):
        if len(patch) != 2 or patch[0] != patch[1] or type(patch[0]) is not int:
            raise CheckpointError(f"patch_size: expected a whole number, the side of a square, got {patch!r}")
        patch = patch[0]
    return {**config, "image_size": image, "patch_size": patch}


def image_size(config: ViTConfig) -> int | list[int]:
    """Return the height and width of pictures, as one number where it is one."""
    height, width = config.image_size
    return height if height == width else [height, width]


def read_config(config: Json, architecture: str, names: Collection[str], *, distilled: bool) -> ViTConfig:
    """Return the config of a published ViT or DeiT; a trunk comes with a pooler or without."""
    values = read_fields(in_sides(config), (*FIELDS, IMAGE, POOLED), settled=SETTLED, harmless=HARMLESS)
    pooled = values.pop("pooled")
    if pooled not in (None, values["d_model"]):
        raise CheckpointError(f"pooler_output_size {pooled} is not hidden_size {values['d_model']}: here it always is")
    values["image_size"] = tuple(values["image_size"])
    labels = read_labels(config, architecture.removesuffix("WithTeacher"))
    # a classifier may be published with a pooler that it never uses
    pooler = "pooler.dense.weight" in names and architecture.endswith("Model")
    return ViTConfig(**values, distilled_token=distilled, pooler=pooler, labels=labels)


def write_config(config: ViTConfig) -> dict[str, Any]:
    """Return `config` in the words of ViT and DeiT."""
    return {**write_fields(config, FIELDS), "image_size": image_size(config)}


def plain(config: ViTConfig) -> ViTConfig:
    """Return `config` without stochastic depth, which acts in training only and has no words here."""
    return replace(config, stochastic_depth=0.0)


VIT = Family(
    model_type="vit",
    prefix="vit.",
    architectures={"ViTModel": ViT, "ViTForImageClassification": ViTForImageClassification},
    tables={
        ViT: TRUNK + POOLER,
        ViTForImageClassification: (TRUNK + UNUSED_POOLER).under("vit.", "vit.") + CLASSIFIER,
    },
    read_config=partial(read_config, distilled=False),
    write_config=write_config,
    plain=plain,
    respelled=("pooler_output_size",),
)
DEIT = Family(
    model_type="deit",
    prefix="deit.",
    architectures={
        "DeiTModel": ViT,
        "DeiTForImageClassification": ViTForImageClassification,
        "DeiTForImageClassificationWithTeacher": DistilledViTForImageClassification,
    },
    tables={
        ViT: TRUNK + POOLER,
        ViTForImageClassification: (TRUNK + UNUSED_POOLER).under("deit.", "vit.") + CLASSIFIER,
        DistilledViTForImageClassification: (TRUNK + UNUSED_POOLER).under("deit.", "vit.") + TWO_CLASSIFIERS,
    },
    read_config=partial(read_config, distilled=True),
    write_config=write_config,
    plain=plain,
    respelled=("pooler_output_size",),
)
