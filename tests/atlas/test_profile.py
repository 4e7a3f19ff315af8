"""A profile counts what `heads()` says of each text, whoever counts, however often it was stopped."""

import json
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead.atlas.picture import draw
from clearhead.atlas.shards import require_same
from clearhead.atlas.survey import profile
from clearhead.atlas.tally import Tally
from clearhead.checkpoints import find, load, save
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import InputError, Interrupted, MissingExtra
from clearhead.models.bert import BertConfig, BertForMaskedLM
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
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
    weights, lengths, previous, entropy = [], [], [], []
    for text in TEXTS:
        for window in tokenizer.windows(text, 9):
            with watch(reader) as seen, torch.no_grad():
                reader(torch.tensor([window.ids]))
            lengths.append(len(window.ids))
            habit = seen.heads()[3]
            weights.append(habit.queries)
            previous.append(habit.previous)
            entropy.append(float(seen.entropy(1)[1].mean()))  # a BERT: every query counts
    assert len(weights) > len(TEXTS)  # one was read in two windows
    assert (found["texts"], found["tokens"]) == (len(TEXTS), sum(lengths))
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


# Counts, saves after every text, and is killed, as by a machine that fails, where process 1 reads its second text.
DYING = """
import os, signal, sys
from clearhead.atlas import survey

add, calls = survey.Tally.add, []
def dying(*what):
    calls.append(what)
    if (os.environ["RANK"], len(calls), sys.argv[4]) == ("1", 2, "dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    add(*what)

survey.SAVE_EVERY, survey.Tally.add = 0.0, dying
survey.profile(sys.argv[1], [sys.argv[2]], sys.argv[3])
"""


def test_two_processes_of_torchrun_count_what_one_does_also_when_one_was_killed(
    model: Path, corpus: Path, tmp_path: Path
) -> None:
    alone = table(profile(str(model), [corpus], tmp_path / "alone"))
    (tmp_path / "dying.py").write_text(DYING, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, tmp_path / "dying.py", model, corpus, tmp_path / "both"]
    killed = subprocess.run([*command, "dies"], capture_output=True, text=True, timeout=300)
    assert killed.returncode and "SIGKILL" in killed.stderr
    kept = json.loads((tmp_path / "both" / "state-1-of-2.json").read_text(encoding="utf-8"))
    assert (kept["read"], kept["tally"]["texts"]) == (2, 1)
    assert not (tmp_path / "both" / "profile.json").exists()
    again = subprocess.run([*command, "lives"], capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    both = table(tmp_path / "both")
    assert (both["texts"], both["tokens"]) == (alone["texts"], alone["tokens"])
    for ours, theirs in zip(alone["heads"], both["heads"], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(theirs[name] == pytest.approx(x, abs=1e-9) for name, x in ours.items())
    with pytest.raises(InputError, match=r"another number of processes \(state-0-of-2\.json\)"):
        profile(str(model), [corpus], tmp_path / "both")


def test_processes_that_would_not_count_the_same_are_told_so() -> None:
    ours, theirs = {"model": "a", "limit": None}, {"model": "b", "limit": None}
    with pytest.raises(InputError, match="process 1 of 2 has another model than process 0: b, not a"):
        require_same([ours, theirs])


def test_a_decoders_first_token_and_texts_of_one_count_for_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    gpt = GPTForCausalLM(GPTConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=1, max_len=16)).eval()
    tally, rows = Tally(), []
    for n in (1, 4, 9):
        tokens = torch.randint(0, 50, (n,))
        with watch(gpt) as seen, torch.no_grad():
            gpt(tokens[None])
        tally.add(seen, tokens, [])
        rows.append(seen.entropy(0)[:, 1:])  # the first token sees itself alone
    entropies = torch.cat(rows, 1).double()
    for row in tally.table():
        assert row["entropy"] == pytest.approx(float(entropies[row["head"]].mean()), abs=1e-6)
        assert row["kind_share"] in (0.5, 1.0)


def test_a_folder_of_another_profile_is_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    profile(str(model), [corpus], tmp_path, limit=1)
    assert table(tmp_path)["texts"] == 1
    with pytest.raises(InputError, match="a profile of another limit: 1, not None"):
        profile(str(model), [corpus], tmp_path)
    state = tmp_path / "state-0-of-1.json"
    kept = json.loads(state.read_text(encoding="utf-8"))
    kept["tally"]["heads"][0][2] = "sums"
    for damaged in ('{"identity": {', json.dumps(kept)):
        state.write_text(damaged, encoding="utf-8")
        with pytest.raises(InputError, match="is damaged"):
            profile(str(model), [corpus], tmp_path, limit=1)
    with pytest.raises(InputError, match="is a file: expected a folder"):
        profile(str(model), [corpus], state)


def test_a_corpus_that_is_not_there_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: cannot be read"):
        profile(str(model), ["nowhere.txt"], tmp_path)


def test_a_parquet_table_holds_the_numbers_of_the_json_one(model: Path, corpus: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="no pyarrow: pip install pyarrow")
    found = table(profile(str(model), [corpus], tmp_path, parquet=True))
    written = parquet.read_table(tmp_path / "profile.parquet")
    assert written.to_pylist() == found.pop("heads")
    assert json.loads(written.schema.metadata[b"clearhead"]) == found


def test_without_pyarrow_a_parquet_table_is_refused_before_anything_is_counted(
    model: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install pyarrow"):
        profile(str(model), [corpus], tmp_path / "out", parquet=True)
    assert not (tmp_path / "out").exists()


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


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (6, 12), (12, 12), (40, 3)])
def test_nothing_runs_off_the_picture(size: tuple[int, int], model: Path, corpus: Path, tmp_path: Path) -> None:
    row = table(profile(str(model), [corpus], tmp_path))["heads"][0] | {"distance": 1023.45}
    layers, heads = size
    rows = [row | {"layer": i, "head": h} for i in range(layers) for h in range(heads)]
    picture = ElementTree.fromstring(draw(rows, "/a/folder/" + "of-a-long-name" * 9, "120,300 texts, 8,310,111 tokens"))
    svg = "{http://www.w3.org/2000/svg}"
    wide, high = float(picture.attrib["width"]), float(picture.attrib["height"])
    ends: list[float] = []
    for panel in picture.findall(f"{svg}g")[:-1]:
        left, top = map(float, panel.attrib["transform"][len("translate(") : -1].split())
        heading = next(text for text in panel.iter(f"{svg}text") if text.attrib.get("y") == "-6")
        ends.append(left + 6 * len("".join(heading.itertext())))  # of 11 px letters, none is wider on average
        cells = list(panel.iter(f"{svg}rect"))
        assert max(left + float(cell.attrib["x"]) + 14 for cell in cells) <= wide
        assert max(top + float(cell.attrib["y"]) + 14 for cell in cells) <= high - 42  # the legend's place
        if len(ends) > 1 and left > 40:
            assert ends[-2] <= left - 4  # the heading before it in its row has ended
    assert max(ends) <= wide
    title = "".join(picture.findall(f"{svg}text")[0].itertext())
    assert title.startswith("…") and title.endswith("long-name, 120,300 texts, 8,310,111 tokens")
    assert len(title) * 7.5 <= wide - 32


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
