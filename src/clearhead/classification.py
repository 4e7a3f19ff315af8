"""Many texts through an encoder: rows of token ids in, labels' probabilities or embeddings out, in the order given.

    for probabilities in classify(model, rows):     # rows may be a generator without end
        ...

Texts come in all lengths, and a batch is as long as its longest text. So rows are read a window ahead, sorted by
length inside it, cut into batches of equal work, run, and handed back in the order in which they came.

What runs a batch is a **runner**: a function from rows to one row of numbers each. Two exist: `padded(model)` calls
the model as it is, `packed.pack(model)` is the fast path of a CPU. `fastest(model)` picks, and says what and why.
This module knows no text: words become ids in `data/tokenizer.py`, and only the command line puts the two together.
Next: `packed.py`, how the fast path is fast.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.errors import ClearheadError, ConfigError, InputError, ShapeError
from clearhead.models.bert import Bert, BertConfig, BertForSequenceClassification
from clearhead.models.modernbert import ModernBert, ModernBertConfig, ModernBertForSequenceClassification
from clearhead.packed import PackedEncoder, obstacle, pack

Row = Sequence[int]
Runner = Callable[[Sequence[Row]], Tensor]
Encoder = Bert | BertForSequenceClassification | ModernBert | ModernBertForSequenceClassification

BUDGET = {
    "cpu": 2_048,
    "cuda": 65_536,
}  # tokens a batch: a CPU is as fast from 1,024 to 4,096 (LOG.md); a GPU wants many
PACKING_PAYS = 2_048  # tokens: packing and the first call of each kernel take about as long as running these


def classify(
    model: nn.Module, rows: Iterable[Row], *, runner: Runner | None = None, window: int = 256
) -> Iterator[Float[Tensor, " labels"]]:
    """Yield the probabilities of `model.config.labels` for each row of token ids, in the order given.

    `rows` are token ids with the special tokens in place, at most `model.config.max_len` long. They are read `window`
    at a time and answered before the next are read: `window=1` answers a slow source at once. `runner` runs the
    batches; without one it is what `fastest(model)` picks.

    Raises ConfigError at once for a model that labels no texts, has one label only, or is in training mode; InputError
    when it comes to a row that the model cannot read, after the answers to the windows before it.
    """
    if not isinstance(model, BertForSequenceClassification | ModernBertForSequenceClassification):
        raise ConfigError(
            f"classify needs a BertForSequenceClassification or its like, got a {type(model).__name__}: try embed()"
        )
    if len(model.config.labels) < 2:
        raise ConfigError(
            f"classify needs at least two labels to choose from, and this model has one, {model.config.labels[0]!r}, "
            f"which would have probability 1 for every text. It gives a score: call the model itself, model(tokens)"
        )
    logits = _in_order(model, rows, runner, window)
    return (each.softmax(-1) for each in logits)


def embed(
    model: nn.Module, rows: Iterable[Row], *, runner: Runner | None = None, window: int = 256
) -> Iterator[Float[Tensor, " d_model"]]:
    """Yield one unit vector a row: `Bert.embed` of the trunk, the mean over the row's tokens.

    Arguments and errors are those of `classify`; a runner must be one of the trunk, `fastest(model.bert)`.
    """
    trunk = model if isinstance(model, Bert | ModernBert) else getattr(model, "bert", None)
    if not isinstance(trunk, Bert | ModernBert):
        raise ConfigError(f"embed needs a Bert or a model that has one as .bert, got a {type(model).__name__}")
    return _in_order(trunk, rows, runner, window)


def fastest(model: Encoder, dtype: torch.dtype | None = None) -> tuple[Runner, str]:
    """Return what runs `model` fastest where it is, and one line that says what that is and why nothing faster.

    `dtype=torch.bfloat16` trades exactness for speed (about 3 digits for 7) where the processor has instructions for
    it; where it has none, the line says so and the model's own dtype runs. Without a dtype the first texts go through
    the model as it is: one sentence is answered sooner than its weights are packed.
    """
    if reason := obstacle(model):
        return padded(model, dtype), f"padded batches, the model as it is: {reason}"
    try:
        encoder = pack(model, dtype)
    except ConfigError as error:
        encoder = pack(model)
        return encoder, f"{encoder.note}; {error}"
    return encoder if dtype else _OncePackingPays(model, encoder), encoder.note


def padded(model: nn.Module, dtype: torch.dtype | None = None) -> Runner:
    """Return a runner that pads rows to the longest and calls the model as it is, where it is.

    Any processor, any of the model's tricks. `dtype` runs matrix products in half precision (torch.autocast). The
    runner raises ShapeError for no rows, or an empty one.
    """
    place = next(model.parameters()).device
    call = model.embed if isinstance(model, Bert | ModernBert) else model

    @torch.no_grad()
    def run(rows: Sequence[Row]) -> Tensor:
        if not rows or not min(map(len, rows)):
            raise ShapeError(f"expected rows of at least one token, got {len(rows)} rows, the shortest of 0 tokens")
        lengths = torch.tensor([len(row) for row in rows])
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)  # any id: none looks
        is_ragged = int(lengths.min()) < tokens.shape[1]  # without a mask the fused attention call has less to do
        with torch.autocast(place.type, dtype, enabled=dtype is not None):
            numbers = call(tokens.to(place), lengths.to(place) if is_ragged else None)
        return numbers.float().cpu() if dtype else numbers.cpu()

    return run


class _OncePackingPays:
    """Runs the model as it is until enough tokens have come by that packing its weights is repaid."""

    def __init__(self, model: nn.Module, encoder: PackedEncoder) -> None:
        self.plain, self.encoder, self.n_tokens = padded(model), encoder, 0

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        self.n_tokens += sum(map(len, rows))
        return self.plain(rows) if self.n_tokens < PACKING_PAYS else self.encoder(rows)


def _in_order(model: Encoder, rows: Iterable[Row], runner: Runner | None, window: int) -> Iterator[Tensor]:
    """Check what can be checked before the first row is read, then return the lazy rest."""
    if model.training:
        raise ConfigError("the model is in training mode, its answers would be random: call model.eval() first")
    if window < 1:
        raise ConfigError(f"window must be at least 1 row, got {window}")
    run = fastest(model)[0] if runner is None else runner
    budget = BUDGET.get(next(model.parameters()).device.type, BUDGET["cuda"])

    def answers() -> Iterator[Tensor]:
        for some in _windows(_readable(rows, model.config), window):
            found: list[Tensor] = [torch.empty(0)] * len(some)
            for batch in _batches(some, budget):
                for i, numbers in zip(batch, run([some[i] for i in batch]), strict=True):
                    found[i] = numbers
            yield from found

    return answers()


def _readable(rows: Iterable[Row], config: BertConfig | ModernBertConfig) -> Iterator[Row]:
    """Yield the rows; InputError at one that is no row, empty, too long, or holds an id that is no token."""
    for n, row in enumerate(rows, 1):
        if isinstance(row, str) or not hasattr(row, "__len__"):
            raise InputError(
                f"row {n}: expected token ids, got {type(row).__name__}: tokenizer.encode(text).ids are those of a text"
            )
        if not 0 < len(row) <= config.max_len:
            raise InputError(f"row {n}: expected 1 to {config.max_len} token ids, got {len(row)}: read it in windows")
        if min(row) < 0 or max(row) >= config.vocab_size:
            raise InputError(
                f"row {n}: expected token ids from 0 to {config.vocab_size - 1}, got {min(row)} to {max(row)}: "
                f"was it tokenized for another model?"
            )
        yield row


def _windows(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Yield lists of up to `size` rows; those before an error come out before the error does."""
    while True:
        some: list[Row] = []
        try:
            for row in islice(rows, size):
                some.append(row)  # one by one: an error leaves those before it
        except ClearheadError:
            if some:
                yield some
            raise
        if not some:
            return
        yield some


def _batches(rows: Sequence[Row], budget: int) -> Iterator[list[int]]:
    """Yield the places of rows of similar length, so many that even padded they hold at most `budget` tokens."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[i]) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
