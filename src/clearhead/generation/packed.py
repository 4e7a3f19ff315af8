"""The same model with its linear layers laid out for reading one token at a time, on a CPU.

    fast = pack_decoder(model)                           # or dtype=torch.bfloat16, or torch.int8
    for step in generate(fast, prompts, ...):

One new token needs every weight once, so a step takes as long as reading the weights from memory. What helps:

1. **Fewer bits.** Weights in bfloat16 are half as much to read, int8 a quarter. Only weights: what flows between the
   layers, the cache, scores and norms stay float32. int8 is one scale a row of the matrix, round to nearest
   (Dettmers et al. 2022, section 2.1, without outliers); LOG.md has how far logits move.
2. **oneDNN's order of memory** for float32 and bfloat16, as in the packed encoder; bias and GELU come along.
3. **Fewer calls.** Queries, keys and values are one product, gate and up-projection too.

Blocks, positions, norms, masks and cache are the model's own: the copy shares every other parameter with it, any
decoder here can be packed, and `watch` sees it. A model trained further has to be packed again.
"""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.attention import MultiHeadAttention
from clearhead.block import Activation, FeedForward, GatedFeedForward
from clearhead.errors import ConfigError
from clearhead.models.encoder_decoder import EncoderDecoder
from clearhead.models.gpt import GPTForCausalLM
from clearhead.packed import FUSED, onednn_obstacle

Model = TypeVar("Model", GPTForCausalLM, EncoderDecoder)
# weight, bias, what comes after -> a layer
MakeLinear = Callable[[Tensor, Tensor | None, Activation | None], nn.Module]

# Channels the int8 kernel reads at a time: it does not check, and reads past the end of a row that is no multiple.
KERNEL_READS = 32


class PlainLinear(nn.Module):
    """`then(x @ weight^T + bias)` by ordinary calls, which every processor and dtype has."""

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None) -> None:
        super().__init__()
        self.weight, self.bias, self.then = weight, bias, then

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output."""
        y = F.linear(x, self.weight, self.bias)
        return y if self.then is None else self.then(y)


class OneDNNLinear(nn.Module):
    """The same with the weight in oneDNN's own order of memory, in float32 or bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias, self.then = bias, None if then in FUSED else then
        self.fused, self.algorithm = FUSED.get(then, ("none", "none"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in x's dtype."""
        y = torch.ops.mkldnn._linear_pointwise.default(
            x.to(self.dtype), self.weight, self.bias, self.fused, [], self.algorithm
        ).to(x.dtype)
        return y if self.then is None else self.then(y)


class Int8Linear(nn.Module):
    """The same with weights of one byte: `weight[i] = scale[i] * whole[i]`, scales exact in bfloat16.

    The product is made of bfloat16 inputs and outputs (the one kernel of torch that is fast), sums are float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None) -> None:
        super().__init__()
        whole, self.scale = eight_bits(weight)
        self.spare = -weight.shape[1] % KERNEL_READS
        self.whole = F.pad(whole, (0, self.spare))
        self.bias, self.then = bias, then

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output in x's dtype."""
        rows = x.flatten(0, -2).bfloat16()
        y = torch._weight_int8pack_mm(F.pad(rows, (0, self.spare)) if self.spare else rows, self.whole, self.scale)
        y = y.view(*x.shape[:-1], -1).to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y if self.then is None else self.then(y)


def eight_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127 and a bfloat16 scale a row, so that `weight` is nearly their product."""
    # a little more than amax / 127, lest rounding the scale down makes the largest number overflow
    scale = (weight.abs().amax(1).clamp(min=1e-12) / 126.5).bfloat16()
    return (weight / scale.unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scale


class PackedAttention(MultiHeadAttention):
    """Attention whose queries, keys and values are one product."""

    def __init__(self, of: MultiHeadAttention, linear: MakeLinear) -> None:
        nn.Module.__init__(self)
        self.n_heads, self.n_kv_heads, self.d_head = of.n_heads, of.n_kv_heads, of.d_head
        self.scale, self.softcap, self.dropout, self.order = of.scale, of.softcap, of.dropout, of.order
        self.sinks = of.sinks
        self.qkv_proj = linear(*joined(of.q_proj, of.k_proj, of.v_proj), None)
        self.out_proj = linear(*joined(of.out_proj), None)  # type: ignore[assignment]

    def queries_keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return all three: (batch, heads, time, d_head) each."""
        heads = self.qkv_proj(x).view(*x.shape[:2], -1, self.d_head).transpose(1, 2)
        q, k, v = heads.split([self.n_heads, self.n_kv_heads, self.n_kv_heads], dim=1)
        return q, k, v


class PackedFeedForward(nn.Module):
    """A feed-forward whose activation comes along with the first product."""

    def __init__(self, of: FeedForward, linear: MakeLinear) -> None:
        super().__init__()
        self.up_proj = linear(*joined(of.up_proj), of.activation)
        self.down_proj = linear(*joined(of.down_proj), None)

    def forward(self, x: Tensor) -> Tensor:
        """Return `down(activation(up(x)))`."""
        return self.down_proj(self.up_proj(x))


class PackedGatedFeedForward(nn.Module):
    """A gated feed-forward whose gate and up-projection are one product."""

    def __init__(self, of: GatedFeedForward, linear: MakeLinear) -> None:
        super().__init__()
        self.gate_up_proj = linear(*joined(of.gate_proj, of.up_proj), None)
        self.down_proj = linear(*joined(of.down_proj), None)
        self.activation = of.activation

    def forward(self, x: Tensor) -> Tensor:
        """Return `down(activation(gate(x)) * up(x))`."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.activation(gate) * up)


def rebuilt(model: Model, linear: MakeLinear) -> Model:
    """Return a copy of `model` whose linear layers are made by `linear`; all other parameters are shared with it."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, memo=dict(shared))
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if type(child) is MultiHeadAttention and name != "cross_attention":
                setattr(module, name, PackedAttention(child, linear))
            elif type(child) is FeedForward:
                setattr(module, name, PackedFeedForward(child, linear))
            elif type(child) is GatedFeedForward:
                setattr(module, name, PackedGatedFeedForward(child, linear))
            elif type(child) is nn.Linear:
                setattr(module, name, linear(*joined(child), None))
    if twin.head is None:
        words = twin.gpt.words if isinstance(twin, GPTForCausalLM) else twin.words
        twin.head = linear(words.weight.detach(), None, None)  # type: ignore[assignment]
    return twin.train(model.training)


def pack_decoder(model: Model, dtype: torch.dtype | None = None) -> Model:
    """Return a copy of a model that writes, with weights in `dtype`: float32 (or None), bfloat16 or int8.

    Raises ConfigError with the reason where this cannot be had: see `obstacle`.
    """
    dtype = torch.float32 if dtype is None else dtype
    if reason := obstacle(model, dtype):
        raise ConfigError(f"cannot pack this model in {str(dtype).removeprefix('torch.')}: {reason}")

    def linear(weight: Tensor, bias: Tensor | None, then: Activation | None) -> nn.Module:
        if dtype == torch.int8:
            return Int8Linear(weight, bias, then)
        return OneDNNLinear(weight.to(dtype), None if bias is None else bias.to(dtype), then)

    return rebuilt(model, linear)


def fastest(model: Model, dtype: torch.dtype | None = None) -> tuple[Model, str]:
    """Return what writes fastest of `model` where it is, and one line that says what that is, or why it is the model.

    `dtype` bfloat16 or int8 trades exactness for speed.
    """
    wanted = torch.float32 if dtype is None else dtype
    if reason := obstacle(model, wanted):
        return model, f"the model as it is: {reason}"
    kind = "int8 weights" if wanted == torch.int8 else f"oneDNN's packed weights, {str(wanted).removeprefix('torch.')}"
    return pack_decoder(model, dtype), kind


def obstacle(model: nn.Module, dtype: torch.dtype) -> str | None:
    """Return why `model` cannot be packed in `dtype`, in words a person can act on, or None if it can."""
    if type(model) not in (GPTForCausalLM, EncoderDecoder):  # a subclass may compute something else
        return f"it is a {type(model).__name__}, and only GPTForCausalLM and EncoderDecoder have been taught"
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"it is on {weight.device}, packing is for a CPU"
    if weight.dtype != torch.float32:
        return f"its weights are {weight.dtype}: load it with dtype=torch.float32"
    if model.training:
        return "it is in training mode: call model.eval() first"
    if dtype == torch.int8:
        return None if hasattr(torch, "_weight_int8pack_mm") else f"torch {torch.__version__} has no int8 product"
    if dtype not in (torch.float32, torch.bfloat16):
        return "expected float32, bfloat16 or int8"
    return onednn_obstacle(dtype)


def joined(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return the weights and biases of several linear layers as those of one; zeros for a bias that is missing."""
    weights = [layer.weight.detach() for layer in layers]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)  # which is laid out anew anyway: no copy of 340 MB
    if all(layer.bias is None for layer in layers):
        return weight, None
    biases = [w.new_zeros(len(w)) if each.bias is None else each.bias.detach() for each, w in zip(layers, weights)]
    return weight, torch.cat(biases)
