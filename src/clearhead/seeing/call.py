"""One attention call as it was: the queries, the keys, the rule, and the normaliser that the kernel computed anyway.

With these, any single weight is one formula away, and no query x key table is ever kept:

    weight_ij = exp(scale * q_i . k_j + bias_ij - lse_i)        lse_i = log sum_j exp(scale * q_i . k_j + bias_ij)

Two things some models add: a softcap c, which makes c tanh(scale * q_i . k_j / c) of every product (Gemma 2, 2024), and
sinks, one more score a head that takes weight to no key, so that a row sums to less than 1 (gpt-oss, 2025).

It is how the backward pass of flash attention recovers the weights that its forward pass never stored
(Dao et al. 2022, algorithm 4). Next: `maps.py` asks for tiles of it.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.seeing.rule import Rule


@dataclass(eq=False)
class Call:
    """What one call of an attention site was given, copied, and what it normalised by.

    heads:    the model's numbers of the heads kept in `q`, in order; `kv_of[i]` is the row of `k` that serves heads[i].
    n_heads:  how many heads the call had, kept or not; n_kv_heads likewise.
    lse:      the kernel's log-sum-exp, or None where it gave none: `maps.normaliser` then computes it when asked.
    dropout:  the probability with which the call dropped weights. The weights shown are those before dropout.
    out:      what each kept head gave, weights @ values, where outputs were asked for.
    softcap:  c as above, or None.
    sinks:    the score that takes weight to no key, or None. `lse` counts it in.
    v:        the values, where `watch(values=True)` kept them: as many rows as `k`, or one for each of `heads`.
    gradient: of what was run backwards, by the call's output; where `watch(gradients=True)` kept it.
    """

    q: Float[Tensor, "batch kept query d_head"]
    k: Float[Tensor, "batch kept_kv key d_head"]
    rule: Rule
    scale: float
    heads: tuple[int, ...]
    kv_of: tuple[int, ...]
    n_heads: int
    n_kv_heads: int
    lse: Float[Tensor, "batch kept query"] | None
    dropout: float = 0.0
    out: Float[Tensor, "batch kept query d_value"] | None = None
    softcap: float | None = None
    sinks: Float[Tensor, "#batch kept #query"] | None = None
    v: Float[Tensor, "batch kept_v key d_value"] | None = None
    gradient: Float[Tensor, "batch kept query d_value"] | None = None
    normalisers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)  # by text, once asked for

    @property
    def batch(self) -> int:
        """Return how many texts the call held."""
        return self.q.shape[0]

    @property
    def n_queries(self) -> int:
        """Return how many positions looked."""
        return self.q.shape[2]

    @property
    def n_keys(self) -> int:
        """Return how many positions could be looked at."""
        return self.k.shape[2]

    @property
    def exact(self) -> torch.dtype:
        """Return the dtype weights are computed in: float32, or float64 where the call was."""
        return torch.promote_types(self.q.dtype, torch.float32)

    @property
    def nbytes(self) -> int:
        """Return the memory of the copies, the rule's tables not counted: calls share those."""
        kept = (self.q, self.k, self.lse, self.out, self.v, self.gradient)
        return sum(t.numel() * t.element_size() for t in kept if t is not None)
