"""A GPT learns to guess the next token from scratch, and stops and goes on like every other run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from clearhead.checkpoints import build, load
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import CheckpointError, TrainingError
from clearhead.models.gpt import GPTForCausalLM
from clearhead.training.language import build_windows
from clearhead.training.recipe import Recipe
from clearhead.training.run import run_recipe

from .conftest import require_same_after_a_stop

RECIPE = """
[model]
start = "start"
fresh = true
[data]
train = ["one.txt", "two.txt"]
valid = ["one.txt"]
max_len = 16
[objective]
name = "next_token"
[optimizer]
name = "muon"
lr = 1e-2
[training]
steps = 12
batch_size = 4
evaluate_every = 6
save_every = 5
"""
TEXT = "the cat sat on the mat and the dog sat on the cat , and so on and on . " * 12
CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 40,
    "n_embd": 32,
    "n_head": 2,
    "n_layer": 2,
    "n_positions": 32,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a recipe, two texts, and a model described but not trained."""
    monkeypatch.chdir(tmp_path)
    words = ["<end>", *sorted(set(TEXT.split())), "?"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<end>"])
    Tokenizer(backend, {"eos_token": "<end>"}).save(tmp_path / "start")
    (tmp_path / "start" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "one.txt").write_text(TEXT)
    (tmp_path / "two.txt").write_text(TEXT.replace("cat", "dog"))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_gpt_learns_from_nothing_but_a_config_and_texts(place: Path) -> None:
    run = run_recipe("recipe.toml", out="run")
    first, last = (line for line in metrics(run) if "valid_loss" in line)
    assert last["valid_loss"] < first["valid_loss"] and last["valid_perplexity"] < 40
    model = load(run)
    assert isinstance(model, GPTForCausalLM)
    assert json.loads((run / "config.json").read_text())["model_type"] == "gpt2"
    assert Tokenizer.load(run).end_id == 0


def test_a_run_with_muon_goes_on_bit_for_bit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_same_after_a_stop(monkeypatch)


def test_every_token_is_in_a_window_and_documents_end(place: Path) -> None:
    recipe, tokenizer = Recipe.load("recipe.toml"), Tokenizer.load(place / "start")
    data = build_windows(("one.txt", "two.txt"), place, recipe, tokenizer)
    ids = data.rows.ids.tolist()  # type: ignore[attr-defined]
    assert ids.count(0) == 2 and ids[-1] == 0
    assert len(ids) == 2 * (len(TEXT.split()) + 1)


def test_the_same_seed_draws_the_same_weights_and_another_seed_others(place: Path) -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build(place / "start").state_dict()["gpt.words.weight"]

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))


def test_what_cannot_be_trained_is_said(place: Path) -> None:
    recipe = place / "recipe.toml"
    recipe.write_text(RECIPE.replace("fresh = true", ""))
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        run_recipe("recipe.toml", out="run")
    recipe.write_text(RECIPE.replace("max_len = 16", "max_len = 64"))
    with pytest.raises(TrainingError, match="32 positions"):
        run_recipe("recipe.toml", out="run2")
    recipe.write_text(RECIPE.replace("fresh = true", "fresh = true\nclassifier_dropout = 0.1"))
    with pytest.raises(TrainingError, match="classifier_dropout"):
        run_recipe("recipe.toml", out="run3")
