"""A run leaves a checkpoint that opens, and stopped anywhere, even killed, it ends as if it had never stopped."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clearhead.checkpoints import load, save
from clearhead.data.batches import collate
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import CheckpointError, ConfigError, InputError, Interrupted, TrainingError
from clearhead.models.bert import Bert, BertConfig, BertForMaskedLM, BertForSequenceClassification
from clearhead.models.modernbert import (
    ModernBert,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
)
from clearhead.training.loop import evaluate
from clearhead.training.objectives import Classification
from clearhead.training.recipe import Recipe
from clearhead.training.run import run_recipe, stop_signals
from clearhead.training.store import RunFolder
from clearhead.training.texts import build_rows

from .conftest import write_sentences

RECIPE = """
[model]
start = "start"
labels = ["negative", "positive"]
[data]
train = ["train.jsonl"]
valid = ["valid.jsonl"]
columns = { positive = "positive" }
max_len = 32
[optimizer]
lr = 3e-3
layer_decay = 0.9
[training]
steps = 20
batch_size = 8
ema = 0.9
evaluate_every = 6
save_every = 3
"""

MODERN = {"classification": ModernBertForSequenceClassification, "masked_words": ModernBertForMaskedLM}


@pytest.fixture
def place(tmp_path: Path, config: BertConfig, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a recipe, its data and a checkpoint to start from."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(Bert(config), tmp_path / "start", tokenizer=words)
    write_sentences(tmp_path)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def edit(place: Path, old: str, new: str) -> None:
    recipe = (place / "recipe.toml").read_text()
    assert old in recipe
    (place / "recipe.toml").write_text(recipe.replace(old, new))


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "items_per_second"} for line in lines]  # the clock's


def assert_same_run(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    a, b = (load_file(run / "model.safetensors") for run in (one, other))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    (state_a,), (state_b,) = ((run / "training_state").glob("step-*") for run in (one, other))
    assert state_a.name == state_b.name
    facts_a, facts_b = (json.loads((state / "facts.json").read_text()) for state in (state_a, state_b))
    del facts_a["python"], facts_b["python"]  # beartype, which checks shapes in tests, draws from it
    assert facts_a == facts_b
    assert (state_a / "tensors.safetensors").read_bytes() == (state_b / "tensors.safetensors").read_bytes()


def child(place: Path, out: str, *, resume: bool) -> "subprocess.Popen[str]":
    """Start a run in a process of its own."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from clearhead.errors import TrainingError\n"
        "from clearhead.training.run import run_recipe\n"
        f"try: run_recipe('recipe.toml', out={out!r}, resume={resume})\n"
        "except TrainingError as error: raise SystemExit(str(error))"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=place, stderr=subprocess.PIPE, text=True)


def wait_for_lines(run: Path, n: int, process: "subprocess.Popen[str]") -> None:
    while process.poll() is None:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= n:
            return
        time.sleep(0.001)


# ---------------------------------------------------------------- what a run leaves


def test_the_run_folder_opens_in_transformers_with_the_same_logits(place: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = run_recipe("recipe.toml", out="run")
    text = "i loved every minute of it"
    tokenizer = Tokenizer.load(run)
    tokens, lengths = collate([tokenizer.encode(text).ids], tokenizer.pad_id)
    with torch.no_grad():
        ours = load(run)(tokens, lengths)
        theirs = AutoModelForSequenceClassification.from_pretrained(run)
        logits = theirs(**AutoTokenizer.from_pretrained(run)(text, return_tensors="pt")).logits
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)
    assert theirs.config.id2label == {0: "negative", 1: "positive"}
    assert (run / "recipe.toml").read_text() == (place / "recipe.toml").read_text()


def test_metrics_have_a_line_a_step_and_a_line_an_evaluation(place: Path) -> None:
    lines = metrics(run_recipe("recipe.toml", out="run"))
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 21))
    assert [line["step"] for line in lines if "valid_loss" in line] == [6, 12, 18, 20]
    assert {"lr", "gradient_norm", "epoch", "items"} < lines[0].keys()


def test_keep_best_holds_the_weights_that_scored_best(place: Path) -> None:
    edit(place, "ema = 0.9", "keep = 'best'")
    edit(place, "lr = 3e-3", "lr = 1.0")  # rising to the end: the last weights are far from the best
    edit(place, "[training]", "[schedule]\nwarmup = 1.0\n[training]")
    edit(place, "evaluate_every = 6", "evaluate_every = 1")
    run = run_recipe("recipe.toml", out="run")
    scores = [line["valid_loss"] for line in metrics(run) if "valid_loss" in line]
    assert min(scores) < scores[-1]
    recipe, tokenizer = Recipe.load("recipe.toml"), Tokenizer.load(run)
    rows = build_rows(("valid.jsonl",), place, recipe, tokenizer).rows
    kept = evaluate(load(run), Classification(), [rows.batch(range(len(rows.tokens)))], recipe)
    assert kept["loss"] == pytest.approx(min(scores), rel=1e-5)


def test_a_second_stage_starts_from_the_first_with_its_head(place: Path) -> None:
    first = run_recipe("recipe.toml", out="first")
    edit(place, "lr = 3e-3", "lr = 1e-12")
    second = run_recipe("recipe.toml", out="second", start=str(first))
    before, after = (load_file(run / "model.safetensors") for run in (first, second))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_masked_words_train_from_plain_lines(place: Path) -> None:
    texts = [json.loads(line)["text"] for line in (place / "train.jsonl").read_text().splitlines()]
    (place / "train.txt").write_text("\n".join(texts))
    (place / "recipe.toml").write_text(
        '[model]\nstart = "start"\n[data]\ntrain = ["train.txt"]\nvalid = ["train.txt"]\nmax_len = 32\n'
        '[objective]\nname = "masked_words"\n[optimizer]\nlr = 3e-3\n'
        "[training]\nsteps = 20\nbatch_size = 16\nevaluate_every = 10\n"
    )
    run = run_recipe("recipe.toml", out="run")
    first, last = (line["valid_loss"] for line in metrics(run) if "valid_loss" in line)
    assert last < first
    assert isinstance(load(run), BertForMaskedLM)


@pytest.mark.parametrize("objective", ["classification", "masked_words"])
def test_a_modernbert_trains_too(objective: str, place: Path, words: Tokenizer) -> None:
    config = ModernBertConfig(vocab_size=words.vocab_size, d_model=32, n_heads=2, n_layers=2, d_ff=64, pad_id=0)
    save(ModernBert(config), place / "modern", tokenizer=words)
    edit(place, "[optimizer]", f'[objective]\nname = "{objective}"\n[optimizer]')
    run = run_recipe("recipe.toml", out="run", start="modern")
    losses = [line["valid_loss"] for line in metrics(run) if "valid_loss" in line]
    assert losses[-1] < losses[0]
    assert isinstance(load(run), MODERN[objective])


def test_a_recipe_may_begin_with_a_byte_order_mark(place: Path) -> None:
    (place / "recipe.toml").write_text(RECIPE, encoding="utf-8-sig")
    assert Recipe.load("recipe.toml").training.steps == 20


def test_dropout_is_what_the_recipe_says(place: Path) -> None:
    edit(place, 'start = "start"', 'start = "start"\ndropout = 0.3\nclassifier_dropout = 0.25')
    edit(place, "steps = 20", "steps = 1")
    model = load(run_recipe("recipe.toml", out="run"))
    assert isinstance(model, BertForSequenceClassification)
    assert (model.config.dropout, model.dropout.p, model.bert.blocks[0].dropout.p) == (0.3, 0.25, 0.3)
    assert model.config.attention_dropout == model.bert.blocks[0].attention.dropout == 0.3  # no rate of its own


def test_a_recipe_needs_no_valid_files(place: Path) -> None:
    edit(place, 'valid = ["valid.jsonl"]\n', "")
    edit(place, "steps = 20", "steps = 2")
    run = run_recipe("recipe.toml", out="run")
    assert [sorted(line) for line in metrics(run)] == [sorted(metrics(run)[0])] * 2  # steps, and no evaluation
    assert isinstance(load(run), BertForSequenceClassification)


def test_no_examples_are_rows_like_any_others(place: Path, words: Tokenizer) -> None:
    edit(place, 'positive = "positive" }', 'positive = "positive", weight = "importance" }')
    rows = build_rows((), place, Recipe.load("recipe.toml"), words).rows
    assert rows.targets is not None and rows.weights is not None
    assert (rows.targets.shape, rows.weights.shape, rows.lengths) == ((0, 2), (0,), [])


def test_training_needs_neither_rich_nor_tyro(place: Path) -> None:
    edit(place, "steps = 20", "steps = 2")
    code = (
        "import sys; sys.modules['rich'] = sys.modules['tyro'] = None\n"
        "from clearhead.training.run import run_recipe; run_recipe('recipe.toml', out='run')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "step 2/2  loss " in done.stderr and "step 2: valid loss " in done.stderr


# ---------------------------------------------------------------- stopping and going on


def test_killed_again_and_again_it_ends_bit_for_bit_as_if_it_had_not_been(place: Path) -> None:
    edit(place, "save_every = 3", "save_every = 1")  # so that many kills fall into a save
    straight = run_recipe("recipe.toml", out="straight")
    dice = random.Random(os.getpid())
    run, kills = place / "killed", []
    for n in (dice.randint(1, 8), dice.randint(9, 20)):
        process = child(place, "killed", resume=run.exists())
        wait_for_lines(run, n, process)
        time.sleep(dice.random() * 0.05)
        process.kill()
        kills.append(n)
        _, said = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), (kills, said)  # 0: it was faster
    process = child(place, "killed", resume=True)
    _, said = process.communicate()
    assert process.returncode == 0, (kills, said)
    assert_same_run(straight, run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(number: signal.Signals, place: Path) -> None:
    straight = run_recipe("recipe.toml", out="straight")
    run = place / "stopped"

    def press() -> None:
        while len((run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []) < 8:
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    watcher = threading.Thread(target=press)
    watcher.start()
    with pytest.raises(Interrupted, match=r"interrupted at step \d+ of 20; everything is saved .* --resume") as stopped:
        run_recipe("recipe.toml", out=run)
    watcher.join()
    assert stopped.value.signal == number
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    load(run)  # the checkpoint opens
    assert_same_run(straight, run_recipe("recipe.toml", out=run, resume=True))


def test_a_signal_that_comes_twice_at_once_is_one_and_a_later_one_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_signals() as arrived:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert arrived == [signal.SIGINT, signal.SIGINT]
        monkeypatch.setattr("clearhead.training.run.SAME_SIGNAL", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_resuming_a_finished_run_changes_nothing(place: Path) -> None:
    run = run_recipe("recipe.toml", out="run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    run_recipe("recipe.toml", out="run", resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_state_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PowerCut(BaseException):
        pass

    left = 0

    def failing(operation: Any) -> Any:
        def attempt(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCut
            return operation(*arguments, **options)

        return attempt

    store = RunFolder(tmp_path / "run")
    store.begin({}, "")
    for name in ("fsync", "rename", "rmdir", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    survived = []
    for cut in range(30):
        left = 10**9
        shutil.rmtree(store.state)
        store.state.mkdir()
        store.save({"x": torch.zeros(3)}, {"step": 3})
        left = cut
        with contextlib.suppress(PowerCut):
            store.save({"x": torch.ones(3)}, {"step": 7})
        left = 10**9
        latest = store.latest()
        assert latest is not None
        tensors, facts = latest
        assert facts["step"] == (3 if tensors["x"].sum() == 0 else 7)
        survived.append(facts["step"])
    assert survived == sorted(survived) and set(survived) == {3, 7}


def test_two_processes_do_not_train_in_one_folder(place: Path) -> None:
    begin(place)
    with (
        RunFolder(place / "run").held(),
        pytest.raises(TrainingError, match="another process is training in run: wait for it"),
    ):
        run_recipe("recipe.toml", out="run", resume=True)
    run_recipe("recipe.toml", out="run", resume=True)


def test_a_full_disk_leaves_what_was_saved_before(tmp_path: Path) -> None:
    store = RunFolder(tmp_path / "run")
    store.begin({}, "")
    store.save({"x": torch.zeros(3)}, {"step": 3})
    before, left = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, left[1]))
    try:
        with pytest.raises(TrainingError, match=r"step 7 could not be saved in .*go on with --resume"):
            store.save({"x": torch.ones(3_000)}, {"step": 7})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, left)
        signal.signal(signal.SIGXFSZ, before)
    latest = store.latest()
    assert latest is not None and latest[1]["step"] == 3


def test_metrics_after_the_saved_step_are_forgotten(tmp_path: Path) -> None:
    store = RunFolder(tmp_path / "run")
    store.begin({}, "")
    for step in (1, 2, 3, 4):
        store.log({"step": step})
    with store.metrics.open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    store.forget_after(3)
    assert [line["step"] for line in metrics(store.path)] == [1, 2, 3]


# ---------------------------------------------------------------- refusals


def begin(place: Path) -> None:
    """Make a finished one-step run."""
    edit(place, "steps = 20", "steps = 1")
    run_recipe("recipe.toml", out="run")


def test_another_recipe_is_not_resumed(place: Path) -> None:
    begin(place)
    edit(place, "layer_decay = 0.9", "layer_decay = 0.8\nclip = 0.5")
    expected = "optimizer.clip was 1.0, is 0.5; optimizer.layer_decay was 0.9, is 0.8"
    with pytest.raises(TrainingError, match=expected):
        run_recipe("recipe.toml", out="run", resume=True)


def test_other_data_is_not_resumed(place: Path) -> None:
    begin(place)
    with (place / "valid.jsonl").open("a") as file:
        file.write('{"text": "one more", "positive": 1}\n')
    with pytest.raises(TrainingError, match="with something else: the valid rows"):
        run_recipe("recipe.toml", out="run", resume=True)


def test_a_run_is_not_overwritten(place: Path) -> None:
    begin(place)
    with pytest.raises(TrainingError, match="holds a run already: continue it with --resume"):
        run_recipe("recipe.toml", out="run")
    with pytest.raises(TrainingError, match="start exists and is no empty folder"):
        run_recipe("recipe.toml", out="start")
    with pytest.raises(TrainingError, match=r"recipe\.toml is a file: give a folder as --out"):
        run_recipe("recipe.toml", out="recipe.toml")


def test_nothing_is_resumed_where_nothing_was_begun(place: Path) -> None:
    with pytest.raises(TrainingError, match="holds no run to continue"):
        run_recipe("recipe.toml", out="run", resume=True)
    assert not (place / "run").exists()


def test_a_run_killed_before_it_began_can_be_begun(place: Path) -> None:
    edit(place, "steps = 20", "steps = 1")
    (place / "run" / "training_state").mkdir(parents=True)
    (place / "run" / "recipe.toml").write_text("")
    run_recipe("recipe.toml", out="run", resume=True)
    assert [line["step"] for line in metrics(place / "run")] == [1, 1]


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("layer_decay", "layer_dekay", ConfigError, "unknown key 'layer_dekay'; did you mean 'layer_decay'"),
        ("batch_size = 8", "", ConfigError, "exactly one of 'batch_size' and 'batch_tokens'"),
        ("lr = 3e-3", "lr = -1.0", ConfigError, r"\[optimizer\] lr -1\.0: expected a finite number above 0"),
        ("lr = 3e-3", "lr = 3e-3\nmomentum = 0.9", ConfigError, "momentum is of muon: adamw has no use for it"),
        ("[optimizer]", "[objective]\nmirror = 0.5\n[optimizer]", ConfigError, "mirror is of image_classification"),
        (
            'positive = "positive" }\nmax_len = 32',
            'weight = "w" }\n[objective]\nname = "masked_words"',
            ConfigError,
            "only classification weighs its lines",
        ),
        ("lr = 3e-3", "lr = inf", ConfigError, "lr inf: expected a finite number above 0"),
        ("ema = 0.9", "seed = -1", ConfigError, r"\[training\] seed -1: expected a whole number from 0 to 2\*\*32 - 1"),
        ("batch_size = 8", "batch_size = 0", ConfigError, r"\[training\] batch_size 0: expected at least 1"),
        ('["negative", "positive"]', '["positive"]', ConfigError, "expected two labels to choose from, or more"),
        ('"positive"]', '"positive", "negative"]', ConfigError, "expected each label once"),
        ("lr = 3e-3", "lr = ", ConfigError, "not TOML"),
        ("max_len = 32", "max_len = 64", TrainingError, "the model has 32 positions .* max_len is 64"),
        ("labels", "# labels", ConfigError, "needs .model. labels"),
        ("valid.jsonl", "no.jsonl", InputError, r"holds no no\.jsonl: give the folder .* --data"),
        ('start = "start"', 'start = "nowhere"', CheckpointError, "nowhere"),
        ("steps = 20", "steps = 20\ndevice = 'warp'", TrainingError, "device 'warp' is not here"),
    ],
)
def test_a_wrong_recipe_leaves_no_run_behind(
    old: str, new: str, error: type[Exception], message: str, place: Path
) -> None:
    edit(place, old, new)
    with pytest.raises(error, match=message):
        run_recipe("recipe.toml", out="run")
    assert not (place / "run").exists()
