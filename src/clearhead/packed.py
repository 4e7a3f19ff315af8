"""The same encoder with no work wasted: the fast path for many texts on a CPU, in one file behind one call.

    run = pack(model)          # a BERT of models/bert.py, in eval mode
    logits = run(rows)         # token ids, any lengths, any order: one row of logits a text, in the order given

It computes what the model computes, to rounding, and says nothing new about BERT; four things make it faster:

1. **No padding.** Texts of all lengths lie end to end in one `(tokens, d_model)` matrix. Linear layers and norms do
   not care where a text ends; attention does, and runs once for each group of texts of equal length, without a mask.
2. **Only what is read.** A classifier reads the first token's vector, so the last block computes that one alone. It
   does not need the other tokens' keys and values either: `q . (K x) = (K^T q) . x`, and the mean of `V x` is `V` of
   the mean, so one query is carried to the words instead of all words to the query (`PackedBlock.first_tokens`).
3. **Packed weights.** oneDNN wants a matrix in its own order of memory. Stored that way once, a product runs at the
   processor's rate, and takes bias, GELU and residual along while the numbers are in registers.
4. **Fewer bits, when asked.** `dtype=torch.bfloat16` doubles the arithmetic where the processor has instructions for
   it. Scores and softmax stay in float32: the fused attention call is slower in bfloat16 than in float32 on a CPU.

1 and 2 hold anywhere; 3 and 4 need an x86 processor and a torch built with oneDNN. Weights are copied by the first
call: a model trained further has to be packed again. The model's own blocks are not called, so hooks on them and
`watch` see nothing. LOG.md has the measurements, `bench/classify_cpu.py` makes them.
Next: `checkpoints/mapping.py`, how a model gets its weights.
"""

import itertools
import platform
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.block import Activation, Block, FeedForward, gelu_tanh, post_norm
from clearhead.errors import ConfigError, ShapeError
from clearhead.models.bert import Bert, BertForSequenceClassification

Groups = list[tuple[int, int]]  # (texts, tokens of each), in the order in which they lie in the matrix

# What oneDNN computes while the product is still in registers, and by which algorithm; the rest is called afterwards.
FUSED: dict[Activation | None, tuple[str, str]] = {
    F.gelu: ("gelu", "none"),
    gelu_tanh: ("gelu", "tanh"),
    F.relu: ("relu", "none"),
    F.silu: ("swish", "none"),
}


class PlainLinear(nn.Module):
    """`then(x @ weight^T + bias) + add` by ordinary calls, which every processor and dtype has."""

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.then = weight, bias, then

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """Return the layer's output."""
        y = F.linear(x, self.weight, self.bias)
        y = y if self.then is None else self.then(y)
        return y if add is None else y + add


class OneDNNLinear(nn.Module):
    """The same by oneDNN, with the weight, float32 or bfloat16, in oneDNN's own order of memory.

    These are the two operators that torch.compile writes when it freezes a model for a CPU
    (torch/_inductor/fx_passes/mkldnn_fusion.py); called by hand they need no compiler and no waiting.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None = None) -> None:
        super().__init__()
        self.dtype = weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias, self.then = bias, None if then in FUSED else then
        self.fused, self.algorithm = FUSED.get(then, ("none", "none"))

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        """Return the layer's output in x's dtype."""
        multiply, given = torch.ops.mkldnn._linear_pointwise, x.to(self.dtype)
        if add is not None and self.then is None and self.fused == "none":
            y: Tensor = multiply.binary(given, add, self.weight, self.bias, "add")
            return y
        y = multiply.default(given, self.weight, self.bias, self.fused, [], self.algorithm).to(x.dtype)
        y = y if self.then is None else self.then(y)
        return y if add is None else y + add

    def __getstate__(self) -> dict[str, Any]:
        """Return what is copied or sent to another process: the weight in plain order, torch knows no other there."""
        return {**vars(self), "weight": self.weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)


Linear = PlainLinear | OneDNNLinear


class PackedBlock:
    """One post-norm block of a trunk, over the words of many texts lying end to end."""

    def __init__(self, block: Block, dtype: torch.dtype, linear: type[Linear]) -> None:
        attention, feed_forward = block.attention, block.feed_forward
        assert isinstance(feed_forward, FeedForward)

        def layer(*layers: nn.Linear, then: Activation | None = None) -> Linear:
            weight, bias = (torch.cat(tensors) for tensors in zip(*(parameters(each) for each in layers)))
            return linear(weight.to(dtype), bias.to(dtype), then)

        self.attention, self.dtype = attention, dtype
        self.exact = torch.promote_types(dtype, torch.float32)  # of scores, softmax and norms
        self.qkv = layer(attention.q_proj, attention.k_proj, attention.v_proj)  # one product instead of three
        self.out = layer(attention.out_proj)
        self.up = layer(feed_forward.up_proj, then=feed_forward.activation)
        self.down = layer(feed_forward.down_proj)
        self.attention_norm, self.feed_forward_norm = block.attention_norm, block.feed_forward_norm

    def __call__(self, x: Tensor, groups: Groups) -> Tensor:
        """Return every token's vector after this block: (tokens, d_model)."""
        n_heads, d_head = self.attention.n_heads, self.attention.d_head
        qkv = self.qkv(x).to(self.exact)
        heads = []
        for texts, part in zip(groups, split(qkv, groups)):
            q, k, v = part.view(*texts, 3, n_heads, d_head).permute(2, 0, 3, 1, 4)  # texts heads time d_head
            seen = F.scaled_dot_product_attention(q, k, v, scale=self.attention.scale)
            heads.append(seen.transpose(1, 2).reshape(-1, n_heads * d_head))
        return self.finish(torch.cat(heads).to(self.dtype), x)

    def first_tokens(self, x: Tensor, groups: Groups) -> Tensor:
        """Return the vector of each text's first token after this block: (texts, d_model).

        Per head, with q the first token's query, and K, k0, V, v0 the key and value layers:

            score_t = scale * q . (K x_t + k0)       k0 adds the same to every score, which softmax does not see
                    = scale * (K^T q) . x_t
            head    = sum_t w_t (V x_t + v0)  =  V (sum_t w_t x_t) + v0        since the weights sum to 1

        Work a token: 4 * n_heads * d_model, instead of 4 * d_model^2 for its key and value, and nothing afterwards.
        """
        attention = self.attention
        shape = (attention.n_heads, attention.d_head, -1)
        (q_weight, q_bias), (k_weight, _), (v_weight, v_bias) = (
            parameters(layer) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        texts = [part.view(*group, -1) for group, part in zip(groups, split(x, groups))]  # texts time d_model
        first = torch.cat([text[:, 0] for text in texts])
        q = F.linear(first.to(self.exact), q_weight, q_bias) * attention.scale
        q = q.view(-1, *shape[:2]).transpose(0, 1)  # heads texts d_head
        looks = torch.bmm(q, k_weight.view(shape)).transpose(0, 1)  # texts heads d_model
        means = []
        for text, look in zip(texts, torch.split(looks, [n for n, _ in groups])):
            text = text.to(self.exact)
            means.append((look @ text.transpose(1, 2)).softmax(-1) @ text)
        mean = torch.cat(means).transpose(0, 1)  # heads texts d_model
        heads = torch.bmm(mean, v_weight.view(shape).transpose(1, 2)).transpose(0, 1).flatten(1) + v_bias
        return self.finish(heads.to(self.dtype), first)

    def finish(self, heads: Tensor, x: Tensor) -> Tensor:
        """Return what is left of the block once the heads have looked: mix, norm, feed forward, norm."""
        x = self.attention_norm(self.out(heads, add=x))
        return self.feed_forward_norm(self.down(self.up(x), add=x))


class PackedEncoder:
    """A runner: a call from rows of token ids to one row of numbers a text, in the order given.

    The numbers are logits where a classifier was packed, unit vectors (`Bert.embed`) where a trunk was.
    `note` says in a few words what runs.
    """

    def __init__(self, model: Bert | BertForSequenceClassification, dtype: torch.dtype, linear: type[Linear]) -> None:
        self.model, self.dtype, self.linear = model, dtype, linear
        self.trunk = model if isinstance(model, Bert) else model.bert
        kind = "oneDNN's packed weights" if linear is OneDNNLinear else "plain weights"
        self.note = f"packed rows, {kind}, {str(dtype).removeprefix('torch.')}"

    @cached_property
    def blocks(self) -> list[PackedBlock]:
        """The trunk's blocks, packed when they are first needed."""
        return [PackedBlock(cast(Block, block), self.dtype, self.linear) for block in self.trunk.blocks]

    @torch.no_grad()
    def __call__(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "rows numbers"]:
        """Return logits or vectors; ShapeError for a row that is empty or longer than the model reads."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        texts = [
            torch.tensor([rows[i] for i in group]) for _, group in itertools.groupby(order, lambda i: len(rows[i]))
        ]
        if not texts or not texts[0].numel():
            raise ShapeError(f"expected rows of at least one token, got {len(rows)} rows, the shortest of 0 tokens")
        groups = [(len(text), text.shape[1]) for text in texts]
        x = torch.cat([self.trunk.embeddings(text).flatten(0, 1) for text in texts]).to(self.dtype)
        for block in self.blocks[:-1]:
            x = block(x, groups)
        numbers = self.read(x, groups)
        return torch.empty_like(numbers).index_copy_(0, torch.tensor(order), numbers)

    def read(self, x: Tensor, groups: Groups) -> Tensor:
        """Return what the model's head makes of the last block, which computes no more than the head reads."""
        exact = self.blocks[-1].exact
        if isinstance(self.model, Bert):
            words = split(self.blocks[-1](x, groups).to(exact), groups)
            return F.normalize(torch.cat([part.view(*group, -1).mean(1) for group, part in zip(groups, words)]), dim=-1)
        first = self.blocks[-1].first_tokens(x, groups).to(exact)
        return self.model.classifier(self.trunk.pool(first.unsqueeze(1)))


def pack(model: nn.Module, dtype: torch.dtype | None = None) -> PackedEncoder:
    """Return a Bert or a BertForSequenceClassification as a call on rows of token ids, computing in `dtype`.

    Without a dtype it is the model's own. Raises ConfigError with the reason where the model cannot be packed, or where
    nothing here computes faster in bfloat16. Where only oneDNN is missing, ordinary linear layers run on the packed
    rows, and the encoder's `note` says so.
    """
    if reason := obstacle(model):
        raise ConfigError(f"cannot pack this model: {reason}")
    own = next(model.parameters()).dtype
    dtype = own if dtype is None else dtype
    reason = onednn_obstacle(dtype)
    if dtype != own and (own, dtype) != (torch.float32, torch.bfloat16):
        raise ConfigError(f"cannot pack this model in {dtype}: its weights are {own}; load it with dtype={dtype}")
    if reason and dtype == torch.bfloat16:
        raise ConfigError(f"cannot pack this model in {dtype}: {reason}; leave dtype out to compute in {own}")
    encoder = PackedEncoder(
        cast(Bert | BertForSequenceClassification, model), dtype, PlainLinear if reason else OneDNNLinear
    )
    encoder.note += f" ({reason})" if reason else ""
    return encoder


def obstacle(model: nn.Module) -> str | None:
    """Return why `model` cannot be packed, in words a person can act on, or None if it can."""
    if type(model) not in (Bert, BertForSequenceClassification):  # a subclass may compute something else
        return f"it is a {type(model).__name__}, and only Bert and BertForSequenceClassification have been taught"
    weight = next(model.parameters())
    if weight.device.type != "cpu":
        return f"it is on {weight.device}, where padded batches are faster"
    if weight.dtype not in (torch.float32, torch.float64):
        return f"its weights are {weight.dtype}: load it with dtype=torch.float32"
    if model.training:
        return "it is in training mode: call model.eval() first"
    trunk = cast(Bert, model if isinstance(model, Bert) else model.bert)
    return next(filter(None, map(block_obstacle, trunk.blocks)), None)


def block_obstacle(block: nn.Module) -> str | None:
    """Return which trick of `block` has no packed form, or None."""
    assert isinstance(block, Block)
    if block.residual is not post_norm:
        return f"its residual is {getattr(block.residual, '__name__', block.residual)}, not post_norm"
    if block.cross_attention is not None:
        return "its blocks have cross-attention"
    if block.attention.sinks is not None:
        return "its attention has sinks"
    if block.attention.order is not None:
        return f"order enters its attention by {type(block.attention.order).__name__}"
    if block.attention.n_kv_heads != block.attention.n_heads:
        return f"its {block.attention.n_heads} query heads share {block.attention.n_kv_heads} key/value heads"
    if not isinstance(block.feed_forward, FeedForward):
        return f"its feed-forward is a {type(block.feed_forward).__name__}"
    return None


def onednn_obstacle(dtype: torch.dtype) -> str | None:
    """Return why oneDNN's packed weights are of no use here, or None if they are."""
    if dtype not in (torch.float32, torch.bfloat16):
        return f"oneDNN packs float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"oneDNN's packed weights are for x86 processors, this is {platform.machine()}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return f"torch {torch.__version__} has no packed linear operators"
    if dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        return "this processor has no bfloat16 instructions"
    return None


def parameters(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return a linear layer's weight and bias, zeros where it has none."""
    weight = layer.weight.detach()
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()


def split(x: Tensor, groups: Groups) -> tuple[Tensor, ...]:
    """Return each group's rows of `x`: (texts * tokens, channels)."""
    return torch.split(x, [n_texts * n_tokens for n_texts, n_tokens in groups])
