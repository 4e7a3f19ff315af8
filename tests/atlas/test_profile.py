"""A profile counts what `heads()` says of each text, whoever counts, however often it was stopped."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead.atlas.survey import profile
from clearhead.atlas.tally import Tally
from clearhead.checkpoints import find, load, save
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import InputError, Interrupted
from clearhead.models.bert import BertConfig, BertForMaskedLM
from clearhead.seeing import watch

TEXTS = [f"attention is not too {word}" for word in ("shabby", "good", "bad", "long at all , they said", "new")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("tiny"), Tokenizer.load(find("sentiment"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, d_model=16, n_heads=2, n_layers=2, d_ff=16, max_len=9, pad_id=tokenizer.pad_id
    )
    save(BertForMaskedLM(config), folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "corpus.txt"
    path.write_text("\n\n".join(TEXTS), encoding="utf-8")
    return path


def table(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "profile.json").read_text(encoding="utf-8"))
    return found


def test_a_profile_is_the_mean_over_texts_of_what_each_head_does(model: Path, corpus: Path, tmp_path: Path) -> None:
    found = table(profile(str(model), [corpus], tmp_path))
    reader, tokenizer = load(model).eval(), Tokenizer.load(model)
    weights, previous, entropy = [], [], []
    for text in TEXTS:
        for window in tokenizer.windows(text, 9):
            with watch(reader) as seen, torch.no_grad():
                reader(torch.tensor([window.ids]))
            weights.append(len(window.ids))
            previous.append(seen.heads()[3].previous)
            entropy.append(float(seen.entropy(1)[1].mean()))
    assert len(weights) > len(TEXTS)  # one was read in two windows
    assert (found["texts"], found["tokens"]) == (len(TEXTS), sum(weights))
    row = found["heads"][3]
    assert (row["layer"], row["head"], row["module"]) == (1, 1, "bert.blocks.1.attention")
    mean = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    assert row["previous"] == pytest.approx(float(mean @ torch.tensor(previous, dtype=torch.float64)))
    assert row["entropy"] == pytest.approx(float(mean @ torch.tensor(entropy, dtype=torch.float64)))
    assert {"distance", "induction", "duplicate", "near", "spread"} < row.keys()
    assert 0 < row["previous_sd"] < 0.2 and 0 < row["kind_share"] <= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_profile_goes_on_and_ends_in_the_same_bytes(
    model: Path, corpus: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = profile(str(model), [corpus], tmp_path / "whole")
    add, calls = Tally.add, []

    def stopping(self: Tally, *what: Any) -> None:
        calls.append(what)
        add(self, *what)
        if len(calls) == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(Tally, "add", stopping)
    with pytest.raises(Interrupted, match=r"after 2 texts.*the same command again") as stopped:
        profile(str(model), [corpus], tmp_path / "stopped")
    assert stopped.value.signal == number
    assert not (tmp_path / "stopped" / "profile.json").exists()
    again = profile(str(model), [corpus], tmp_path / "stopped")
    assert len(calls) == 6  # no text was counted twice
    for name in ("profile.json", "profile.svg"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()
    profile(str(model), [corpus], tmp_path / "stopped")
    assert len(calls) == 6  # a finished one has nothing left to count


def test_two_processes_count_what_one_does(model: Path, corpus: Path, tmp_path: Path) -> None:
    alone = table(profile(str(model), [corpus], tmp_path / "alone"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from clearhead.atlas.survey import profile; profile(sys.argv[1], [sys.argv[2]], sys.argv[3])"
    command = [sys.executable, "-c", code, str(model), str(corpus), str(tmp_path / "both")]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(command, env={**os.environ, **world, "RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    both = table(tmp_path / "both")
    assert (both["texts"], both["tokens"]) == (alone["texts"], alone["tokens"])
    for ours, theirs in zip(alone["heads"], both["heads"], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(theirs[name] == pytest.approx(x, abs=1e-7) for name, x in ours.items())
    with pytest.raises(InputError, match=r"another number of processes \(state-0-of-2\.json\)"):
        profile(str(model), [corpus], tmp_path / "both")


def test_a_folder_of_another_profile_is_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    profile(str(model), [corpus], tmp_path, limit=1)
    assert table(tmp_path)["texts"] == 1
    with pytest.raises(InputError, match="a profile of another limit: 1, not None"):
        profile(str(model), [corpus], tmp_path)
    (tmp_path / "state-0-of-1.json").write_text('{"identity": {', encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        profile(str(model), [corpus], tmp_path, limit=1)


def test_a_corpus_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: cannot be read"):
        profile(str(model), ["nowhere.txt"], tmp_path)


def test_the_picture_has_a_cell_for_every_head_and_fetches_nothing(model: Path, corpus: Path, tmp_path: Path) -> None:
    folder = profile(str(model), [corpus], tmp_path)
    text = (folder / "profile.svg").read_text(encoding="utf-8")
    picture = ElementTree.fromstring(text)
    titles = [one.text or "" for one in picture.iter("{http://www.w3.org/2000/svg}title")]
    row = table(folder)["heads"][3]
    assert f"layer 1, head 1: previous {row['previous']:.3f} ± {row['previous_sd']:.3f}" in titles
    assert sum("previous" in title and "layer" in title for title in titles if "in " not in title) == 4
    assert text.count("http") == 1  # the name of SVG itself
    assert "prefers-color-scheme: dark" in text


def test_other_weights_of_the_same_shape_are_another_model(model: Path, corpus: Path, tmp_path: Path) -> None:
    profile(str(model), [corpus], tmp_path / "out")
    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: x + 0.1 for name, x in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="a profile of another"):
        profile(str(other), [corpus], tmp_path / "out")
    corpus.write_text(corpus.read_text(encoding="utf-8")[::-1], encoding="utf-8")  # as long, and another
    with pytest.raises(InputError, match="a profile of another"):
        profile(str(model), [corpus], tmp_path / "out")
