"""Attention: every word looks at every other word and takes from each in proportion to how well they match.

    weights = softmax(scale * q @ k^T + bias)        rows sum to 1; scale is 1/sqrt(d_head)
    output  = weights @ v

Three things live here, and they are the whole of it (Vaswani et al. 2017, section 3.2):

- `attend` computes `output` by one fused call that never stores `weights`;
- `attention_map` computes `weights` by the formula above, for when one wants to see them;
- `MultiHeadAttention` makes q, k and v from words with linear layers, attends in several heads, and mixes them.

The project in one line, kept by a property test: `attend(q, k, v, mask) == attention_map(q, k, mask) @ v`.

Tensors are laid out `(batch, heads, time, d_head)`, as torch.nn.functional.scaled_dot_product_attention has them.
Next: `derivation/steps.py` arrives at this code in eight steps; `positions.py` says how order enters.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from clearhead.cache import LayerCache
from clearhead.errors import ConfigError, ShapeError
from clearhead.mask import CAUSAL, EVERYWHERE, Mask, check_mask
from clearhead.positions import Order

__all__ = ["CAUSAL", "EVERYWHERE", "Mask", "MultiHeadAttention", "attend", "attention_map"]


def attend(
    q: Float[Tensor, "batch heads query d_head"],
    k: Float[Tensor, "batch kv_heads key d_head"],
    v: Float[Tensor, "batch kv_heads key d_value"],
    mask: Mask = EVERYWHERE,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch heads query d_value"]:
    """Return `softmax(scale * q @ k^T + bias) @ v` by one fused call, in memory that grows with time, not time^2.

    That holds for no mask, key lengths, and a causal mask over as many queries as keys or a single one; the other
    rules cost a byte a pair (a bias: its own size), which is shared by all heads that it does not tell apart.
    With fewer key/value heads than query heads, each serves `heads / kv_heads` neighbouring query heads (grouped
    queries, Ainslie et al. 2023). `scale` is 1/sqrt(d_head) unless given. `dropout` is the probability with which
    a weight is dropped. A query that may look nowhere gets zeros, and so does its gradient.

    With a `softcap` c, scores s become `c tanh(s / c)` before the bias (Gemma 2): these are computed by the formula,
    time^2 numbers a head, and handed to the fused call as a bias.

    `sinks` are scores of a place that holds nothing, one a head: what a query gives to it, it gives to no word, so its
    weights sum to less than 1 (OpenAI 2025, gpt-oss; after Xiao et al. 2023, StreamingLLM). One more key, in front.

    Raises ShapeError when shapes, dtypes or devices do not fit: torch's CPU kernel, for one, accepts keys and
    values of different lengths and returns finite numbers.
    """
    _check(q, k, v, mask)
    if softcap is not None:
        mask, q = mask.with_bias(_capped_scores(q, k, scale, softcap)), torch.zeros_like(q)
    n_queries, n_keys = q.shape[-2], k.shape[-2]
    others = (mask.window, mask.key_starts, mask.key_lengths, mask.queries_at, mask.allowed, mask.bias)
    just_causal = mask.causal and all(rule is None for rule in others)
    is_causal = just_causal and n_queries == n_keys > 1  # torch aligns is_causal to the *first* key: square only
    allowed = None if is_causal or (just_causal and n_queries == 1) else mask.dense(n_queries, n_keys, q.device)
    rule = allowed
    if mask.bias is not None:
        bias = mask.bias.to(q.dtype)
        rule = bias if allowed is None else torch.where(allowed, bias, -math.inf)
    if sinks is not None:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return attend_with_sinks(q, k, v, rule, sinks, scale, is_causal, dropout)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=rule,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def attention_map(
    q: Float[Tensor, "batch heads query d_head"],
    k: Float[Tensor, "batch kv_heads key d_head"],
    mask: Mask = EVERYWHERE,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "batch heads query key"]:
    """Return the weights themselves, `softmax(scale * q @ k^T + bias)`, by the formula: time^2 numbers a head.

    Computed in float32 at least, returned in q's dtype. Rows sum to 1; a row that may look nowhere is all zeros.
    Arguments and errors are those of `attend`. For long texts see `clearhead.watch`, which computes tiles of it.
    """
    _check(q, k, None, mask)
    exact = torch.promote_types(q.dtype, torch.float32)
    scores = _capped_scores(q.to(exact), k.to(exact), scale, softcap)
    if mask.bias is not None:
        scores = scores + mask.bias.to(exact)
    allowed = mask.dense(q.shape[-2], k.shape[-2], q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    if sinks is not None:
        sink = sinks.to(exact)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([sink, scores], dim=-1).softmax(-1)[..., 1:].to(q.dtype)
    blind = (scores == -math.inf).all(-1, keepdim=True)  # softmax of nothing is 0/0
    return scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0).to(q.dtype)


def _capped_scores(q: Tensor, k: Tensor, scale: float | None, softcap: float | None) -> Tensor:
    """Return `scale * q @ k^T` of every pair, bent to stay within the softcap if there is one."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = scale * q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(-2, -1)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def attend_with_sinks(
    q: Float[Tensor, "batch heads query d_head"],
    k: Float[Tensor, "batch kv_heads key d_head"],
    v: Float[Tensor, "batch kv_heads key d_value"],
    rule: Tensor | None,
    sinks: Float[Tensor, " heads"],
    scale: float,
    is_causal: bool,
    dropout: float,
) -> Float[Tensor, "batch heads query d_value"]:
    """Return what `attend` does with `sinks`, by the fused call over one more key; `rule` is a mask as that takes it.

    A function to torch as its own are (torch.overrides): whoever stands beside this call is asked first, and sees it
    as the model means it, without the key.
    """
    if has_torch_function((q, k, v)):
        given = (q, k, v, rule, sinks, scale, is_causal, dropout)
        return handle_torch_function(attend_with_sinks, (q, k, v), *given)
    first, width = int(is_causal), v.shape[-1]  # a square stays one: a query in front too, which sees the sink alone
    q, k, v, rule = _with_sink(q, k, v, rule, sinks / scale, first)
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=rule,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[:, :, first:, :width]


def _with_sink(
    q: Tensor, k: Tensor, v: Tensor, rule: Tensor | None, at: Tensor, n_front: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return all with one more key, in front, that every query of head h finds by a product of `at[h]`, worth nothing.

    One more channel says so: 1 for that key and 0 for words, `at` for all queries; seven more are for the kernels,
    which want widths that 8 divides. `n_front` queries of zeros stand in front too.
    """
    tells = at.to(q.dtype)[:, None, None].expand(*q.shape[:-1], 1)
    q = F.pad(torch.cat([q, tells], dim=-1), (0, 7, n_front, 0))
    place = k.shape[-1]
    k, v = F.pad(k, (0, 8, 1, 0)), F.pad(v, (0, 8, 1, 0))
    k[:, :, 0, place] = 1
    if rule is not None:
        rule = rule.expand(*rule.shape[:-1], k.shape[2] - 1)
        rule = F.pad(rule, (1, 0), value=rule.dtype == torch.bool)
    return q, k, v, rule


class MultiHeadAttention(nn.Module):
    """Queries from `x`, keys and values from `memory` (or from `x` itself), attended in several heads at once.

    Self-attention, cross-attention, grouped queries (`n_kv_heads < n_heads`), multi-query (`n_kv_heads=1`) and a
    single head (`n_heads=1`) are the same code. `order` lets positions in (see positions.py).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        d_head: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        scale: float | None = None,
        softcap: float | None = None,
        order: Order | None = None,
    ) -> None:
        super().__init__()
        n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if d_head is None and d_model % n_heads:
            raise ConfigError(f"d_model {d_model} does not divide into {n_heads} heads: give d_head, or other sizes")
        if n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ConfigError(f"{n_heads} query heads cannot share {n_kv_heads} key/value heads evenly")
        d_head = d_model // n_heads if d_head is None else d_head
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        self.scale, self.softcap = d_head**-0.5 if scale is None else scale, softcap
        self.dropout, self.order = dropout, order
        self.sinks: nn.Parameter | None
        self.register_parameter("sinks", None)  # models that want some put them here: a number a head
        self.q_proj = nn.Linear(d_model, n_heads * d_head, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * d_head, bias=bias)
        self.out_proj = nn.Linear(n_heads * d_head, d_model, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "batch query d_model"],
        memory: Float[Tensor, "batch memory d_model"] | None = None,
        *,
        mask: Mask = EVERYWHERE,
        positions: Int[Tensor, "#batch query"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        """Return what each position of `x` takes from `memory`, or from `x` where no memory is given.

        `positions` are those of `x`, counted on from the cache where not given. With a `cache`, keys and values
        of earlier calls are looked at too, and this call's are remembered; those of a `memory` are computed in the
        first call alone.
        """
        if memory is not None:
            if self.order is not None:
                raise ConfigError("order relates positions of one text: build cross-attention with order=None")
            q = self.queries(x)
            k, v = self.keys_and_values(memory) if cache is None else cache.once(lambda: self.keys_and_values(memory))
        else:
            q, k, v = self.queries_keys_and_values(x)
            places = torch.arange(x.shape[1], device=x.device) if cache is None else cache.places(x.shape[1])
            if self.order is not None:
                q, k = self.order.turn(q, k, places.unsqueeze(0) if positions is None else positions)
            if cache is not None:
                k, v = cache.append(k, v)
                mask = mask if cache.grows else replace(mask, queries_at=places)
            mask = self._with_order_bias(mask, q.shape[-2], k.shape[-2], x.device)
        dropout = self.dropout if self.training else 0.0
        heads = attend(q, k, v, mask, scale=self.scale, softcap=self.softcap, sinks=self.sinks, dropout=dropout)
        return self.out_proj(rearrange(heads, "batch heads time d_head -> batch time (heads d_head)"))

    def queries(self, x: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch heads time d_head"]:
        """Return what each position of `x` looks for, one vector a head."""
        return rearrange(self.q_proj(x), "batch time (heads d_head) -> batch heads time d_head", heads=self.n_heads)

    def keys_and_values(
        self, x: Float[Tensor, "batch time d_model"]
    ) -> tuple[Float[Tensor, "batch kv_heads time d_head"], Float[Tensor, "batch kv_heads time d_head"]]:
        """Return what each position of `x` is found by, and what it has to give."""
        k, v = (
            rearrange(project(x), "batch time (heads d_head) -> batch heads time d_head", heads=self.n_kv_heads)
            for project in (self.k_proj, self.v_proj)
        )
        return k, v

    def queries_keys_and_values(self, x: Float[Tensor, "batch time d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return all three of one text: generation/packed.py makes them by one product."""
        return self.queries(x), *self.keys_and_values(x)

    def _with_order_bias(self, mask: Mask, n_queries: int, n_keys: int, device: torch.device) -> Mask:
        """Return `mask` with the order's bias added."""
        if self.order is None:
            return mask
        places = mask.places(n_queries, n_keys, device)
        bias = self.order.bias(places, torch.arange(n_keys, device=device))
        return mask if bias is None else mask.with_bias(bias.unsqueeze(0))


def _check(q: Tensor, k: Tensor, v: Tensor | None, mask: Mask) -> None:
    """Refuse what does not fit, with what came and what was expected; kernels differ in what they let through."""
    tensors = {"q": q, "k": k} if v is None else {"q": q, "k": k, "v": v}
    if any(t.ndim != 4 for t in tensors.values()):
        raise ShapeError(f"expected (batch, heads, time, d_head) for each of q, k, v, got {_shapes(tensors)}")
    if len({t.dtype for t in tensors.values()}) > 1:
        raise ShapeError(f"q, k, v differ in dtype: {', '.join(f'{n} {t.dtype}' for n, t in tensors.items())}")
    if len({t.device for t in tensors.values()}) > 1:
        raise ShapeError(
            f"q, k, v are on different devices: {', '.join(f'{n} {t.device}' for n, t in tensors.items())}"
        )
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1]:
        raise ShapeError(f"q and k must agree in batch and d_head, got {_shapes(tensors)}")
    if v is not None and k.shape[:3] != v.shape[:3]:
        raise ShapeError(f"k and v must agree in batch, heads and time, got {_shapes(tensors)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ShapeError(
            f"{q.shape[1]} query heads cannot share {k.shape[1]} key/value heads evenly: {_shapes(tensors)}"
        )
    check_mask(mask, q, k)


def _shapes(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
