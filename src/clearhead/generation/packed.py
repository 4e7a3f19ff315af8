"""The same model with its linear layers laid out for reading one token at a time, on a CPU.

    fast = pack_decoder(model)                           # or dtype=torch.bfloat16, or torch.int8
    for step in generate(fast, prompts, ...):

One new token needs every weight once, so a step takes as long as reading the weights from memory. What helps:

1. **Fewer bits.** Weights in float16 or bfloat16 are half as much to read, int8 a quarter. What flows between the
   layers, the cache, scores and norms stay float32; LOG.md has how far logits move.
2. **An order of memory** in which a kernel finds them as it reads: `linear.py` has one layer for each kernel.
3. **Fewer calls.** Queries, keys and values are one product, gate and up-projection too.

Blocks, positions, norms, masks and cache are the model's own: the copy shares every other parameter with it, any
decoder here can be packed, and `watch` sees it. A model trained further has to be packed again.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from clearhead.attention import MultiHeadAttention
from clearhead.block import FeedForward, GatedFeedForward
from clearhead.errors import ConfigError
from clearhead.generation import linear as linears
from clearhead.generation.linear import MakeLinear
from clearhead.models.encoder_decoder import EncoderDecoder
from clearhead.models.gpt import GPTForCausalLM

Model = TypeVar("Model", bound=GPTForCausalLM | EncoderDecoder)


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
        heads = self.qkv_proj(x).view(*x.shape[:2], self.n_heads + 2 * self.n_kv_heads, self.d_head).transpose(1, 2)
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
    makers = list(replacements(twin, linear))
    if twin.head is None:
        words = twin.gpt.words if isinstance(twin, GPTForCausalLM) else twin.words
        makers.insert(0, (twin, "head", partial(linear, words.weight.detach(), None, None)))  # the largest by far
    with ThreadPoolExecutor(torch.get_num_threads()) as workers:  # FBGEMM lays out a matrix with one thread alone
        made = workers.map(lambda maker: maker[2](), makers)
        for (module, name, _), layer in zip(makers, made):
            setattr(module, name, layer)
    twin.register_state_dict_pre_hook(refuse_to_save)  # type: ignore[no-untyped-call]  # torch's
    twin.train(model.training)
    return twin


def refuse_to_save(*_: object) -> None:
    """Raise ConfigError: what would be saved of a packed model is all but its linear layers."""
    raise ConfigError("a packed model keeps its weights as a kernel reads them: save the model it was made from")


def replacements(module: nn.Module, linear: MakeLinear) -> Iterator[tuple[nn.Module, str, Callable[[], nn.Module]]]:
    """Yield who holds a layer to replace, its name there and what makes the new one; no weight comes twice."""
    for name, child in module.named_children():
        if type(child) is MultiHeadAttention and name != "cross_attention":
            yield module, name, partial(PackedAttention, child, linear)
        elif type(child) is FeedForward:
            yield module, name, partial(PackedFeedForward, child, linear)
        elif type(child) is GatedFeedForward:
            yield module, name, partial(PackedGatedFeedForward, child, linear)
        elif type(child) is nn.Linear:
            yield module, name, partial(linear, child.weight.detach(), bias_of(child), None)
        else:
            yield from replacements(child, linear)


def pack_decoder(model: Model, dtype: torch.dtype | None = None, *, tokens: int | None = None) -> Model:
    """Return a copy of a model that writes, with weights in `dtype`: float32 (or None), float16, bfloat16 or int8.

    `tokens` is how many it will write, if that is known: for few of them it is not worth to pack float32 twice.
    Raises ConfigError with the reason where this cannot be had: see `obstacle`.
    """
    dtype = torch.float32 if dtype is None else dtype
    if reason := obstacle(model, dtype):
        raise ConfigError(f"cannot pack this model in {str(dtype).removeprefix('torch.')}: {reason}")
    return rebuilt(model, linears.layout(dtype, tokens)[0])


def fastest(model: Model, dtype: torch.dtype | None = None, *, tokens: int | None = None) -> tuple[Model, str]:
    """Return what writes fastest of `model` where it is, and one line that says what that is, or why it is the model.

    `dtype` float16, bfloat16 or int8 trades exactness for speed; `tokens` is how many will be written, if known.
    """
    wanted = torch.float32 if dtype is None else dtype
    if reason := obstacle(model, wanted):
        return model, f"the model as it is: {reason}"
    return pack_decoder(model, dtype, tokens=tokens), linears.layout(wanted, tokens)[1]


def obstacle(model: nn.Module, dtype: torch.dtype) -> str | None:
    """Return why `model` cannot be packed in `dtype`, in words a person can act on, or None if it can."""
    if type(model) not in (GPTForCausalLM, EncoderDecoder):  # a subclass may compute something else
        return f"it is a {type(model).__name__}, and only GPTForCausalLM and EncoderDecoder have been taught"
    if any(isinstance(module, PackedAttention) for module in model.modules()):
        return "it is packed already: pack the model it was made from"
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"it is on {weight.device}, packing is for a CPU"
    if weight.dtype != torch.float32:
        return f"its weights are {weight.dtype}: load it with dtype=torch.float32"
    if model.training:
        return "it is in training mode: call model.eval() first"
    return linears.obstacle(dtype)


def joined(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Return the weights and biases of several linear layers as those of one; zeros for a bias that is missing."""
    weights, biases = [layer.weight.detach() for layer in layers], [bias_of(layer) for layer in layers]
    if len(layers) == 1:  # laid out anew anyway: no copy
        return weights[0], biases[0]
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    return torch.cat(weights), torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases)])


def bias_of(layer: nn.Linear) -> Tensor | None:
    """Return a layer's bias, which is there or not."""
    return None if layer.bias is None else layer.bias.detach()
