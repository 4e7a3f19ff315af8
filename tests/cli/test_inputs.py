"""What a command makes of an argument: a text, a file whose name was mistyped, a recording, a picture of some size."""

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clearhead.checkpoints import load, save
from clearhead.data.tokenizer import Tokenizer
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing import watch
from test_cli import folder as folder
from test_cli_models import places as places
from test_cli_models import tokenizer as tokenizer

WORDS = ["[CLS]", "attention", "is", "not", "too", "shabby", "[SEP]"]


@pytest.mark.parametrize(
    "command", ["classify", "embed", "generate", "translate", "see", "derive", "effect", "explore"]
)
@pytest.mark.parametrize("name", ["nofile.txt", "data/reviews.CSV", "run.seen", "C:\\Users\\me\\reviews.jsonl"])
def test_the_name_of_a_file_that_is_not_there_is_no_text(command: str, name: str, call: Any) -> None:
    done = call(command, name)
    assert (done.code, done.out) == (1, "")
    assert f"{name}: no such file" in done.err and "standard input" in done.err


def test_what_only_resembles_the_name_of_a_file_is_a_text(call: Any, folder: Path) -> None:
    texts = ["see nofile.txt", "example.com", "3.14", "Mr.Smith", ".txt and more", "wow..."]
    assert [answer["text"] for answer in call("classify", *texts, "--model", folder, "--json").json] == texts
    done = call("classify", "--model", folder, "--json", stdin=b"nofile.txt\n")
    assert (done.code, done.json[0]["text"]) == (0, "nofile.txt")


# ---------------------------------------------------------------- recordings


@pytest.fixture
def recorded(folder: Path, tmp_path: Path) -> Path:
    model: Any = load(folder)
    with torch.no_grad(), watch(model) as seen:
        model(torch.arange(7)[None])
    seen.save(tmp_path / "run.seen", words=WORDS)
    return tmp_path / "run.seen"


def test_see_opens_a_recording_and_names_its_words(call: Any, recorded: Path) -> None:
    done = call("see", recorded)
    assert done.code == 0 and "What shabby looks at" in done.out
    (found,) = call("see", recorded, "--json", "--query", "not", "--layer", "1", "--head", "2").json
    assert (found["file"], found["tokens"]) == (str(recorded), WORDS)
    assert (found["query"], found["layer"], found["head"]) == (3, 1, 2)
    assert "did you mean 'shabby@5'" in call("see", recorded, "--query", "shaby").err
    assert call("see", recorded, "--layer", "9").code == 1 and call("see", recorded, "--head", "9").code == 1


def test_without_words_positions_are_numbers(call: Any, folder: Path, tmp_path: Path) -> None:
    model: Any = load(folder)
    with torch.no_grad(), watch(model) as seen:
        model(torch.arange(5)[None])
    seen.save(tmp_path / "run.seen")
    assert call("see", tmp_path / "run.seen", "--json").json[0]["tokens"] == ["0", "1", "2", "3", "4"]


def test_a_generation_is_seen_as_one_text(call: Any, tmp_path: Path) -> None:
    from clearhead.generation import generate

    config = GPTConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=2, d_ff=16, max_len=32)
    model = GPTForCausalLM(config).eval()
    with watch(model) as seen:
        for _ in generate(model, [[1, 2, 3]], max_new_tokens=4):
            pass
    seen.save(tmp_path / "run.seen")
    (found,) = call("see", tmp_path / "run.seen", "--json").json
    assert len(found["tokens"]) == 6  # the last that was written was not read


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["derive", "{run}"], "without the weights of the model that `clearhead derive` computes with"),
        (["see", "{run}", "a text"], "is a recording and 'a text' is none"),
        (["see", "{run}", "--model", "sentiment"], "leave --model out"),
    ],
)
def test_what_a_recording_cannot_do_is_said(argv: list[str], said: str, call: Any, recorded: Path) -> None:
    done = call(*(part.format(run=recorded) for part in argv))
    assert (done.code, done.out) == (1, "") and said in done.err


# ---------------------------------------------------------------- pictures and files


@pytest.mark.parametrize("command", ["classify", "see", "derive"])
def test_a_large_picture_is_refused_unless_an_option_allows_it(
    command: str, call: Any, places: dict[str, Path], tmp_path: Path
) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "boot.png")
    argv = (command, tmp_path / "boot.png", "--model", places["vit"], "--max-pixels")
    done = call(*argv, "599")
    assert done.code == 1 and "30 x 20 pixels, expected at most 599 in all" in done.err
    assert call(*argv, "600").code == 0
    assert call(*argv, "0").code == 2


@pytest.mark.skipif(os.name != "posix", reason="no umask here")
def test_what_is_written_has_the_mode_that_the_umask_says(
    call: Any, places: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path, recorded: Path
) -> None:
    before = os.umask(0o027)
    try:
        save(load(places["gpt"]), tmp_path / "saved", tokenizer=tokenizer)
        for name in ("a.npy", "a.safetensors"):
            assert call("embed", "fox", "--model", places["bert"], "--out", tmp_path / name).code == 0
        from clearhead.seeing import open_recording

        open_recording(recorded).save(tmp_path / "again.seen")
    finally:
        os.umask(before)
    files = [*(tmp_path / "saved").iterdir(), *(tmp_path / name for name in ("a.npy", "a.safetensors", "again.seen"))]
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {
        path.name: "0o640" for path in files
    }


def test_rows_of_a_matrix_wait_on_the_disk_and_leave_nothing_else(tmp_path: Path) -> None:
    import numpy as np

    from clearhead.cli.embedding import Matrix

    matrix = Matrix(tmp_path / "a.npy")
    for row in range(1_000):
        matrix.add(torch.full((8,), float(row)))
        assert not any(tmp_path.iterdir())
    matrix.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]
    assert np.load(tmp_path / "a.npy")[:, 3].tolist() == list(range(1_000))


def test_a_device_is_no_name_of_a_file(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clearhead.errors import InputError

    monkeypatch.chdir(tmp_path)
    model = load(places["gpt"])
    for device in ("cuda", "cuda:1", "mps", "meta", "cpu:0"):
        with pytest.raises(InputError, match=re.escape(f"got '{device}', a device")), watch(model, to=device):
            pass
    assert not any(tmp_path.iterdir())
