"""Encoder and decoder: the Transformer of 2017 (Vaswani et al.), from one text to another, or from sound to text.

    source -> encoder (everybody looks everywhere) -> memory
    target so far -> decoder (nobody looks ahead; between the two sublayers everyone looks into memory) -> next token

Compared with bert.py and gpt.py: the decoder's blocks have cross-attention, whose queries come from the target and
whose keys and values come from the source. T5's relative positions, BART's and Marian's norms and Whisper's
convolutions over sound are other parts in the same places.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.attention import EVERYWHERE, Mask, MultiHeadAttention
from clearhead.block import Block, FeedForward, GatedFeedForward, RMSNorm, activation, post_norm, pre_norm
from clearhead.cache import KVCache, LayerCache
from clearhead.config import check_numbers
from clearhead.errors import ConfigError, ShapeError
from clearhead.positions import LearnedPositions, Order, RelativeBias, SinusoidalPositions


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """What the two halves are made of; the defaults are the base model of Vaswani et al. 2017, table 3."""

    vocab_size: int = 37_000
    d_model: int = 512
    n_heads: int = 8
    d_head: int | None = None  # None: d_model / n_heads
    n_encoder_layers: int = 6
    n_decoder_layers: int = 6
    d_ff: int = 2_048
    max_source_len: int = 1_024
    max_target_len: int = 1_024
    positions: Literal["sinusoidal", "learned", "relative"] = "sinusoidal"
    first_position: int = 0  # BART's learned table keeps two rows for nobody
    n_buckets: int = 32  # of relative distance (T5)
    max_distance: int = 128
    norm: Literal["layer", "rms"] = "layer"
    norms: Literal["before", "after"] = "after"
    embedding_norm: bool = False  # BART normalises the embeddings too
    norm_eps: float = 1e-5
    feed_forward: Literal["plain", "gated"] = "plain"
    activation: str = "relu"
    biases: Literal["all", "all_but_keys", "none"] = "all"  # Whisper's keys have none
    scale: float | None = None  # of the scores; None: 1/sqrt(d_head); T5 uses 1
    embedding_scale: float | None = None  # None: sqrt(d_model), as the paper has it
    tied: bool = True  # the output matrix is the word embedding
    logit_scale: float = 1.0  # T5 shrinks what goes into a tied output matrix by 1/sqrt(d_model)
    logit_bias: bool = False  # Marian and BART
    n_mels: int | None = None  # the source is sound: so many mel bands a frame (Whisper); None: token ids
    pad_id: int = 0
    start_id: int = 0  # what the decoder reads first
    end_id: int = 1
    dropout: float = 0.1
    attention_dropout: float | None = None  # None: as everywhere

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "n_heads", "d_head", "n_encoder_layers", "n_decoder_layers", "d_ff")
        others = ("max_source_len", "max_target_len", "n_mels", "scale", "embedding_scale", "logit_scale")
        check_numbers(self, sizes + others, ("dropout", "attention_dropout"))
        if self.n_buckets < 4 or self.max_distance <= self.n_buckets // 2:
            raise ConfigError(
                f"EncoderDecoderConfig: half of the buckets, at least 4, are for single distances, the rest reach up "
                f"to max_distance: got {self.n_buckets} buckets for max_distance {self.max_distance}"
            )
        for field in ("pad_id", "start_id"):  # which are looked up among the words
            if not 0 <= (token := getattr(self, field)) < self.vocab_size:
                raise ConfigError(
                    f"EncoderDecoderConfig: {field} {token} is not one of the {self.vocab_size} token ids"
                )
        activation(self.activation)


class SoundFront(nn.Module):
    """Two convolutions that halve the frames of a mel spectrogram (Radford et al. 2022, Whisper, section 2.2)."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        assert config.n_mels is not None
        self.first = nn.Conv1d(config.n_mels, config.d_model, kernel_size=3, padding=1)
        self.second = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)

    def forward(self, mels: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch time d_model"]:
        """Return one vector for every two frames, in the weights' dtype."""
        x = nn.functional.gelu(self.first(mels.to(self.first.weight.dtype)))
        x = nn.functional.gelu(self.second(x))
        return x.transpose(1, 2)


class Stack(nn.Module):
    """One half: positions, blocks, a last norm where the norm comes first."""

    def __init__(self, config: EncoderDecoderConfig, *, decoder: bool) -> None:
        super().__init__()
        max_len = config.max_target_len if decoder else config.max_source_len
        self.positions: nn.Module | None = None
        if config.positions == "learned":
            self.positions = LearnedPositions(max_len, config.d_model, first=config.first_position)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.d_model, interleaved=False)
        self.embedding_norm = _norm(config)() if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.order: Order | None = None
        if config.positions == "relative":  # one table for all layers of a half (Raffel et al. 2019, section 2.1)
            self.order = RelativeBias(
                config.n_heads, n_buckets=config.n_buckets, max_distance=config.max_distance, two_sided=not decoder
            )
        n_layers = config.n_decoder_layers if decoder else config.n_encoder_layers
        self.blocks = nn.ModuleList(_block(config, decoder=decoder) for _ in range(n_layers))
        self.norm = _norm(config)() if config.norms == "before" else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        memory: Float[Tensor, "batch source d_model"] | None = None,
        *,
        mask: Mask = EVERYWHERE,
        memory_mask: Mask = EVERYWHERE,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Return `x` after all blocks; with a cache, `x` follows what it holds."""
        places = torch.arange(x.shape[1], device=x.device) if cache is None else cache.places(x.shape[1])
        if self.positions is not None:
            x = x + self.positions(places).to(x.dtype)
        x = self.dropout(self.embedding_norm(x))
        if self.order is not None:
            n_keys = x.shape[1] if cache is None else cache.n_keys(x.shape[1])
            bias = self.order.bias(places, torch.arange(n_keys, device=x.device))
            assert bias is not None
            mask = mask.with_bias(bias.unsqueeze(0))
        for layer, block in enumerate(self.blocks):
            own = None if cache is None else cache[layer]
            x = block(x, memory, mask=mask, memory_mask=memory_mask, cache=own)
        return self.norm(x)


class EncoderDecoder(nn.Module):
    """Source in, a score for every next target token out."""

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.d_model)
        self.front = None if config.n_mels is None else SoundFront(config)
        self.encoder = Stack(config, decoder=False)
        self.decoder = Stack(config, decoder=True)
        self.head = None if config.tied else nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.logit_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.logit_bias else None
        self.apply(_initialise)

    def forward(
        self,
        source: Int[Tensor, "batch source"] | Float[Tensor, "batch mels frames"],
        target: Int[Tensor, "batch time"],
        source_lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return the scores of what follows each position of `target`, which begins with `config.start_id`."""
        return self.logits(self.decode(target, self.encode(source, source_lengths), source_lengths))

    def encode(
        self,
        source: Int[Tensor, "batch source"] | Float[Tensor, "batch mels frames"],
        source_lengths: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch memory d_model"]:
        """Return the memory the decoder looks into; `source_lengths` count the tokens that are no padding."""
        if (self.front is not None) != source.is_floating_point():
            expected = "a mel spectrogram" if self.front is not None else "token ids"
            raise ShapeError(f"this model reads {expected}, got {source.dtype} of shape {tuple(source.shape)}")
        x = self._embed(source) if self.front is None else self.front(source)
        return self.encoder(x, mask=Mask(key_lengths=source_lengths))

    def decode(
        self,
        target: Int[Tensor, "batch time"],
        memory: Float[Tensor, "batch memory d_model"],
        source_lengths: Int[Tensor, " batch"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Return hidden states of the target; with a cache, `target` is what follows the tokens it holds.

        What cross-attention makes of `memory` is computed once for a cache: a cache is for one memory.
        """
        return self.decoder(
            self._embed(target),
            memory,
            mask=Mask(causal=True),
            memory_mask=Mask(key_lengths=source_lengths),
            cache=cache,
        )

    def _embed(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time d_model"]:
        scale = self.config.embedding_scale
        return self.words(tokens) * (self.config.d_model**0.5 if scale is None else scale)

    def logits(self, hidden: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
        """Return a score for every token."""
        hidden = hidden * self.config.logit_scale
        scores = nn.functional.linear(hidden, self.words.weight) if self.head is None else self.head(hidden)
        return scores if self.logit_bias is None else scores + self.logit_bias

    def new_cache(self, batch: int, max_len: int, kind: type[LayerCache] = LayerCache) -> KVCache:
        """Return an empty cache for `batch` answers of up to `max_len` tokens, where and as the weights are.

        Raises ShapeError for more tokens than there are learned positions.
        """
        if self.config.positions == "learned" and max_len > self.config.max_target_len:
            raise ShapeError(
                f"{max_len} tokens, but this model has {self.config.max_target_len} learned positions: ask for fewer"
            )
        config, weight = self.config, self.words.weight
        return KVCache(
            n_layers=config.n_decoder_layers,
            batch=batch,
            n_kv_heads=config.n_heads,
            max_len=max_len,
            d_head=config.d_head or config.d_model // config.n_heads,
            dtype=weight.dtype,
            device=weight.device,
            kind=kind,
        )


def _norm(config: EncoderDecoderConfig) -> Callable[[], nn.Module]:
    kind = nn.LayerNorm if config.norm == "layer" else RMSNorm
    return lambda: kind(config.d_model, eps=config.norm_eps)


def _attention(config: EncoderDecoderConfig) -> MultiHeadAttention:
    attention = MultiHeadAttention(
        config.d_model,
        config.n_heads,
        d_head=config.d_head,
        bias=config.biases != "none",
        dropout=config.dropout if config.attention_dropout is None else config.attention_dropout,
        scale=config.scale,
    )
    if config.biases == "all_but_keys":
        attention.k_proj = nn.Linear(config.d_model, attention.k_proj.out_features, bias=False)
    return attention


def _block(config: EncoderDecoderConfig, *, decoder: bool) -> Block:
    feed_forward = GatedFeedForward if config.feed_forward == "gated" else FeedForward
    return Block(
        _attention(config),
        feed_forward(config.d_model, config.d_ff, activation(config.activation), bias=config.biases != "none"),
        norm=_norm(config),
        residual=pre_norm if config.norms == "before" else post_norm,
        cross_attention=_attention(config) if decoder else None,
        dropout=config.dropout,
    )


def _initialise(module: nn.Module) -> None:
    """Linear layers as Glorot & Bengio 2010, words from a normal of standard deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
