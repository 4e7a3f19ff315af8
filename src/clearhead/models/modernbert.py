"""ModernBERT: what encoders learned from decoders between 2018 and 2024 (Warner et al. 2024, section 2.1).

    words -> norm -> n_layers blocks (norm first, gated, rotary positions) -> norm -> hidden states

Everything stands in bert.py or gpt.py already: both directions and padding to the right as in BERT; rotary positions,
gated feed-forwards, the norm first and windows in most layers as in GPTs. No linear layer inside a block has a bias,
and the first block reads the embeddings' norm without one of its own.

Compared with bert.py: 8,192 tokens instead of 512, since two layers in three look only `window` tokens to each side.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.attention import Mask, MultiHeadAttention
from clearhead.block import Block, GatedFeedForward, activation, initialise, pre_norm
from clearhead.config import check_numbers
from clearhead.errors import ConfigError
from clearhead.models.gpt import RotaryConfig
from clearhead.rotary import Rotary


@dataclass(frozen=True, kw_only=True)
class ModernBertConfig:
    """What a ModernBERT is made of; the defaults are ModernBERT-base (Warner et al. 2024, table 4)."""

    vocab_size: int = 50_368
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 22
    d_ff: int = 1_152
    max_len: int = 8_192
    windows: tuple[int | None, ...] = (None, 64, 64)  # how far each side is seen; repeats over the layers
    rotary: RotaryConfig = field(default_factory=lambda: RotaryConfig(base=160_000.0))
    rotary_local: RotaryConfig = field(default_factory=RotaryConfig)  # of layers with a window
    pad_id: int = 50_283
    activation: str = "gelu"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    feed_forward_bias: bool = False
    pool: Literal["cls", "mean"] = "cls"  # what a classifier reads: the first token, or the mean over all
    head_bias: bool = False
    word_bias: bool = True  # of the scores for words
    head_activation: str = "gelu"
    dropout: float = 0.0  # of embeddings and of what each sublayer adds
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.0
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_len")
        check_numbers(self, sizes, ("dropout", "attention_dropout", "classifier_dropout"))
        if self.d_model % (2 * self.n_heads):
            raise ConfigError(f"ModernBertConfig: d_model {self.d_model} is not {self.n_heads} heads of an even width")
        if not self.windows or any(window is not None and window < 1 for window in self.windows):
            raise ConfigError(f"ModernBertConfig: windows are numbers of keys from 1, or None, got {self.windows}")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ConfigError(f"ModernBertConfig: pad_id {self.pad_id} is not one of the {self.vocab_size} token ids")
        activation(self.activation)
        activation(self.head_activation)

    def window(self, layer: int) -> int | None:
        """Return how many keys to each side a query of this layer sees, or None for all."""
        return self.windows[layer % len(self.windows)]


class ModernBert(nn.Module):
    """The trunk: token ids in, one vector a token out."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.d_model)
        self.words_norm = _norm(config)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.n_layers))
        self.norm = _norm(config)
        self.apply(initialise)

    def forward(
        self, tokens: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """Return the last hidden states; rows past `lengths` are padding's and mean nothing."""
        x = self.dropout(self.words_norm(self.words(tokens)))
        for layer, block in enumerate(self.blocks):
            window = self.config.window(layer)
            x = block(x, mask=Mask(key_lengths=lengths, window=None if window is None else (window, window)))
        return self.norm(x)

    def embed(
        self, tokens: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch d_model"]:
        """Return one unit vector a text: the mean over its tokens, as Sentence-BERT pools (Reimers & Gurevych 2019)."""
        return nn.functional.normalize(mean(self(tokens, lengths), lengths), dim=-1)


class PredictionHead(nn.Module):
    """What all heads begin with: one more layer and its norm."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.d_model, config.d_model, bias=config.head_bias)
        self.activation = activation(config.head_activation)
        self.norm = _norm(config)
        initialise(self.dense)

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Return `norm(activation(dense(x)))`."""
        return self.norm(self.activation(self.dense(x)))


class ModernBertForMaskedLM(nn.Module):
    """Guess the words behind [MASK]; the output matrix is the word embedding itself."""

    def __init__(self, config: ModernBertConfig, bert: ModernBert | None = None) -> None:
        super().__init__()
        self.config = config
        self.bert = ModernBert(config) if bert is None else bert
        self.head = PredictionHead(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.word_bias else None

    def forward(
        self, tokens: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time vocab"]:
        """Return a score for every word at every position."""
        return nn.functional.linear(self.head(self.bert(tokens, lengths)), self.bert.words.weight, self.bias)


class _Labels(nn.Module):
    """A head for labels on a trunk."""

    def __init__(self, config: ModernBertConfig, bert: ModernBert | None = None) -> None:
        super().__init__()
        if not config.labels:
            raise ConfigError("a classifier needs labels: ModernBertConfig(..., labels=('negative', 'positive'))")
        self.config = config
        self.bert = ModernBert(config) if bert is None else bert
        self.head = PredictionHead(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.d_model, len(config.labels))
        initialise(self.classifier)


class ModernBertForSequenceClassification(_Labels):
    """Label the whole text: `config.labels` names the classes."""

    def forward(
        self, tokens: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch labels"]:
        """Return one score a label, before softmax."""
        hidden = self.bert(tokens, lengths)
        pooled = hidden[:, 0] if self.config.pool == "cls" else mean(hidden, lengths)
        return self.classifier(self.dropout(self.head(pooled)))


class ModernBertForTokenClassification(_Labels):
    """Label every token: names, parts of speech."""

    def forward(
        self, tokens: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch time labels"]:
        """Return one score a label for every token, before softmax."""
        return self.classifier(self.dropout(self.head(self.bert(tokens, lengths))))


def mean(
    hidden: Float[Tensor, "batch time d_model"], lengths: Int[Tensor, " batch"] | None
) -> Float[Tensor, "batch d_model"]:
    """Return the mean over each text's tokens, padding left out."""
    if lengths is None:
        return hidden.mean(1)
    inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden * inside.unsqueeze(-1)).sum(1) / lengths.unsqueeze(-1)


def _norm(config: ModernBertConfig) -> nn.Module:
    return nn.LayerNorm(config.d_model, eps=config.norm_eps, bias=config.norm_bias)


def _block(config: ModernBertConfig, layer: int) -> Block:
    rotary = config.rotary if config.window(layer) is None else config.rotary_local
    order = Rotary(config.d_model // config.n_heads, base=rotary.base, stretch=rotary.stretch)
    dropout, bias = config.attention_dropout, config.attention_bias
    bend = activation(config.activation)
    block = Block(
        MultiHeadAttention(config.d_model, config.n_heads, bias=bias, dropout=dropout, order=order),
        GatedFeedForward(config.d_model, config.d_ff, bend, bias=config.feed_forward_bias),
        norm=lambda: _norm(config),
        residual=pre_norm,
        dropout=config.dropout,
    )
    if layer == 0:
        block.attention_norm = nn.Identity()  # the embeddings have just been normalised
    return block
