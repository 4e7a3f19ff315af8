"""Facts about the GPT that ships, and about the recipe that makes it."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

import clearhead
from clearhead.checkpoints import find
from clearhead.generation import Sampled, answers, generate
from clearhead.models.gpt import GPTConfig, GPTForCausalLM, RotaryConfig
from clearhead.training.recipe import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "novels"
SHIPPED = Path(clearhead.__file__).parent / "defaults" / "novels"

# How Wuthering Heights begins, which is held out
UNSEEN = (
    "I have just returned from a visit to my landlord—the solitary neighbour that I shall be troubled with. This is "
    "certainly, a beautiful country! In all England, I do not believe that I could have fixed on a situation so "
    "completely removed from the stir of society. A perfect misanthropist's Heaven—and Mr. Heathcliff and I are such "
    "a suitable pair to divide the desolation between us. A capital fellow! He little imagined how my heart warmed "
    "towards him when I beheld his black eyes withdraw so suspiciously under their brows, as I rode up, and when his "
    "fingers sheltered themselves, with a jealous resolution, still further in his waistcoat, as I announced my name."
)


def script(name: str) -> ModuleType:
    """Return a script of the recipe; those of other recipes have the same names."""
    spec = importlib.util.spec_from_file_location(f"novels_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def opened() -> tuple[GPTForCausalLM, clearhead.Tokenizer]:
    model = clearhead.load("novels")
    assert isinstance(model, GPTForCausalLM)
    return model, clearhead.Tokenizer.load(find("novels"))


def test_text_it_never_read_costs_less_than_two_bits_a_character_and_shuffled_words_more() -> None:
    model, tokenizer = opened()
    bits, n = script("score").score(model, tokenizer, UNSEEN)
    words = UNSEEN.split()
    shuffled = " ".join(words[i] for i in torch.randperm(len(words)))
    assert n == len(UNSEEN) and bits / n < 2.0
    assert script("score").score(model, tokenizer, shuffled)[0] > 1.2 * bits


def test_it_goes_on_writing_and_the_seed_decides_what() -> None:
    model, tokenizer = opened()
    prompt = tokenizer.encode_body("The old house stood")
    told = [
        answers(generate(model, [prompt], max_new_tokens=40, choose=Sampled(top_p=0.9, seed=seed)), 1)[0]
        for seed in (1, 1, 2)
    ]
    assert told[0] == told[1] != told[2]
    text = tokenizer.decode(told[0])
    assert len(text) > 80 and sum(letter.isalpha() or letter == " " for letter in text) / len(text) > 0.8


def test_transformers_opens_the_shipped_model_and_agrees() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers absent")
    model, tokenizer = opened()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(SHIPPED, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer.encode_body(f"{UNSEEN}\n“Déjà vu?”—猫")])
    assert (
        transformers.AutoTokenizer.from_pretrained(SHIPPED)(f"{UNSEEN}\n“Déjà vu?”—猫")["input_ids"] == ids[0].tolist()
    )
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-4, rtol=1e-4)


def test_it_is_as_small_as_promised_and_its_card_names_licence_scores_and_limits() -> None:
    model, tokenizer = opened()
    assert 8e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 25e6
    assert 4_000 <= tokenizer.vocab_size == model.config.vocab_size <= 8_192
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 20e6
    assert sum(path.stat().st_size for path in SHIPPED.parent.rglob("*") if path.is_file()) < 80e6
    card = " ".join((SHIPPED / "README.md").read_text(encoding="utf-8").split())
    for word in ("license:", "public domain", "ELTeC", "bits per character", "score.py", "## Limits"):
        assert word in card


def test_every_piece_is_guessed_from_at_least_half_a_window() -> None:
    config = GPTConfig(
        vocab_size=50, d_model=16, n_heads=2, n_layers=2, d_ff=32, rotary=RotaryConfig(), norm="rms", biases="none"
    )
    model = GPTForCausalLM(config).eval()
    for n in (2, 3, 5, 8, 9, 10, 17, 41):
        ids = torch.randint(50, (n,)).tolist()
        found = script("score").surprises(model, ids, window=8, batch=3)
        expected = []
        for i in range(1, n):
            begin = 0 if i <= 8 else ((i - 1) // 4 - 1) * 4
            assert i - begin >= min(i, 5)
            expected.append(-model(torch.tensor([ids[begin:i]]))[0, -1].log_softmax(-1)[ids[i]] / math.log(2))
        torch.testing.assert_close(found, torch.stack(expected))


def test_one_sign_is_set_one_way() -> None:
    normalise = script("prepare").normalise
    assert normalise("“Don´t,” said she -- ‘don’t’ !\n\n to‐day\u00ad – tomor‑row…") == (
        "\"Don't,\" said she—'don't'!\nto-day—tomor-row..."
    )


def test_no_author_of_a_held_out_novel_is_in_training(research_data: Path) -> None:
    prepare = script("prepare")
    authors = prepare.read_authors(research_data / "eltec-eng" / "metadata.tsv")
    split = {part: list(names) for part, names in prepare.SPLIT.items()}
    held_out = [name for names in split.values() for name in names]
    split["train"] = [name for name in authors if name not in held_out]
    assert len(split["test"]) == 5 and len(held_out) == 8 and len(split["train"]) >= 91
    prepare.check_authors(split, authors)
    with pytest.raises(SystemExit, match="authors of ENG18710_Hardy"):
        prepare.check_authors(
            {**split, "valid": ["ENG18710_Hardy"]}, authors | {"ENG18710_Hardy": authors["ENG18721_Eliot"]}
        )


def test_the_recipes_can_be_read() -> None:
    for path in (FOLDER.with_suffix(".toml"), FOLDER / "settle.toml", FOLDER / "finish.toml"):
        recipe = Recipe.load(path)
        assert recipe.data.train == ("train.jsonl",) and recipe.objective.name == "next_token"
