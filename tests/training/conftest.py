"""A tiny BERT, its tokenizer, and real sentences to learn from."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clearhead.data.batches import Batches, Rows
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import Interrupted
from clearhead.models.bert import BertConfig, BertForSequenceClassification
from clearhead.training.recipe import Recipe

PRAISE = ["a joy from start to end", "i loved every minute of it", "great acting and a great story", "superb"]
BLAME = ["a bore from start to end", "i hated every minute of it", "poor acting and a poor story", "awful"]
SENTENCES = [(f"{text} {end}", float(good)) for good in (1, 0) for text in (PRAISE if good else BLAME) for end in
             ("", "indeed", "as my friend said after the film", ".", "!", "really", "and so on")]  # fmt: skip
LABELS = ("negative", "positive")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Return a WordPiece tokenizer that knows the sentences' words."""
    folder = tmp_path_factory.mktemp("words")
    known = sorted({word for text, _ in SENTENCES for word in text.split()} | set("afo012."))
    (folder / "vocab.txt").write_text("\n".join((*SPECIAL, *known)) + "\n")
    return Tokenizer.load(folder)


@pytest.fixture
def config(words: Tokenizer) -> BertConfig:
    """Return the config of a BERT small enough to train in a test."""
    return BertConfig(
        vocab_size=words.vocab_size, d_model=32, n_heads=2, n_layers=2, d_ff=64, max_len=32, labels=LABELS
    )


@pytest.fixture
def rows(words: Tokenizer) -> Rows:
    """Return the sentences as rows, their targets as probabilities."""
    targets = torch.tensor([[1 - p, p] for _, p in SENTENCES])
    return Rows(tokens=[words.encode(text).ids for text, _ in SENTENCES], pad_id=words.pad_id, targets=targets)


def make_recipe(**tables: dict[str, Any]) -> Recipe:
    """Return a recipe for the sentences; each keyword changes keys of one table."""
    from clearhead.config import build_config

    values: dict[str, dict[str, Any]] = {
        "model": {"start": "start", "labels": list(LABELS)},
        "data": {"train": ["train.jsonl"], "valid": ["valid.jsonl"], "columns": {"positive": "positive"}},
        "optimizer": {"lr": 3e-3},
        "training": {"steps": 20, "batch_size": 8},
    }
    for table, changes in tables.items():
        values[table] = {**values.get(table, {}), **changes}
    return build_config(Recipe, values, where="test")


def make_learner(config: BertConfig, rows: Rows, recipe: Recipe) -> Any:
    """Return a learner as a run would make it."""
    from clearhead.training.loop import Learner, seed_everything

    seed_everything(recipe.training.seed)
    model = BertForSequenceClassification(config)
    sizes = {"batch_size": recipe.training.batch_size, "batch_tokens": recipe.training.batch_tokens}
    return Learner(model, Batches(rows, seed=recipe.training.seed, **sizes), recipe)


def write_sentences(folder: Path) -> None:
    """Write the sentences as train.jsonl and some of them as valid.jsonl."""
    lines = [json.dumps({"text": text, "positive": positive}) + "\n" for text, positive in SENTENCES]
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "valid.jsonl").write_text("".join(lines[::5]))


def require_same_after_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run recipe.toml whole, and stopped after six steps and resumed: the weights must be the same bits."""
    from clearhead.training import run as running

    whole = load_file(running.run_recipe("recipe.toml", out="whole") / "model.safetensors")
    asked, stop_signals = iter(range(99)), running.stop_signals

    class After:
        def __bool__(self) -> bool:
            return next(asked) >= 6

        def __getitem__(self, _: int) -> int:
            return 2

    monkeypatch.setattr(running, "stop_signals", lambda: nullcontext(After()))
    with pytest.raises(Interrupted, match="--resume"):
        running.run_recipe("recipe.toml", out="run")
    monkeypatch.setattr(running, "stop_signals", stop_signals)
    resumed = load_file(running.run_recipe("recipe.toml", out="run", resume=True) / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
