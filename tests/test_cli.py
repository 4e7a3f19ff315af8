"""What a person meets first: every command in this process, and as a real process where pipes and signals matter.

The model is a tiny random BERT with a vocabulary learned from the sentences below. Its answers mean nothing, and they
are all that the command line has to carry faithfully.
"""

import contextlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

import clearhead
from clearhead.checkpoints import load, save
from clearhead.cli import main
from clearhead.cli.catalogue import Shipped
from clearhead.data.tokenizer import Tokenizer
from clearhead.models.bert import Bert, BertConfig, BertForMaskedLM, BertForSequenceClassification
from command import Call, Done

TEXT = "attention is not too shabby"
TEXTS = (TEXT, "attention is too shabby", "a film, and what a film!", "is it not?", "Zürich — 東京")
LABELS = ("negative", "neutral", "positive")
COMMANDS = (
    "classify",
    "embed",
    "generate",
    "translate",
    "transcribe",
    "derive",
    "see",
    "explore",
    "effect",
    "profile",
    "train",
    "models",
)
MAX_LEN = 24
GOLDEN = Path(__file__).parent / "cli_help.txt"
BERTS = "BertModel, BertForMaskedLM"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint: a tiny random classifier, and WordPieces learned from the texts above."""
    import tokenizers

    word_pieces = tokenizers.BertWordPieceTokenizer(lowercase=True)
    word_pieces.train_from_iterator(TEXTS, vocab_size=80, min_frequency=1, show_progress=False)
    torch.manual_seed(1)
    vocabulary = word_pieces.get_vocab_size()
    config = BertConfig(
        vocab_size=vocabulary, d_model=32, n_heads=4, n_layers=3, d_ff=48, max_len=MAX_LEN, labels=LABELS
    )
    model = BertForSequenceClassification(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # answers and heads that differ
    path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    source = tmp_path_factory.mktemp("words")
    word_pieces.save_model(str(source))
    save(model, path, tokenizer=Tokenizer.load(source))
    return path


def start(*argv: object, **options: Any) -> subprocess.Popen[str]:
    """Start `clearhead ...` as a process of its own."""
    command = [sys.executable, "-W", "error", "-m", "clearhead", *map(str, argv)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, **(pipes | options))


# ---------------------------------------------------------------- help


def test_help_is_what_was_decided(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    # A new flag, a changed default or wording is a decision: write it down with
    #   COLUMNS=80 python tests/test_cli.py > tests/cli_help.txt
    monkeypatch.setenv("COLUMNS", "80")
    pages = [call("--help").out, *(call(command, "--help").out for command in COMMANDS)]
    assert bare_words("".join(pages)) == bare_words(GOLDEN.read_text(encoding="utf-8"))


def bare_words(page: str) -> str:
    """Return a help page without the frames and the line breaks that depend on tyro's version and the width."""
    return " ".join(re.sub(r"[╭╮╰╯─│]", " ", page).split())


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["classify", "--help"], ["classify", "--model"]])
def test_help_and_wrong_usage_wait_for_no_heavy_import(argv: list[str]) -> None:
    heavy = "torch numpy rich tokenizers safetensors huggingface_hub jaxtyping".split()
    code = f"import sys\nfrom clearhead.cli import main\nmain({argv!r})\nassert not set({heavy!r}) & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_alone_it_shows_three_examples(call: Call) -> None:
    done = call()
    assert (done.code, done.err) == (0, "")
    assert re.findall(r"^  clearhead (\w+)", done.out, re.MULTILINE) == ["classify", "derive", "see"]


def test_version_is_the_package_version(call: Call) -> None:
    for argv in (["--version"], ["generate", "--version"], ["classify", "a text", "--version"]):
        assert call(*argv) == Done(0, f"clearhead {clearhead.__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--bogus"], "clearhead has no option --bogus; known: --debug, --help, --version (see clearhead --help)"),
        (["classify", "--bogus"], "(see clearhead classify --help)"),
        (["clasify", "x"], "there is no command 'clasify'; did you mean 'classify'? (see clearhead --help)"),
        (["classify", "x", "--modle", "y"], "classify has no option --modle; did you mean '--model'?"),
        (["classify", "-x"], "a text may begin with a dash after --"),
        (["classify", "x", "--dtype", "fp8"], "--dtype is fp32 or bf16, got 'fp8'"),
        (["classify", "x", "--model"], "--model needs a value"),
        (["classify", "--file", "--json"], "--file needs a value"),
        (["models", "x"], "models takes options alone, and 'x' is one too many"),
        (["train", "a", "b"], "train takes one RECIPE, and 'b' is one too many"),
        (["classify", "x", "--top", "0"], "--top must be at least 1, got 0"),
        (["classify", "x", "--threads", "-1"], "--threads must be at least 1, got -1"),
        (["train"], "train needs a RECIPE"),
        (["profile", "--limit", "3"], "profile needs a MODEL"),
        (["derive", "x", "--layer", "first"], "--layer takes a whole number, got 'first'"),
    ],
)
def test_a_command_that_is_not_understood_is_exit_code_2(argv: list[str], said: str, call: Call) -> None:
    done = call(*argv)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert (done.err[:11], done.err.count("\n")) == ("clearhead: ", 1)


# ---------------------------------------------------------------- classify


def probabilities(folder: Path, ids: Sequence[int]) -> list[float]:
    """Return what the model itself says."""
    model = load(folder)
    with torch.no_grad():
        return model(torch.tensor([ids])).softmax(-1)[0].tolist()


def test_classes_of_one_name_keep_their_own_probabilities(folder: Path, tmp_path: Path, call: Call) -> None:
    model = load(folder)
    model.config = replace(model.config, labels=("good", "bad", "good"))
    save(model, tmp_path / "twins", tokenizer=Tokenizer.load(folder))
    (line,) = call("classify", TEXT, "--model", tmp_path / "twins", "--json").json
    expected = probabilities(folder, Tokenizer.load(folder).encode(TEXT).ids)
    assert line["probabilities"] == {
        name: pytest.approx(p, abs=1e-6) for name, p in zip(("good (0)", "bad", "good (2)"), expected, strict=True)
    }


def test_classify_json_holds_the_models_own_probabilities(call: Call, folder: Path) -> None:
    done = call("classify", *TEXTS, "--model", folder, "--json")
    assert (done.code, done.err) == (0, "")
    tokenizer = Tokenizer.load(folder)
    for text, answer in zip(TEXTS, done.json, strict=True):
        expected = probabilities(folder, tokenizer.encode(text).ids)
        assert list(answer) == ["text", "label", "probabilities"]
        assert answer["text"] == text
        assert [answer["probabilities"][label] for label in LABELS] == pytest.approx(expected, abs=2e-6)
        assert answer["label"] == LABELS[expected.index(max(expected))] == next(iter(answer["probabilities"]))


def test_arguments_files_and_standard_input_give_the_same_answers(call: Call, folder: Path, tmp_path: Path) -> None:
    content = "\n".join(TEXTS).encode()
    (tmp_path / "texts.txt").write_bytes(content)
    options = ("--model", folder, "--json")
    by_argument = call("classify", *TEXTS, *options).out
    assert call("classify", *options, "--file", tmp_path / "texts.txt").out == by_argument
    assert call("classify", *options, stdin=content).out == by_argument
    assert call("classify", *options, "--file", "-", stdin=content).out == by_argument
    both = call("classify", TEXTS[0], *options, "--file", tmp_path / "texts.txt", tmp_path / "texts.txt")
    assert [answer["text"] for answer in both.json] == [TEXTS[0], *TEXTS, *TEXTS]


def test_many_texts_keep_their_order(call: Call, folder: Path) -> None:
    texts = [" ".join(["not"] * (1 + i * 7 % 19)) for i in range(500)]
    done = call("classify", "--model", folder, "--json", stdin="\n".join(texts).encode())
    assert [answer["text"] for answer in done.json] == texts


def test_people_get_aligned_columns(call: Call, folder: Path) -> None:
    done = call("classify", *TEXTS, "--model", folder)
    width = max(map(len, LABELS))
    for text, line in zip(TEXTS, done.out.splitlines(), strict=True):
        label, probability = line[: width + 5].split()
        assert label in LABELS
        assert re.fullmatch(r"[01]\.\d\d", probability)
        assert line[width + 5 :] == "  " + text


def test_top_shows_that_many_labels(call: Call, folder: Path) -> None:
    options = (TEXT, "--model", folder)
    ranked = list(call("classify", *options, "--json").json[0]["probabilities"])
    assert re.findall(r"(\w+) +\d\.\d\d  ", call("classify", *options, "--top", 2).out) == ranked[:2]
    assert list(call("classify", *options, "--json", "--top", 2).json[0]["probabilities"]) == ranked[:2]
    assert len(call("classify", *options, "--json", "--top", 9).json[0]["probabilities"]) == 3


def test_a_long_text_is_read_to_its_end_in_windows(call: Call, folder: Path) -> None:
    text = "attention is not too shabby " * 9 + "is it not?"
    done = call("classify", text, TEXT, "--model", folder, "--json")
    windows = Tokenizer.load(folder).windows(text, MAX_LEN)
    answer, short = done.json
    assert answer["windows"] == len(windows) > 2
    assert "windows" not in short
    pieces = [window.special.count(False) for window in windows]
    expected = [0.0] * len(LABELS)
    for window, count in zip(windows, pieces):
        for i, p in enumerate(probabilities(folder, window.ids)):
            expected[i] += p * count / sum(pieces)
    assert [answer["probabilities"][label] for label in LABELS] == pytest.approx(expected, abs=2e-6)
    assert re.search(rf"reads {MAX_LEN} pieces at once, a text has {sum(pieces)} .* {len(windows)} windows", done.err)


def test_a_text_of_100_000_words_is_read(call: Call, folder: Path) -> None:
    (answer,) = call("classify", "--model", folder, "--json", stdin=b"not " * 100_000).json
    assert answer["windows"] > 100_000 / MAX_LEN


def test_control_characters_do_not_reach_the_terminal_of_a_person(call: Call, folder: Path) -> None:
    text = "not\x1b[2J\x07 shabby"
    assert call("classify", text, "--model", folder).out.endswith("  not [2J  shabby\n")
    assert call("classify", text, "--model", folder, "--json").json[0]["text"] == text


def test_a_text_may_begin_with_a_dash(call: Call, folder: Path) -> None:
    done = call("classify", "--model", folder, "--json", "--", "--json", "-x")
    assert [answer["text"] for answer in done.json] == ["--json", "-x"]


def test_bf16_computes_in_bf16_or_says_why_not(call: Call, folder: Path) -> None:
    exact, done = (call("classify", TEXT, "--model", folder, "--json", "--dtype", dtype) for dtype in ("fp32", "bf16"))
    before, rounded = exact.json[0]["probabilities"], done.json[0]["probabilities"]
    assert rounded == pytest.approx(before, abs=0.05)
    assert "not in bf16" in done.err if rounded == before else done.err == ""


class Screen(io.TextIOWrapper):
    """A terminal that a person reads, or a file."""

    name, mode = "screen", "w"

    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="", write_through=True)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode()


def test_who_waits_sees_how_many_are_done_and_is_left_with_a_clean_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from clearhead.cli.output import Progress, note

    monkeypatch.setattr(Progress, "LATE", -1.0)
    monkeypatch.setattr(Progress, "BETWEEN", -1.0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=True))
    monkeypatch.setattr(sys, "stdout", Screen(terminal=False))  # answers go to a file
    with Progress("text") as progress:
        progress.advance(1200)
        assert re.search(r"\r\x1b\[K1,200 texts, [\d,.]+ a second$", screen.text)
        note("a remark")
        assert screen.text.endswith("\r\x1b[Kclearhead: a remark\n")
        progress.advance()
    assert screen.text.endswith("a second\r\x1b[K")
    monkeypatch.setattr(sys, "stdout", Screen(terminal=True))  # answers are seen coming
    before = screen.text
    with Progress("text") as progress:
        progress.advance()
    assert screen.text == before


def test_a_line_is_broken_between_words_at_a_terminal_and_whole_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from clearhead.cli.output import say

    monkeypatch.setenv("COLUMNS", "20")
    for terminal, shown in ((True, "  bert:  BertModel,\n    BertForMaskedLM\n"), (False, f"  bert:  {BERTS}\n")):
        monkeypatch.setattr(sys, "stdout", screen := Screen(terminal))
        say(f"  bert:  {BERTS}", hanging=2)
        assert screen.text == shown


# ---------------------------------------------------------------- what cannot be done is one sentence


def one_sentence(done: Done) -> str:
    """Return what was said, having checked that it is one line on stderr and exit code 1."""
    assert done.code == 1
    assert done.err.startswith("clearhead: ")
    assert done.err.count("\n") == 1
    return done.err


@pytest.mark.parametrize("command", ["classify", "derive", "see"])
@pytest.mark.parametrize(("text", "said"), [("", "empty"), (" \n\t", "empty"), ("b\udcff", "not UTF-8")])
def test_an_argument_that_is_no_text(command: str, text: str, said: str, call: Call, folder: Path) -> None:
    assert said in one_sentence(call(command, "--model", folder, "--", text))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "standard input is empty: expected one text a line"),
        (b" \n\n", "standard input is empty: expected one text a line"),
        (b"\x7fELF\x00\x01", "standard input:1: binary data"),
        (b"caf\xe9", "standard input:1: not UTF-8"),
        ("fine".encode("utf-16"), "standard input: UTF-16, expected UTF-8; convert it: iconv -f utf-16 -t utf-8"),
    ],
)
def test_standard_input_that_holds_no_text(content: bytes, said: str, call: Call, folder: Path) -> None:
    assert said in one_sentence(call("classify", "--model", folder, stdin=content))


def test_what_came_before_a_bad_line_is_answered(call: Call, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_bytes(b"fine\nalso fine\nbad \xff\nnever read\n")
    for done in (
        call("classify", "--model", folder, "--json", "--file", tmp_path / "texts.txt"),
        call("classify", "--model", folder, "--json", stdin=(tmp_path / "texts.txt").read_bytes()),
    ):
        assert ":3: not UTF-8" in one_sentence(done)
        assert [answer["text"] for answer in done.json] == ["fine", "also fine"]


def test_a_file_that_is_not_there_or_a_directory(call: Call, tmp_path: Path) -> None:
    assert "nowhere.txt: cannot be read" in one_sentence(call("classify", "--file", tmp_path / "nowhere.txt"))
    assert "Is a directory" in one_sentence(call("classify", "--file", tmp_path))


def test_a_file_that_is_given_as_a_text_is_read_by_its_name_and_said(
    call: Call, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "reviews.txt").write_text("fine\n")
    monkeypatch.chdir(tmp_path)
    done = call("classify", "reviews.txt", "x" * 5000, "--model", folder, "--json")
    assert [answer["text"] for answer in done.json] == ["reviews.txt", "x" * 5000]
    assert "--file reviews.txt reads what the file holds" in done.err and done.err.count("is a file") == 1
    for command in ("effect", "see"):
        assert "reviews.txt is a file" in call(command, "reviews.txt", "--model", folder).err


def test_a_picture_is_no_file_of_texts(call: Call, tmp_path: Path) -> None:
    (tmp_path / "boot.png").write_bytes(b"\x89PNG\r\n")
    assert "is a picture, and --file reads text" in one_sentence(call("classify", "--file", tmp_path / "boot.png"))


def test_files_are_opened_before_the_first_answer_and_empty_ones_passed_over(
    call: Call, folder: Path, tmp_path: Path
) -> None:
    full, empty, nowhere = (tmp_path / name for name in ("a.txt", "empty.txt", "nowhere.txt"))
    full.write_text("fine\n")
    empty.write_text(" \n\n")
    missing = call("classify", "--model", folder, "--file", full, empty, nowhere)
    assert missing.out == ""
    assert "nowhere.txt: cannot be read" in one_sentence(missing)
    done = call("classify", "--model", folder, "--json", "--file", full, empty, full)
    assert (done.code, [answer["text"] for answer in done.json]) == (0, ["fine", "fine"])
    assert done.err == f"clearhead: {empty} is empty, and passed over\n"
    assert one_sentence(call("classify", "--model", folder, "--file", empty)).endswith("one text a line\n")
    assert call("classify", "--model", folder, "--file", empty, empty).code == 1


@pytest.mark.parametrize("command", ["classify", "derive", "see"])
def test_a_model_that_is_not_there(command: str, call: Call) -> None:
    assert "no model 'sentimental'" in one_sentence(call(command, TEXT, "--model", "sentimental"))


def test_a_model_that_labels_no_texts(call: Call, folder: Path, tmp_path: Path) -> None:
    config = BertConfig(vocab_size=99, d_model=32, n_heads=2, n_layers=1, d_ff=32, max_len=16)
    save(BertForMaskedLM(config), tmp_path / "guesser", tokenizer=Tokenizer.load(folder))
    assert "BertForMaskedLM" in one_sentence(call("classify", TEXT, "--model", tmp_path / "guesser"))


@pytest.mark.parametrize("command", ["derive", "see"])
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--query", "shaby", "did you mean 'shabby@"),
        ("--layer", "3", "there is no layer 3: this model has 3, counted from 0"),
        ("--layer", "-1", "there is no layer -1"),
        ("--head", "4", "there is no head 4: this model has 4, counted from 0"),
        ("--head", "-1", "there is no head -1"),
    ],
)
def test_a_word_layer_or_head_that_is_not_there(
    command: str, option: str, value: str, said: str, call: Call, folder: Path
) -> None:
    assert said in one_sentence(call(command, TEXT, "--model", folder, option, value))


def test_a_model_with_a_single_label(call: Call, folder: Path, tmp_path: Path) -> None:
    config = BertConfig(vocab_size=99, d_model=32, n_heads=2, n_layers=1, d_ff=32, max_len=16, labels=("stars",))
    save(BertForSequenceClassification(config), tmp_path / "scorer", tokenizer=Tokenizer.load(folder))
    assert "at least two labels" in one_sentence(call("classify", TEXT, "--model", tmp_path / "scorer"))


def test_a_recipe_with_an_unknown_key(call: Call, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[optimiser]\nlr = 1e-3\n")
    assert "unknown key 'optimiser'; did you mean 'optimizer'?" in one_sentence(call("train", tmp_path / "recipe.toml"))


def test_debug_shows_where_it_was_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    argv = ["classify", "--file", str(tmp_path / "nowhere.txt")]
    with pytest.raises(clearhead.InputError):
        main([*argv, "--debug"])
    monkeypatch.setenv("CLEARHEAD_DEBUG", "1")
    with pytest.raises(clearhead.InputError):
        main(argv)


# ---------------------------------------------------------------- derive and see


def test_derive_json_is_eight_steps_with_this_texts_numbers(call: Call, folder: Path) -> None:
    (found,) = call("derive", TEXT, "--model", folder, "--json").json
    assert list(found) == ["text", "tokens", "layer", "head", "query", "steps"]
    assert found["text"] == TEXT
    assert found["tokens"] == Tokenizer.load(folder).encode(TEXT).pieces
    assert len(found["steps"]) == 8
    for step in found["steps"]:
        assert list(step) == ["name", "equation", "sentence", "tensors"]


def test_json_goes_into_whatever_a_program_puts_in_the_place_of_stdout(folder: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["derive", "not too shabby", "--model", str(folder), "--json"]) == 0
    assert json.loads(said.getvalue())["steps"]


def test_derive_arrives_at_the_output_of_the_models_layer(call: Call, folder: Path) -> None:
    (found,) = call("derive", TEXT, "--model", folder, "--json", "--layer", 2, "--head", 1, "--query", "not").json
    bert = load(folder).bert
    assert isinstance(bert, Bert)
    outputs: list[torch.Tensor] = []
    bert.blocks[2].attention.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        bert(torch.tensor([Tokenizer.load(folder).encode(TEXT).ids]))
    assert found["steps"][7]["tensors"]["output"]["values"] == pytest.approx(
        outputs[0][0, found["query"]].tolist(), abs=1e-5
    )


def test_derive_and_see_look_from_the_same_word_and_head_with_the_same_weights(call: Call, folder: Path) -> None:
    (derived,) = call("derive", TEXT, "--model", folder, "--json").json
    (seen,) = call("see", TEXT, "--model", folder, "--json").json
    for key in ("text", "tokens", "query", "layer", "head"):
        assert derived[key] == seen[key]
    (weights,) = [step["tensors"]["weights"] for step in derived["steps"] if "weights" in step["tensors"]]
    assert weights["values"] == pytest.approx(seen["weights"], abs=1e-6)


def test_the_head_chosen_is_the_one_where_the_word_looks_hardest_at_another(call: Call, folder: Path) -> None:
    (chosen,) = call("see", TEXT, "--model", folder, "--json", "--query", "shabby").json
    others = [i for i, token in enumerate(chosen["tokens"]) if token in ("attention", "is", "not", "too")]
    hardest = {}
    for layer in range(3):
        for head in range(4):
            asked = ("see", TEXT, "--model", folder, "--json", "--query", "shabby", "--layer", layer, "--head", head)
            (seen,) = call(*asked).json
            hardest[layer, head] = max(seen["weights"][i] for i in others)
    assert (chosen["layer"], chosen["head"]) == max(hardest, key=lambda place: hardest[place])


def test_derive_says_in_two_lines_of_a_terminal_what_it_looks_at(call: Call, folder: Path) -> None:
    title, place, after, *_ = call("derive", TEXT, "--model", folder).out.splitlines()
    assert re.fullmatch(r"What “shabby”( \(##\w+\))? at \d+ takes from each word", title)
    assert re.fullmatch(r"layer \d, head \d, which looks hardest at another word, “\w+”( \(.*\))?", place)
    assert after == ""
    asked = call("derive", TEXT, "--model", folder, "--layer", 2, "--head", 1).out
    assert asked.splitlines()[1:3] == ["layer 2, head 1", ""]


def test_derive_source_shows_the_lines_that_ran(call: Call, folder: Path) -> None:
    assert "def naive_sum" not in call("derive", TEXT, "--model", folder).out
    done = call("derive", TEXT, "--model", folder, "--source")
    for function in ("vectors", "values", "naive_sum", "scores", "scale", "softmax", "mix", "multi_head"):
        assert f"def {function}(" in done.out
    (found,) = call("derive", TEXT, "--model", folder, "--json", "--source").json
    assert "def softmax(" in found["steps"][5]["source"]["text"]


@pytest.mark.parametrize("command", ["derive", "see"])
def test_piped_output_has_no_colour(command: str, call: Call, folder: Path) -> None:
    done = call(command, TEXT, "--model", folder)
    assert (done.code, done.err) == (0, "")
    assert "\x1b" not in done.out


@pytest.mark.parametrize("command", ["derive", "see"])
def test_what_a_model_cannot_read_is_said(command: str, call: Call, folder: Path) -> None:
    done = call(command, "not " * 100, "--model", folder, "--json")
    assert f"reads {MAX_LEN} pieces at once: the last {100 + 2 - MAX_LEN} are left out" in done.err
    assert len(done.json[0]["tokens"]) == MAX_LEN


# ---------------------------------------------------------------- models and train


def test_models_lists_the_families_that_open(call: Call) -> None:
    (found,) = call("models", "--json").json
    assert {"bert", "roberta", "distilbert"} <= set(found["families"])
    assert "BertForSequenceClassification" in found["families"]["bert"]
    people = call("models").out
    assert all(f"  {family}: " in people for family in found["families"])


def test_a_shipped_model_is_described_by_its_card(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").symlink_to(folder)
    card = tmp_path / "tiny" / "README.md"
    card.write_text("---\nlicense: apache-2.0\npipeline_tag: text-classification\n---\n# Tiny\n\nIt says things.\n")
    shipped = Shipped.read(tmp_path / "tiny")
    card.unlink()
    assert (shipped.name, shipped.task, shipped.labels) == ("tiny", "text-classification", LABELS)
    assert (shipped.licence, shipped.summary) == ("apache-2.0", "It says things.")
    assert {"classify", "embed", "derive", "see"} <= set(shipped.commands)
    assert shipped.bytes > (folder / "model.safetensors").stat().st_size


def write_recipe(place: Path, *, steps: int) -> None:
    """Write recipe.toml, and train.jsonl which it reads."""
    rows = [json.dumps({"text": text, "label": LABELS[i % 3]}) for i, text in enumerate(TEXTS)]
    (place / "train.jsonl").write_text("\n".join(rows))
    (place / "recipe.toml").write_text(
        'model = {start = "nowhere", labels = ["negative", "neutral", "positive"]}\n'
        'data = {train = ["train.jsonl"], max_len = 16, columns = {label = "label"}}\n'
        f"optimizer = {{lr = 1e-3}}\ntraining = {{steps = {steps}, batch_size = 2}}\n"
    )


def test_train_leaves_a_folder_that_classify_opens(call: Call, folder: Path, tmp_path: Path) -> None:
    write_recipe(tmp_path, steps=2)
    options = ("--start", folder, "--out", tmp_path / "run", "--device", "cpu")
    done = call("train", tmp_path / "recipe.toml", *options)
    assert (done.code, done.out) == (0, f"{tmp_path / 'run'}\n")
    again = call("train", tmp_path / "recipe.toml", *options, "--resume")
    assert again.code == 0
    assert call("classify", TEXT, "--model", tmp_path / "run").code == 0


# ---------------------------------------------------------------- the real one


def test_the_shipped_model_reads_the_sentence_of_the_thread(call: Call) -> None:
    good, bad = call("classify", TEXT, "attention is too shabby", "--json").json
    assert good["probabilities"]["positive"] >= 0.9
    assert bad["probabilities"]["positive"] <= 0.1
    assert call("classify", TEXT).out.startswith("positive 0.9")


# ---------------------------------------------------------------- as a process


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """Collect processes that a test starts, and end those that it left behind."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_answers_come_before_the_input_ends(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    process = start("classify", "--model", folder, "--json", stdin=subprocess.PIPE)
    processes.append(process)
    assert process.stdin is not None and process.stdout is not None
    for text in TEXTS:  # each answer before the next question: were one held back, this would wait for ever
        process.stdin.write(text + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["text"] == text
    assert process.communicate() == ("", "")
    assert process.returncode == 0


def test_a_reader_that_leaves_ends_it_quietly(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    process = start("classify", "--model", folder, stdin=subprocess.PIPE)
    processes.append(process)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write("not too shabby\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.stdout.close()
    process.stdin.write("not too shabby\n")
    process.stdin.flush()
    assert process.wait() == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""


@pytest.mark.parametrize("command", ["derive", "see"])
def test_a_reader_that_leaves_a_drawing_ends_it_quietly_too(command: str, folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(command, TEXT, "--model", folder, stdout=writer)
    os.close(writer)
    _, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_and_a_closed_output_are_one_sentence() -> None:
    for redirection, said in (("> /dev/full", "No space left"), (">&-", "standard output is closed")):
        command = f'"{sys.executable}" -m clearhead --version {redirection}'
        run = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
        assert said in one_sentence(Done(run.returncode, "", run.stderr))


def test_letters_that_the_terminal_lacks_are_replaced_for_people_and_escaped_in_json(folder: Path) -> None:
    text, env = "Zürich — 東京", {**os.environ, "PYTHONIOENCODING": "latin-1"}
    out, err = start("classify", text, "--model", folder, env=env, encoding="latin-1").communicate()
    assert err == ""
    assert out.endswith("  Zürich ? ??\n")
    out, err = start("classify", text, "--model", folder, "--json", env=env).communicate()
    assert json.loads(out)["text"] == text


def test_ctrl_c_ends_it_quietly(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    process = start("classify", "--model", folder, stdin=subprocess.PIPE)
    processes.append(process)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.write("not too shabby\n")
    process.stdin.flush()
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.read() == ""


# Commands that wait for input, serve or train, and two that may have ended before they are stopped.
STOPPED = (
    "classify --model {folder}",
    "embed --model {folder}",
    "embed --model {folder} --out {out}.npy",
    "generate --max-new-tokens 100000",
    "translate",
    "see --model {folder}",
    "derive --model {folder}",
    "profile {folder} --out {out}",
    "explore shabby --model {folder} --no-open",
    "train {recipe} --start {folder} --out {out} --device cpu",
    "effect shabby --model {folder}",
    "models",
)


def test_ctrl_c_at_any_moment_ends_any_command_quietly(
    folder: Path, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    # Wherever in its imports it is, and also when it waits for the next text: most do not end by themselves, so a
    # Ctrl-C that gets lost would be waited for. Before `main`, Python itself speaks.
    code = "import sys\nfrom clearhead.cli import main\nprint('main', flush=True)\nsys.exit(main())"
    write_recipe(tmp_path, steps=1_000_000)
    chance = random.Random(int(os.environ.get("CLEARHEAD_SIGNALS_SEED", "0")))
    for i in range(int(os.environ.get("CLEARHEAD_SIGNALS", "20"))):
        command = STOPPED[i % len(STOPPED)]
        given = command.format(folder=folder, out=tmp_path / f"out-{i}", recipe=tmp_path / "recipe.toml")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", code, *given.split()], text=True, **pipes)
        processes.append(process)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write("not too shabby\n")
        process.stdin.flush()
        assert process.stdout.readline() == "main\n"
        after = chance.uniform(0.01, 0.8)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        ended, err = process.wait(60), process.stderr.read()
        assert ended == 130 or (ended == 0 and command.startswith(("effect", "models"))), (command, after, ended, err)
        remarks = command.startswith(("train", "profile"))  # what they print on the way, and how to go on
        assert "Traceback" not in err and (remarks or err == ""), (command, after, err)
        assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to see what is in memory")
@pytest.mark.parametrize("command", ["classify", "embed", "embed --out {out}"])
def test_memory_does_not_grow_with_the_number_of_texts(
    command: str, folder: Path, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    argv = command.format(out=tmp_path / "out.npy").split()
    process = start(*argv, "--model", folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    processes.append(process)
    assert process.stdin is not None
    lines, sizes = "attention is not too shabby\n" * 5_000, []  # more than a pipe holds: some were read
    for _ in range(8):
        process.stdin.write(lines)
        process.stdin.flush()
        pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        sizes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
    assert sizes[-1] - sizes[3] < 8, sizes
    assert process.communicate()[1] == "" and process.returncode == 0


def test_explore_prints_one_line_and_serves_until_ctrl_c(folder: Path, processes: list[subprocess.Popen[str]]) -> None:
    view = "v=1&page=head&l=0&h=1&cut=0.1.2.*"
    process = start("explore", TEXTS[0], "--model", folder, "--no-open", "--view", view)
    processes.append(process)
    assert process.stdout is not None
    address = process.stdout.readline()
    shape = rf"(http://127\.0\.0\.1:\d+/)#token=([\w-]{{43}})&{re.escape(view)}\n"
    found = re.fullmatch(shape, address)
    assert found is not None, address
    page, token = found.groups()
    given: tuple[dict[str, str], ...] = ({}, {"Authorization": f"Bearer {token}"})
    for headers, status in zip(given, (401, 200)):
        answer = httpx2.get(f"{page}api/meta", headers=headers)
        assert answer.status_code == status
    assert answer.json()["title"] == TEXTS[0]
    process.send_signal(signal.SIGINT)
    assert (*process.communicate(timeout=60), process.returncode) == ("", "", 130)


def test_explore_says_what_cannot_be_explored(call: Call, tmp_path: Path) -> None:
    assert "nothing to explore: give a text" in call("explore").err
    assert "--port is a number from 0 to 65535" in call("explore", "x", "--port", "70000").err
    assert "--view is what the page writes" in call("explore", "x", "--view", "v=1&q=<script>").err
    done = call("explore", "--file", tmp_path / "absent.txt")
    assert (done.code, done.out) == (1, "") and "cannot be read" in done.err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = call("explore", "x", "--port", taken.getsockname()[1])
    assert (done.code, done.out) == (1, "") and "cannot be used" in done.err and "--port" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_training_that_a_signal_stops_says_how_to_go_on_and_ends_as_signals_do(
    number: signal.Signals, folder: Path, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    write_recipe(tmp_path, steps=1_000_000)
    run = tmp_path / "run"
    process = start("train", tmp_path / "recipe.toml", "--start", folder, "--out", run, "--device", "cpu")
    processes.append(process)
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):  # a step was made
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (128 + number, "")
    assert re.fullmatch(r"clearhead: interrupted at step \d+ of 1000000; .*--resume", err.splitlines()[-1])
    assert "Traceback" not in err
    assert isinstance(load(run), BertForSequenceClassification)


def test_a_closed_standard_input_is_a_hint_and_not_a_traceback() -> None:
    run = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m clearhead classify <&-'], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "give a text" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_at_a_terminal_without_a_text_it_does_not_wait(processes: list[subprocess.Popen[str]]) -> None:
    person, terminal = os.openpty()
    process = start("classify", stdin=terminal)
    processes.append(process)
    out, err = process.communicate()
    os.close(terminal)
    os.close(person)
    assert (process.returncode, out) == (2, "")
    assert "give a text" in err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
@pytest.mark.parametrize(
    ("changes", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)]
)
def test_colour_is_for_terminals_that_want_it(changes: dict[str, str], coloured: bool, folder: Path) -> None:
    person, terminal = os.openpty()
    env = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"} | changes
    process = start("classify", TEXT, "--model", folder, stdout=terminal, env=env)
    _, err = process.communicate()
    os.close(terminal)
    printed = os.read(person, 4096).decode()
    os.close(person)
    assert err == ""
    assert TEXT in printed
    assert ("\x1b" in printed) is coloured


def test_see_and_derive_read_a_gpt_with_its_causal_mask(folder: Path, tmp_path: Path, capsys: Any) -> None:
    from clearhead import GPTConfig, GPTForCausalLM, save

    tokenizer = Tokenizer.load(folder)
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 32, "max_len": 32}
    save(GPTForCausalLM(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes)), tmp_path / "gpt", tokenizer=tokenizer)
    options = [
        "not too shabby",
        "--query",
        "too",
        "--layer",
        "1",
        "--head",
        "0",
        "--json",
        "--model",
        str(tmp_path / "gpt"),
    ]
    assert main(["derive", *options]) == 0
    derived = json.loads(capsys.readouterr().out)
    weights = next(step for step in derived["steps"] if step["name"] == "softmax")["tensors"]["weights"]["values"]
    assert main(["see", *options]) == 0
    seen = json.loads(capsys.readouterr().out)
    place = derived["query"]
    assert all(weight == 0 for weight in weights[place + 1 :]) and weights[place] > 0
    assert seen["map"][place] == pytest.approx(weights, abs=1e-6)


if __name__ == "__main__":  # see test_help_is_what_was_decided
    for page in ([], *([command] for command in COMMANDS)):
        main([*page, "--help"])
