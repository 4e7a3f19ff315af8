"""Facts about models/vit.py that need no other implementation; parity/test_vit.py compares with transformers."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from clearhead.errors import ConfigError, ShapeError
from clearhead.models.vit import (
    SIZES,
    DistilledViTForImageClassification,
    ViT,
    ViTConfig,
    ViTForImageClassification,
    sincos_grid,
)
from clearhead.seeing import watch

TINY = ViTConfig(image_size=(12, 8), patch_size=4, d_model=16, n_heads=4, n_layers=3, d_ff=24, labels=("cat", "dog"))
CONFIGS = {
    "vit": TINY,
    "mean": replace(TINY, class_token=False, pool="mean"),
    "registers": replace(TINY, n_registers=3),
    "distilled": replace(TINY, distilled_token=True),
    "sincos": replace(TINY, positions="sincos"),
    "dinov2": replace(TINY, layer_scale=0.5, feed_forward="gated", activation="silu", pool="class_and_mean"),
    "one channel": replace(TINY, n_channels=1, qkv_bias=False),
    "pooler": replace(TINY, pooler=True, pool="class_and_mean"),
}


def build(config: ViTConfig, head: type[nn.Module] = ViTForImageClassification) -> nn.Module:
    """Return a model whose every parameter matters: fresh norms and biases would hide mistakes."""
    torch.manual_seed(1)
    model = head(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def noise(config: ViTConfig, height: int = 12, width: int = 8) -> torch.Tensor:
    """Return two pictures."""
    return torch.randn(2, config.n_channels, height, width)


def patches_of(pixels: torch.Tensor, patch: int) -> list[torch.Tensor]:
    """Return the patches of pictures, row by row, cut by hand."""
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    return [
        pixels[..., row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        for row in range(rows)
        for column in range(columns)
    ]


def together(patches: list[torch.Tensor], columns: int) -> torch.Tensor:
    """Return the pictures that these patches make: `patches_of` backwards."""
    rows = [torch.cat(patches[i : i + columns], dim=-1) for i in range(0, len(patches), columns)]
    return torch.cat(rows, dim=-2)


# ---------------------------------------------------------------- patches are words


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_patch_embedding_is_a_linear_layer_on_every_patch(config: ViTConfig) -> None:
    embeddings = build(config, ViT).embeddings
    pixels = noise(config)
    weight = embeddings.patches.weight.flatten(1)
    linear = torch.stack([patch.flatten(1) @ weight.T for patch in patches_of(pixels, 4)], dim=1)
    n_first = config.n_placed + config.n_registers
    positions = embeddings._positions(config.grid)[:, config.n_placed :]
    expected = linear + embeddings.patches.bias + positions
    torch.testing.assert_close(embeddings(pixels)[:, n_first:], expected, rtol=0, atol=1e-5)


def test_shuffled_patches_with_shuffled_positions_are_the_same_picture() -> None:
    vit = build(TINY, ViT)
    pixels, order = noise(TINY), torch.tensor([3, 0, 5, 1, 4, 2])
    plain = vit(pixels)
    shuffled = together([patches_of(pixels, 4)[i] for i in order], columns=2)
    assert not torch.allclose(vit(shuffled)[:, 0], plain[:, 0], atol=1e-2), "positions should matter"
    with torch.no_grad():
        vit.embeddings.positions[:, 1:] = vit.embeddings.positions[:, 1:][:, order]
    torch.testing.assert_close(vit(shuffled)[:, 0], plain[:, 0], rtol=0, atol=1e-5)
    torch.testing.assert_close(vit(shuffled)[:, 1:], plain[:, 1:][:, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_batch_gives_what_each_picture_gives_alone(config: ViTConfig) -> None:
    model, pixels = build(config), noise(config, 16, 20)
    alone = torch.cat([model(one) for one in pixels.split(1)])
    assert model(pixels).shape == (2, 2)
    torch.testing.assert_close(model(pixels), alone, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- tokens that are no patch


def test_registers_are_looked_at_and_pooled_by_nobody() -> None:
    config = replace(TINY, n_registers=3, pool="mean")
    vit, pixels = build(config, ViT), noise(TINY)
    states = vit(pixels)
    assert states.shape == (2, 1 + 3 + 6, 16)
    torch.testing.assert_close(vit.pool(states), states[:, 4:].mean(1))
    with torch.no_grad():
        vit.embeddings.registers.neg_()
    assert not torch.allclose(vit(pixels)[:, 4:], states[:, 4:], atol=1e-2)


def test_registers_have_no_position() -> None:
    embeddings = build(replace(TINY, n_registers=3), ViT).embeddings
    assert embeddings.positions.shape == (1, 1 + 6, 16)
    first = embeddings(noise(TINY))[0, 1:4]
    assert torch.equal(first, embeddings.registers[0])


def test_a_hidden_patch_is_not_seen() -> None:
    config = replace(TINY, mask_token=True)
    vit, pixels, other = build(config, ViT), noise(TINY), noise(TINY)
    hidden = torch.zeros(2, 6, dtype=torch.bool)
    hidden[:, [1, 4]] = True
    mixed = together(
        [(b if hide else a) for a, b, hide in zip(patches_of(pixels, 4), patches_of(other, 4), hidden[0])], columns=2
    )
    assert not torch.allclose(vit(mixed), vit(pixels), atol=1e-2)
    assert torch.equal(vit(mixed, hidden), vit(pixels, hidden))


def test_the_two_classifiers_of_a_distilled_model_are_averaged() -> None:
    config = replace(TINY, distilled_token=True)
    model, pixels = build(config, DistilledViTForImageClassification), noise(TINY)
    states = model.vit(pixels)
    both = torch.stack((model.classifier(states[:, 0]), model.distilled_classifier(states[:, 1])))
    torch.testing.assert_close(model(pixels), both.mean(0))


def test_averaging_before_the_norm_is_not_averaging_after_it() -> None:
    config = replace(TINY, class_token=False, pool="mean", norm_before_pool=False)
    model, pixels = build(config), noise(TINY)
    x = model.vit.embeddings(pixels)
    for block in model.vit.blocks:
        x = block(x)
    torch.testing.assert_close(model(pixels), model.classifier(model.norm(x.mean(1))))
    assert not torch.allclose(model.norm(x.mean(1)), model.norm(x).mean(1), atol=1e-2)


# ---------------------------------------------------------------- positions


def test_a_picture_of_the_trained_size_gets_the_positions_as_they_are() -> None:
    embeddings = build(TINY, ViT).embeddings
    assert embeddings._positions((3, 2)) is embeddings.positions
    assert embeddings._positions((2, 3)).shape == embeddings.positions.shape
    assert not torch.allclose(embeddings._positions((2, 3)), embeddings.positions, atol=1e-2)


def test_only_the_filter_makes_far_patches_count_when_positions_get_fewer() -> None:
    config = replace(TINY, image_size=(64, 4))  # 16 patches above each other, resampled to 2
    reach = {}
    for antialias in (False, True):
        embeddings = build(replace(config, antialias=antialias), ViT).embeddings
        embeddings._positions((2, 1))[0, 1, 0].backward()
        reach[antialias] = int(embeddings.positions.grad[0, 1:, 0].count_nonzero())
    assert reach[False] <= 4 < 8 <= reach[True]


def test_resampled_positions_keep_the_class_token_and_every_constant() -> None:
    embeddings = build(TINY, ViT).embeddings
    with torch.no_grad():
        embeddings.positions[:, 1:] = torch.arange(16.0)
    resampled = embeddings._positions((5, 7))
    assert torch.equal(resampled[:, 0], embeddings.positions[:, 0])
    torch.testing.assert_close(resampled[:, 1:], torch.arange(16.0).expand(1, 35, 16))


def test_resampled_positions_keep_rows_and_columns_apart() -> None:
    embeddings = build(TINY, ViT).embeddings
    rows = torch.arange(3.0).repeat_interleave(2)
    with torch.no_grad():
        embeddings.positions[0, 1:] = rows[:, None]
    resampled = embeddings._positions((6, 4))[0, 1:, 0].reshape(6, 4)
    torch.testing.assert_close(resampled, resampled[:, :1].expand(6, 4))
    assert (resampled[1:, 0] > resampled[:-1, 0]).all()


def test_sines_and_cosines_are_those_of_the_formula() -> None:
    table = sincos_grid((3, 5), 16, torch.device("cpu"))[0].reshape(3, 5, 16)
    for row in range(3):
        for column in range(5):
            angles = [place / 10_000 ** (i / 4) for place in (column, row) for i in range(4)]
            waves = [[math.sin(angle) for angle in angles[i : i + 4]] for i in (0, 4)]
            turns = [[math.cos(angle) for angle in angles[i : i + 4]] for i in (0, 4)]
            expected = torch.tensor([*waves[0], *turns[0], *waves[1], *turns[1]])
            torch.testing.assert_close(table[row, column], expected, rtol=0, atol=1e-5)


def test_fixed_positions_are_no_parameters_and_fit_every_size() -> None:
    vit = build(replace(TINY, positions="sincos"), ViT)
    assert "embeddings.positions" not in vit.state_dict()
    assert vit(noise(TINY, 20, 28)).shape == (2, 1 + 35, 16)


# ---------------------------------------------------------------- training


def test_stochastic_depth_grows_with_the_layers_and_acts_in_training_only() -> None:
    model, pixels = build(replace(TINY, stochastic_depth=0.5)), noise(TINY)
    depths = [block.attention_norm.after[1].probability for block in model.vit.blocks]
    assert depths == [0.0, 0.25, 0.5]
    assert torch.equal(model(pixels), build(TINY)(pixels))
    model.train()
    assert len({tuple(model(pixels).flatten().tolist()) for _ in range(8)}) > 1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_learns(config: ViTConfig) -> None:
    model = build(config).train()
    model(noise(config)).square().sum().backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert not {name for name in still if not name.endswith("k_proj.bias")}  # softmax does not see what all keys share


def test_layer_scale_starts_where_the_config_says() -> None:
    vit = ViT(replace(TINY, layer_scale=1e-3))
    assert (vit.blocks[1].feed_forward_norm.after[0].weight == 1e-3).all()


# ---------------------------------------------------------------- sizes, watching, refusals


@pytest.mark.parametrize(
    "name, n_parameters",  # with 1,000 labels, as published with the weights by timm and torchvision
    [
        ("tiny", 5_717_416),
        ("small", 22_050_664),
        ("base", 86_567_656),
        ("large", 304_326_632),
        ("huge", 632_045_800),
    ],
)
def test_named_sizes_have_as_many_parameters_as_published(name: str, n_parameters: int) -> None:
    with torch.device("meta"):
        model = ViTForImageClassification(replace(SIZES[name], labels=tuple(map(str, range(1_000)))))
    assert sum(parameter.numel() for parameter in model.parameters()) == n_parameters


def test_who_looks_at_which_patch_can_be_watched() -> None:
    model = build(TINY)
    with torch.inference_mode(), watch(model) as seen:
        model(noise(TINY))
    assert [(layer.n_heads, layer.n_queries, layer.n_keys) for layer in seen.layers] == [(4, 7, 7)] * 3
    weights = seen.map(2, 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))


@pytest.mark.parametrize("size", [(12, 9), (13, 8), (0, 8)])
def test_pictures_that_are_not_made_of_patches_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=r"3 channels whose sides are multiples of 4, got \(2, 3, "):
        build(TINY)(noise(TINY, *size))


def test_pictures_of_other_channels_are_refused() -> None:
    with pytest.raises(ShapeError, match="pictures of 3 channels"):
        build(TINY)(torch.randn(2, 1, 12, 8))


def test_hiding_patches_needs_something_in_their_place() -> None:
    with pytest.raises(ConfigError, match="mask_token=True"):
        build(TINY, ViT)(noise(TINY), torch.ones(2, 6, dtype=torch.bool))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"d_model": 0, "n_heads": -1}, "expected positive numbers, got d_model 0, n_heads -1"),
        ({"image_size": (12, 9)}, r"image_size \(12, 9\) is not made of patches of 4"),
        ({"image_size": (0, 8)}, r"image_size \(0, 8\) is not made of patches"),
        ({"class_token": False}, "pool 'class' reads a class token"),
        ({"class_token": False, "pool": "mean", "distilled_token": True}, "stands beside a class_token"),
        ({"stochastic_depth": 1.0}, r"stochastic_depth must be in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout must be"),
        ({"n_registers": -1}, "n_registers cannot be negative"),
        ({"activation": "gelo"}, "unknown activation 'gelo'.*gelu"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_built_is_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(TINY, **settings)  # type: ignore[arg-type]


def test_classifiers_need_labels() -> None:
    with pytest.raises(ConfigError, match="a classifier needs labels"):
        ViTForImageClassification(replace(TINY, labels=()))
    with pytest.raises(ConfigError, match="distilled_token=True"):
        DistilledViTForImageClassification(TINY)


def test_sines_of_rows_and_columns_need_four_channels() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        sincos_grid((2, 2), 6, torch.device("cpu"))
