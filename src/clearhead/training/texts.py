"""Texts as rows, each on its own: for labels and for hidden words. Next: `language.py`, texts end to end."""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from clearhead.checkpoints import with_head
from clearhead.data.batches import Rows
from clearhead.data.text import Example, read_examples, read_texts
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import TrainingError
from clearhead.models.bert import Bert, BertForMaskedLM, BertForSequenceClassification
from clearhead.models.modernbert import ModernBert, ModernBertForMaskedLM, ModernBertForSequenceClassification
from clearhead.training.objectives import Classification, MaskedWords
from clearhead.training.recipe import DataSection, Recipe
from clearhead.training.task import DataSet, Task


def build_rows(files: tuple[str, ...], folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> DataSet:
    """Read and tokenize files below `folder`: examples, or the lines of a .txt file where no target is needed."""
    examples = [example for name in files for example in _read(folder / name, recipe.data, recipe.model.labels)]
    tokens, n_truncated = tokenized([example.text for example in examples], recipe, tokenizer)
    targets = weights = None
    if recipe.data.columns.targets:  # of no examples too, each has as many numbers as there are labels
        targets = torch.tensor([e.target for e in examples]).reshape(len(examples), len(recipe.model.labels))
    if recipe.data.columns.weight:
        weights = torch.tensor([e.weight for e in examples])
    if not all(e.weight > 0 for e in examples):
        raise TrainingError(f"{', '.join(files)}: a weight of 0: leave the example out instead")
    digest = hashlib.sha256()
    for row, example in zip(tokens, examples):
        digest.update(repr((row, example.target, example.weight)).encode())
    rows = Rows(tokens=tokens, pad_id=tokenizer.pad_id, targets=targets, weights=weights)
    note = f"{n_truncated:,} of {len(tokens):,} texts cut at max_len" if n_truncated else ""
    return DataSet(rows=rows, digest=digest.hexdigest(), note=note)


def tokenized(texts: list[str], recipe: Recipe, tokenizer: Tokenizer) -> tuple[list[list[int]], int]:
    """Return the ids of every text, and how many texts were cut at max_len."""
    ids: list[list[int]] = []
    n_truncated = 0
    for start in range(0, len(texts), 1_000):  # an Encoded is large: keep only its ids
        encoded = tokenizer.encode_many(texts[start : start + 1_000], max_len=recipe.data.max_len)
        ids += [row.ids for row in encoded]
        n_truncated += sum(row.truncated > 0 for row in encoded)
    return ids, n_truncated


def _read(path: Path, section: DataSection, labels: tuple[str, ...]) -> list[Example]:
    if path.suffix == ".txt" and not section.columns.targets:
        return [Example(text=text) for text in read_texts([path])]
    return read_examples(path, section.columns, labels)


def _labeller(source: nn.Module, recipe: Recipe, tokenizer: Tokenizer) -> nn.Module:
    """Return the trunk under a head for the labels: its own if it has the same, so that a second stage goes on."""
    labels = recipe.model.labels
    if (
        not isinstance(source, BertForSequenceClassification | ModernBertForSequenceClassification)
        or source.config.labels != labels
    ):
        source = with_head(source, labels)
    require_fit(recipe, tokenizer, source.config.max_len, source.config.vocab_size)
    return source


def _word_guesser(source: nn.Module, recipe: Recipe, tokenizer: Tokenizer) -> nn.Module:
    """Return the trunk under a head for words: its own if it has one."""
    model = source
    if not isinstance(model, BertForMaskedLM | ModernBertForMaskedLM):
        trunk = source if isinstance(source, Bert | ModernBert) else getattr(source, "bert", None)
        if isinstance(trunk, ModernBert):
            model = ModernBertForMaskedLM(trunk.config, bert=trunk)
        elif isinstance(trunk, Bert):
            model = BertForMaskedLM(replace(trunk.config, pooler=None))  # guessing words, nobody pools
            model.bert.load_state_dict({k: v for k, v in trunk.state_dict().items() if not k.startswith("pooler.")})
        else:
            raise TrainingError(
                f"hidden words are guessed by a BERT, and the checkpoint holds a {type(source).__name__}"
            )
    require_fit(recipe, tokenizer, model.config.max_len, model.config.vocab_size)
    return model


def require_fit(recipe: Recipe, tokenizer: Tokenizer, max_len: int, vocab_size: int) -> None:
    """Raise TrainingError unless the model has a place for every token and a row for every id."""
    if recipe.data.max_len > max_len or tokenizer.vocab_size > vocab_size:
        raise TrainingError(
            f"the model has {max_len} positions and {vocab_size} token ids, but [data] max_len is "
            f"{recipe.data.max_len} and its tokenizer has {tokenizer.vocab_size} ids"
        )


def _masked_words(recipe: Recipe, tokenizer: Tokenizer) -> MaskedWords:
    if tokenizer.mask_id is None:
        raise TrainingError("this tokenizer has no mask token, so there is no way to hide a word from its model")
    return MaskedWords(
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tuple(tokenizer.special_ids),
        rate=recipe.objective.mask_rate,
    )


LABELS = Task(
    reader=Tokenizer.load,
    rows=build_rows,
    objective=lambda recipe, _: Classification(label_smoothing=recipe.objective.label_smoothing),
    model=_labeller,
)
HIDDEN_WORDS = Task(reader=Tokenizer.load, rows=build_rows, objective=_masked_words, model=_word_guesser)
