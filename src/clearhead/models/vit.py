"""ViT: an image is worth 16x16 words (Dosovitskiy et al. 2020). A picture is cut in patches, and patches are words.

    patches -> one vector each (+ class token) + positions (+ registers) -> blocks (pre-norm) -> norm -> label

Compared with bert.py: the words are patches through one linear layer, and the norm comes first. Nobody is padded.
Every vector may look at every other; order is in the positions alone, so shuffled patches are the same picture
with shuffled positions.

Next: `encoder_decoder.py`, two stacks.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from clearhead.attention import MultiHeadAttention
from clearhead.block import (
    Around,
    Block,
    FeedForward,
    GatedFeedForward,
    LayerScale,
    StochasticDepth,
    activation,
    around,
    initialise,
)
from clearhead.config import check_numbers
from clearhead.errors import ConfigError, ShapeError
from clearhead.positions import frequencies


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """What a Vision Transformer is made of; the defaults are ViT-B/16 at 224 pixels (Dosovitskiy et al. 2020)."""

    image_size: tuple[int, int] = (224, 224)  # height, width the positions were trained at
    patch_size: int = 16
    n_channels: int = 3
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int = 3_072
    positions: Literal["learned", "sincos"] = "learned"
    antialias: bool = False  # when positions are resampled to fewer patches (Darcet et al. 2023: True)
    class_token: bool = True
    class_position: bool = True  # whether it has a position (DeiT III: only patches have; Touvron et al. 2022)
    distilled_token: bool = False  # a second one, that learned from another model (DeiT; Touvron et al. 2020)
    mask_token: bool = False  # what stands for a hidden patch (DINOv2's pre-training; Oquab et al. 2023)
    n_registers: int = 0  # vectors of no patch and no position, to think on (Darcet et al. 2023)
    pool: Literal["class", "mean", "class_and_mean"] = "class"  # what the classifier reads
    norm_before_pool: bool = True  # False: the classifier pools first, then normalises (timm's fc_norm)
    pooler: bool = False  # a linear layer and tanh on what is pooled (transformers' ViTModel)
    activation: str = "gelu"
    feed_forward: Literal["plain", "gated"] = "plain"
    qkv_bias: bool = True
    layer_scale: float | None = None  # initial value (DINOv2: 1.0); None: none
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    stochastic_depth: float = 0.0  # of the last layer; grows linearly from 0
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("patch_size", "n_channels", "d_model", "n_heads", "n_layers", "d_ff")
        check_numbers(self, sizes, ("dropout", "attention_dropout", "stochastic_depth"))
        if any(side % self.patch_size or side < 1 for side in self.image_size):
            raise ConfigError(f"ViTConfig: image_size {self.image_size} is not made of patches of {self.patch_size}")
        if "class" in self.pool and not self.class_token:
            raise ConfigError(f"ViTConfig: pool {self.pool!r} reads a class token, and class_token is False")
        if self.distilled_token and not self.class_token:
            raise ConfigError("ViTConfig: a distilled_token stands beside a class_token, which is False")
        if self.n_registers < 0:
            raise ConfigError(f"ViTConfig: n_registers cannot be negative, got {self.n_registers}")
        activation(self.activation)

    @property
    def n_placed(self) -> int:
        """How many tokens stand before the registers and the patches."""
        return self.class_token + self.distilled_token

    @property
    def grid(self) -> tuple[int, int]:
        """How many patches stand above and beside each other."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


# Dosovitskiy et al. 2020, table 1, and DeiT's two smaller ones (Touvron et al. 2020, table 1)
SIZES: dict[str, ViTConfig] = {
    "tiny": ViTConfig(d_model=192, n_heads=3, d_ff=768),
    "small": ViTConfig(d_model=384, n_heads=6, d_ff=1_536),
    "base": ViTConfig(),
    "large": ViTConfig(d_model=1_024, n_heads=16, n_layers=24, d_ff=4_096),
    "huge": ViTConfig(patch_size=14, d_model=1_280, n_heads=16, n_layers=32, d_ff=5_120),
}


class PatchEmbeddings(nn.Module):
    """Cut the picture in patches, make each a vector, put the tokens that are no patch in front, add positions."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(
            config.n_channels, config.d_model, kernel_size=config.patch_size, stride=config.patch_size
        )  # a linear layer on every patch, written as the convolution that checkpoints store
        self.class_token = _vectors(int(config.class_token), config.d_model)
        self.distilled_token = _vectors(int(config.distilled_token), config.d_model)
        self.registers = _vectors(config.n_registers, config.d_model)
        self.mask_token = nn.Parameter(torch.zeros(1, config.d_model)) if config.mask_token else None
        if config.positions == "learned":
            n_places = config.n_placed * config.class_position + math.prod(config.grid)
            self.positions = nn.Parameter(nn.init.normal_(torch.empty(1, n_places, config.d_model), std=0.02))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        hidden: Bool[Tensor, "batch patches"] | None = None,
    ) -> Float[Tensor, "batch tokens d_model"]:
        """Return class token, distilled token, registers and patches, row by row; `hidden` patches are masked.

        For pictures of another size than config.image_size learned positions are resampled.
        """
        size, patch = pixels.shape[-2:], self.config.patch_size
        if pixels.shape[1] != self.config.n_channels or size[0] % patch or size[1] % patch or not min(size):
            raise ShapeError(
                f"expected pictures of {self.config.n_channels} channels whose sides are multiples of {patch}, "
                f"got {tuple(pixels.shape)} (batch, channels, height, width)"
            )
        x = rearrange(self.patches(pixels), "batch d_model rows columns -> batch (rows columns) d_model")
        if hidden is not None:
            if self.mask_token is None:
                raise ConfigError("this model has nothing to put in place of a patch: ViTConfig(..., mask_token=True)")
            x = torch.where(hidden.unsqueeze(-1), self.mask_token, x)
        positions = self._positions((size[0] // patch, size[1] // patch)).to(x)
        placed = [
            token.expand(len(x), -1, -1) for token in (self.class_token, self.distilled_token) if token is not None
        ]
        x = torch.cat([*placed, x], dim=1) + positions
        if self.registers is not None:
            before, after = x[:, : self.config.n_placed], x[:, self.config.n_placed :]
            x = torch.cat((before, self.registers.expand(len(x), -1, -1), after), dim=1)
        return self.dropout(x)

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 places d_model"]:
        """Return what is added to the tokens before the patches, and to the patches of a `grid`."""
        n_placed = self.config.n_placed
        if self.config.positions == "sincos":
            return F.pad(sincos_grid(grid, self.config.d_model, self.patches.weight.device), (0, 0, n_placed, 0))
        if not self.config.class_position:
            return F.pad(self._resampled(grid, 0), (0, 0, n_placed, 0))
        return self._resampled(grid, n_placed)

    def _resampled(self, grid: tuple[int, int], n_placed: int) -> Float[Tensor, "1 places d_model"]:
        """Return the learned positions, those after `n_placed` resampled to a grid of another size."""
        if grid == self.config.grid:
            return self.positions
        before, on_patches = self.positions[:, :n_placed], self.positions[:, n_placed:].float()
        picture = rearrange(on_patches, "1 (rows columns) d -> 1 d rows columns", rows=self.config.grid[0])
        picture = F.interpolate(picture, size=grid, mode="bicubic", antialias=self.config.antialias)
        return torch.cat((before, rearrange(picture, "1 d rows columns -> 1 (rows columns) d")), dim=1)


class ViT(nn.Module):
    """The trunk: pixels in, one vector for each of class token, registers and patches out."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PatchEmbeddings(config)
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps) if config.norm_before_pool else nn.Identity()
        self.pooler = nn.Linear(_n_features(config), config.d_model) if config.pooler else None
        self.apply(initialise)

    def forward(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        hidden: Bool[Tensor, "batch patches"] | None = None,
    ) -> Float[Tensor, "batch tokens d_model"]:
        """Return the last hidden states; where `hidden` is True the model is not shown the patch."""
        x = self.embeddings(pixels, hidden)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def pool(self, states: Float[Tensor, "batch tokens d_model"]) -> Float[Tensor, "batch features"]:
        """Return what stands for the whole picture: class token, mean over patches, or both side by side."""
        patches = states[:, self.config.n_placed + self.config.n_registers :]
        if self.config.pool == "class":
            pooled = states[:, 0]
        elif self.config.pool == "mean":
            pooled = patches.mean(dim=1)
        else:
            pooled = torch.cat((states[:, 0], patches.mean(dim=1)), dim=-1)
        return pooled if self.pooler is None else torch.tanh(self.pooler(pooled))


class ViTForImageClassification(nn.Module):
    """Label the picture: `config.labels` names the classes."""

    def __init__(self, config: ViTConfig, vit: ViT | None = None) -> None:
        super().__init__()
        if not config.labels:
            raise ConfigError("a classifier needs labels: ViTConfig(..., labels=('cat', 'dog'))")
        self.config = config
        self.vit = ViT(config) if vit is None else vit
        features = config.d_model if config.pooler else _n_features(config)
        self.norm = nn.Identity() if config.norm_before_pool else nn.LayerNorm(features, eps=config.norm_eps)
        self.classifier = nn.Linear(features, len(config.labels))
        initialise(self.classifier)

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return one score a label, before softmax."""
        return self.classifier(self.norm(self.vit.pool(self.vit(pixels))))


class DistilledViTForImageClassification(nn.Module):
    """Label the picture twice, from the class token and the distilled one, and average (DeiT, section 4)."""

    def __init__(self, config: ViTConfig, vit: ViT | None = None) -> None:
        super().__init__()
        if not config.labels or not config.distilled_token:
            raise ConfigError(
                "a distilled classifier needs ViTConfig(..., labels=('cat', 'dog'), distilled_token=True)"
            )
        self.config = config
        self.vit = ViT(config) if vit is None else vit
        self.classifier = nn.Linear(config.d_model, len(config.labels))
        self.distilled_classifier = nn.Linear(config.d_model, len(config.labels))
        self.classifier.apply(initialise)
        self.distilled_classifier.apply(initialise)

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch labels"]:
        """Return one score a label, before softmax."""
        states = self.vit(pixels)
        return (self.classifier(states[:, 0]) + self.distilled_classifier(states[:, 1])) / 2


def sincos_grid(grid: tuple[int, int], d_model: int, device: torch.device) -> Float[Tensor, "1 patches d_model"]:
    """Return fixed positions: half of the channels for the column, half for the row (Chen et al. 2021, MoCo v3)."""
    if d_model % 4:
        raise ConfigError(f"d_model must be a multiple of 4 for sines and cosines of rows and columns, got {d_model}")
    speed = frequencies(d_model // 2, 10_000.0, device)
    rows, columns = torch.meshgrid(*(torch.arange(n, device=device).float() for n in grid), indexing="ij")
    angles = [axis.flatten().unsqueeze(-1) * speed for axis in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1).unsqueeze(0)


def _n_features(config: ViTConfig) -> int:
    return config.d_model * (2 if config.pool == "class_and_mean" else 1)


def _vectors(n: int, d_model: int) -> nn.Parameter | None:
    return nn.Parameter(nn.init.normal_(torch.empty(1, n, d_model), std=0.02)) if n else None


def _block(config: ViTConfig, layer: int) -> Block:
    attention = MultiHeadAttention(config.d_model, config.n_heads, dropout=config.attention_dropout)
    if not config.qkv_bias:
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, nn.Linear(config.d_model, config.d_model, bias=False))
    feed_forward = GatedFeedForward if config.feed_forward == "gated" else FeedForward
    depth = StochasticDepth(config.stochastic_depth * layer / max(config.n_layers - 1, 1))

    def norm() -> Around:
        scale = nn.Identity() if config.layer_scale is None else LayerScale(config.d_model, config.layer_scale)
        return Around(nn.LayerNorm(config.d_model, eps=config.norm_eps), nn.Sequential(scale, depth))

    return Block(
        attention,
        feed_forward(config.d_model, config.d_ff, activation(config.activation), bias=True),
        norm=norm,
        residual=around,
        dropout=config.dropout,
    )
