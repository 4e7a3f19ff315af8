"""The derivation: eight functions from words to multi-head attention, a few lines each, that work on their own.

Take "attention is not too shabby". Only *not* turns *shabby* into praise, and only because of where it points: let it
point elsewhere, and the same words complain. What a word means depends on the words it is read with. So how does a
word take from the right ones?

    1  vectors      x_j                                   a word is a vector
    2  values       v_j  = W_V x_j + b_V                  what it has to give
    3  naive_sum    o_i  = Σ_j v_j / T                    take from all words alike: wrong, but of the right form
    4  scores       s_ij = q_i · k_j                      one word asks, another answers: how well do they match?
    5  scale        z_ij = s_ij / √D                      keep the spread near 1, however many channels
    6  softmax      w_ij = exp(z_ij) / Σ_j exp(z_ij)      matches become shares
    7  mix          o_i  = Σ_j w_ij v_j                   step 3 again, with shares in place of 1/T
    8  multi_head   y_i  = W_O [o_i^1 … o_i^H] + b_O      several heads ask several questions

Called in this order on a layer of a real model they arrive at that layer's own output; a test holds them together.

Steps 4, 6 and 7 are soft alignment (Bahdanau, Cho & Bengio 2014); inner products, the scale and the heads came with
Vaswani et al. 2017, section 3.2. Tensors are `(heads, time, d_head)`: one text, all heads at once.
Next: `account.py` calls them; `attention.py` computes the same in one fused call.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from clearhead.attention import MultiHeadAttention
from clearhead.errors import ConfigError, InputError, ShapeError


def vectors(words: Sequence[str], x: Float[Tensor, "time d_model"]) -> Float[Tensor, "time d_model"]:
    """Step 1. A word is a vector: row j of `x` stands for word j, made by an embedding or by the layer below.

    Raises ShapeError when there are not as many words as vectors, InputError when a vector is not all numbers.
    """
    if x.ndim != 2 or len(x) != len(words):
        raise ShapeError(f"{len(words)} words need vectors (time, d_model) = ({len(words)}, ...), got {tuple(x.shape)}")
    if not x.isfinite().all():
        broken = int((~x.isfinite().all(-1)).nonzero()[0])
        raise InputError(f"the vector of {words[broken]!r} at {broken} holds NaN or infinity: look at the layers below")
    return x


def values(attention: MultiHeadAttention, x: Float[Tensor, "key d_model"]) -> Float[Tensor, "heads key d_head"]:
    """Step 2. What a word has to give: `v_j = W_V x_j + b_V`, one linear layer, the same for every word."""
    return split(attention.v_proj(x), attention)


def naive_sum(
    v: Float[Tensor, "heads key d_head"], allowed: Bool[Tensor, "#heads query key"] | None = None
) -> Float[Tensor, "heads query d_head"]:
    """Step 3. Take from all words alike: `o_i = Σ_j v_j / T`, over the T words that word i may look at.

    What is wrong with it: i is nowhere on the right-hand side. Every word receives the same, in whatever order the
    words stand, so *not* can do no more for *shabby* than for *is*. The shares have to depend on both i and j.
    """
    if allowed is None:
        allowed = torch.ones(1, 1, v.shape[-2], dtype=torch.bool, device=v.device)
    shares = allowed.to(v.dtype) / allowed.sum(-1, keepdim=True).clamp(min=1)
    return shares @ v


def queries_and_keys(
    attention: MultiHeadAttention, x: Float[Tensor, "query d_model"], memory: Float[Tensor, "key d_model"] | None = None
) -> tuple[Float[Tensor, "heads query d_head"], Float[Tensor, "heads key d_head"]]:
    """Step 4. What word i looks for, `q_i = W_Q x_i + b_Q`, and what word j offers, `k_j = W_K x_j + b_K`.

    Where order enters by turning (rotary positions), both are turned by where they stand.
    """
    q = split(attention.q_proj(x), attention)
    k = split(attention.k_proj(x if memory is None else memory), attention)
    if attention.order is not None:
        if memory is not None:
            raise ConfigError("order relates positions of one text: a layer with an order cannot look at a memory")
        positions = torch.arange(len(x), device=x.device).unsqueeze(0)
        q, k = (turned.squeeze(0) for turned in attention.order.turn(q.unsqueeze(0), k.unsqueeze(0), positions))
    return q, k


def scores(
    q: Float[Tensor, "heads query d_head"], k: Float[Tensor, "heads key d_head"]
) -> Float[Tensor, "heads query key"]:
    """Step 4, continued. How well they match: the inner product `s_ij = q_i · k_j = Σ_c q_ic k_jc`."""
    return q @ k.transpose(-2, -1)


def scale(
    scores: Float[Tensor, "*heads query key"], factor: float, softcap: float | None = None
) -> Float[Tensor, "*heads query key"]:
    """Step 5. `z_ij = s_ij / √D`: the factor is 1/√D in nearly every layer.

    An inner product adds up D products. If q and k start out independent with a standard deviation of 1, so does
    each product, and D of them have √D (Vaswani et al. 2017, footnote 4). Undivided, scores would grow with D until
    softmax gives everything to one word and passes no gradient back; divided by D, they would shrink until it gives
    all words the same, which is step 3. The argument is about the start of training: a trained layer spreads its
    scores as it likes. A softcap c (Gemma 2) bends what is scaled, `c tanh(z_ij / c)`, so that it cannot leave ±c.
    """
    scaled = factor * scores
    return scaled if softcap is None else softcap * torch.tanh(scaled / softcap)


def softmax(
    scaled: Float[Tensor, "heads query key"],
    bias: Float[Tensor, "#heads query key"] | None = None,
    allowed: Bool[Tensor, "#heads query key"] | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "heads query key"]:
    """Step 6. Matches become shares: `w_ij = exp(z_ij + b_ij) / Σ_j exp(z_ij + b_ij)`, all positive, summing to 1.

    A word that may not be looked at has share 0. Shares do not change when all z do alike, so the highest is taken
    off first and nothing overflows. Who may look nowhere gets only zeros. A sink (gpt-oss) is one more match, with
    nothing behind it: what it takes, no word gets, and the shares sum to less than 1.
    """
    z = scaled if bias is None else scaled + bias
    if allowed is not None:
        z = z.masked_fill(~allowed, -math.inf)
    if sinks is not None:
        z = torch.cat([sinks.to(z)[:, None, None].expand(*z.shape[:-1], 1), z], dim=-1)
    highest = z.amax(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).min)
    raised = (z - highest).exp()
    shares = raised / raised.sum(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
    return shares if sinks is None else shares[..., 1:]


def mix(
    weights: Float[Tensor, "heads query key"], v: Float[Tensor, "heads key d_head"]
) -> Float[Tensor, "heads query d_head"]:
    """Step 7. What one head gives word i: `o_i = Σ_j w_ij v_j`, the sum of step 3 with shares of its own."""
    return weights @ v


def multi_head(
    attention: MultiHeadAttention, heads: Float[Tensor, "heads query d_head"]
) -> Float[Tensor, "query d_model"]:
    """Step 8. Several heads, several questions: `y_i = W_O [o_i^1 … o_i^H] + b_O`, concatenated and projected.

    While training, dropout strikes out each w_ij of step 6 with probability `attention.dropout` and enlarges the
    rest to make up for it (Srivastava et al. 2014). At inference, which is what is derived here, it does nothing.
    """
    return attention.out_proj(rearrange(heads, "heads query d_head -> query (heads d_head)"))


def split(projected: Float[Tensor, "time features"], attention: MultiHeadAttention) -> Tensor:
    """Cut what a linear layer made into heads: `(heads, time, d_head)`, in float32 at least.

    Where several query heads share a key/value head (grouped queries), it is repeated for each of them.
    """
    heads = rearrange(projected, "time (heads d_head) -> heads time d_head", d_head=attention.d_head)
    exact = torch.promote_types(projected.dtype, torch.float32)
    return heads.repeat_interleave(attention.n_heads // len(heads), dim=0).to(exact)
