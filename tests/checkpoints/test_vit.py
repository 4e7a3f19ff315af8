"""The families of pictures: configs as they were published, models built by hand, and every refusal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clearhead.checkpoints import FAMILIES, PICTURES, load, origin, save
from clearhead.checkpoints.dinov2 import width
from clearhead.checkpoints.family import HARMLESS
from clearhead.checkpoints.timm import TIMM
from clearhead.errors import CheckpointError
from clearhead.models.vit import DistilledViTForImageClassification, ViTConfig, ViTForImageClassification
from published import LABELS, VISION_ARCHITECTURES, edit, make_vision, seen_by
from published import reopen_decoder as reopen

# config.json as published, but for keys that every config has and that change nothing, and for all but two labels.
BASE = {
    "attention_probs_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 768,
    "image_size": 224,
    "initializer_range": 0.02,
    "num_attention_heads": 12,
    "num_channels": 3,
    "num_hidden_layers": 12,
    "patch_size": 16,
}
LABELLED = {"id2label": {"0": "tench", "1": "goldfish"}, "label2id": {"tench": 0, "goldfish": 1}}
DINO = {
    **BASE,
    "drop_path_rate": 0.0,
    "layer_norm_eps": 1e-06,
    "layerscale_value": 1.0,
    "mlp_ratio": 4,
    "patch_size": 14,
    "image_size": 518,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
}
STAGES = {
    "apply_layernorm": True,
    "out_features": ["stage12"],
    "out_indices": [12],
    "reshape_hidden_states": True,
    "stage_names": ["stem", *(f"stage{i}" for i in range(1, 13))],
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "vit-base-patch16-224": {
        **BASE,
        **LABELLED,
        "architectures": ["ViTForImageClassification"],
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "model_type": "vit",
        "qkv_bias": True,
    },
    "dino-vits16": {
        **BASE,
        "architectures": ["ViTModel"],
        "hidden_size": 384,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
        "model_type": "vit",
        "num_attention_heads": 6,
    },
    "deit-base-distilled-patch16-224": {
        **BASE,
        **LABELLED,
        "architectures": ["DeiTForImageClassificationWithTeacher"],
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-12,
        "model_type": "deit",
    },
    "dinov2-base": {**DINO, "architectures": ["Dinov2Model"], "model_type": "dinov2"},
    "dinov2-giant-imagenet1k-1-layer": {
        **DINO,
        **LABELLED,
        **STAGES,
        "architectures": ["Dinov2ForImageClassification"],
        "hidden_size": 1536,
        "model_type": "dinov2",
        "num_attention_heads": 24,
        "num_hidden_layers": 40,
        "use_swiglu_ffn": True,
    },
    "dinov2-with-registers-base": {
        **DINO,
        **STAGES,
        "architectures": ["Dinov2WithRegistersModel"],
        "model_type": "dinov2_with_registers",
        "num_register_tokens": 4,
    },
}
FACTS: dict[str, dict[str, Any]] = {
    "vit-base-patch16-224": {"grid": (14, 14), "labels": ("tench", "goldfish"), "norm_eps": 1e-12, "pool": "class"},
    "dino-vits16": {"d_ff": 1_536, "labels": (), "pooler": False, "qkv_bias": True},
    "deit-base-distilled-patch16-224": {"distilled_token": True, "n_placed": 2, "labels": ("tench", "goldfish")},
    "dinov2-base": {"grid": (37, 37), "d_ff": 3_072, "layer_scale": 1.0, "mask_token": True, "pool": "class"},
    "dinov2-giant-imagenet1k-1-layer": {"d_ff": 4_096, "feed_forward": "gated", "pool": "class_and_mean"},
    "dinov2-with-registers-base": {"n_registers": 4, "antialias": True, "n_placed": 1},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_written_again(name: str) -> None:
    published = PUBLISHED[name]
    family, architecture = FAMILIES[published["model_type"]], published["architectures"][0]
    config = family.read_config(published, architecture, ())
    assert {key: getattr(config, key) for key in FACTS[name]} == FACTS[name]
    written = {"model_type": family.model_type, **family.write_config(config)}
    assert family.read_config(written, architecture, ()) == config


def test_sizes_are_published_as_one_number_or_as_two(tmp_path: Path) -> None:
    make_vision("ViTForImageClassification").save_pretrained(tmp_path)
    config = load(tmp_path).config
    edit(tmp_path, image_size=[32, 32], patch_size=[8, 8])
    assert load(tmp_path).config == config and config.image_size == (32, 32)


def test_pictures_need_not_be_square(tmp_path: Path) -> None:
    theirs = make_vision("ViTForImageClassification", image_size=[16, 40])
    theirs.save_pretrained(tmp_path)
    ours, pixels = load(tmp_path), torch.randn(2, 3, 16, 40)
    assert ours.config.image_size == (16, 40)
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), theirs(pixel_values=pixels).logits, rtol=0, atol=1e-5)
    save(ours, tmp_path / "new")
    ours.config = replace(ours.config, attention_dropout=0.5)
    save(ours, tmp_path / "new")
    assert load(tmp_path / "new").config == ours.config


@pytest.mark.parametrize("d_model, ratio, d_ff", [(1_536, 4.0, 4_096), (32, 4.0, 88), (32, 3.0, 64)])
def test_a_gated_feed_forward_is_two_thirds_as_wide(d_model: int, ratio: float, d_ff: int) -> None:
    assert width(d_model, ratio, gated=True) == d_ff
    assert width(d_model, ratio, gated=False) == d_model * ratio


def test_a_pooler_may_be_there_or_not(tmp_path: Path) -> None:
    make_vision("ViTModel").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert load(tmp_path).config.pooler
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("pooler.")}
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(tmp_path)
    assert model.pooler is None and not model.config.pooler
    save(model, tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == without.keys()


def test_a_pooler_left_over_in_a_classifier_is_ignored(tmp_path: Path) -> None:
    theirs = make_vision("ViTForImageClassification")
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {"vit.pooler.dense.weight": torch.randn(32, 32), "vit.pooler.dense.bias": torch.randn(32)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path)(pixels), seen_by(theirs, pixels), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- saving what was built by hand

BY_HAND = ViTConfig(image_size=(32, 32), patch_size=8, d_model=32, n_heads=4, n_layers=2, d_ff=37, labels=LABELS)
DINOV2 = replace(BY_HAND, d_ff=128, layer_scale=0.5, mask_token=True, pool="class_and_mean")
KINDS: dict[str, tuple[type[nn.Module], ViTConfig]] = {
    "vit": (ViTForImageClassification, replace(BY_HAND, qkv_bias=False, stochastic_depth=0.1)),
    "deit": (DistilledViTForImageClassification, replace(BY_HAND, distilled_token=True, dropout=0.1)),
    "dinov2": (
        ViTForImageClassification,
        replace(DINOV2, feed_forward="gated", activation="silu", d_ff=88, mask_token=False, stochastic_depth=0.1),
    ),
    "dinov2_with_registers": (ViTForImageClassification, replace(DINOV2, n_registers=2, antialias=True, dropout=0.1)),
}


@pytest.mark.parametrize("family", KINDS)
def test_what_is_built_by_hand_opens_in_transformers_and_here(family: str, tmp_path: Path) -> None:
    head, config = KINDS[family]
    ours = head(config).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save(ours, tmp_path)  # in the first family that has words for it
    again, plain = load(tmp_path), FAMILIES[family].plain
    came_from = origin(again)
    assert came_from is not None and came_from.family == family
    assert plain(again.config) == plain(config)
    name = next(name for name, known in FAMILIES[family].architectures.items() if known is head)
    theirs, pixels = reopen(tmp_path, name), torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), seen_by(theirs, pixels), rtol=0, atol=1e-5)
        assert torch.equal(again(pixels), ours(pixels))


@pytest.mark.parametrize(
    "kind, change, family, said",
    [
        ("vit", {"pool": "mean"}, "vit", "pool 'mean' would be read as 'class'"),
        ("vit", {"positions": "sincos"}, "vit", "positions 'sincos' would be read as 'learned'"),
        ("vit", {"antialias": True}, "vit", "antialias True would be read as False"),
        ("vit", {"n_registers": 2}, "vit", "no place for 'vit.embeddings.registers'"),
        ("vit", {"layer_scale": 1.0}, "vit", "no place for 'vit.blocks.0.attention_norm.after.0.weight'"),
        ("vit", {"pooler": True}, "vit", "no place for 'vit.pooler.bias'"),
        ("vit", {"norm_before_pool": False}, "vit", "no place for 'norm.bias'"),
        ("dinov2", {"pool": "class"}, "dinov2", "pool 'class' would be read as 'class_and_mean'"),
        ("dinov2", {"d_ff": 90}, "dinov2", "d_ff 90 would be read as 88"),
        ("dinov2", {"activation": "gelu"}, "dinov2", "activation 'gelu' would be read as 'silu'"),
        ("dinov2", {"layer_scale": None}, "dinov2", "layer_scale None would be read as 1.0"),
        ("dinov2_with_registers", {"antialias": False}, "dinov2_with_registers", "antialias False would be read as"),
        ("dinov2", {"pool": "mean", "class_token": False}, None, "no family has words for this model"),
    ],
    ids=str,
)
def test_a_family_that_cannot_describe_a_model_says_so(
    kind: str, change: dict[str, Any], family: str | None, said: str, tmp_path: Path
) -> None:
    head, config = KINDS[kind]
    with pytest.raises(CheckpointError) as caught:
        save(head(replace(config, **change)), tmp_path / "new", family=family)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "architecture, keys, said",
    [
        ("ViTForImageClassification", {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' is unknown"),
        ("ViTForImageClassification", {"num_attention_heads": 5}, "d_model 32 does not divide into 5 heads"),
        ("ViTForImageClassification", {"image_size": 36}, "image_size (36, 36) is not made of patches of 8"),
        ("ViTForImageClassification", {"image_size": 64}, "config.json: the two do not belong together"),
        ("ViTForImageClassification", {"image_size": [32]}, "image_size: expected one whole number or two"),
        ("ViTForImageClassification", {"patch_size": [8, 4]}, "patch_size: expected a whole number, the side of a squ"),
        ("ViTForImageClassification", {"pooler_output_size": 16}, "pooler_output_size 16 is not hidden_size 32"),
        ("ViTForImageClassification", {"pooler_act": "relu"}, "pooler_act is 'relu'"),
        ("ViTForImageClassification", {"layerscale_value": 1.0}, "unknown key 'layerscale_value' (1.0)"),
        ("ViTForImageClassification", {"problem_type": "regression"}, "problem_type is 'regression'"),
        ("ViTModel", {"architectures": ["ViTForMaskedImageModeling"]}, "expected one of ViTModel, ViTForImageCl"),
        ("DeiTModel", {"model_type": "beit"}, "no family here for model_type 'beit'"),
        ("DeiTForImageClassificationWithTeacher", {"qkv_bias": False}, "unexpected 'deit.encoder.layer.0.attention"),
        ("Dinov2Model", {"hidden_dropout_prob": 0.1}, "hidden_dropout_prob is 0.1"),
        ("Dinov2Model", {"use_mask_token": False}, "unexpected 'embeddings.mask_token'"),
        ("Dinov2Model", {"num_register_tokens": 4}, "unknown key 'num_register_tokens' (4)"),
        ("Dinov2Model", {"mlp_ratio": 0}, "expected positive numbers, got d_ff 0"),
        ("Dinov2Model", {"use_swiglu_ffn": True}, "holds other tensors than config.json describes"),
        ("Dinov2WithRegistersModel", {"num_register_tokens": 3}, "config.json: the two do not belong together"),
    ],
    ids=str,
)
def test_a_config_of_another_model_is_refused(
    architecture: str, keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    make_vision(architecture).save_pretrained(tmp_path)
    edit(tmp_path, **keys)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


STRANGE = (None, True, 0, -1, 1.5, 2**31 - 1, 10**30, 1e30, "", "x", [], [None], [None] * 2, [8, 8], {}, {"0": None})


@pytest.mark.parametrize(
    "architecture",
    ["ViTModel", "DeiTForImageClassification", "Dinov2ForImageClassification", "Dinov2WithRegistersModel"],
)
def test_no_value_of_any_key_escapes_the_checks(architecture: str, tmp_path: Path) -> None:
    make_vision(architecture).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in [key for key in config if key not in HARMLESS]:
        for value in STRANGE:
            (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
            try:
                load(tmp_path)
            except CheckpointError as error:
                assert str(tmp_path) in str(error)


def test_every_family_of_pictures_is_listed_and_tested() -> None:
    of_transformers = [family for family in PICTURES if family is not TIMM]  # whose tests are tests/parity/test_timm.py
    assert set(KINDS) == {family.model_type for family in of_transformers}
    assert set(VISION_ARCHITECTURES) == {name for family in of_transformers for name in family.architectures}
