"""An encoder-decoder learns to answer, from scratch, and stops and goes on like every other run."""

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from clearhead.checkpoints import load
from clearhead.data.batches import NOT_ASKED
from clearhead.data.pairs import Pairs
from clearhead.data.text import Columns
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import ConfigError, InputError, TrainingError
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.training.objectives import SequenceToSequence
from clearhead.training.recipe import Recipe
from clearhead.training.run import run_recipe

from .conftest import require_same_after_a_stop

RECIPE = """
[model]
start = "start"
fresh = true
[data]
train = ["train.tsv"]
valid = ["valid.jsonl"]
columns = { text = "word", target_text = "spelt" }
max_len = 12
[objective]
name = "sequence_to_sequence"
label_smoothing = 0.1
[optimizer]
name = "muon"
lr = 1e-2
[training]
steps = 12
batch_size = 8
evaluate_every = 6
save_every = 5
"""
CONFIG = {
    "model_type": "marian",
    "architectures": ["MarianMTModel"],
    "vocab_size": 10,
    "decoder_vocab_size": 10,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "activation_function": "relu",
    "dropout": 0.0,
    "max_position_embeddings": 16,
    "scale_embedding": True,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
}
SMALL = EncoderDecoderConfig(
    vocab_size=10, d_model=16, n_heads=2, n_encoder_layers=1, n_decoder_layers=1, d_ff=32, dropout=0.0, start_id=1
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a recipe, words and how they are spelt backwards, and a model not yet trained."""
    monkeypatch.chdir(tmp_path)
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *"abcdef"]
    backend = Backend(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    backend.add_special_tokens(pieces[:4])
    Tokenizer(backend, {"pad_token": "<pad>", "eos_token": "</s>"}).save(tmp_path / "start")
    (tmp_path / "start" / "config.json").write_text(json.dumps(CONFIG))
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdef", k=draw.randint(2, 6))) for _ in range(96)]
    (tmp_path / "train.tsv").write_text("word\tspelt\n" + "".join(f"{word}\t{word[::-1]}\n" for word in words))
    lines = [json.dumps({"word": word, "spelt": word[::-1]}) + "\n" for word in words[:20]]
    (tmp_path / "valid.jsonl").write_text("".join(lines))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def test_an_encoder_decoder_learns_from_pairs(place: Path) -> None:
    run = run_recipe("recipe.toml", out="run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = (line for line in lines if "valid_loss" in line)
    assert last["valid_loss"] < first["valid_loss"]
    assert 0 <= last["valid_exact"] <= last["valid_accuracy"] <= 1
    assert isinstance(load(run), EncoderDecoder)
    assert json.loads((run / "config.json").read_text())["model_type"] == "marian"


def test_a_run_over_pairs_goes_on_bit_for_bit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_same_after_a_stop(monkeypatch)


def test_the_loss_is_that_of_each_pair_alone() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(SMALL).eval()
    sources, answers = [[4, 5, 2], [6, 2], [7, 8, 9, 2]], [[5, 4, 2], [6, 6, 6, 2], [2]]
    objective = SequenceToSequence(label_smoothing=0.1)
    batch = Pairs(sources=sources, answers=answers, pad_id=0).batch([0, 1, 2])
    total = 0.0
    for source, answer in zip(sources, answers):
        scores = model(torch.tensor([source]), torch.tensor([[1, *answer[:-1]]]))[0]
        total += F.cross_entropy(scores, torch.tensor(answer), label_smoothing=0.1, reduction="sum").item()
    assert objective.count(batch) == 8
    torch.testing.assert_close(objective.loss(model, batch).item(), total / 8, rtol=1e-5, atol=1e-6)


def test_exact_counts_answers_that_are_right_throughout() -> None:
    torch.manual_seed(0)
    model = EncoderDecoder(SMALL).eval()
    pairs = Pairs(sources=[[4, 5, 2], [6, 2]], answers=[[5, 4, 2], [6, 6, 6, 2]], pad_id=0)
    batch = pairs.batch([0, 1])
    read = torch.tensor([[1, 5, 4, 0], [1, 6, 6, 6]])
    likeliest = model(batch.tokens, read, batch.lengths).argmax(-1)
    # the first row's answer becomes what the model says there; it was read before, so its first token alone may change
    right = batch.targets.clone()
    right[0, 1:] = NOT_ASKED
    right[0, 0] = likeliest[0, 0]
    asked = right != NOT_ASKED
    measures = SequenceToSequence().evaluate(
        model, [type(batch)(tokens=batch.tokens, lengths=batch.lengths, targets=right)]
    )
    assert measures["exact"] == (1 + bool((likeliest[1] == right[1]).all())) / 2
    assert measures["accuracy"] == ((likeliest == right) & asked).sum().item() / asked.sum().item()


def test_what_cannot_be_trained_is_said(place: Path) -> None:
    recipe = place / "recipe.toml"
    recipe.write_text(RECIPE.replace(', target_text = "spelt"', ""))
    with pytest.raises(ConfigError, match="which column is the answer"):
        Recipe.load(recipe)
    with pytest.raises(ConfigError, match="expected one target, got label and target_text"):
        Columns(label="label", target_text="spelt")
    recipe.write_text(RECIPE.replace('"spelt"', '"spellt"'))
    with pytest.raises(InputError, match=r"no column 'spellt'.*spelt"):
        run_recipe("recipe.toml", out="run")
    recipe.write_text(RECIPE.replace("max_len = 12", "max_len = 64"))
    with pytest.raises(TrainingError, match="16 positions"):
        run_recipe("recipe.toml", out="run2")
    endless = json.loads((place / "start" / "tokenizer.json").read_text())
    endless["post_processor"], whole = None, (place / "start" / "tokenizer.json").read_text()
    (place / "start" / "tokenizer.json").write_text(json.dumps(endless))
    recipe.write_text(RECIPE)
    with pytest.raises(TrainingError, match="does not end a text with id 2"):
        run_recipe("recipe.toml", out="run4")
    (place / "start" / "tokenizer.json").write_text(whole)
    gpt = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 8, "n_head": 1, "n_layer": 1}
    (place / "start" / "config.json").write_text(json.dumps({**gpt, "vocab_size": 10, "n_positions": 16}))
    recipe.write_text(RECIPE)
    with pytest.raises(TrainingError, match="the checkpoint is a GPTForCausalLM"):
        run_recipe("recipe.toml", out="run3")
