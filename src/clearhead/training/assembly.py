"""What a recipe asks for, made: the model with its head, the objective, the rows.

Next: `run.py` puts them together.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from clearhead.checkpoints import load, origin, with_head
from clearhead.data.batches import Rows
from clearhead.data.text import Example, read_examples, read_texts
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import TrainingError
from clearhead.models.bert import Bert, BertForMaskedLM, BertForSequenceClassification
from clearhead.training.objectives import Classification, MaskedWords, Objective
from clearhead.training.recipe import DataSection, ModelSection, Recipe


def build_model(folder: Path, section: ModelSection, objective: str) -> tuple[nn.Module, str | None]:
    """Return the checkpoint's trunk under the head that the objective needs, and the family to save it in.

    The checkpoint's own head is kept when it is of that kind and has the same labels, so that a second stage goes on
    where the first ended; otherwise the head starts at random.
    """
    source = load(folder)
    came_from = origin(source)
    model: BertForMaskedLM | BertForSequenceClassification
    if objective == "masked_words":
        model = source if isinstance(source, BertForMaskedLM) else _with_word_head(source)
    elif isinstance(source, BertForSequenceClassification) and source.config.labels == section.labels:
        model = source
    else:
        model = with_head(source, section.labels)
    names = ("dropout", "attention_dropout", "classifier_dropout")
    changes = {name: getattr(section, name) for name in names if getattr(section, name) is not None}
    changed = type(model)(replace(model.config, **changes))
    changed.load_state_dict(model.state_dict())
    return changed, came_from.family if came_from else None


def _with_word_head(source: nn.Module) -> BertForMaskedLM:
    trunk = source if isinstance(source, Bert) else source.bert
    assert isinstance(trunk, Bert)
    model = BertForMaskedLM(replace(trunk.config, pooler=None))  # guessing words, nobody pools
    model.bert.load_state_dict({k: v for k, v in trunk.state_dict().items() if not k.startswith("pooler.")})
    return model


def build_objective(recipe: Recipe, tokenizer: Tokenizer) -> Objective:
    """Return the objective that the recipe names."""
    section = recipe.objective
    if section.name == "classification":
        return Classification(label_smoothing=section.label_smoothing)
    if tokenizer.mask_id is None:
        raise TrainingError("this tokenizer has no mask token, so there is no way to hide a word from its model")
    return MaskedWords(
        mask_id=tokenizer.mask_id,
        vocab_size=tokenizer.vocab_size,
        special_ids=tuple(tokenizer.special_ids),
        rate=section.mask_rate,
    )


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Rows, how many of them `max_len` cut, and a digest that changes with any of it."""

    rows: Rows
    n_truncated: int
    digest: str


def build_rows(files: tuple[str, ...], folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> DataSet:
    """Read and tokenize files below `folder`: examples, or the lines of a .txt file where no target is needed."""
    examples = [example for name in files for example in _read(folder / name, recipe.data, recipe.model.labels)]
    tokens: list[list[int]] = []
    n_truncated = 0
    for start in range(0, len(examples), 1_000):  # an Encoded is large: keep only its ids
        texts = [example.text for example in examples[start : start + 1_000]]
        encoded = tokenizer.encode_many(texts, max_len=recipe.data.max_len)
        tokens += [row.ids for row in encoded]
        n_truncated += sum(row.truncated > 0 for row in encoded)
    targets = torch.tensor([e.target for e in examples]) if recipe.data.columns.targets else None
    weights = torch.tensor([e.weight for e in examples]) if recipe.data.columns.weight else None
    if weights is not None and not weights.min() > 0:
        raise TrainingError(f"{', '.join(files)}: a weight of 0: leave the example out instead")
    digest = hashlib.sha256()
    for row, example in zip(tokens, examples):
        digest.update(repr((row, example.target, example.weight)).encode())
    rows = Rows(tokens=tokens, pad_id=tokenizer.pad_id, targets=targets, weights=weights)
    return DataSet(rows=rows, n_truncated=n_truncated, digest=digest.hexdigest())


def _read(path: Path, section: DataSection, labels: tuple[str, ...]) -> list[Example]:
    if path.suffix == ".txt" and not section.columns.targets:
        return [Example(text=text) for text in read_texts([path])]
    return read_examples(path, section.columns, labels)


def device_named(name: str) -> torch.device:
    """Return the device a recipe names; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"[training] device {name!r} is not here ({str(error).splitlines()[0]}); try 'auto'"
        ) from error
