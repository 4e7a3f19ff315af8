"""Rotary positions, and the ways to make a model read further than it was trained to.

A pair of channels is a hand of a clock: `Rotary` turns it by `position * frequency`, fast hands for near things and
slow ones for far things (Su et al. 2021). A model that met 8,192 positions has never seen the slow hands go round;
a `Stretch` slows hands down so that a longer text stays within the angles it knows.

    Linear      every hand alike                                     Chen et al. 2023
    DynamicNTK  by a larger base, and only as far as the text needs    bloc97 2023; Peng et al. 2023, appendix B.2
    Yarn        slow hands fully, fast hands not, and sharper scores   Peng et al. 2023, section 3
    Llama3      the same idea with Llama 3.1's constants               Dubey et al. 2024; meta-llama/llama-models

Next: `attention.py`.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.errors import ConfigError
from clearhead.positions import Order, frequencies


@runtime_checkable
class Stretch(Protocol):
    """A way to change the frequencies."""

    def apply(
        self, d: int, base: float, positions: Int[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "*#batch pairs"], float]:
        """Return the frequencies of `d` channels, for all texts or one row a text, and a factor on turned vectors."""


class Rotary(Order):
    """Turn each pair of channels by an angle proportional to the position (Su et al. 2021, RoFormer, section 3.4).

    The inner product of a turned query and a turned key then depends on their distance alone. Channels are paired
    `(i, i + d/2)`, as GPT-NeoX and Llama checkpoints store them, not `(2i, 2i + 1)` as in the paper's figure.
    """

    def __init__(self, d_head: int, *, base: float = 10_000.0, stretch: Stretch | None = None) -> None:
        super().__init__()
        if d_head % 2:
            raise ConfigError(f"d_head must be even to turn pairs of channels, got {d_head}")
        self.d_head, self.base, self.stretch = d_head, base, stretch

    def turn(
        self,
        q: Float[Tensor, "batch heads time d_head"],
        k: Float[Tensor, "batch kv_heads time d_head"],
        positions: Int[Tensor, "#batch time"],
    ) -> tuple[Float[Tensor, "batch heads time d_head"], Float[Tensor, "batch kv_heads time d_head"]]:
        """Return q and k turned by `positions`; lengths of vectors do not change, but for YaRN's factor."""
        speed, gain = frequencies(self.d_head, self.base, q.device), 1.0
        if self.stretch is not None:
            speed, gain = self.stretch.apply(self.d_head, self.base, positions)
        # in float32: half precision cannot tell position 4097 from 4096
        angles = positions.float()[:, None, :, None] * speed.unsqueeze(-2).unsqueeze(-3)  # batch 1 time d/2
        cos, sin = (gain * angles.cos()).to(q.dtype), (gain * angles.sin()).to(q.dtype)
        return _turn(q, cos, sin), _turn(k, cos, sin)


class NormedQueriesAndKeys(Order):
    """Normalise every query and key before order enters, so that scores cannot grow (Henry et al. 2020; Qwen3)."""

    def __init__(self, q_norm: nn.Module, k_norm: nn.Module, then: Order) -> None:
        super().__init__()
        self.q_norm, self.k_norm, self.then = q_norm, k_norm, then

    def turn(
        self,
        q: Float[Tensor, "batch heads time d_head"],
        k: Float[Tensor, "batch kv_heads time d_head"],
        positions: Int[Tensor, "#batch time"],
    ) -> tuple[Float[Tensor, "batch heads time d_head"], Float[Tensor, "batch kv_heads time d_head"]]:
        """Return q and k normalised, then turned; in their own dtype, though under autocast the norms' is float32."""
        return self.then.turn(self.q_norm(q).to(q), self.k_norm(k).to(k), positions)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


class Positive:
    """A dataclass of positive numbers; None and truth values are as they are."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, bool | None) and not 0 < value < math.inf:
                raise ConfigError(f"{type(self).__name__}: {name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class Linear(Positive):
    """Every position counts as `1/factor` of one."""

    factor: float

    def apply(
        self, d: int, base: float, positions: Int[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "*#batch pairs"], float]:
        """Return all frequencies divided by `factor`."""
        return frequencies(d, base, positions.device) / self.factor, 1.0


@dataclass(frozen=True, kw_only=True)
class DynamicNTK(Positive):
    """Raise the base once a text is longer than `trained_len`, as far as its length asks for.

    Keys that a cache remembers stay turned by the base of their time, as in transformers: past `trained_len`, what is
    decoded with a cache is not exactly what one forward pass gives.
    """

    factor: float
    trained_len: int

    def apply(
        self, d: int, base: float, positions: Int[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "*#batch pairs"], float]:
        """Return each text's own frequencies, whatever stands beside it in the batch."""
        length = (positions.amax(-1, keepdim=True) + 1).clamp(min=self.trained_len).float()
        growth = self.factor * length / self.trained_len - (self.factor - 1)
        exponents = torch.arange(0, d, 2, device=positions.device, dtype=torch.float32) / d
        return 1.0 / (base * growth ** (d / (d - 2))) ** exponents, 1.0


@dataclass(frozen=True, kw_only=True)
class Llama3(Positive):
    """Hands that go round less than `low` times in `trained_len` are slowed down, more than `high` times are not."""

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    trained_len: int = 8_192

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high <= self.low:
            raise ConfigError(f"Llama3: high must be more turns than low, got {self.high} and {self.low}")

    def apply(
        self, d: int, base: float, positions: Int[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "*#batch pairs"], float]:
        """Return a blend of slowed and unchanged frequencies."""
        speed = frequencies(d, base, positions.device)
        turns = self.trained_len * speed / (2 * math.pi)
        unchanged = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return speed * (unchanged + (1 - unchanged) / self.factor), 1.0


@dataclass(frozen=True, kw_only=True)
class Yarn(Positive):
    """Like `Llama3` with a ramp over channels, and q and k scaled so that softmax stays as sharp (section 3.4).

    `gain` None is the paper's `0.1 ln(factor) + 1`, at least 1. `beta_fast`, `beta_slow`: turns in `trained_len`
    between which the ramp runs; `round_ramp` keeps its ends on whole channels.
    """

    factor: float
    trained_len: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    gain: float | None = None
    round_ramp: bool = True

    def apply(
        self, d: int, base: float, positions: Int[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "*#batch pairs"], float]:
        """Return a blend of slowed and unchanged frequencies, and the factor on q and k."""

        def channel(turns: float) -> float:
            return d * math.log(self.trained_len / (turns * 2 * math.pi)) / (2 * math.log(base))

        low, high = channel(self.beta_fast), channel(self.beta_slow)
        if self.round_ramp:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d - 1)
        steps = torch.arange(d // 2, device=positions.device, dtype=torch.float32)
        slowed = ((steps - low) / (high - low if high != low else 0.001)).clamp(0, 1)
        speed = frequencies(d, base, positions.device)
        gain = max(0.1 * math.log(self.factor) + 1, 1.0) if self.gain is None else self.gain
        return speed * (1 - slowed + slowed / self.factor), gain
