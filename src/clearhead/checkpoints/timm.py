"""timm's Vision Transformers (Wightman 2019): ViT, DeiT, DeiT III and DINOv2 as its hub folders hold them.

A config.json of timm names an `architecture`, which stands for a set of sizes, and says in `model_args` what is
otherwise. Queries, keys and values are one matrix, and what is transformers' `hidden_size` is `embed_dim`.

Next: `vit.py` again, to compare.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from clearhead.checkpoints.family import Family, Field, Json, read_nested, write_fields
from clearhead.checkpoints.mapping import Rule, Table, stacked
from clearhead.errors import CheckpointError, nearest
from clearhead.json_files import OBJECT, TEXT, Kind, check, list_of, shown, whole
from clearhead.models.vit import DistilledViTForImageClassification, ViT, ViTConfig, ViTForImageClassification

QUERIES_KEYS_VALUES = tuple(f"blocks.{{i}}.attention.{name}_proj.{{p}}" for name in "qkv")
TRUNK = Table(
    rules=(
        Rule("cls_token", "embeddings.class_token"),
        Rule("dist_token", "embeddings.distilled_token"),
        Rule("reg_token", "embeddings.registers"),
        Rule("pos_embed", "embeddings.positions"),
        Rule("patch_embed.proj.{p}", "embeddings.patches.{p}"),
        Rule("blocks.{i}.norm1.{p}", "blocks.{i}.attention_norm.before.{p}"),
        Rule("blocks.{i}.attn.qkv.{p}", QUERIES_KEYS_VALUES, stacked(3)),
        Rule("blocks.{i}.attn.proj.{p}", "blocks.{i}.attention.out_proj.{p}"),
        Rule("blocks.{i}.ls1.gamma", "blocks.{i}.attention_norm.after.0.weight"),
        Rule("blocks.{i}.norm2.{p}", "blocks.{i}.feed_forward_norm.before.{p}"),
        Rule("blocks.{i}.mlp.fc1.{p}", "blocks.{i}.feed_forward.up_proj.{p}"),
        Rule("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.feed_forward.down_proj.{p}"),
        Rule("blocks.{i}.ls2.gamma", "blocks.{i}.feed_forward_norm.after.0.weight"),
        Rule("norm.{p}", "norm.{p}"),
    )
)
HEAD = Table(rules=(Rule("fc_norm.{p}", "norm.{p}"), Rule("head.{p}", "classifier.{p}")))
TWO_HEADS = HEAD + Table(rules=(Rule("head_dist.{p}", "distilled_classifier.{p}"),))

# timm 1.0, models/vision_transformer.py and models/deit.py: what an architecture's name stands for.
SIZES = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1_024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1_280, "depth": 32, "num_heads": 16},
}
PLAIN = """
    tiny_patch16_224 tiny_patch16_384 small_patch8_224 small_patch16_224 small_patch16_384 small_patch32_224
    small_patch32_384 base_patch8_224 base_patch16_224 base_patch16_384 base_patch32_224 base_patch32_384
    large_patch14_224 large_patch16_224 large_patch16_384 large_patch32_224 large_patch32_384
    huge_patch14_224
""".split()
DEIT = "tiny_patch16_224 small_patch16_224 base_patch16_224 base_patch16_384".split()
DEIT3 = (
    "small_patch16_224 small_patch16_384 base_patch16_224 base_patch16_384 large_patch16_224 large_patch16_384".split()
)

DINOV2 = "small_patch14 base_patch14 large_patch14".split()


def _sized(name: str, **others: Any) -> dict[str, Any]:
    """Return the arguments behind a name such as base_patch16_224."""
    size, patch = name.split("_")[:2]
    return {**SIZES[size], "patch_size": int(patch.removeprefix("patch")), **others}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    **{f"vit_{name}": _sized(name) for name in PLAIN},
    **{f"deit_{name}": _sized(name) for name in DEIT},
    **{f"deit_{name.replace('_patch', '_distilled_patch')}": _sized(name, distilled=True) for name in DEIT},
    **{f"deit3_{name}": _sized(name, no_embed_class=True, init_values=1e-6) for name in DEIT3},
    "deit3_huge_patch14_224": _sized("huge_patch14", no_embed_class=True, init_values=1e-6),
    **{f"vit_{name}_dinov2": _sized(name, init_values=1e-5) for name in DINOV2},
    **{f"vit_{name}_reg4_dinov2": _sized(name, init_values=1e-5, reg_tokens=4, no_embed_class=True) for name in DINOV2},
}

FIELDS = (
    Field("embed_dim", "d_model", 768),
    Field("depth", "n_layers", 12),
    Field("num_heads", "n_heads", 12),
    Field("patch_size", "patch_size", 16),
    Field("in_chans", "n_channels", 3),
    Field("qkv_bias", "qkv_bias", True),
    Field("init_values", "layer_scale", None, optional=float),
    Field("class_token", "class_token", True),
    Field("reg_tokens", "n_registers", 0),
)
OTHERS = (
    Field("mlp_ratio", "ratio", 4.0),
    Field("global_pool", "pool", "token", {"token": "class", "avg": "mean"}),
    Field("fc_norm", "norm_after", None, optional=bool),
    Field("no_embed_class", "unplaced", False),
    Field("distilled", "distilled_token", False),
    Field("img_size", "image_size", [], optional=list),
    Field("num_classes", "n_classes", 0),
)
# Of these only the value here is computed; the rest acts in training, or on memory, alone.
SETTLED: dict[str, tuple[Any, ...]] = {
    "qk_norm": (False,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "proj_bias": (True,),
    "pos_embed": ("learn",),
    "pre_norm": (False,),
    "final_norm": (True,),
    "pool_include_prefix": (False,),
    "embed_norm_layer": ("",),
    "norm_layer": ("", "layernorm"),
    "act_layer": ("", "gelu"),
    **{key: (True, False) for key in ("dynamic_img_size", "dynamic_img_pad", "fix_init")},
    "weight_init": ("", "skip", "reset", "jax", "jax_nlhb", "moco"),
}
DROPS = "drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate".split()
KEYS = frozenset(
    "architecture num_classes num_features global_pool model_args pretrained_cfg label_names label_descriptions".split()
)
CLASSES = whole(0, 2**20)
TYPES = {
    "architecture": TEXT,
    "num_classes": CLASSES,
    "model_args": OBJECT,
    "pretrained_cfg": OBJECT,
    "label_names": list_of(Kind("a name", lambda value: isinstance(value, str | int))),
}
TRAINED = {"input_size": list_of(whole(1, 2**16))}  # of pretrained_cfg
KINDS: dict[str, type] = {
    "features": ViT,
    "classifier": ViTForImageClassification,
    "distilled classifier": DistilledViTForImageClassification,
}


def kind(published: Json) -> str:
    """Return which of `KINDS` a config.json of timm describes."""
    arguments = _arguments(published)
    if not _n_classes(published):
        return "features"
    return "distilled classifier" if arguments.get("distilled") else "classifier"


def read_config(published: Json, architecture: str, names: Collection[str]) -> ViTConfig:
    """Return the config behind an architecture's name and what `model_args` says otherwise."""
    if unknown := sorted(key for key in published if key not in KEYS):
        raise CheckpointError(f"unknown key {unknown[0]!r}, which may change what the model computes")
    arguments = {key: value for key, value in _arguments(published).items() if key not in DROPS}
    values = read_nested(arguments, FIELDS + OTHERS, where="model_args", settled=SETTLED)
    ratio, norm_after = values.pop("ratio"), values.pop("norm_after")
    values.pop("n_classes")
    if ratio > 64:
        raise CheckpointError(f"mlp_ratio: expected how much wider than embed_dim a feed-forward is, got {ratio}")
    pools = values["pool"] == "mean" if norm_after is None else norm_after
    if values["n_registers"] and not values["unplaced"]:
        raise CheckpointError("reg_tokens without no_embed_class: registers with positions are not computed here")
    n_classes = _n_classes(published)
    labels = published.get("label_names") or [f"LABEL_{i}" for i in range(n_classes)]
    if len(labels) != n_classes:
        raise CheckpointError(f"label_names: expected a list of {n_classes} names, got {shown(labels)}")
    values |= {"class_position": not values.pop("unplaced"), "image_size": _sides(values["image_size"])}
    return ViTConfig(
        **values,
        d_ff=int(values["d_model"] * ratio),
        norm_before_pool=not pools,
        labels=tuple(map(str, labels)),
        antialias=True,  # timm, layers/pos_embed.py, which dynamic_img_size calls for pictures of another size
    )


def write_config(config: ViTConfig) -> dict[str, Any]:
    """Return `config` in timm's words: an architecture of its kind, and every argument spelled out."""
    height, width = config.image_size
    arguments = {
        **write_fields(config, FIELDS),
        "mlp_ratio": config.d_ff / config.d_model,
        "img_size": [height, width],
        "no_embed_class": not config.class_position,
    }
    arguments.pop("id2label", None)
    arguments.pop("label2id", None)
    if not config.distilled_token:
        arguments |= {"global_pool": "avg" if config.pool == "mean" else "token"}
        arguments |= {"fc_norm": not config.norm_before_pool}
    else:
        arguments = {key: value for key, value in arguments.items() if key not in ("reg_tokens", "no_embed_class")}
    return {
        "architecture": "deit_base_distilled_patch16_224" if config.distilled_token else "vit_base_patch16_224",
        "num_classes": len(config.labels),
        **({"label_names": list(config.labels)} if config.labels else {}),
        "model_args": {**arguments, "num_classes": len(config.labels)},
        "pretrained_cfg": {"input_size": [config.n_channels, height, width], "num_classes": len(config.labels)},
    }


def plain(config: ViTConfig) -> ViTConfig:
    """Return `config` without what acts in training only and is no part of the model to timm.

    timm always resamples positions with antialiasing, and only for pictures of another size than the model's.
    """
    initial = None if config.layer_scale is None else 1.0  # what a scale started from is no part of what it is
    config = replace(config, layer_scale=initial, antialias=True)
    return replace(config, dropout=0.0, attention_dropout=0.0, stochastic_depth=0.0)


def _arguments(published: Json) -> dict[str, Any]:
    check(published, TYPES)
    check(published.get("pretrained_cfg") or {}, TRAINED)
    name, said = published.get("architecture"), published.get("model_args") or {}
    if name not in ARCHITECTURES:
        raise CheckpointError(f"architecture {name!r} is unknown{nearest(str(name), sorted(ARCHITECTURES))}")
    trained = published.get("pretrained_cfg") or {}
    sides = (trained.get("input_size") or [3, 224, 224])[-2:]
    return {**ARCHITECTURES[str(name)], "img_size": sides, **said}


def _n_classes(published: Json) -> int:
    count: int = published.get("num_classes", (published.get("model_args") or {}).get("num_classes", 1_000))
    return CLASSES.check("num_classes", count)


def _sides(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or any(type(side) is not int or side < 1 for side in value):
        raise CheckpointError(f"img_size: expected a height and a width, got {value!r}")
    return value[0], value[1]


TIMM = Family(
    model_type="timm",
    architectures=KINDS,
    tables={
        ViT: TRUNK,
        ViTForImageClassification: TRUNK.under("", "vit.") + HEAD,
        DistilledViTForImageClassification: TRUNK.under("", "vit.") + TWO_HEADS,
    },
    read_config=read_config,
    write_config=write_config,
    plain=plain,
    respelled=("global_pool", "num_features", "label_descriptions"),
    names_itself=False,
)
