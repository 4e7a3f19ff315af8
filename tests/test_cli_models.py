"""The commands that embed, write, translate and look at pictures carry faithfully what the models say.

Tiny random models, whose answers mean nothing.
"""

import io
import json
import os
import re
import shutil
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clearhead.attention import MultiHeadAttention
from clearhead.checkpoints import load, save
from clearhead.classification import embed
from clearhead.cli.labeller import distinct_labels
from clearhead.controls import without_controls
from clearhead.data.images import ImageProcessor
from clearhead.data.sound import SoundProcessor
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import InputError
from clearhead.generation import Beams, RepetitionPenalty, Sampled, answers, generate
from clearhead.models.bert import BertConfig, BertForMaskedLM
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM, RotaryConfig
from clearhead.models.modernbert import ModernBert, ModernBertConfig
from clearhead.models.vit import ViTConfig, ViTForImageClassification
from clearhead.rotary import DynamicNTK, Yarn
from generation.models import DECODERS, ENCODER_DECODERS, decoder, encoder_decoder

TEXTS = ("attention is not too shabby", "the quick brown fox", "Zürich — 東京")
SIZES = {"d_model": 32, "n_heads": 4, "d_ff": 48}
END = "<|end|>"
MAX_LEN = 64
GPT_WORDS = 320  # and a few: as many as the GPT guesses from, or more


def shaken(model: nn.Module, std: float = 0.3) -> nn.Module:
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model.eval()


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    import tokenizers

    pieces = tokenizers.ByteLevelBPETokenizer()
    pieces.train_from_iterator(TEXTS * 5, vocab_size=330, min_frequency=1, show_progress=False, special_tokens=[END])
    return Tokenizer(pieces._tokenizer, {"eos_token": END})


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, Path]:
    """Return a checkpoint of every kind by its name."""
    root, n = tmp_path_factory.mktemp("models"), tokenizer.vocab_size
    save(shaken(GPTForCausalLM(GPTConfig(vocab_size=n, n_layers=2, max_len=MAX_LEN, **SIZES))), root / "gpt")
    bert = BertConfig(vocab_size=n, n_layers=2, max_len=16, **SIZES)
    save(shaken(BertForMaskedLM(bert)), root / "bert")
    pair = EncoderDecoderConfig(
        vocab_size=n,
        n_encoder_layers=2,
        n_decoder_layers=2,
        max_source_len=24,
        max_target_len=24,
        pad_id=2,
        start_id=2,
        end_id=0,
        **SIZES,
    )
    save(shaken(EncoderDecoder(pair)), root / "pair", family="marian")
    for name in ("gpt", "bert", "pair"):
        tokenizer.save(root / name)
    picture = ViTConfig(image_size=(16, 16), patch_size=4, n_layers=2, labels=("boot", "bag", "coat"), **SIZES)
    save(shaken(ViTForImageClassification(picture)), root / "vit", family="vit")
    ImageProcessor(resize=(16, 16)).save(root / "vit")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of three pictures."""
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 30, 3), dtype="uint8")
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


# ---------------------------------------------------------------- generate


def expected(places: dict[str, Path], tokenizer: Tokenizer, text: str, n: int, **options: Any) -> str:
    """Return what the model itself goes on with, token by token."""
    prompt = tokenizer.encode(text).ids
    steps = generate(load(places["gpt"]), [prompt], max_new_tokens=n, stop={0}, **options)
    return tokenizer.decode([*prompt, *answers(steps, 1)[0]])


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["--temperature", "0"], {}),
        (["--seed", "5"], {"choose": Sampled(temperature=0.8, seed=5)}),
        (["--seed", "5", "--top-k", "9"], {"choose": Sampled(temperature=0.8, top_k=9, seed=5)}),
        (
            ["--seed", "5", "--temperature", "1.5", "--top-p", "0.9", "--min-p", "0.01"],
            {"choose": Sampled(temperature=1.5, top_p=0.9, min_p=0.01, seed=5)},
        ),
        (["--beams", "3"], {"choose": Beams(3)}),
        (["--temperature", "0", "--repetition-penalty", "1.5"], {"adjust": [RepetitionPenalty(1.5)]}),
    ],
)
def test_generate_writes_what_the_model_goes_on_with(
    argv: list[str], options: dict[str, Any], call: Any, places: dict[str, Path], tokenizer: Tokenizer
) -> None:
    whole = expected(places, tokenizer, TEXTS[0], 12, **options)
    (found,) = call("generate", TEXTS[0], "--model", places["gpt"], "--max-new-tokens", 12, "--json", *argv).json
    assert found["text"] + found["written"] == whole
    assert (found["text"], found["end"], found["tokens"]) == (TEXTS[0], "length", 12)
    streamed = call("generate", TEXTS[0], "--model", places["gpt"], "--max-new-tokens", 12, *argv)
    assert (streamed.code, streamed.err) == (0, "")
    assert letters(streamed.out) == letters(whole)


def letters(text: str) -> str:
    """Return what of a text a terminal is given, without blanks."""
    return "".join(letter for letter in text if letter.isprintable() and not letter.isspace())


def test_every_beginning_is_written_as_alone_with_its_seed(call: Any, places: dict[str, Path], tmp_path: Path) -> None:
    options = ("--model", places["gpt"], "--max-new-tokens", 9, "--json")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    together = call("generate", *options, "--seed", 4, "--file", tmp_path / "texts.txt")
    assert together.out == call("generate", *options, "--seed", 4, stdin="\n".join(TEXTS).encode()).out
    assert [one["text"] for one in together.json] == list(TEXTS)
    for one in together.json:
        assert call("generate", one["text"], *options, "--seed", one["seed"]).json == [one]
    drawn = call("generate", TEXTS[0], *options).json[0]
    assert call("generate", TEXTS[0], *options, "--seed", drawn["seed"]).json == [drawn]


def test_an_answer_ends_before_what_stops_it(call: Any, places: dict[str, Path]) -> None:
    options = (TEXTS[0], "--model", places["gpt"], "--seed", 1, "--max-new-tokens", 40)
    written = call("generate", *options, "--json").json[0]["written"]
    stop = written[9:12]
    (found,) = call("generate", *options, "--json", "--stop", "no such thing", stop).json
    assert found["written"] == written[: written.index(stop)]
    assert (found["end"], found["tokens"] < 40) == ("stop", True)
    assert letters(call("generate", *options, "--stop", stop).out) == letters(TEXTS[0] + found["written"])


def test_a_stop_that_begins_with_a_space_ends_an_answer_that_does(
    call: Any, places: dict[str, Path], tmp_path: Path
) -> None:
    # Tokenizers after SentencePiece drop the space that begins a text; an answer's first word has one all the same.
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    folder = shutil.copytree(places["gpt"], tmp_path / "gpt")
    names = ["<unk>", "▁not", "▁shabby", *(f"▁word{i}" for i in range(GPT_WORDS))]
    pieces = Backend(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    Tokenizer(pieces, {}).save(folder)
    options = ("not shabby", "--model", folder, "--seed", 1, "--max-new-tokens", 9, "--json")
    (free,) = call("generate", *options).json
    first = " " + free["written"].split()[0]
    assert free["written"].startswith(first)
    (stopped,) = call("generate", *options, "--stop", first).json
    assert (stopped["written"], stopped["tokens"], stopped["end"]) == ("", 1, "stop")


def test_a_beginning_that_is_too_long_loses_its_first_pieces(call: Any, places: dict[str, Path]) -> None:
    done = call("generate", "not " * 90, "--model", places["gpt"], "--max-new-tokens", 10, "--json", "--seed", 1)
    assert done.json[0]["tokens"] == 10
    assert f"reads and writes {MAX_LEN} pieces in all: the first" in done.err
    done = call("generate", "not", "--model", places["gpt"], "--max-new-tokens", 900, "--json", "--seed", 1)
    assert f"only {done.json[0]['tokens']} can be written" in done.err


@pytest.mark.parametrize(
    ("stretch", "left_out"),
    [(Yarn(factor=4.0, trained_len=8), False), (DynamicNTK(factor=2.0, trained_len=8), False), (None, True)],
    ids=["yarn", "dynamic", "none"],
)
def test_a_stretched_model_writes_beyond_the_length_that_its_config_says(
    stretch: Any, left_out: bool, call: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    sizes = {**SIZES, "n_heads": 4, "n_layers": 2, "max_len": 8}
    rotary = {"rotary": RotaryConfig(stretch=stretch), "norm": "rms", "feed_forward": "gated", "biases": "none"}
    config = GPTConfig(vocab_size=tokenizer.vocab_size, activation="silu", dropout=0.0, **sizes, **rotary)
    save(shaken(GPTForCausalLM(config)), tmp_path / "long", family="llama", tokenizer=tokenizer)
    text = "the brown fox jumps"
    prompt = tokenizer.encode(text).ids
    assert len(prompt) > 8
    steps = generate(load(tmp_path / "long"), [prompt], max_new_tokens=10, stop={0})
    whole = tokenizer.decode([*prompt, *answers(steps, 1)[0]])
    done = call("generate", text, "--model", tmp_path / "long", "--max-new-tokens", 10, "--temperature", 0)
    assert ("of the text are left out" in done.err) == left_out
    assert (without_controls(whole, newlines=True) + "\n" == done.out) != left_out


def test_half_a_letter_is_not_shown(tokenizer: Tokenizer) -> None:
    from clearhead.cli.written import Written

    ids = tokenizer.encode("é東京").ids
    written = Written(tokenizer, [], [])
    pieces = [written.add(token, last=i + 1 == len(ids)) for i, token in enumerate(ids)]
    assert "".join(pieces) == "é東京"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--beams", "3", "--seed", "1"], "--beams draws nothing, --seed says how to draw"),
        (["--top-p", "2"], "--top-p must be above 0 and up to 1, got 2.0"),
        (["--temperature", "-1"], "--temperature must be 0 or more, got -1.0"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1, got 0"),
        (["--stop", ""], "--stop needs a text"),
        (["--top-k", "few"], "--top-k takes a whole number, got 'few'"),
        (["--topk", "3"], "did you mean '--top-k'?"),
    ],
)
def test_what_cannot_be_meant_is_exit_code_2(argv: list[str], said: str, call: Any) -> None:
    done = call("generate", "x", *argv)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert said in done.err


@pytest.mark.parametrize(
    ("verb", "kind", "said"),
    [
        ("generate", "bert", "is a BertForMaskedLM: `clearhead generate` expects a decoder, such as a GPT. It is for"),
        ("classify", "gpt", "It is for generate, effect, profile, derive, see and explore"),
        ("embed", "vit", "It is for classify, derive, see and explore"),
        ("translate", "gpt", "expects an encoder-decoder that reads text"),
        ("generate", "pair", "is an EncoderDecoder: `clearhead generate` expects a decoder, such as a GPT. It is for"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_what_it_is_for(
    verb: str, kind: str, said: str, call: Any, places: dict[str, Path]
) -> None:
    done = call(verb, "x", "--model", places[kind])
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert said in done.err


# ---------------------------------------------------------------- translate


@pytest.mark.parametrize("beams", [None, 3])
def test_translate_writes_what_the_model_makes_of_each_text(
    beams: int | None, call: Any, places: dict[str, Path], tokenizer: Tokenizer
) -> None:
    model, options = load(places["pair"]), () if beams is None else ("--beams", beams)
    done = call("translate", *TEXTS, "--model", places["pair"], "--max-new-tokens", 8, "--json", *options)
    for text, found in zip(TEXTS, done.json, strict=True):
        choose = {} if beams is None else {"choose": Beams(beams)}
        from clearhead.generation import Never

        steps = generate(model, [tokenizer.encode(text).ids], max_new_tokens=8, stop={0}, adjust=[Never([2])], **choose)
        assert found["text"] == text
        assert found["written"] == tokenizer.decode(answers(steps, 1)[0])
    people = call("translate", *TEXTS, "--model", places["pair"], "--max-new-tokens", 8, *options)
    assert len(people.out.splitlines()) == len(TEXTS)


def test_translate_says_which_letters_the_model_does_not_know(call: Any) -> None:
    known, unknown = (call("translate", word) for word in ("déjà", "日本日 x"))
    assert (known.code, known.err, unknown.code) == (0, "", 0)
    assert unknown.err == "clearhead: not in the model's vocabulary, and read as unknown: '日', '本'\n"


def test_an_answer_begins_with_the_token_that_the_checkpoint_forces(places: dict[str, Path], tmp_path: Path) -> None:
    from clearhead.cli.answers import Choices, Writer
    from clearhead.generation import Never, Step

    def likely(steps: Iterator[Step]) -> list[float]:
        return [token.logprob for step in steps for token in step]

    folder, forced = shutil.copytree(places["pair"], tmp_path / "pair"), 7
    (folder / "generation_config.json").write_text(json.dumps({"forced_bos_token_id": forced}))
    model, settings = load(folder), {"stop": {0}, "adjust": [Never([2])], "max_new_tokens": 8}
    free, expected = (likely(generate(model, [[5, 6]], begin=begin, **settings)) for begin in ([2], [2, forced]))
    came = likely(Writer("translate", str(folder)).write([[5, 6]], 9, Choices(9)))
    assert came[1:] == pytest.approx(expected, abs=1e-4) != pytest.approx(free, abs=1e-4)  # the first is the forced one


@pytest.mark.parametrize("said", ["{", "[]", '{"eos_token_id": "x"}', '{"forced_bos_token_id": [-1]}'])
def test_a_broken_file_about_writing_is_named(said: str, call: Any, places: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(places["pair"], tmp_path / "pair")
    (folder / "generation_config.json").write_text(said)
    done = call("translate", "x", "--model", folder)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "generation_config.json" in done.err


# ---------------------------------------------------------------- embed


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("1_Pooling", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}),
        ("1_Pooling", {"pooling_mode": "lasttoken"}),
        ("1_Pooling", {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}),
        ("2_Dense", {"in_features": 32}),
    ],
    ids=str,
)
def test_vectors_that_sentence_transformers_makes_otherwise_are_refused(
    file: str, said: dict[str, Any], call: Any, places: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(places["bert"], tmp_path / "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}'
    )
    plain = call("embed", "x", "--model", folder)
    assert (plain.code, plain.out) == (0, call("embed", "x", "--model", places["bert"]).out)
    (folder / file).mkdir(exist_ok=True)
    (folder / file / "config.json").write_text(json.dumps(said))
    done = call("embed", "x", "--model", folder)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert f"{file}{os.sep}config.json" in done.err and "the mean over the tokens" in done.err


def test_texts_are_embedded_behind_the_default_prompt_and_in_small_letters(
    call: Any, places: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(places["bert"], tmp_path / "bert")
    prompts = {"prompts": {"query": "the Fox ", "document": ""}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    done = call("embed", "Ab", "--model", folder, "--json")
    expected = call("embed", "the Fox Ab", "--model", places["bert"], "--json")
    assert done.json[0] == {"text": "Ab", "vector": expected.json[0]["vector"]}
    assert "is read behind 'the Fox '" in done.err and expected.err == ""
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true, "max_seq_length": 16}')
    small = call("embed", "the fox ab", "--model", places["bert"], "--json").json[0]["vector"]
    assert call("embed", "Ab", "--model", folder, "--json").json[0]["vector"] == small
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true, "include_prompt": false}')
    assert "include_prompt false" in call("embed", "Ab", "--model", folder).err
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {}, "default_prompt_name": "query"}')
    assert "default_prompt_name 'query' is not among the prompts" in call("embed", "Ab", "--model", folder).err


def test_embed_gives_the_models_own_vectors_in_every_form(
    call: Any, places: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    rows = [tokenizer.encode(text).ids for text in TEXTS]
    vectors = torch.stack(list(embed(load(places["bert"]), rows))).numpy()
    done = call("embed", *TEXTS, "--model", places["bert"], "--json")
    assert [one["text"] for one in done.json] == list(TEXTS)
    assert np.array([one["vector"] for one in done.json]) == pytest.approx(vectors, abs=1e-5)
    piped = call("embed", "--model", places["bert"], stdin="\n".join(TEXTS).encode()).out
    assert np.loadtxt(io.StringIO(piped)) == pytest.approx(vectors, abs=1e-5)
    for name in ("a.npy", "a.safetensors"):
        path = tmp_path / name
        assert call("embed", *TEXTS, "--model", places["bert"], "--out", path).out == f"{path}\n"
        matrix = np.load(path) if path.suffix == ".npy" else load_file(path)["embeddings"].numpy()
        assert matrix.dtype == np.float32
        assert matrix == pytest.approx(vectors, abs=1e-5)


def test_the_vector_of_a_long_text_is_the_mean_over_its_windows(
    call: Any, places: dict[str, Path], tokenizer: Tokenizer
) -> None:
    windows = tokenizer.windows("not too shabby " * 20, 16)
    done = call("embed", "not too shabby " * 20, "--model", places["bert"], "--json")
    parts = torch.stack(list(embed(load(places["bert"]), [window.ids for window in windows])))
    mean = torch.tensor([float(len(window.ids)) for window in windows]) @ parts
    assert done.json[0]["vector"] == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
    assert f"{len(windows)} windows and their vectors are averaged" in done.err


@pytest.mark.parametrize(
    ("out", "code", "said"), [("x.txt", 2, "ends in .npy or .safetensors"), ("no/x.npy", 1, "no folder")]
)
def test_vectors_that_have_nowhere_to_go(out: str, code: int, said: str, call: Any) -> None:
    done = call("embed", "x", "--out", out)
    assert (done.code, done.err.count("\n")) == (code, 1)
    assert said in done.err


# ---------------------------------------------------------------- pictures


def test_classify_labels_pictures_of_a_folder_by_argument_and_by_list(
    call: Any, places: dict[str, Path], photos: Path
) -> None:
    model, processor = load(places["vit"]), ImageProcessor.load(places["vit"])
    files = sorted(photos.iterdir())
    done = call("classify", photos, "--model", places["vit"], "--json")
    for path, found in zip(files, done.json, strict=True):
        with torch.no_grad():
            expected = model(processor.read(path)[None]).softmax(-1)[0]
        assert list(found) == ["file", "label", "probabilities"]
        assert found["file"] == str(path)
        assert [found["probabilities"][label] for label in ("boot", "bag", "coat")] == pytest.approx(
            expected.tolist(), abs=2e-6
        )
    assert call("classify", *files, "--model", places["vit"], "--json").out == done.out
    listed = "\n".join(map(str, files)).encode()
    assert call("classify", "--model", places["vit"], "--json", stdin=listed).out == done.out


def test_classes_of_one_name_keep_their_own_probabilities(call: Any, tmp_path: Path, photos: Path) -> None:
    names = ("crane", "bag", "crane")
    config = ViTConfig(image_size=(16, 16), patch_size=4, n_layers=1, labels=names, **SIZES)
    save(shaken(ViTForImageClassification(config)), tmp_path / "vit", family="vit")
    ImageProcessor(resize=(16, 16)).save(tmp_path / "vit")
    picture = photos / "0.png"
    with torch.no_grad():
        expected = load(tmp_path / "vit")(ImageProcessor.load(tmp_path / "vit").read(picture)[None]).softmax(-1)[0]
    (line,) = call("classify", picture, "--model", tmp_path / "vit", "--json").json
    named = dict(zip(("crane (0)", "bag", "crane (2)"), expected.tolist(), strict=True))
    assert line["probabilities"] == {name: pytest.approx(p, abs=1e-6) for name, p in named.items()}
    assert line["label"] == max(named, key=lambda name: named[name])
    shown = call("classify", picture, "--model", tmp_path / "vit", "--top", "3").out
    assert all(f"{name} " in shown for name in named)


def test_labels_are_made_distinct_whatever_they_are_called() -> None:
    assert distinct_labels(("a", "b")) == ("a", "b")
    assert distinct_labels(("a", "b", "a")) == ("a (0)", "b", "a (2)")
    assert distinct_labels(("a", "a", "a (0)")) == ("a (0)", "a (1)", "a (0) (2)")


def test_what_is_named_like_a_picture_or_holds_one_is_a_picture(photos: Path) -> None:
    from clearhead.cli.inputs import are_pictures, is_picture

    first, nowhere = str(photos / "0.png"), str(photos / "9.png")
    assert all(map(is_picture, (first, nowhere, str(photos), "9.jpeg")))
    texts = ("a fine film", "I liked film.png", "", "what?", "fine.", "x" * 9000, "a\0b", str(photos / "0.png" / "x"))
    assert not any(map(is_picture, texts))
    assert are_pictures(["a fine film", first], ["a fine film", first])
    assert are_pictures([], [first, nowhere]) and not are_pictures([], [first, "a fine film"])


def test_a_picture_that_is_none_is_named_and_the_others_answered(
    call: Any, places: dict[str, Path], photos: Path
) -> None:
    (photos / "1.png").write_text("no picture")
    done = call("classify", photos, "--model", places["vit"], "--json")
    assert (done.code, [Path(one["file"]).name for one in done.json]) == (1, ["0.png", "2.png"])
    assert "1.png is no picture" in done.err and "1 of 3 pictures could not be read" in done.err


def test_a_picture_that_is_not_there_and_one_for_a_model_of_texts(
    call: Any, places: dict[str, Path], photos: Path
) -> None:
    missing = call("classify", photos / "9.png", "--model", places["vit"])
    assert (missing.code, missing.out) == (1, "") and "9.png: no such file" in missing.err
    wrong = call("classify", photos / "1.png", "--model", "sentiment")
    assert (wrong.code, wrong.out) == (1, "") and "is a picture, and sentiment labels texts" in wrong.err


# ---------------------------------------------------------------- transcribe


@pytest.fixture(scope="session")
def hearing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny Whisper of two languages that hears one second at once."""
    import tokenizers

    names = [END, "<|start|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    pieces = tokenizers.ByteLevelBPETokenizer()
    pieces.train_from_iterator(TEXTS * 5, vocab_size=330, min_frequency=1, show_progress=False, special_tokens=names)
    tokenizer = Tokenizer(pieces._tokenizer, {"eos_token": END})
    folder = tmp_path_factory.mktemp("models") / "whisper"
    config = EncoderDecoderConfig(
        vocab_size=tokenizer.vocab_size,
        n_encoder_layers=1,
        n_decoder_layers=1,
        n_mels=8,
        max_source_len=50,
        max_target_len=12,
        positions="learned",
        norms="before",
        biases="all_but_keys",
        embedding_scale=1.0,
        activation="gelu",
        pad_id=0,
        start_id=1,
        end_id=0,
        **SIZES,
    )
    save(shaken(EncoderDecoder(config)), folder, family="whisper", tokenizer=tokenizer)
    SoundProcessor(n_mels=8, seconds=1).save(folder)
    said = {
        "is_multilingual": True,
        "lang_to_id": {"<|en|>": 2, "<|de|>": 3},
        "suppress_tokens": [1, 2, 3, 4, 5],
        "begin_suppress_tokens": [0, 40],
    }
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Return a second and a half of noise as a .wav file."""
    path = tmp_path / "speech.wav"
    noise = np.random.default_rng(0).integers(-9000, 9000, 24_000, dtype=np.int16)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(noise.tobytes())
    return path


@pytest.mark.parametrize(("argv", "language"), [(["--language", "de"], 3), (["--language", "en"], 2), ([], None)])
def test_transcribe_writes_what_the_model_hears_piece_by_piece(
    argv: list[str], language: int | None, call: Any, hearing: Path, speech: Path
) -> None:
    model, tokenizer = load(hearing), Tokenizer.load(hearing)
    sounds = SoundProcessor.load(hearing).read(speech)
    assert len(sounds) == 2
    if language is None:
        with torch.no_grad():
            scores = model(sounds[0][None], torch.tensor([[1]]))[0, -1]
        language = 2 if scores[2] > scores[3] else 3
    expected = []
    for sound in sounds:
        written: list[int] = []
        while len(written) < 8 and 0 not in written:  # twelve places, four of which are the beginning
            with torch.no_grad():
                scores = model(sound[None], torch.tensor([[1, language, 4, 5, *written]]))[0, -1]
            scores[[1, 2, 3, 4, 5, *([] if written else [0, 40])]] = -torch.inf
            written.append(int(scores.argmax()))
        expected.append(tokenizer.decode(written).strip())
    (found,) = call("transcribe", speech, "--model", hearing, "--json", *argv).json
    assert found == {"file": str(speech), "written": " ".join(expected)}
    assert len(call("transcribe", speech, speech, "--model", hearing, *argv).out.splitlines()) == 2


@pytest.mark.parametrize(
    ("said", "language", "expected"),
    [
        ({"language": "<|de|>"}, None, [1, 3, 4, 5]),
        ({"language": "german"}, None, [1, 3, 4, 5]),
        ({"language": "german"}, "English", [1, 2, 4, 5]),
        ({"language": "en", "decoder_start_token_id": 7}, None, [7, 2, 4, 5]),
        ({"forced_decoder_ids": [[1, 3], [2, 4], [3, 5]]}, None, [1, 3, 4, 5]),
        ({"forced_decoder_ids": [[1, 3], [2, 9]]}, None, [1, 3, 9, 5]),
        ({"forced_decoder_ids": [[1, 3], [2, 9]]}, "en", [1, 2, 4, 5]),
        ({"language": "welsh"}, None, "generation_config.json: this model knows no language 'welsh'"),
        ({"task": "dance", "language": "en"}, None, "task 'dance' is unknown"),
        ({"forced_decoder_ids": [[2, 4]]}, None, "leave place 1 out"),
        ({"forced_decoder_ids": [[1, 3], [2, None]]}, None, "the token at place 2 open"),
    ],
    ids=str,
)
def test_an_answer_of_a_sound_begins_as_the_checkpoint_says(
    said: dict[str, Any], language: str | None, expected: list[int] | str, hearing: Path, speech: Path, tmp_path: Path
) -> None:
    from clearhead.cli.hearing import Listener

    folder = shutil.copytree(hearing, tmp_path / "whisper")
    both = json.loads((folder / "generation_config.json").read_text()) | said
    (folder / "generation_config.json").write_text(json.dumps(both))
    listener = Listener(str(folder))
    sound = listener.sounds.read(speech)[0]
    if isinstance(expected, list):
        assert listener.beginning(sound, language) == expected
    else:
        with pytest.raises(InputError, match=re.escape(expected)):
            listener.beginning(sound, language)


def test_languages_that_no_file_lists_are_the_tokens_after_the_start(
    call: Any, hearing: Path, speech: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(hearing, tmp_path / "whisper")
    said = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**said, "lang_to_id": None}))
    for argv in ((), ("--language", "de")):
        asked = ("transcribe", speech, *argv, "--json", "--model")
        assert call(*asked, folder).json == call(*asked, hearing).json
    assert "known: de, en" in call("transcribe", speech, "--model", folder, "--language", "fr").err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["{speech}"], 2, "no model that hears ships"),
        ([], 2, "nothing to hear"),
        (["nowhere.wav", "--model", "{hearing}"], 1, "nowhere.wav: cannot be read"),
        (["{hearing}/config.json", "--model", "{hearing}"], 1, "is no .wav"),
        (["{speech}", "--model", "{hearing}", "--language", "fr"], 1, "no language 'fr'; known: de, en"),
        (["{speech}", "--model", "sentiment"], 1, "expects an encoder-decoder that hears"),
    ],
)
def test_a_sound_that_cannot_be_heard(
    argv: list[str], code: int, said: str, call: Any, hearing: Path, speech: Path
) -> None:
    done = call("transcribe", *(one.format(hearing=hearing, speech=speech) for one in argv))
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert said in done.err


def test_a_model_that_hears_is_for_transcribe(call: Any, hearing: Path) -> None:
    for verb in ("translate", "see"):
        assert "It is for transcribe; " in call(verb, "x", "--model", hearing).err


# ---------------------------------------------------------------- derive and see, on every kind


def weights_of(derived: dict[str, Any]) -> list[float]:
    """Return what step 6 came to."""
    return next(step["tensors"]["weights"]["values"] for step in derived["steps"] if step["name"] == "softmax")


@pytest.mark.parametrize("verb", ["derive", "see"])
def test_several_texts_are_read_one_by_one_as_each_alone(
    verb: str, call: Any, places: dict[str, Path], tmp_path: Path
) -> None:
    options = ("--model", places["gpt"], "--json")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    together = call(verb, *options, "--file", tmp_path / "texts.txt")
    assert together.out == "".join(call(verb, text, *options).out for text in TEXTS)
    assert call(verb, *TEXTS, *options).out == together.out
    assert call(verb, *options, stdin="\n".join(TEXTS).encode()).out == together.out
    people = call(verb, *TEXTS, "--model", places["gpt"]).out
    assert all(f"{text}\n\nWhat " in people for text in TEXTS)


def test_a_patch_looks_at_patches(call: Any, places: dict[str, Path], photos: Path) -> None:
    options = (photos / "1.png", "--model", places["vit"], "--layer", 1, "--head", 2)
    derived, seen = (call(verb, *options, "--json", "--query", "2,1").json[0] for verb in ("derive", "see"))
    assert seen["file"] == derived["file"] == str(photos / "1.png")
    assert seen["tokens"] == ["class", *(f"{row},{column}" for row in range(4) for column in range(4))]
    assert seen["query"] == derived["query"] == 1 + 2 * 4 + 1
    assert weights_of(derived) == pytest.approx(seen["weights"], abs=1e-6)
    assert call("see", *options, "--json", "--query", "9").json[0] == seen
    model, processor = load(places["vit"]), ImageProcessor.load(places["vit"])
    outputs: list[torch.Tensor] = []
    model.vit.blocks[1].attention.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        model(processor.read(photos / "1.png")[None])
    found = derived["steps"][7]["tensors"]["output"]["values"]
    assert found == pytest.approx(outputs[0][0, derived["query"]].tolist(), abs=1e-4)
    assert call("see", *options, "--json").json[0]["query"] == 0  # the class token: the picture as a whole
    page = call("see", *options, "--query", "2,1").out
    assert page.startswith("What 2,1 looks at") and re.search(r"^  ..\[\]....$", page, re.MULTILINE)


@pytest.mark.parametrize("query", ["4,0", "16", "cat", "-1"])
def test_a_patch_that_is_not_there(query: str, call: Any, places: dict[str, Path], photos: Path) -> None:
    done = call("see", photos / "1.png", "--model", places["vit"], "--query", query)
    assert (done.code, done.out) == (1, "")
    assert "expected row,column from 0,0 to 3,3, or a number from 0 to 15, or class" in done.err


def test_what_is_written_looks_at_the_source(call: Any, places: dict[str, Path], tokenizer: Tokenizer) -> None:
    source, target = TEXTS[0], TEXTS[1]
    options = (source, "--model", places["pair"], "--target", target, "--query", "quick", "--layer", 1, "--head", 3)
    derived, seen = (call(verb, *options, "--json").json[0] for verb in ("derive", "see"))
    assert (seen["text"], seen["target"]) == (source, target)
    assert derived["memory_tokens"] == seen["source_tokens"] == tokenizer.encode(source).pieces
    assert weights_of(derived) == pytest.approx(seen["weights"], abs=1e-6)
    assert len(seen["weights"]) == len(seen["source_tokens"])
    # The row is the one from which the word is written: the decoder has read what stands before it.
    written = tokenizer.encode(target).ids
    assert tokenizer.backend.id_to_token(written[derived["query"]]).strip("Ġ") == "quick"
    model, outputs = load(places["pair"]), []
    attention = model.decoder.blocks[1].cross_attention
    attention.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        model(torch.tensor([tokenizer.encode(source).ids]), torch.tensor([[model.config.start_id, *written[:-1]]]))
    found = derived["steps"][7]["tensors"]["output"]["values"]
    assert found == pytest.approx(outputs[0][0, derived["query"]].tolist(), abs=1e-4)


def test_without_a_target_the_models_own_is_looked_from(call: Any, places: dict[str, Path]) -> None:
    own = call("translate", TEXTS[0], "--model", places["pair"], "--json").json[0]["written"]
    (seen,) = call("see", TEXTS[0], "--model", places["pair"], "--json").json
    assert seen["target"] == own
    page = call("see", TEXTS[0], "--model", places["pair"], "--target", TEXTS[1]).out
    assert page.startswith(f"{TEXTS[0]} -> {TEXTS[1]}\n\nWhat fox looks at in the source")


def test_a_target_is_for_encoder_decoders(call: Any, places: dict[str, Path], photos: Path) -> None:
    for argv in ((TEXTS[0], "--model", places["gpt"]), (photos / "1.png", "--model", places["vit"])):
        done = call("see", *argv, "--target", "x")
        assert (done.code, done.out) == (1, "") and "--target is for encoder-decoders" in done.err


@pytest.mark.parametrize("kind", [*DECODERS, "modernbert", *(name for name in ENCODER_DECODERS if name != "sound")])
def test_what_is_derived_is_what_the_layer_gave_whatever_the_model(
    kind: str, places: dict[str, Path], tokenizer: Tokenizer
) -> None:
    from clearhead.cli.reading import Asked, Watched
    from clearhead.explorer.reading import PairReader, TextReader

    n = tokenizer.vocab_size
    if kind in ENCODER_DECODERS:
        model = encoder_decoder(replace(ENCODER_DECODERS[kind], vocab_size=n, pad_id=2, start_id=2, end_id=0))
        watched = Watched(PairReader(places["pair"], model))
    else:
        modern = ModernBertConfig(vocab_size=n, n_layers=4, max_len=MAX_LEN, pad_id=0, **SIZES)
        model = shaken(ModernBert(modern)) if kind == "modernbert" else decoder(replace(DECODERS[kind], vocab_size=n))
        watched = Watched(TextReader(places["gpt"], model))
    outputs: dict[nn.Module, torch.Tensor] = {}
    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.register_forward_hook(lambda module, inputs, output: outputs.update({module: output[0]}))
    for layer in range(2):
        target = TEXTS[1] if kind in ENCODER_DECODERS else None
        reading = watched.read("the quick brown fox is not", Asked("brown", layer, 1, target))
        derivation = reading.derive()
        torch.testing.assert_close(
            derivation["output"], outputs[reading.attention][reading.view.query], atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(derivation["weights"], torch.tensor(reading.view.weights), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("verb", "kind", "options"),
    [
        ("see", "bert", []),
        ("see", "pair", []),
        ("see", "pair", ["--target"]),
        ("derive", "gpt", []),
        ("effect", "gpt", []),
        ("profile", "bert", []),
    ],
    ids=["see", "see a source", "see a target", "derive", "effect", "profile"],
)
def test_a_token_that_the_weights_do_not_have_is_named(
    verb: str, kind: str, options: list[str], call: Any, places: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(places[kind], tmp_path / kind)
    kept = json.loads((folder / "tokenizer.json").read_text())
    number = len(kept["model"]["vocab"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    kept["added_tokens"].append({"id": number, "content": "<new>", **flags})
    (folder / "tokenizer.json").write_text(json.dumps(kept))
    text = "the <new> fox"
    argv = [text if not options else "the fox", "--model", folder, *options, *([text] if options else [])]
    if verb == "profile":
        (tmp_path / "texts.txt").write_text(text)
        argv = [folder, tmp_path / "texts.txt", "--out", tmp_path / "profile"]
    done = call(verb, *argv)
    assert f"'<new>' is token {number} of the tokenizer, and the model knows {number} tokens" in done.err
    assert done.code and not done.out
