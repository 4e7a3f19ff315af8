"""BERT: a Transformer that reads in both directions at once (Devlin et al. 2018), in the original's arithmetic.

    words + positions + segments -> norm -> n_layers blocks (post-norm, everybody looks everywhere) -> hidden states

On top of the trunk `Bert` stand three heads: guess masked words (`BertForMaskedLM`), label the text
(`BertForSequenceClassification`), label every token (`BertForTokenClassification`). RoBERTa and DistilBERT are
the same code with another config: no segments, positions that start at row 2, a relu instead of a tanh.

Token ids are `(batch, time)`, padded on the right; `lengths` says how many of each row are text.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.attention import Mask, MultiHeadAttention
from clearhead.block import Block, FeedForward, activation, initialise, post_norm
from clearhead.config import check_numbers
from clearhead.errors import ConfigError, ShapeError
from clearhead.positions import LearnedPositions


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """What a BERT is made of; the defaults are bert-base-uncased (Devlin et al. 2018, section 3)."""

    vocab_size: int = 30_522
    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    d_ff: int = 3_072
    max_len: int = 512
    n_segments: int = 2  # 0: the model knows no segments (DistilBERT)
    first_position: int = 0  # RoBERTa's table keeps its first pad_id + 1 rows for padding
    pad_id: int = 0
    activation: str = "gelu"
    pooler: str | None = "tanh"  # what the classifier reads: activation(linear(first token)); None: no pooler
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_len")
        check_numbers(self, sizes, ("dropout", "attention_dropout", "classifier_dropout"))
        if self.d_model % self.n_heads:
            raise ConfigError(f"BertConfig: d_model {self.d_model} does not divide into {self.n_heads} heads")
        if not 0 <= self.pad_id < self.vocab_size:
            raise ConfigError(f"BertConfig: pad_id {self.pad_id} is not one of the {self.vocab_size} token ids")
        activation(self.activation)  # refuses an unknown name now, not in the first forward
        if self.pooler is not None and self.pooler != "tanh":
            activation(self.pooler)


# google-research/bert, README, "Smaller BERT models" and the two of the paper
SIZES: dict[str, BertConfig] = {
    "tiny": BertConfig(d_model=128, n_heads=2, n_layers=2, d_ff=512),
    "mini": BertConfig(d_model=256, n_heads=4, n_layers=4, d_ff=1_024),
    "small": BertConfig(d_model=512, n_heads=8, n_layers=4, d_ff=2_048),
    "medium": BertConfig(d_model=512, n_heads=8, n_layers=8, d_ff=2_048),
    "base": BertConfig(),
    "large": BertConfig(d_model=1_024, n_heads=16, n_layers=24, d_ff=4_096),
}


class BertEmbeddings(nn.Module):
    """Which word, where, and in which of two texts: three vectors, added and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = LearnedPositions(config.max_len, config.d_model, first=config.first_position)
        self.segments = nn.Embedding(config.n_segments, config.d_model) if config.n_segments else None
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens: Int[Tensor, "batch time"], segments: Int[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """Return the vectors of `tokens`; without `segments` all belong to the first text."""
        x = self.words(tokens)
        if self.segments is not None:
            x = x + self.segments(torch.zeros_like(tokens) if segments is None else segments)
        elif segments is not None:
            raise ShapeError("this model has no segments (n_segments=0), but segments were given")
        x = x + self.positions(torch.arange(tokens.shape[-1], device=tokens.device))
        return self.dropout(self.norm(x))


class Bert(nn.Module):
    """The trunk: token ids in, one vector a token out."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.n_layers))
        self.pooler = nn.Linear(config.d_model, config.d_model) if config.pooler else None
        self.apply(initialise)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        lengths: Int[Tensor, " batch"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """Return the last hidden states; rows past `lengths` are padding's and mean nothing."""
        x = self.embeddings(tokens, segments)
        mask = Mask(key_lengths=lengths)
        for block in self.blocks:
            x = block(x, mask=mask)
        return x

    def pool(self, hidden: Float[Tensor, "batch time d_model"]) -> Float[Tensor, "batch d_model"]:
        """Return what stands for the whole text: the first token's vector through one trained layer."""
        if self.pooler is None or self.config.pooler is None:
            raise ConfigError("this BERT was built without a pooler (pooler=None)")
        bend = torch.tanh if self.config.pooler == "tanh" else activation(self.config.pooler)
        return bend(self.pooler(hidden[:, 0]))

    def embed(
        self, tokens: Int[Tensor, "batch time"], lengths: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch d_model"]:
        """Return one unit vector a text: the mean over its tokens, as Sentence-BERT pools (Reimers & Gurevych 2019)."""
        hidden = self(tokens, lengths)
        if lengths is None:
            return nn.functional.normalize(hidden.mean(1), dim=-1)
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return nn.functional.normalize((hidden * inside.unsqueeze(-1)).sum(1), dim=-1)  # a sum has the mean's direction


class BertForMaskedLM(nn.Module):
    """Guess the words behind [MASK] (Devlin et al. 2018, section 3.1, task 1)."""

    def __init__(self, config: BertConfig, bert: Bert | None = None) -> None:
        super().__init__()
        self.config = config
        self.bert = Bert(config) if bert is None else bert
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.activation = activation(config.activation)
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        initialise(self.dense)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        lengths: Int[Tensor, " batch"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time vocab"]:
        """Return a score for every word at every position; the output matrix is the word embedding itself."""
        hidden = self.norm(self.activation(self.dense(self.bert(tokens, lengths, segments))))
        return nn.functional.linear(hidden, self.bert.embeddings.words.weight, self.bias)


class BertForSequenceClassification(nn.Module):
    """Label the whole text: `config.labels` names the classes."""

    def __init__(self, config: BertConfig, bert: Bert | None = None) -> None:
        super().__init__()
        _require_labels(config)
        if config.pooler is None:
            raise ConfigError("BertForSequenceClassification reads the pooler: expected pooler='tanh', got None")
        self.config = config
        self.bert = Bert(config) if bert is None else bert
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.d_model, len(config.labels))
        initialise(self.classifier)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        lengths: Int[Tensor, " batch"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch labels"]:
        """Return one score a label, before softmax."""
        return self.classifier(self.dropout(self.bert.pool(self.bert(tokens, lengths, segments))))


class BertForTokenClassification(nn.Module):
    """Label every token: names, parts of speech."""

    def __init__(self, config: BertConfig, bert: Bert | None = None) -> None:
        super().__init__()
        _require_labels(config)
        self.config = config
        self.bert = Bert(config) if bert is None else bert
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.d_model, len(config.labels))
        initialise(self.classifier)

    def forward(
        self,
        tokens: Int[Tensor, "batch time"],
        lengths: Int[Tensor, " batch"] | None = None,
        segments: Int[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch time labels"]:
        """Return one score a label for every token, before softmax."""
        return self.classifier(self.dropout(self.bert(tokens, lengths, segments)))


def _block(config: BertConfig) -> Block:
    return Block(
        MultiHeadAttention(config.d_model, config.n_heads, dropout=config.attention_dropout),
        FeedForward(config.d_model, config.d_ff, activation(config.activation)),
        norm=lambda: nn.LayerNorm(config.d_model, eps=config.norm_eps),
        residual=post_norm,
        dropout=config.dropout,
    )


def _require_labels(config: BertConfig) -> None:
    if len(config.labels) < 1:
        raise ConfigError("a classifier needs labels: BertConfig(..., labels=('negative', 'positive'))")
