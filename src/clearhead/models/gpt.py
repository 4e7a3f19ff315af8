"""GPT: a Transformer that reads from left to right and guesses the next word (Radford et al. 2018, 2019).

    words (+ positions) -> n_layers blocks (pre-norm, nobody looks ahead) -> norm -> a score for every word

What decoders became since GPT-2 is other parts in the same places: rotary positions instead of learned ones, RMSNorm,
gated feed-forwards, fewer key/value heads than query heads, normalised queries and keys, layers that see only a
window. `GPTConfig` names the parts, `_block` puts them together, and nothing else knows which were chosen.

Compared with bert.py: the mask is causal, the norm comes first, and there is a cache to decode with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.attention import Mask, MultiHeadAttention
from clearhead.block import (
    Around,
    Block,
    FeedForward,
    GatedFeedForward,
    RMSNorm,
    activation,
    around,
    initialise,
    pre_norm,
)
from clearhead.cache import KVCache, LayerCache
from clearhead.config import check_numbers
from clearhead.errors import ConfigError, ShapeError
from clearhead.positions import LearnedPositions, Order
from clearhead.rotary import DynamicNTK, Llama3, NormedQueriesAndKeys, Rotary, Stretch, Yarn


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """Rotary positions: the base of the frequencies, and how they are stretched."""

    base: float = 10_000.0
    stretch: Stretch | None = None

    def __post_init__(self) -> None:
        if not self.base > 1:
            raise ConfigError(f"RotaryConfig: base must be more than 1, got {self.base}")


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """What a decoder is made of; the defaults are GPT-2 124M (Radford et al. 2019, table 2)."""

    vocab_size: int = 50_257
    d_model: int = 768
    n_heads: int = 12
    n_kv_heads: int | None = None  # None: as many as query heads
    d_head: int | None = None  # None: d_model / n_heads
    n_layers: int = 12
    d_ff: int = 3_072
    max_len: int = 1_024
    rotary: RotaryConfig | None = None  # None: learned positions
    rotary_local: RotaryConfig | None = None  # what layers with a window turn by, where it differs (Gemma 3)
    windows: tuple[int | None, ...] = (None,)  # how many keys a query sees, itself included; repeats over the layers
    norm: Literal["layer", "rms", "rms_from_one"] = "layer"
    norms: Literal["before", "around"] = "before"
    norm_eps: float = 1e-5
    feed_forward: Literal["plain", "gated"] = "plain"
    activation: str = "gelu_tanh"
    biases: Literal["all", "attention", "qkv", "none"] = "all"
    normed_queries: bool = False  # normalise every query and key (Qwen3, Gemma 3)
    scale: float | None = None  # of the scores; None: 1/sqrt(d_head)
    embedding_scale: float = 1.0
    tied: bool = True  # the output matrix is the word embedding
    score_softcap: float | None = None  # c tanh(scores / c) (Gemma 2)
    logit_softcap: float | None = None  # c tanh(logits / c)
    sinks: bool = False  # every head may give part of its attention to nothing (gpt-oss)
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "n_heads", "n_kv_heads", "d_head", "n_layers", "d_ff", "max_len")
        others = ("scale", "embedding_scale", "score_softcap", "logit_softcap")
        check_numbers(self, sizes + others, ("dropout", "attention_dropout"))
        if not self.windows or any(window is not None and window < 1 for window in self.windows):
            raise ConfigError(f"GPTConfig: windows are numbers of keys from 1, or None, got {self.windows}")
        activation(self.activation)

    @property
    def context_len(self) -> int | None:
        """How many tokens the model is made to read; None: any number.

        It is `max_len`, which configs may state without regard to a stretch: YaRN and Llama 3's frequencies reach
        `factor` times the length that the model was trained at (Peng et al. 2023), and dynamic NTK follows the text.
        """
        stretch = self.rotary.stretch if self.rotary else None
        if isinstance(stretch, DynamicNTK):
            return None
        if isinstance(stretch, Yarn | Llama3):
            return max(self.max_len, int(stretch.factor * stretch.trained_len))
        return self.max_len

    def window(self, layer: int) -> int | None:
        """Return how many keys a query of this layer sees, or None for all before it."""
        return self.windows[layer % len(self.windows)]


# Radford et al. 2019, table 2
SIZES: dict[str, GPTConfig] = {
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(d_model=1_024, n_heads=16, n_layers=24, d_ff=4_096),
    "gpt2-large": GPTConfig(d_model=1_280, n_heads=20, n_layers=36, d_ff=5_120),
    "gpt2-xl": GPTConfig(d_model=1_600, n_heads=25, n_layers=48, d_ff=6_400),
}


class GPT(nn.Module):
    """The trunk: token ids in, one vector a token out, each of what came before it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = None if config.rotary else LearnedPositions(config.max_len, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.n_layers))
        self.norm = _norm(config)()
        self.apply(initialise)
        for name, weight in self.blocks.named_parameters():  # what is added on, twice a layer, keeps the sum's size
            if name.endswith(("out_proj.weight", "down_proj.weight")):  # (Radford et al. 2019, section 2.3)
                nn.init.normal_(weight, std=0.02 * (2 * config.n_layers) ** -0.5)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        starts: Int[Tensor, " batch"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Return the last hidden states.

        Texts of unequal length stand to the right: the first `starts[b]` tokens of row b are padding, and stay so
        while a `cache` remembers them. With a cache, `tokens` are those that follow what it holds.
        """
        n = tokens.shape[1]
        positions = (torch.arange(n, device=tokens.device) if cache is None else cache.places(n)).unsqueeze(0)
        if starts is not None:
            positions = (positions - starts.unsqueeze(1)).clamp(min=0)
        x = self.words(tokens)
        if self.config.embedding_scale != 1.0:  # as a number of the weights' dtype, in which Gemma rounds it
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype)
        if self.positions is not None:
            x = x + self.positions(positions)
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            window = self.config.window(layer)
            mask = Mask(causal=True, window=None if window is None else (window - 1, 0), key_starts=starts)
            x = block(x, mask=mask, positions=positions, cache=None if cache is None else cache[layer])
        return self.norm(x)


class GPTForCausalLM(nn.Module):
    """Guess the next token at every position."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.gpt = GPT(config)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        if self.head is not None:
            initialise(self.head)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        starts: Int[Tensor, " batch"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return a score for every word after every position; arguments as for `GPT`."""
        return self.logits(self.gpt(tokens, starts, cache=cache))

    def logits(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Return the scores of hidden states, for those positions one needs: generation wants the last alone."""
        scores = nn.functional.linear(hidden, self.gpt.words.weight) if self.head is None else self.head(hidden)
        cap = self.config.logit_softcap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def new_cache(self, batch: int, max_len: int, kind: type[LayerCache] = LayerCache) -> KVCache:
        """Return an empty cache for `batch` texts of up to `max_len` tokens, where and as the weights are.

        Raises ShapeError for more tokens than there are learned positions.
        """
        config, weight = self.config, self.gpt.words.weight
        if config.rotary is None and max_len > config.max_len:
            raise ShapeError(
                f"{max_len} tokens, but this model has {config.max_len} learned positions: shorten the text"
            )
        return KVCache(
            n_layers=config.n_layers,
            batch=batch,
            n_kv_heads=config.n_kv_heads or config.n_heads,
            max_len=max_len,
            d_head=config.d_head or config.d_model // config.n_heads,
            dtype=weight.dtype,
            device=weight.device,
            kind=kind,
        )


def _norm(config: GPTConfig) -> Callable[[], nn.Module]:
    if config.norm == "layer":
        return lambda: nn.LayerNorm(config.d_model, eps=config.norm_eps)
    return lambda: RMSNorm(config.d_model, eps=config.norm_eps, offset=float(config.norm == "rms_from_one"))


def _order(config: GPTConfig, layer: int, d_head: int) -> Order | None:
    rotary = config.rotary
    if config.rotary_local is not None and config.window(layer) is not None:
        rotary = config.rotary_local
    order = None if rotary is None else Rotary(d_head, base=rotary.base, stretch=rotary.stretch)
    if not config.normed_queries:
        return order
    offset = float(config.norm == "rms_from_one")
    q_norm, k_norm = (RMSNorm(d_head, eps=config.norm_eps, offset=offset) for _ in range(2))
    return NormedQueriesAndKeys(q_norm, k_norm, order or Order())


def _block(config: GPTConfig, layer: int) -> Block:
    d_head = config.d_head or config.d_model // config.n_heads
    attention = MultiHeadAttention(
        config.d_model,
        config.n_heads,
        n_kv_heads=config.n_kv_heads,
        d_head=config.d_head,
        bias=config.biases != "none",
        dropout=config.attention_dropout,
        scale=config.scale,
        softcap=config.score_softcap,
        order=_order(config, layer, d_head),
    )
    if config.sinks:
        attention.sinks = nn.Parameter(torch.zeros(config.n_heads))
    if config.biases == "qkv":  # Qwen2
        attention.out_proj = nn.Linear(config.n_heads * d_head, config.d_model, bias=False)
    norm, gated = _norm(config), config.feed_forward == "gated"
    return Block(
        attention,
        (GatedFeedForward if gated else FeedForward)(
            config.d_model, config.d_ff, activation(config.activation), bias=config.biases == "all"
        ),
        norm=norm if config.norms == "before" else lambda: Around(norm(), norm()),
        residual=pre_norm if config.norms == "before" else around,
        dropout=config.dropout,
    )
