"""`clearhead effect` says in words what the function of that name finds; `profile` goes on when called again."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from clearhead.checkpoints import find, load
from clearhead.cli import main
from clearhead.data.tokenizer import Tokenizer
from clearhead.seeing import effect

TEXT = "attention is not too shabby"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(argv)
    return code, *capsys.readouterr()


def test_effect_prints_what_moves_the_answer_most(capsys: pytest.CaptureFixture[str]) -> None:
    folder = find("sentiment")
    tokens = torch.tensor([Tokenizer.load(folder).encode(TEXT).ids])
    found = effect(load(folder).eval(), tokens, over="tokens")
    code, out, _ = run(capsys, "effect", TEXT, "--over", "tokens", "--top", "2")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 3)
    assert lines[0] == f"{found.target}: {found.before:.3f}. Without one token (8 tried, the 2 that move it most):"
    assert lines[1].split()[:2] == [f"{found[0].after:.3f}", f"{found[0].effect:+.3f}"]
    words = Tokenizer.load(folder).encode(TEXT).pieces
    assert lines[1].endswith(f"{words[found[0].key]}  (place {found[0].key})")


def test_one_effect_is_said_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    assert "(6 tried, the one that moves it most):" in run(capsys, "effect", TEXT, "--over", "layers", "--top", "1")[1]


def test_effect_json_holds_every_head(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "effect", TEXT, "--json")
    found = json.loads(out)
    model = load(find("sentiment"))
    assert code == 0 and found["over"] == "heads"
    assert len(found["rows"]) == model.config.n_layers * model.config.n_heads
    assert set(found["rows"][0]) == {"layer", "head", "before", "after", "effect"}


def test_links_are_cut_where_see_would_look(capsys: pytest.CaptureFixture[str]) -> None:
    seen = json.loads(run(capsys, "see", TEXT, "--query", "shabby", "--json")[1])
    found = json.loads(run(capsys, "effect", TEXT, "--over", "links", "--query", "shabby", "--json")[1])
    assert {(row["layer"], row["head"], row["query"]) for row in found["rows"]} == {
        (seen["layer"], seen["head"], seen["query"])
    }
    for row in found["rows"]:
        assert row["weight"] == pytest.approx(seen["weights"][row["key"]], abs=1e-4)


@pytest.mark.parametrize("option", ["query", "layer", "head"])
def test_options_of_links_are_refused_elsewhere(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "effect", TEXT, f"--{option}", "1")
    assert (code, out) == (2, "")
    assert f"--{option} says whose links are cut: it needs --over links" in err


def test_effect_and_profile_say_which_models_they_are_not_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture, corpus = tmp_path / "boot.png", tmp_path / "texts.txt"
    Image.new("L", (28, 28)).save(picture)
    code, out, err = run(capsys, "effect", str(picture))
    assert (code, out) == (1, "") and "boot.png is a picture: an effect is of a text" in err
    corpus.write_text(TEXT, encoding="utf-8")
    code, _, err = run(capsys, "profile", "pictures", str(corpus), "--out", str(tmp_path / "atlas"))
    assert code == 1 and "a profile is of a model that reads one text" in err


def test_profile_prints_its_folder_and_goes_on_when_called_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # colours a log, and asks for no bar that moves in it
    corpus, out = tmp_path / "texts.txt", tmp_path / "atlas"
    corpus.write_text(f"{TEXT}\na second text\n", encoding="utf-8")
    for _ in range(2):
        assert run(capsys, "profile", "sentiment", str(corpus), "--out", str(out)) == (0, f"{out}\n", "")
        assert json.loads((out / "profile.json").read_text(encoding="utf-8"))["texts"] == 2
    other = tmp_path / "others.txt"
    other.write_text(TEXT, encoding="utf-8")
    code, _, err = run(capsys, "profile", "sentiment", str(other), "--out", str(out))
    assert code == 1 and "holds a profile of another corpus: texts.txt (" in err and "), not others.txt (" in err
    code, _, err = run(capsys, "profile", "sentiment", str(tmp_path / "none.txt"), "--out", str(out))
    assert code == 1 and "none.txt: cannot be read" in err
