"""ViT, DeiT and DINOv2 compute what transformers computes, for pictures of any size."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clearhead.checkpoints import load, save
from published import VISION_ARCHITECTURES, make_vision, seen_by
from published import reopen_decoder as reopen

TOLERANCE = 1e-5  # float32, logits of order 1
PICTURES = [(32, 32), (48, 48), (16, 16), (24, 40), (64, 16)]  # trained at 32 x 32, in patches of 8
TRUNKS = [name for name in VISION_ARCHITECTURES if name.endswith("Model")]

# One setting of every key that changes the mathematics, away from its default.
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in VISION_ARCHITECTURES),
    ("ViTForImageClassification", {"qkv_bias": False, "layer_norm_eps": 1e-2, "hidden_act": "gelu_new"}),
    ("ViTForImageClassification", {"num_channels": 1, "patch_size": 4, "image_size": 16}),
    ("DeiTForImageClassificationWithTeacher", {"qkv_bias": False, "hidden_act": "relu"}),
    ("Dinov2ForImageClassification", {"use_swiglu_ffn": True, "mlp_ratio": 3}),
    ("Dinov2ForImageClassification", {"use_mask_token": False, "layerscale_value": 0.5, "drop_path_rate": 0.3}),
    ("Dinov2WithRegistersModel", {"num_register_tokens": 2, "use_swiglu_ffn": True}),
    ("Dinov2WithRegistersForImageClassification", {"num_register_tokens": 1, "qkv_bias": False}),
]


def pictures(theirs: Any, size: tuple[int, int]) -> torch.Tensor:
    """Return two pictures of noise."""
    return torch.randn(2, theirs.config.num_channels, *size)


@pytest.mark.parametrize("architecture, settings", CASES, ids=str)
def test_outputs_equal_transformers_and_go_round(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    theirs = make_vision(architecture, **settings)
    theirs.save_pretrained(old)
    ours = load(old)
    for size in PICTURES:
        pixels = pictures(theirs, size)
        expected = seen_by(theirs, pixels)
        assert expected.std() > 0.1, "numbers too small to tell anything"
        with torch.inference_mode():
            torch.testing.assert_close(ours(pixels), expected, rtol=0, atol=TOLERANCE)
    save(ours, new)
    assert (new / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()
    assert json.loads((new / "config.json").read_text()) == json.loads((old / "config.json").read_text())


@pytest.mark.parametrize("architecture", TRUNKS)
def test_the_states_after_every_block_equal_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make_vision(architecture)
    theirs.save_pretrained(tmp_path)
    ours, pixels, mine = load(tmp_path), torch.randn(2, 3, 40, 24), []
    for part in (ours.embeddings, *ours.blocks):
        part.register_forward_hook(lambda module, inputs, output: mine.append(output))
    size = {} if architecture.startswith("Dinov2") else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        ours(pixels)
        expected = theirs(pixel_values=pixels, output_hidden_states=True, **size).hidden_states
    assert len(expected) == len(mine) == 4
    for one, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", TRUNKS)
def test_what_stands_for_the_picture_equals_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make_vision(architecture)
    theirs.save_pretrained(tmp_path)
    ours, pixels = load(tmp_path), torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = theirs(pixel_values=pixels).pooler_output
        torch.testing.assert_close(ours.pool(ours(pixels)), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", ["Dinov2Model", "Dinov2WithRegistersModel"])
def test_hidden_patches_equal_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make_vision(architecture)
    theirs.save_pretrained(tmp_path)
    ours, pixels, hidden = load(tmp_path), torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.4
    with torch.inference_mode():
        expected = theirs(pixel_values=pixels, bool_masked_pos=hidden).last_hidden_state
        torch.testing.assert_close(ours(pixels, hidden), expected, rtol=0, atol=TOLERANCE)
        assert not torch.allclose(ours(pixels), expected, atol=1e-2)


@pytest.mark.parametrize("architecture", VISION_ARCHITECTURES)
def test_bfloat16_differs_from_transformers_no_more_than_its_rounding(architecture: str, tmp_path: Path) -> None:
    theirs = make_vision(architecture).bfloat16()
    theirs.save_pretrained(tmp_path)
    exact, ours, pixels = load(tmp_path), load(tmp_path, dtype=None), torch.randn(16, 3, 32, 32).bfloat16()
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        truth, mine = exact(pixels.float()), ours(pixels).float()
    their_error = (seen_by(theirs, pixels).float() - truth).square().mean().sqrt()
    assert (mine - truth).square().mean().sqrt() < 1.25 * their_error


@pytest.mark.parametrize("architecture", VISION_ARCHITECTURES)
def test_gradients_equal_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make_vision(architecture)
    theirs.save_pretrained(tmp_path)
    ours, pixels = load(tmp_path), torch.randn(2, 3, 32, 32)
    theirs(pixel_values=pixels)[0].square().mean().backward()
    ours(pixels).square().mean().backward()
    trunk: nn.Module = getattr(ours, "vit", ours)
    their_trunk = getattr(theirs, theirs.base_model_prefix) if trunk is not ours else theirs
    for mine, other in {"class_token": "cls_token", "positions": "position_embeddings"}.items():
        expected = their_trunk.embeddings.get_parameter(other).grad
        torch.testing.assert_close(trunk.embeddings.get_parameter(mine).grad, expected, rtol=1e-4, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", VISION_ARCHITECTURES)
def test_what_was_changed_opens_in_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make_vision(architecture)
    theirs.save_pretrained(tmp_path / "old")
    ours = load(tmp_path / "old")
    ours.config = replace(ours.config, attention_dropout=0.25)
    save(ours, tmp_path / "new")
    assert load(tmp_path / "new").config == ours.config
    pixels = torch.randn(2, 3, 24, 32)
    again = seen_by(reopen(tmp_path / "new", architecture), pixels)
    torch.testing.assert_close(again, seen_by(theirs, pixels), rtol=0, atol=0)
