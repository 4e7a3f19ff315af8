"""One block for every Transformer here: look around (attention), then think (feed-forward), each time adding on.

What differs between GPT, BERT, ViT and the encoder-decoder is passed in: how to add on (`pre_norm`, `post_norm`),
which norm, which feed-forward, whether there is cross-attention. None of it is a flag.

Next: `models/bert.py`, the first model.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.attention import EVERYWHERE, Mask, MultiHeadAttention
from clearhead.cache import LayerCache
from clearhead.errors import ConfigError, ShapeError, nearest

Activation = Callable[[Tensor], Tensor]
Sublayer = Callable[[Tensor], Tensor]
Residual = Callable[[Tensor, nn.Module, Sublayer], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016, section 2), which GPT-2 was trained with."""
    return F.gelu(x, approximate="tanh")


def relu_squared(x: Tensor) -> Tensor:
    """The square of relu (So et al. 2021, Primer, section 3)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
    "relu_squared": relu_squared,
    "silu": F.silu,
}


def activation(name: str) -> Activation:
    """Return the activation function called `name`; ConfigError names the known ones."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}{nearest(name, list(ACTIVATIONS))}")
    return ACTIVATIONS[name]


def pre_norm(x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    """`x + sublayer(norm(x))`: the residual path is never normalised (GPT-2, ViT, Llama; Xiong et al. 2020)."""
    return x + sublayer(norm(x))


class Around(nn.Module):
    """What stands on both sides of a sublayer, for `around`: two norms (Gemma 2), or a norm and a LayerScale."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.before, self.after = before, after


def around(x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    """`x + after(sublayer(before(x)))`, where `norm` is an `Around`."""
    assert isinstance(norm, Around)
    return x + norm.after(sublayer(norm.before(x)))


def post_norm(x: Tensor, norm: nn.Module, sublayer: Sublayer) -> Tensor:
    """`norm(x + sublayer(x))`: the 2017 Transformer's and BERT's way."""
    return norm(x + sublayer(x))


class FeedForward(nn.Module):
    """Widen every position by itself, bend, narrow again (Vaswani et al. 2017, section 3.3)."""

    def __init__(self, d_model: int, d_ff: int, activation: Activation = F.gelu, *, bias: bool = True) -> None:
        super().__init__()
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = activation

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        """Return `down(activation(up(x)))`."""
        return self.down_proj(self.activation(self.up_proj(x)))


class GatedFeedForward(nn.Module):
    """A second projection says how much of each channel passes: SwiGLU with silu, GEGLU with gelu (Shazeer 2020)."""

    def __init__(self, d_model: int, d_ff: int, activation: Activation = F.silu, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)
        self.activation = activation

    def forward(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch time d_model"]:
        """Return `down(activation(gate(x)) * up(x))`."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """Divide by the root mean square, multiply by a weight (Zhang & Sennrich 2019). In float32, as Llama does it.

    `offset` 1 is Gemma's way: its weights are stored as the difference from one.
    """

    def __init__(self, d: int, *, eps: float = 1e-6, offset: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return `weight * x / rms(x)` in x's dtype."""
        normed = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        if self.offset:
            return (normed * (self.offset + self.weight.float())).to(x.dtype)
        return self.weight * normed.to(x.dtype)


class LayerScale(nn.Module):
    """Multiply what a sublayer adds by one small trained number a channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, d_model: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((d_model,), initial))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return `weight * x`."""
        return self.weight * x


class StochasticDepth(nn.Module):
    """Drop, in training, everything a sublayer adds to some of the texts of a batch (Huang et al. 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Return `x` with whole rows zeroed and the others scaled up, or `x` itself when not training."""
        if not self.training or self.probability == 0:
            return x
        kept = torch.rand(x.shape[:1], device=x.device) >= self.probability
        return x * (kept / (1 - self.probability)).to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


def initialise(module: nn.Module) -> None:
    """Draw weights from a normal of standard deviation 0.02, biases zero, as BERT, GPT-2 and DeiT begin.

    (google-research/bert, modeling.py; openai/gpt-2, model.py; facebookresearch/deit, models.py.)
    """
    if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if (bias := getattr(module, "bias", None)) is not None:
            nn.init.zeros_(bias)


class Block(nn.Module):
    """Attention, cross-attention where there is a memory to look at, and feed-forward, each added to what came in.

    `norm` makes one norm a sublayer; `residual` says where it stands. `dropout` acts on what each sublayer adds.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        feed_forward: nn.Module,
        *,
        norm: Callable[[], nn.Module],
        residual: Residual = pre_norm,
        cross_attention: MultiHeadAttention | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention, self.attention_norm = attention, norm()
        self.cross_attention = cross_attention
        self.cross_attention_norm = None if cross_attention is None else norm()
        self.feed_forward, self.feed_forward_norm = feed_forward, norm()
        self.residual, self.dropout = residual, nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        memory: Float[Tensor, "batch memory d_model"] | None = None,
        *,
        mask: Mask = EVERYWHERE,
        memory_mask: Mask = EVERYWHERE,
        positions: Int[Tensor, "#batch time"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Return `x` after one round; `mask` says who looks where in `x`, `memory_mask` in `memory`."""
        if (memory is None) != (self.cross_attention is None):
            have, came = "without" if self.cross_attention is None else "with", "no" if memory is None else "a"
            raise ShapeError(f"a block {have} cross-attention was given {came} memory to look at")

        def look_around(x: Tensor) -> Tensor:
            return self.dropout(self.attention(x, mask=mask, positions=positions, cache=cache))

        def look_up(x: Tensor) -> Tensor:
            assert self.cross_attention is not None
            return self.dropout(self.cross_attention(x, memory, mask=memory_mask, cache=cache))

        def think(x: Tensor) -> Tensor:
            return self.dropout(self.feed_forward(x))

        x = self.residual(x, self.attention_norm, look_around)
        if self.cross_attention_norm is not None:
            x = self.residual(x, self.cross_attention_norm, look_up)
        return self.residual(x, self.feed_forward_norm, think)
