"""Facts about the model that pronounces, which ships, and about the recipe that makes it."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import clearhead
from clearhead.checkpoints import find
from clearhead.data.tokenizer import Tokenizer
from clearhead.generation import GREEDY, Beams
from clearhead.models.encoder_decoder import EncoderDecoder
from clearhead.training.pairs import build_pairs
from clearhead.training.recipe import Recipe

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "recipes" / "pronounce"
UNSEEN = {  # words of the test part: no pronunciation of theirs was trained on
    "abandonment": "AH0 B AE1 N D AH0 N M AH0 N T",
    "competition": "K AA2 M P AH0 T IH1 SH AH0 N",
    "brotherhood": "B R AH1 DH ER0 HH UH2 D",
    "collection": "K AH0 L EH1 K SH AH0 N",
}


@pytest.fixture(scope="module")
def script() -> Callable[[str], ModuleType]:
    """Return a function that returns a script of the recipe; those of other recipes have the same names."""

    def opened(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"pronounce_{name}", FOLDER / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return opened


@pytest.fixture(scope="module")
def model() -> EncoderDecoder:
    """Return the model that ships."""
    model = clearhead.load("pronounce")
    assert isinstance(model, EncoderDecoder)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Return its tokenizer."""
    return Tokenizer.load(find("pronounce"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, script: Callable[[str], ModuleType]) -> Path:
    """Return what prepare.py makes of a dictionary of six words."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("prepared")
    (data / "cmudict").mkdir()
    (data / "cmudict" / "cmudict-0.7a.txt").write_text(
        "AARDEMA 1 AA0 R D EH1 M AH0\nAACHEN 1 AA1 K AH0 N\nA 1 AH0\nA 2 EY1\nCAT'S 1 K AE1 T S\n"
        "&AMPERSAND 1 AE1 M P ER0 S AE2 N D\nFOREVERMORE 1 F ER0 EH2 V ER0 M AO1 R\n",
        encoding="latin-1",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["prepare.py", "--data", str(data), "--out", str(out)])
        script("prepare").main()
    return out


def test_it_pronounces_words_that_it_was_not_trained_on(
    model: EncoderDecoder, tokenizer: Tokenizer, script: Callable[[str], ModuleType]
) -> None:
    assert all(script("prepare").part(word) == "test" for word in UNSEEN)
    for choose in (GREEDY, Beams(5)):
        said = script("score").pronounce(model, tokenizer, list(UNSEEN), choose)
        assert {word: " ".join(phonemes) for word, phonemes in zip(UNSEEN, said)} == UNSEEN


def test_unseen_words_are_as_right_as_its_card_says(
    model: EncoderDecoder, tokenizer: Tokenizer, script: Callable[[str], ModuleType], research_data: Path
) -> None:
    prepare, score = script("prepare"), script("score")
    words = prepare.read_dictionary(research_data / "cmudict" / "cmudict-0.7a.txt.xz")
    tested = [word for word in words if prepare.part(word) == "test"][::16]
    said = score.pronounce(model, tokenizer, tested, GREEDY)
    listed = [[tuple(phonemes) for phonemes in words[word]] for word in tested]
    word, phoneme = score.errors(said, listed, score.without_stress)
    assert len(tested) > 380 and word < 0.34 and phoneme < 0.09


def test_it_computes_what_transformers_computes(model: EncoderDecoder, tokenizer: Tokenizer) -> None:
    import transformers

    theirs, report = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        find("pronounce"), output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    sources = [tokenizer.encode(word).ids for word in ("attention", "is", "shabby")]
    longest = max(map(len, sources))
    source = torch.tensor([ids + [tokenizer.pad_id] * (longest - len(ids)) for ids in sources])
    lengths = torch.tensor([len(ids) for ids in sources])
    target = torch.tensor([[model.config.start_id, *tokenizer.encode("SH AE1 B IY0").ids]] * 3)
    with torch.inference_mode():
        ours = model(source, target, lengths)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        expected = theirs.eval()(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    words = transformers.AutoTokenizer.from_pretrained(find("pronounce"))
    assert words("attention").input_ids == sources[0]
    assert words.decode(tokenizer.encode("SH AE1 B IY0").ids, skip_special_tokens=True) == "SH AE1 B IY0"


def test_cross_attention_lines_letters_up_with_sounds(model: EncoderDecoder, tokenizer: Tokenizer) -> None:
    for word, phonemes in UNSEEN.items():
        source, target = tokenizer.encode(word).ids, tokenizer.encode(phonemes).ids
        with clearhead.watch(model, layers=["decoder.blocks.*.cross_attention"]) as seen, torch.no_grad():
            model(torch.tensor([source]), torch.tensor([[model.config.start_id, *target[:-1]]]))
        maps = torch.stack([seen.map(layer.index, head) for layer in seen.layers for head in range(layer.n_heads)])
        places = (maps[:, : len(target) - 1] * torch.arange(len(source))).sum(-1)  # where each head looks, in the mean
        diagonal = torch.corrcoef(torch.vstack((torch.arange(len(target) - 1.0), places)))[0, 1:]
        assert (diagonal > 0.9).sum() >= 2, f"{word}: {diagonal}"


def test_its_folder_has_the_dictionarys_notice_and_is_small() -> None:
    folder = find("pronounce")
    assert "Carnegie Mellon University" in (folder / "LICENSE-cmudict.txt").read_text(encoding="utf-8")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000


def test_the_split_is_by_word_and_fixed(prepared: Path, script: Callable[[str], ModuleType]) -> None:
    parts = {name: (prepared / f"{name}.tsv").read_text().splitlines()[1:] for name in ("train", "valid", "test")}
    assert parts["valid"] == ["aardema\tAA0 R D EH1 M AH0"]
    assert parts["test"] == ["aachen\tAA1 K AH0 N"]
    assert parts["train"][:2] == ["a\tAH0", "a\tEY1"] and not any("ampersand" in line for line in parts["train"])


def test_letters_come_one_by_one_and_phonemes_whole(prepared: Path) -> None:
    tokenizer = Tokenizer.load(prepared / "start")
    assert tokenizer.encode("Cat’s").pieces == ["c", "a", "t", "'", "s", "</s>"]
    assert tokenizer.encode("Café").pieces == ["c", "a", "f", "e", "</s>"]
    assert tokenizer.encode("K AE1 T S").pieces == ["K", "AE1", "T", "S", "</s>"]
    assert tokenizer.decode(tokenizer.encode("HH AH0 L OW1").ids) == "HH AH0 L OW1"


def test_what_ships_is_what_the_recipe_makes(prepared: Path, tokenizer: Tokenizer, model: EncoderDecoder) -> None:
    recipe = Recipe.load(REPOSITORY / "recipes" / "pronounce.toml")
    made = Tokenizer.load(prepared / "start")
    assert json.loads(made.backend.to_str()) == json.loads(tokenizer.backend.to_str())
    rows: Any = build_pairs(recipe.data.train, prepared, recipe, made).rows
    assert len(rows.sources) == len(rows.answers) >= 4
    assert clearhead.checkpoints.build(prepared / "start").config == model.config


def test_errors_are_those_of_the_nearest_pronunciation(script: Callable[[str], ModuleType]) -> None:
    score = script("score")
    said = [("AH0", "K"), ("B", "AE1"), ("T",)]
    listed = [[("EY1", "K", "T"), ("AH1", "K")], [("B", "AE1")], [("D", "T")]]
    assert score.errors(said, listed, lambda each: each) == (2 / 3, 2 / 6)
    assert score.errors(said, listed, score.without_stress) == (1 / 3, 1 / 6)
