"""Every layer of timm's vision models is seen unchanged, and shows the weights that its attention dropout is given.

One test a model, random weights, few and narrow layers where its constructor allows that, two small pictures. Each runs
blind and watched as it is, fused wherever it knows how; then watched with its fused attention off, when the weights go
through a module (`attn_drop`) from which they are taken to compare.
"""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearhead.seeing import Recording, watch

TOLERANCE = 1e-5

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
WINDOWS = {"img_size": 32, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
MODELS: dict[str, dict[str, Any]] = {
    **dict.fromkeys("vit_tiny_patch16_224 deit_tiny_patch16_224 deit3_small_patch16_224 flexivit_small".split(), SMALL),
    **dict.fromkeys("beit_base_patch16_224 beitv2_base_patch16_224 vit_small_patch14_dinov2".split(), SMALL),
    **dict.fromkeys("vit_small_patch14_reg4_dinov2 eva02_tiny_patch14_224 vit_base_patch16_siglip_224".split(), SMALL),
    **dict.fromkeys(
        "vit_relpos_small_patch16_224 vit_srelpos_small_patch16_224 aimv2_large_patch14_224".split(), SMALL
    ),
    **dict.fromkeys("vit_so150m_patch16_reg4_gap_256 vit_base_patch16_clip_224 samvit_base_patch16".split(), SMALL),
    **dict.fromkeys("swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224".split(), WINDOWS),
    "pvt_v2_b0": {"depths": (1, 1, 1, 1)},
    "pit_ti_224": {"img_size": 64, "depth": (1, 1, 1)},
    "crossvit_9_240": {"depth": ((1, 1, 0), (1, 1, 0))},
    "tnt_s_patch16_224": {"img_size": 64, "embed_dim": 48, "depth": 2},
    "twins_pcpvt_small": {"img_size": 64, "depths": (1, 1, 1, 1)},
    "twins_svt_small": {"img_size": 64, "depths": (1, 2, 1, 1)},
    "edgenext_xx_small": {},
    "efficientformer_l1": {},
    "levit_128s": {},
    "mobilevit_xxs": {},
    "hiera_tiny_224": {"img_size": 64, "stages": (1, 1, 1, 1)},
    "xcit_nano_12_p16_224": {"img_size": 64, "depth": 2},
    "coat_lite_tiny": {"img_size": 64},
    "coatnet_pico_rw_224": {"img_size": 64},
    "cait_xxs24_224": {**SMALL},
    "convit_tiny": {**SMALL, "local_up_to_layer": 1},
    "efficientvit_m0": {},
    "efficientformerv2_s0": {},
    "mobilevitv2_050": {},
    "poolformer_s12": {},
}
NONE = "it ran, but made no attention that can be seen: none with a softmax over keys, or by a kernel unknown here"
HAND = "attention by hand that cannot be told exactly: "
OTHER = HAND + "its softmax was over something else than a product of queries and keys that could be followed"
# How many layers were seen and which were not, with the reason.
UNSEEN: dict[str, tuple[int, dict[str, str]]] = {
    # a softmax over positions of the keys, or none: there are no weights of queries on keys
    "coat_lite_tiny": (
        0,
        {f"serial_blocks{stage}.{i}.factoratt_crpe": OTHER for stage in (1, 2, 3, 4) for i in (0, 1)},
    ),
    "mobilevitv2_050": (
        0,
        {
            f"stages.{stage}.1.transformer.{i}.attn": NONE
            for stage, depth in ((2, 2), (3, 4), (4, 3))
            for i in range(depth)
        },
    ),
    "poolformer_s12": (0, {}),
}
# Which layers are recorded with the model's own weights, and why.
KEPT: dict[str, tuple[list[str], str]] = {
    # heads are mixed before the softmax and after it
    "cait_xxs24_224": (["blocks.0.attn", "blocks.1.attn"], "its scores went through permute"),
    "efficientformerv2_s0": (
        [f"stages.{stage}.blocks.{block}.token_mixer" for stage, block in ((2, 4), (2, 5), (3, 2), (3, 3))],
        "its scores went through conv2d",
    ),
    # a gate mixes the weights with others, of places
    "convit_tiny": (["blocks.0.attn"], "its weights were changed between the softmax and the values"),
}
NOT_DROPPED = {"vit_base_patch16_siglip_224": ["attn_pool"]}  # layers whose weights pass through no dropout


def picture(model: Any, settings: dict[str, Any]) -> Tensor:
    """Return two pictures of the smallest size that a model takes."""
    channels, height, width = model.pretrained_cfg["input_size"]
    size = settings.get("img_size")
    if size is None and not model.pretrained_cfg.get("fixed_input_size"):
        size = 64
    return torch.randn(2, channels, size or height, size or width)


def assert_shows(seen: Recording, expected: list[Tensor], without: list[str]) -> None:
    """Compare the maps of every layer with the weights that went by, whatever they call batch and heads."""
    layers = [layer for layer in seen.layers if layer.name not in without]
    assert len(layers) == len(expected) == len(seen.layers) - len(without)
    for layer, weights in zip(layers, expected):
        batch, heads = layer.batch, layer.n_heads
        assert weights.numel() == batch * heads * layer.n_queries * layer.n_keys
        wanted = weights.reshape(batch, heads, layer.n_queries, layer.n_keys)
        for text, head in {(0, 0), (batch - 1, heads - 1), (batch // 2, heads // 2)}:
            have = seen.map(layer.index, head, batch=text)
            torch.testing.assert_close(have, wanted[text, head], rtol=0, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_seen_unchanged(name: str, timm: ModuleType) -> None:
    model = timm.create_model(name, num_classes=10, **MODELS[name]).eval()
    pictures = picture(model, MODELS[name])
    with torch.no_grad():
        blind = model(pictures)
        with watch(model) as seen:
            watched = model(pictures)
    assert torch.equal(blind, watched)
    n_layers, unseen = UNSEEN.get(name, (len(seen.calls), {}))
    assert {one.name: one.reason for one in seen.unseen} == unseen
    assert len(seen.calls) == n_layers
    if not n_layers:
        return
    went_by: list[Tensor] = []
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if isinstance(getattr(module, "attn_drop", None), (nn.Dropout, nn.Identity)):
            module.attn_drop.register_forward_hook(lambda _, inputs, weights: went_by.append(weights))
    with torch.no_grad(), watch(model) as slow:
        model(pictures)
    kept, why = KEPT.get(name, ([], ""))
    assert [layer.name for layer in seen.layers if layer.weights_kept] == kept
    assert [note.rpartition(": ")[2] for note in seen.notes] == ([why] if kept else [])
    assert slow.notes == seen.notes
    assert len(slow.calls) == n_layers
    if went_by and not unseen:
        assert_shows(seen, went_by, NOT_DROPPED.get(name, []))
        assert_shows(slow, went_by, NOT_DROPPED.get(name, []))
