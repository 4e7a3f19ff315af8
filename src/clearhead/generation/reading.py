"""A model in the middle of its texts: it reads tokens and scores what may follow. What generation asks for, no more.

    reader = open_reader(model, prompts, n_new=20)
    scores = reader.read(reader.prompt)         # (rows, 1, vocab): what follows each prompt
    scores = reader.read(chosen)                # and then, one token further

Prompts of unequal length stand to the right, so that all of them end together: padding before the first token is
looked at by nobody and counts for no position, and each row is what it would be alone. An encoder-decoder reads its
source at once; its answer begins with a start token.

A model of another kind can come along: anything with a method `open(prompts, n_new)` that returns a `Reader`, such
as `Recorded` in recorded.py.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.errors import ConfigError, InputError
from clearhead.models.encoder_decoder import EncoderDecoder
from clearhead.models.gpt import GPTForCausalLM

Prompt = Sequence[int] | Tensor  # token ids, or (mels, frames) for a model that hears


@runtime_checkable
class Reader(Protocol):
    """Rows of one model, read up to the same token."""

    prompt: Int[Tensor, "rows time"]  # what has to be read first
    texts: list[list[int]]  # the same without padding: what an answer follows
    vocab_size: int

    def read(self, tokens: Int[Tensor, "rows new"], last: int = 1) -> Float[Tensor, "rows last vocab"]:
        """Read tokens and return the scores of what follows each of the `last` ones."""

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i be what row `rows[i]` was."""

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of every row, padding included."""


@runtime_checkable
class Opens(Protocol):
    """A model that makes its own reader."""

    def open(self, prompts: Sequence[Prompt], n_new: int) -> Reader:
        """Return a reader of `prompts` with room for `n_new` tokens."""


class GPTReader:
    """A decoder and its cache."""

    def __init__(self, model: GPTForCausalLM, prompts: Sequence[Sequence[int]], n_new: int) -> None:
        self.model, self.vocab_size = model, model.config.vocab_size
        self.texts = [list(prompt) for prompt in prompts]
        device = model.gpt.words.weight.device
        self.prompt, self.starts = right_aligned(self.texts, device)
        # the last token is written, never read
        self.cache = model.new_cache(len(prompts), self.prompt.shape[1] + n_new - 1)

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "rows new"], last: int = 1) -> Float[Tensor, "rows last vocab"]:
        """Read tokens and return the scores of what follows each of the `last` ones."""
        return self.model.logits(self.model.gpt(tokens, self.starts, cache=self.cache)[:, -last:])

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i be what row `rows[i]` was."""
        kept = torch.tensor(rows, device=self.prompt.device)
        self.cache.keep(kept)
        self.starts = None if self.starts is None else self.starts[kept]

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of every row, padding included."""
        self.cache.truncate(length)


class EncoderDecoderReader:
    """A decoder, its cache, and the memory of the source that it looks into."""

    @torch.no_grad()
    def __init__(self, model: EncoderDecoder, sources: Sequence[Prompt], n_new: int, begin: Sequence[int]) -> None:
        self.model, self.vocab_size = model, model.config.vocab_size
        device = model.words.weight.device
        if model.front is None:
            tokens = [torch.tensor(source) for source in sources]
            lengths = torch.tensor([len(each) for each in tokens], device=device)
            source = nn.utils.rnn.pad_sequence(tokens, True, model.config.pad_id).to(device)
            self.lengths = lengths if int(lengths.min()) < source.shape[1] else None
        else:
            mels = [source for source in sources if isinstance(source, Tensor)]
            if len(mels) < len(sources) or any(each.shape != mels[0].shape for each in mels):
                raise InputError("expected mel spectrograms of one size, (mels, frames): pad or cut the sound first")
            source, self.lengths = torch.stack(mels).to(device), None
        self.memory = model.encode(source, self.lengths)
        self.texts = [list(begin) for _ in sources]
        self.prompt = torch.tensor(self.texts, device=device)
        self.cache = model.new_cache(len(sources), len(begin) + n_new - 1)

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "rows new"], last: int = 1) -> Float[Tensor, "rows last vocab"]:
        """Read tokens and return the scores of what follows each of the `last` ones."""
        hidden = self.model.decode(tokens, self.memory, self.lengths, cache=self.cache)
        return self.model.logits(hidden[:, -last:])

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i be what row `rows[i]` was."""
        kept = torch.tensor(rows, device=self.memory.device)
        self.cache.keep(kept)
        self.memory = self.memory[kept]
        self.lengths = None if self.lengths is None else self.lengths[kept]

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of every row."""
        self.cache.truncate(length)


def open_reader(
    model: nn.Module | Opens, prompts: Sequence[Prompt], n_new: int, begin: Sequence[int] | None = None
) -> Reader:
    """Return a reader of `prompts` with room for `n_new` tokens.

    `begin` is what the answers of an encoder-decoder begin with, `(config.start_id,)` where not given.
    Raises ConfigError for a model that cannot generate or is in training mode, InputError for a prompt it cannot
    read, ShapeError where prompt and answer are longer than the model reads.
    """
    if isinstance(model, Opens):
        return model.open(prompts, n_new)
    check(model, prompts, begin)
    if isinstance(model, GPTForCausalLM):
        return GPTReader(model, [[int(token) for token in prompt] for prompt in prompts], n_new)
    assert isinstance(model, EncoderDecoder)
    return EncoderDecoderReader(model, prompts, n_new, (model.config.start_id,) if begin is None else begin)


def check(model: nn.Module | Opens, prompts: Sequence[Prompt], begin: Sequence[int] | None) -> None:
    """Raise what `open_reader` raises, but for lengths."""
    if isinstance(model, Opens):
        return
    if not isinstance(model, GPTForCausalLM | EncoderDecoder):
        raise ConfigError(
            f"a {type(model).__name__} does not write: expected a GPTForCausalLM, an EncoderDecoder, "
            f"or a model with open(prompts, n_new)"
        )
    if model.training:
        raise ConfigError("the model is in training mode, its answers would be random: call model.eval() first")
    if isinstance(model, GPTForCausalLM) and begin is not None:
        raise ConfigError("begin is for encoder-decoders: a decoder's answer follows its prompt")
    n_words = model.config.vocab_size
    if begin is not None and not (len(begin) and all(0 <= token < n_words for token in begin)):
        raise InputError(f"begin: expected at least one token id, from 0 to {n_words - 1}, got {list(begin)}")
    for n, prompt in enumerate(prompts, 1):
        if isinstance(prompt, Tensor) and prompt.is_floating_point():
            continue
        if isinstance(prompt, str) or not hasattr(prompt, "__len__"):
            raise InputError(
                f"prompt {n}: expected token ids, got {type(prompt).__name__}: tokenizer.encode_body(text) makes them"
            )
        if not len(prompt):
            raise InputError(f"prompt {n} is empty: begin with at least one token, such as the one that starts a text")
        least, most = min(map(int, prompt)), max(map(int, prompt))
        if least < 0 or most >= n_words:
            raise InputError(
                f"prompt {n}: expected token ids from 0 to {n_words - 1}, got {least} to {most}: "
                f"was it tokenized for another model?"
            )


def right_aligned(
    texts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "rows time"], Int[Tensor, " rows"] | None]:
    """Return texts as one matrix that ends where they end, and how many places of each row are empty (None: none)."""
    time = max(map(len, texts))
    starts = [time - len(text) for text in texts]
    tokens = torch.tensor([[0] * start + list(text) for start, text in zip(starts, texts)], device=device)
    return tokens, torch.tensor(starts, device=device) if any(starts) else None
