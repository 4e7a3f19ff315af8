"""Text of others does not control a terminal: labels, tokens, names of files, option values and what a model writes."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clearhead.checkpoints import save
from clearhead.controls import CONTROLS, escape_controls, without_controls
from clearhead.data.tokenizer import Tokenizer
from clearhead.models.bert import BertConfig, BertForSequenceClassification
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from test_cli_models import hearing as hearing
from test_cli_models import photos as photos
from test_cli_models import places as places
from test_cli_models import speech as speech
from test_cli_models import tokenizer as tokenizer

# A window's title, the screen cleared, C1's own escape, a change of the writing direction, a line of its own.
EVIL = "a\x1b]0;b\x07\x1b[2J\x9b31m\u202ec\u2066d\x7f\u2028e"
WORDS = ("plain", EVIL, "words")
Call = Callable[..., Any]


def test_controls_are_all_that_unicode_calls_controls_and_all_that_changes_the_direction_of_writing() -> None:
    letters = list(map(chr, range(0x110000)))
    directions = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    expected = {one for one in letters if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")}
    expected |= {one for one in letters if unicodedata.bidirectional(one) in directions} | set("\u061c\u200e\u200f")
    assert {one for one in letters if CONTROLS.match(one)} == expected


def test_what_is_no_control_stays() -> None:
    text = "Zürich — 東京 שלום 👩\u200d💻 a\u00a0b"
    assert without_controls(text) == text
    assert without_controls("a\nb\x1bc") == "a b c"
    assert without_controls("a\nb\x1bc", newlines=True) == "a\nb c"
    assert json.loads(escape_controls(json.dumps([EVIL, "\ud800"], ensure_ascii=False))) == [EVIL, "\ud800"]


def nothing_controls(done: Any) -> None:
    for text in (done.out, done.err):
        assert (found := CONTROLS.search(text.replace("\n", ""))) is None, (found, text)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a classifier and a GPT whose labels and tokens are hostile, in a folder of a hostile name."""
    import tokenizers

    vocab = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    words = Tokenizer(backend, {"unk_token": "[UNK]"})
    root = tmp_path_factory.mktemp("models")
    sizes = {"vocab_size": len(vocab), "d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 16, "max_len": 16}
    torch.manual_seed(0)
    classifier = BertForSequenceClassification(BertConfig(**sizes, labels=(EVIL, f"not {EVIL}"))).eval()
    save(classifier, root / f"bert {EVIL}", tokenizer=words)
    gpt = GPTForCausalLM(GPTConfig(**sizes)).eval()
    with torch.no_grad():
        gpt.gpt.words.weight[vocab[EVIL]] *= 50  # what it writes
    save(gpt, root / "gpt", tokenizer=words)
    return {"bert": root / f"bert {EVIL}", "gpt": root / "gpt"}


TEXT = " ".join(WORDS)
SAID = {
    "classify": ("classify", TEXT, "--model", "{bert}"),
    "classify --top": ("classify", TEXT, "--top", "2", "--model", "{bert}"),
    "classify --file": ("classify", "--file", "{names}", "--model", "{bert}"),
    "embed": ("embed", TEXT, "--model", "{bert}"),
    "embed --out": ("embed", TEXT, "--model", "{bert}", "--out", "{folder}/" + EVIL + ".npy"),
    "generate": ("generate", TEXT, "--model", "{gpt}", "--max-new-tokens", "4", "--temperature", "0"),
    "generate several": ("generate", TEXT, TEXT, "--model", "{gpt}", "--max-new-tokens", "4", "--seed", "1"),
    "translate": ("translate", TEXT, "--model", "{pair}", "--max-new-tokens", "4"),
    "see": ("see", TEXT, "--model", "{bert}"),
    "see --query": ("see", TEXT, "--query", EVIL, "--model", "{bert}"),
    "see several": ("see", TEXT, TEXT, "--model", "{gpt}"),
    "derive": ("derive", TEXT, "--model", "{bert}"),
    "derive --source": ("derive", TEXT, "--model", "{gpt}", "--query", EVIL, "--source"),
    "effect": ("effect", TEXT, "--model", "{bert}"),
    "effect tokens": ("effect", TEXT, "--over", "tokens", "--model", "{bert}"),
    "effect links": ("effect", TEXT, "--over", "links", "--query", EVIL, "--model", "{gpt}"),
    "profile": ("profile", "{gpt}", "{names}", "--out", "{folder}/" + EVIL),
    "pictures": ("classify", "{picture}", "--model", "{vit}"),
    "see a picture": ("see", "{picture}", "{picture}", "--model", "{vit}"),
    "transcribe": ("transcribe", "{sound}", "--model", "{whisper}"),
}
REFUSED = {
    "no command": (EVIL,),
    "no option": ("classify", f"--{EVIL}"),
    "no value": ("classify", "x", "--dtype", EVIL),
    "no number": ("classify", "x", "--top", EVIL),
    "no model": ("classify", "x", "--model", EVIL),
    "no file": ("classify", "--file", EVIL),
    "no picture": ("classify", f"no {EVIL}.png", "--model", "{vit}"),
    "no recipe": ("train", f"{EVIL}.toml"),
    "a recipe's key": ("train", "{recipe}"),
    "no query": ("see", TEXT, "--query", f"{EVIL}{EVIL}", "--model", "{bert}"),
    "no layer": ("see", TEXT, "--layer", EVIL, "--model", "{bert}"),
    "no language": ("transcribe", "{sound}", "--language", EVIL, "--model", "{whisper}"),
    "no sound": ("transcribe", "{names}", "--model", "{whisper}"),
    "no folder": ("embed", "x", "--out", f"{EVIL}/x.npy"),
    "a model of another kind": ("generate", TEXT, "--model", "{bert}"),
    "a config of another family": ("classify", "x", "--model", "{family}"),
    "a config's value": ("classify", "x", "--model", "{value}"),
    "a tensor": ("classify", "x", "--model", "{tensor}"),
    "too many": ("models", EVIL),
}


@pytest.fixture
def named(
    evil: dict[str, Path], places: dict[str, Path], hearing: Path, photos: Path, speech: Path, tmp_path: Path
) -> dict[str, Path]:
    """Return what commands are given, by the names above; every file has a hostile name."""
    named = {**evil, "pair": places["pair"], "vit": places["vit"], "whisper": hearing, "folder": tmp_path / "out"}
    for name, source in (("picture", photos / "0.png"), ("sound", speech)):
        named[name] = shutil.copy(source, tmp_path / f"{EVIL}{source.suffix}")
    (tmp_path / "out").mkdir()
    named["names"], named["recipe"] = tmp_path / f"{EVIL}.txt", tmp_path / f"{EVIL}.toml"
    named["names"].write_text(TEXT)
    named["recipe"].write_text(f"{json.dumps(EVIL)} = 3\n")
    for name, keys in (("family", {"model_type": EVIL}), ("value", {"hidden_size": EVIL})):
        named[name] = shutil.copytree(evil["bert"], tmp_path / name)
        config = json.loads((named[name] / "config.json").read_text())
        (named[name] / "config.json").write_text(json.dumps({**config, **keys}))
    named["tensor"] = shutil.copytree(evil["bert"], tmp_path / "tensor")
    from safetensors.torch import load_file, save_file

    tensors = load_file(named["tensor"] / "model.safetensors")
    save_file({**tensors, EVIL: torch.zeros(3)}, named["tensor"] / "model.safetensors", {"format": "pt"})
    return named


@pytest.mark.parametrize("which", SAID)
def test_no_answer_controls_the_terminal(which: str, call: Call, named: dict[str, Path]) -> None:
    done = call(*(part.format(**named) for part in SAID[which]))
    assert done.code == 0, done.err
    nothing_controls(done)


@pytest.mark.parametrize("which", REFUSED)
def test_no_mistake_controls_the_terminal(
    which: str, call: Call, named: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(*(part.format(**named) for part in REFUSED[which]))
    assert done.code in (1, 2) and done.err
    nothing_controls(done)


@pytest.mark.parametrize(
    "which", [name for name, argv in SAID.items() if "--out" not in argv and "--source" not in argv]
)
def test_json_holds_the_true_text_and_controls_nothing(which: str, call: Call, named: dict[str, Path]) -> None:
    argv = [part.format(**named) for part in SAID[which]]
    done = call(*argv, "--json")
    assert done.code == 0, done.err
    nothing_controls(done)
    text = TEXT if argv[1] != str(named["picture"]) and argv[1] != str(named["sound"]) else argv[1]
    for answer in done.json:
        assert text in (answer.get("text"), answer.get("file"))


def test_labels_and_tokens_in_json_are_those_of_the_model(call: Call, evil: dict[str, Path]) -> None:
    assert set(call("classify", TEXT, "--model", evil["bert"], "--json").json[0]["probabilities"]) == {
        EVIL,
        f"not {EVIL}",
    }
    assert EVIL in call("effect", TEXT, "--model", evil["bert"], "--json").json[0]["tokens"]


def test_progress_of_a_training_prints_no_control(capfd: pytest.CaptureFixture[str]) -> None:
    from clearhead.training.progress import PlainLines

    PlainLines().say(EVIL)
    assert CONTROLS.search(capfd.readouterr().err.rstrip("\n")) is None
