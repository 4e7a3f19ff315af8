"""ViT, DeiT, DeiT III and DINOv2 as timm publishes them compute what timm computes, and go round bit for bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clearhead.checkpoints import load, save
from clearhead.checkpoints.timm import ARCHITECTURES
from clearhead.data.images import ImageProcessor
from clearhead.errors import CheckpointError
from clearhead.models.vit import ViT, ViTConfig, ViTForImageClassification

SMALL = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 3}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("vit_tiny_patch16_224", {}),
    ("vit_small_patch8_224", {"in_chans": 1, "mlp_ratio": 2.5}),
    ("vit_base_patch16_224", {"global_pool": "avg"}),
    ("vit_base_patch16_224", {"global_pool": "avg", "fc_norm": False, "class_token": False}),
    ("vit_large_patch16_224", {"qkv_bias": False, "init_values": 1e-5, "img_size": (16, 48)}),
    ("vit_huge_patch14_224", {"img_size": 28, "num_classes": 0}),
    ("vit_base_patch32_224", {"drop_rate": 0.1, "drop_path_rate": 0.1, "dynamic_img_size": True}),
    ("deit_tiny_patch16_224", {}),
    ("deit_small_distilled_patch16_224", {}),
    ("deit_base_distilled_patch16_224", {"num_classes": 0}),
    ("deit3_small_patch16_224", {}),
    ("vit_small_patch14_dinov2", {"img_size": 28}),
    ("vit_base_patch14_reg4_dinov2", {"img_size": 28, "num_classes": 0}),
]


def publish(folder: Path, architecture: str, **settings: Any) -> nn.Module:
    """Save timm's model of that name as its hub folders are, every parameter random, and return it."""
    hub = pytest.importorskip("timm.models._hub")
    import timm

    model = timm.create_model(architecture, **{**SMALL, **settings}).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_scale = ("norm" in name and name.endswith("weight")) or "gamma" in name
            parameter.normal_(mean=1.0 if is_scale else 0.0, std=0.2)
    hub.save_for_hf(model, folder, safe_serialization=True)
    return model


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("sides", [(32, 32), (32, 96), (128, 80)], ids=str)
@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_pictures_of_another_size_get_timms_positions(
    architecture: str, sides: tuple[int, int], tmp_path: Path
) -> None:
    theirs = publish(tmp_path / "old", architecture, img_size=64, dynamic_img_size=True)
    pixels = torch.randn(2, 3, *sides)
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path / "old")(pixels), theirs(pixels), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("architecture, settings", CASES, ids=str)
def test_outputs_equal_timm_and_go_round(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = publish(tmp_path / "old", architecture, **settings), load(tmp_path / "old")
    pixels = torch.randn(2, ours.config.n_channels, *ours.config.image_size)
    with torch.inference_mode():
        expected = theirs.forward_features(pixels) if isinstance(ours, ViT) else theirs(pixels)
        assert expected.std() > 0.1, "numbers too small to tell anything"
        torch.testing.assert_close(ours(pixels), expected, rtol=0, atol=1e-5)
    save(ours, tmp_path / "new")
    for name in ("config.json", "model.safetensors"):
        old, new = ((tmp_path / folder / name).read_bytes() for folder in ("old", "new"))
        assert old == new if name != "config.json" else json.loads(old) == json.loads(new)


@pytest.mark.usefixtures("timm")
def test_what_architectures_stand_for_is_what_timm_builds() -> None:
    import timm

    for architecture, arguments in ARCHITECTURES.items():
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=3)
        shapes = {
            "embed_dim": model.embed_dim,
            "depth": len(model.blocks),
            "num_heads": model.blocks[0].attn.num_heads,
            "patch_size": model.patch_embed.patch_size[0],
            "reg_tokens": model.num_reg_tokens,
            "no_embed_class": model.no_embed_class,
            "distilled": hasattr(model, "dist_token"),
        }
        empty = {"reg_tokens": 0, "no_embed_class": False, "distilled": False}
        said = {**empty, **arguments}
        initial = said.pop("init_values", None)
        assert shapes == said, architecture
        assert (initial is not None) == hasattr(model.blocks[0].ls1, "gamma"), architecture


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("pool", ["class", "mean"])
def test_a_model_built_by_hand_opens_in_timm(pool: Any, tmp_path: Path) -> None:
    import timm

    sizes = {"image_size": (24, 16), "patch_size": 8, "d_model": 32, "n_heads": 4, "n_layers": 2, "d_ff": 48}
    config = ViTConfig(**sizes, pool=pool, norm_before_pool=pool == "class", labels=("cat", "dog"))
    ours = ViTForImageClassification(config).eval()
    save(ours, tmp_path / "model", family="timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    pixels = torch.randn(2, 3, 24, 16)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(pixels), ours(pixels), rtol=0, atol=1e-5)
    assert load(tmp_path / "model").config.labels == ("cat", "dog")


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(
    "architecture, settings",
    [
        ("vit_base_patch16_224", {"qk_norm": True}),
        ("vit_base_patch16_224", {"pre_norm": True}),
        ("vit_base_patch16_224", {"global_pool": "map"}),
        ("vit_base_patch16_224", {"reg_tokens": 2}),  # whose registers have positions
        ("vit_base_patch16_clip_224", {}),
    ],
    ids=str,
)
def test_what_is_not_computed_here_is_refused(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    publish(tmp_path, architecture, **settings)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tmp_path)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("crop_pct", [0.9, 1.0, 0.875])
def test_pictures_are_prepared_as_timm_does(crop_pct: float, tmp_path: Path) -> None:
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    theirs = publish(
        tmp_path, "vit_tiny_patch16_224", pretrained_cfg_overlay={"crop_pct": crop_pct, "input_size": (3, 32, 32)}
    )
    picture = Image.fromarray((torch.rand(60, 45, 3) * 255).byte().numpy())
    expected = create_transform(**resolve_model_data_config(theirs), is_training=False)(picture)
    torch.testing.assert_close(ImageProcessor.load(tmp_path).read(picture), expected, rtol=0, atol=1e-5)


def test_an_architecture_that_is_not_known_gets_the_nearest_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_bass_patch16_224", "num_classes": 3}))
    with pytest.raises(CheckpointError, match="did you mean 'vit_base_patch16_224'"):
        load(tmp_path)


@pytest.mark.usefixtures("timm")
def test_other_labels_leave_the_preparation_as_it_was(tmp_path: Path) -> None:
    overlay = {"crop_pct": 0.875, "mean": (0.1, 0.2, 0.3)}
    publish(tmp_path / "old", "vit_tiny_patch16_224", pretrained_cfg_overlay=overlay)
    model = load(tmp_path / "old")
    assert isinstance(model, ViTForImageClassification)
    other = ViTForImageClassification(replace(model.config, labels=("a", "b")), vit=model.vit)
    save(other, tmp_path / "new", family="timm")
    before, after = (ImageProcessor.load(tmp_path / name) for name in ("old", "new"))
    assert before.mean == after.mean == (0.1, 0.2, 0.3) and before.resize == after.resize
