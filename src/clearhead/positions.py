"""How order enters. Attention alone sees a bag of words: shuffle its input and the output is shuffled alike.

Two places exist to tell it who stands where, and every scheme here is one object for one of them:

- added to the embeddings before the first layer: `LearnedPositions` (BERT, GPT-2), `SinusoidalPositions` (2017);
- inside every attention layer, as an `Order`: it may turn queries and keys (`Rotary`, in rotary.py), or add to the
  scores (`RelativeBias` of T5, `ALiBi`). Multi-head attention calls both methods and knows neither scheme by name.

Next: `rotary.py`; `attention.py` uses an `Order`, `block.py` stacks it.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.errors import ConfigError, ShapeError


class LearnedPositions(nn.Embedding):
    """One trained vector for every position (Devlin et al. 2018; Radford et al. 2019).

    `first` is the row that position 0 uses: RoBERTa keeps the first `pad_id + 1 = 2` rows for padding.
    """

    def __init__(self, max_len: int, d_model: int, *, first: int = 0) -> None:
        super().__init__(max_len + first, d_model)
        self.first = first
        self.max_len = max_len

    def forward(self, positions: Int[Tensor, "*batch time"]) -> Float[Tensor, "*batch time d_model"]:
        """Return the vectors of `positions`; raises ShapeError past `max_len` by the length alone."""
        if positions.shape[-1] > self.max_len:
            raise ShapeError(
                f"a text of {positions.shape[-1]} tokens, but this model has {self.max_len} learned positions: "
                f"truncate the text or split it"
            )
        return super().forward(positions + self.first)


class SinusoidalPositions(nn.Module):
    """Sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017, section 3.5); nothing to train.

    The paper alternates them; the code of the time, and Marian, has all sines first: `interleaved=False`.
    """

    def __init__(self, d_model: int, *, base: float = 10_000.0, interleaved: bool = True) -> None:
        super().__init__()
        if d_model % 2:
            raise ConfigError(f"d_model must be even for sine and cosine pairs, got {d_model}")
        self.d_model, self.base, self.interleaved = d_model, base, interleaved

    def forward(self, positions: Int[Tensor, "*batch time"]) -> Float[Tensor, "*batch time d_model"]:
        """Return `[sin(p w_0), cos(p w_0), sin(p w_1), ...]` with `w_i = base^(-2i/d_model)`, in float32."""
        angles = positions.float().unsqueeze(-1) * frequencies(self.d_model, self.base, positions.device)
        return torch.stack((angles.sin(), angles.cos()), dim=-1 if self.interleaved else -2).flatten(-2)


def frequencies(d: int, base: float, device: torch.device | None = None) -> Float[Tensor, " pairs"]:
    """Return `base^(-2i/d)` for i = 0 .. d/2 - 1, radians a position, in float32."""
    return 1.0 / base ** (torch.arange(0, d, 2, device=device, dtype=torch.float32) / d)


class Order(nn.Module):
    """The seam by which order enters an attention layer. The base class does nothing, which is also a choice."""

    def turn(
        self,
        q: Float[Tensor, "batch heads time d_head"],
        k: Float[Tensor, "batch kv_heads time d_head"],
        positions: Int[Tensor, "#batch time"],
    ) -> tuple[Float[Tensor, "batch heads time d_head"], Float[Tensor, "batch kv_heads time d_head"]]:
        """Return queries and keys as they are to be compared at `positions`."""
        return q, k

    def bias(
        self, query_positions: Int[Tensor, " query"], key_positions: Int[Tensor, " key"]
    ) -> Float[Tensor, "heads query key"] | None:
        """Return what is added to the scaled scores, or None."""
        return None


class RelativeBias(Order):
    """A trained number per head and bucket of distance, added to the scores (Raffel et al. 2019, T5, section 2.1).

    Half of the buckets are exact distances, the rest grow logarithmically up to `max_distance`.
    """

    def __init__(self, n_heads: int, *, n_buckets: int = 32, max_distance: int = 128, two_sided: bool = True) -> None:
        super().__init__()
        self.n_buckets, self.max_distance, self.two_sided = n_buckets, max_distance, two_sided
        self.weight = nn.Parameter(torch.zeros(n_buckets, n_heads))

    def bias(
        self, query_positions: Int[Tensor, " query"], key_positions: Int[Tensor, " key"]
    ) -> Float[Tensor, "heads query key"]:
        """Return the trained bias of every pair's bucket."""
        distance = key_positions.unsqueeze(-2) - query_positions.unsqueeze(-1)  # batch query key
        return self.weight[self._bucket(distance)].movedim(-1, -3)

    def _bucket(self, distance: Tensor) -> Tensor:
        n_buckets, offset = self.n_buckets, torch.zeros_like(distance)
        if self.two_sided:  # the upper half of the table is for keys that come later
            n_buckets //= 2
            offset = (distance > 0) * n_buckets
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = n_buckets // 2
        growth = torch.log(distance.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        far = (exact + (growth * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
        return offset + torch.where(distance < exact, distance, far)


class ALiBi(Order):
    """Lower a score in proportion to the distance, by a fixed slope a head (Press et al. 2021, section 3).

    Slopes are `2^(-8 h / n_heads)` for h = 1..n_heads; for a number of heads that is no power of two the paper's
    code takes the next lower power and fills up with every second slope of the next higher one, as done here.
    """

    slopes: Tensor

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        lower = 2 ** math.floor(math.log2(n_heads))
        slopes = [2 ** (-8 * (h + 1) / lower) for h in range(lower)]
        slopes += [2 ** (-4 * (h + 1) / lower) for h in range(0, 2 * (n_heads - lower), 2)]
        self.register_buffer("slopes", torch.tensor(slopes), persistent=False)

    def bias(
        self, query_positions: Int[Tensor, " query"], key_positions: Int[Tensor, " key"]
    ) -> Float[Tensor, "heads query key"]:
        """Return `-slope * |query position - key position|`."""
        distance = (query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)).abs()
        return -self.slopes[:, None, None] * distance.unsqueeze(-3)
