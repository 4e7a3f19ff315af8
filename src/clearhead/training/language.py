"""Texts end to end, cut into windows: for guessing the next token. Next: `assembly.py`, all tasks by name."""

import hashlib
from pathlib import Path

import torch
from torch import nn

from clearhead.data.text import read_document, read_examples
from clearhead.data.tokenizer import Tokenizer
from clearhead.data.windows import Windows
from clearhead.errors import InputError, TrainingError
from clearhead.models.gpt import GPTForCausalLM
from clearhead.training.objectives import NextToken
from clearhead.training.recipe import Recipe
from clearhead.training.task import DataSet, Task
from clearhead.training.texts import require_fit


def build_windows(files: tuple[str, ...], folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> DataSet:
    """Tokenize documents (a .txt file is one, every other file has one a row), the end-of-text token after each.

    No files give one window of two tokens that nobody reads.
    """
    if tokenizer.end_id is None:
        raise TrainingError("this tokenizer has no eos_token, so there is nothing to put between two documents")
    parts: list[torch.Tensor] = []
    for name in files:
        path = folder / name
        if path.suffix == ".txt":
            documents = [read_document(path)]
        else:
            documents = [example.text for example in read_examples(path, recipe.data.columns)]
        for document in documents:
            parts.append(torch.tensor([*tokenizer.encode_body(document), tokenizer.end_id], dtype=torch.int32))
    ids = torch.cat(parts) if parts else torch.zeros(2, dtype=torch.int32)
    if len(ids) < 2:
        raise InputError(f"{', '.join(files)}: no text to learn from")
    digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
    rows = Windows(ids=ids, size=recipe.data.max_len)
    return DataSet(rows=rows, digest=digest, note=f"{len(ids):,} tokens in {len(rows.lengths):,} windows")


def _writer(source: nn.Module, recipe: Recipe, tokenizer: Tokenizer) -> nn.Module:
    if not isinstance(source, GPTForCausalLM):
        raise TrainingError(f"the next token is guessed by a GPT, and the checkpoint holds a {type(source).__name__}")
    require_fit(recipe, tokenizer, source.config.max_len, source.config.vocab_size)
    return source


NEXT_TOKEN = Task(reader=Tokenizer.load, rows=build_windows, objective=lambda *_: NextToken(), model=_writer)
