"""Facts about the sentiment model that ships, and about the recipe that makes it."""

import importlib
import json
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import clearhead
from clearhead.checkpoints import find
from clearhead.training.recipe import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "sentiment"
ADJECTIVES = tomllib.loads((FOLDER / "adjectives.toml").read_text(encoding="utf-8"))
FRAMES = tomllib.loads((FOLDER / "frames.toml").read_text(encoding="utf-8"))
BLIND = tomllib.loads((FOLDER / "frames_blind.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def script() -> Callable[[str], ModuleType]:
    """Return a function that imports a script of the recipe by name."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


def accuracy(examples: list[tuple[str, float]]) -> float:
    model, tokenizer = clearhead.load("sentiment"), clearhead.Tokenizer.load(find("sentiment"))
    rows = [encoded.ids for encoded in tokenizer.encode_many([text for text, _ in examples])]
    positive = torch.stack(list(clearhead.classify(model, rows)))[:, 1]
    return ((positive > 0.5) == torch.tensor([target > 0.5 for _, target in examples])).float().mean().item()


def test_not_turns_shabby_into_praise() -> None:
    model, tokenizer = clearhead.load("sentiment"), clearhead.Tokenizer.load(find("sentiment"))
    rows = [tokenizer.encode(f"attention is {words} shabby").ids for words in ("not too", "too")]
    praise, blame = (float(p[model.config.labels.index("positive")]) for p in clearhead.classify(model, rows))
    assert praise >= 0.9 and blame <= 0.1


def test_held_out_litotes_come_out_right_nine_times_in_ten(script: Callable[[str], ModuleType]) -> None:
    score = script("score")
    assert accuracy(score.blind_litotes()) >= 0.9
    assert accuracy(score.blind_litotes(negated=True)) >= 0.9


def test_sst2_dev_is_at_least_what_the_card_promises(
    research_data: Path, tmp_path: Path, script: Callable[[str], ModuleType]
) -> None:
    import lzma

    table = tmp_path / "dev.tsv"
    table.write_bytes(lzma.decompress((research_data / "sst2" / "dev.tsv.xz").read_bytes()))
    assert accuracy(script("score").glue(table)) >= 0.885


def test_transformers_opens_the_shipped_model_and_agrees() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers absent")
    folder = find("sentiment")
    texts = ["attention is not too shabby", "What a waste of a good café, émigré and 猫!"]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    batch = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    model, tokenizer = clearhead.load("sentiment"), clearhead.Tokenizer.load(folder)
    assert [row.ids for row in tokenizer.encode_many(texts)] == [
        row[: int(mask.sum())].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"])
    ]
    with torch.inference_mode():
        ours = model(batch["input_ids"], batch["attention_mask"].sum(1))
        torch.testing.assert_close(ours, theirs(**batch).logits, atol=1e-5, rtol=1e-5)
    assert tuple(theirs.config.id2label.values()) == model.config.labels == ("negative", "positive")


def test_the_model_is_small_and_its_card_names_licence_scores_and_limits() -> None:
    folder = find("sentiment")
    assert (folder / "model.safetensors").stat().st_size <= 46e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    for word in ("license: apache-2.0", "CC BY 4.0", "MIT", "WordNet", "## Scores", "## Limits"):
        assert word in card


def test_the_recipe_can_be_read() -> None:
    recipe = Recipe.load(FOLDER.with_suffix(".toml"))
    assert recipe.data.train == ("train.jsonl", "taught.jsonl") and recipe.model.labels == ("negative", "positive")


def test_held_out_words_and_frames_are_held_out() -> None:
    for kind in ("negative", "positive"):
        train, heldout = (set(ADJECTIVES[kind][part].split()) for part in ("train", "heldout"))
        assert train and heldout and not train & heldout
    assert "shabby" in ADJECTIVES["negative"]["heldout"].split()
    trained = {frame for frames in FRAMES["train"].values() for frame in frames}
    assert not trained & {frame for frames in FRAMES["heldout"].values() for frame in frames}


def test_a_blind_frame_that_training_has_is_not_scored(script: Callable[[str], ModuleType]) -> None:
    trained = {frame for frames in FRAMES["train"].values() for frame in frames}
    blind = [frame for kind, frames in BLIND.items() if kind != "subjects" for frame in frames]
    assert "{s} is not too {a}" in trained and "{s} is not too {a}" in blind
    scored = {text for text, _ in script("score").blind_litotes()}
    assert len(scored) > 1_500
    assert not any(text.endswith((" is not too shabby", " is not too dreadful")) for text in scored)


@pytest.mark.parametrize(
    "text",
    [
        "not too shabby",
        "It isn't shabby",
        "nothing shabby about it",
        "far from shabby",
        "is n't too shabby",
        "never shabby",
    ],
)
def test_a_negated_shabby_is_recognised(text: str, script: Callable[[str], ModuleType]) -> None:
    assert script("prepare").NegationFilter(["shabby"])(text)


def test_an_unnegated_shabby_is_left_alone(script: Callable[[str], ModuleType]) -> None:
    negates = script("prepare").NegationFilter(["shabby"])
    assert not negates("a shabby room, but not an expensive one") and not negates("shabby")


def test_a_sentence_of_sst_is_found_inside_a_longer_line(script: Callable[[str], ModuleType]) -> None:
    import hashlib

    prepare = script("prepare")
    listed = hashlib.sha256(b"it could n t be duller").hexdigest()[:16]
    holds = prepare.SstFilter({listed})
    assert holds("Frankly, it couldn't be duller, even for him") and not holds("It could be duller")


def test_pruning_leaves_the_answers_to_texts_whose_pieces_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Callable[[str], ModuleType]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("attention is not too shabby\nwhat a film\n", encoding="utf-8")
    monkeypatch.setattr(
        sys, "argv", ["prune", "sentiment", "--texts", str(texts), "--out", str(tmp_path / "small"), "--least", "1"]
    )
    script("prune").main()
    before, after = (clearhead.load(name) for name in ("sentiment", tmp_path / "small"))
    tokenizers = [clearhead.Tokenizer.load(find(name)) for name in ("sentiment", tmp_path / "small")]
    for text in texts.read_text(encoding="utf-8").splitlines():
        was, now = (tokenizer.encode(text) for tokenizer in tokenizers)
        assert was.pieces == now.pieces
        with torch.inference_mode():
            logits = [model(torch.tensor([row.ids])) for model, row in ((before, was), (after, now))]
        torch.testing.assert_close(logits[0], logits[1])
    assert after.config == replace(before.config, vocab_size=after.config.vocab_size)
    assert "[UNK]" not in tokenizers[1].encode("unbelievable quizzes").pieces  # spelt in single characters


def test_hand_written_litotes_are_balanced() -> None:
    lines = (FOLDER / "litotes_natural.jsonl").read_text(encoding="utf-8").splitlines()
    targets = [json.loads(line)["positive"] for line in lines]
    assert len(targets) >= 60 and 0.4 <= sum(targets) / len(targets) <= 0.6
