"""What every statistic is checked against: the same call written out in float64, one query x key table a head.

And `Fused`, a model that is nothing but one fused call.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.seeing.call import Call
from clearhead.seeing.rule import Rule


class Fused(nn.Module):
    """Attention alone, so that what comes out can be computed by hand."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **how: object) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, **how)  # type: ignore[arg-type]


@dataclass
class Dense:
    """The weights and who could look where, (batch, heads, query, key), and which queries are no padding."""

    weights: Tensor
    may: Tensor
    real: Tensor


def rules(n_queries: int, n_keys: int) -> dict[str, Rule]:
    """Return a rule of every kind, for two texts and four heads."""
    shift = n_keys - n_queries
    allowed = torch.rand(2, 4, n_queries, n_keys) < 0.7
    packed = torch.zeros(2, 1, n_queries, -(-n_keys // 8), dtype=torch.uint8)
    for key in range(n_keys):
        packed[..., key // 8] |= allowed[:, :1, :, key].to(torch.uint8) << (key % 8)
    first, second = [[0, n_keys // 3]] * (n_queries // 2), [[n_keys // 3, n_keys]] * (n_queries - n_queries // 2)
    documents = torch.tensor(first + second)
    lowest = torch.finfo(torch.float32).min
    return {
        "none": Rule(),
        "causal": Rule(reach=shift),
        "causal from the first key": Rule(reach=0),
        "padding right": Rule(keys=torch.tensor([[0, n_keys], [0, n_keys // 2 + 1]])),
        "padding left": Rule(reach=shift, keys=torch.tensor([[0, n_keys], [n_keys // 3, n_keys]])),
        "window": Rule(reach=shift, since=shift - 2),
        "window to both sides": Rule(reach=shift + 3, since=shift - 3),
        "documents": Rule(spans=documents[None, None], reach=shift),
        "table": Rule(allowed=allowed),
        "table of keys": Rule(allowed=(torch.arange(n_keys) % 3 > 0).expand(2, 1, 1, n_keys)),
        "bits": Rule(packed=packed, reach=shift),
        "bias": Rule(bias=torch.randn(1, 4, n_queries, n_keys)),
        "bias of -inf": Rule(bias=torch.where(torch.rand(2, 1, n_queries, n_keys) < 0.3, -torch.inf, 0.5)),
        "lowest number everywhere": Rule(bias=torch.full((2, 1, n_queries, n_keys), lowest)),
        "blind rows": Rule(allowed=(torch.arange(n_queries) % 3 > 0)[None, None, :, None].expand(1, 1, -1, n_keys)),
        "nobody": Rule(keys=torch.tensor([[0, 0], [2, 2]])),
    }


def call(rule: Rule, n_queries: int, n_keys: int, *, n_kv_heads: int = 2, d_head: int = 8, **more: object) -> Call:
    """Return a call of two texts and four heads with random queries, keys, values and gradient."""
    q, k = 2 * torch.randn(2, 4, n_queries, d_head), torch.randn(2, n_kv_heads, n_keys, d_head)
    v, gradient = torch.randn(2, n_kv_heads, n_keys, 6), torch.randn(2, 4, n_queries, 6)
    kv_of = tuple(h * n_kv_heads // 4 for h in range(4))
    return Call(q, k, rule, 0.3, (0, 1, 2, 3), kv_of, 4, n_kv_heads, None, v=v, gradient=gradient, **more)  # type: ignore[arg-type]


def dense(one: Call) -> Dense:
    """Return a call's weights as its docstring says they are, in float64."""
    every = [torch.arange(n) for n in (4, one.n_queries, one.n_keys)]
    k = one.k.double()[:, list(one.kv_of)]
    scores = one.scale * one.q.double() @ k.mT
    if one.softcap is not None:
        scores = one.softcap * (scores / one.softcap).tanh()
    hidden = torch.stack([one.rule.apply(torch.zeros(scores.shape[1:]), b, *every) for b in range(2)])
    may = hidden > torch.finfo(torch.float32).min / 2
    bias = 0 if one.rule.bias is None else one.rule.bias.double()
    scores = (scores + bias).masked_fill(hidden == -torch.inf, -torch.inf)
    if one.sinks is not None:
        scores = torch.cat([scores, one.sinks.double().expand(2, 4, one.n_queries)[..., None]], -1)
    weights = scores.softmax(-1).nan_to_num(0)[..., : one.n_keys]
    shift = one.n_keys - one.n_queries
    real = torch.ones(2, one.n_queries, dtype=torch.bool)
    if shift == 0 or (shift > 0 and one.rule.reach == shift):
        real = may.flatten(1, 2).any(1)[:, shift:]
    return Dense(weights, may, real)
