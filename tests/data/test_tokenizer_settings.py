"""What stands beside tokenizer.json counts as in transformers: further tokens, a space in front; marks are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from clearhead.data.tokenizer import Tokenizer
from clearhead.data.tokenizer_settings import marks
from clearhead.errors import CheckpointError, InputError

TEXTS = ("low lower lowest", "new <|pause|> newer", "<|pause|>low", "wide<tool> wider", "a low <|end|>")
EXTRA = "<|pause|>"


def written(folder: Path, backend: Any, settings: dict[str, Any]) -> Path:
    """Write a tokenizer's files as published ones are."""
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"} | settings))
    return folder


def byte_level() -> Any:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    learner = trainers.BpeTrainer(vocab_size=290, special_tokens=["<|end|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    backend.train_from_iterator(["low lower lowest new newer newest wide wider widest"], learner)
    return backend


def llama() -> Any:
    """Return a tokenizer like Llama 2's: every byte is a piece, what the vocabulary lacks is spelled in these."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abclo", "lo", "▁lo"]
    vocab = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, [("l", "o"), ("▁", "lo")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


# ---------------------------------------------------------------- what stands around a text


@pytest.mark.parametrize(
    "post_processor",
    [
        processors.TemplateProcessing(single="[A] [B] $A [C]", special_tokens=[("[A]", 0), ("[B]", 1), ("[C]", 2)]),
        processors.BertProcessing(("[C]", 2), ("[A]", 0)),
        processors.RobertaProcessing(("[C]", 2), ("[A]", 0)),
        processors.Sequence([processors.ByteLevel(), processors.BertProcessing(("[C]", 2), ("[A]", 0))]),
        processors.ByteLevel(),
        None,
    ],
    ids=["template", "bert", "roberta", "sequence", "byte level", "none"],
)
@pytest.mark.parametrize("words", ["中 文", "א ב", "ə ʃ"])
def test_marks_do_not_depend_on_the_vocabulary(post_processor: Any, words: str, tmp_path: Path) -> None:
    vocab = {word: i for i, word in enumerate(["[A]", "[B]", "[C]", *words.split()])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab))  # and without a word for what is unknown
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if post_processor is not None:
        backend.post_processor = post_processor
    folder = written(tmp_path / "words", backend, {})
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    expected = theirs(words, return_special_tokens_mask=True)
    encoded = ours.encode(words)
    assert encoded.ids == expected["input_ids"]
    assert encoded.special == [bool(special) for special in expected["special_tokens_mask"]]
    assert [piece for piece, special in zip(encoded.pieces, encoded.special) if not special] == words.split()
    before, after = marks(backend)
    windows = ours.windows(words, len(before) + 1 + len(after))
    assert [len(window.ids) for window in windows] == [len(before) + 1 + len(after)] * 2


def test_a_word_that_the_vocabulary_has_no_piece_for_is_refused(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"中": 0}))
    with pytest.raises(InputError, match=r"cannot cut up a text: .*\[UNK\]"):
        Tokenizer.load(written(tmp_path / "words", backend, {})).encode("a")


# ---------------------------------------------------------------- added tokens


def named_in(source: str, number: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Return tokenizer_config.json and added_tokens.json that name two tokens in one of the ways there are."""
    pause = {"content": EXTRA, "lstrip": True, "rstrip": False, "normalized": False, "special": True}
    tool = {"content": "<tool>", "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {
        "added_tokens_decoder": ({"added_tokens_decoder": {str(number): pause, str(number + 1): tool}}, {}),
        "added_tokens.json": ({}, {EXTRA: number, "<tool>": number + 1}),
        "additional_special_tokens": ({"additional_special_tokens": [EXTRA, "<tool>"]}, {}),
        "extra_special_tokens": ({"extra_special_tokens": [EXTRA, "<tool>"]}, {}),
        "objects": ({"additional_special_tokens": [{**token, "__type": "AddedToken"} for token in (pause, tool)]}, {}),
        "roles": ({"extra_special_tokens": {"pause_token": EXTRA, "tool_token": "<tool>"}}, {}),
    }[source]


@pytest.mark.parametrize(
    "source",
    ["added_tokens_decoder", "added_tokens.json", "additional_special_tokens", "extra_special_tokens", "objects",
     "roles"],
)  # fmt: skip
def test_tokens_that_other_files_add_are_whole_as_in_transformers(source: str, tmp_path: Path) -> None:
    backend = byte_level()
    settings, added = named_in(source, backend.get_vocab_size())
    folder = written(tmp_path / "added", backend, {"eos_token": "<|end|>"} | settings)
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs) == backend.get_vocab_size() + 2
    for text in TEXTS:
        ids = ours.encode_body(text)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ours.save(tmp_path / "saved")
    assert [Tokenizer.load(tmp_path / "saved").encode_body(text) for text in TEXTS] == [
        ours.encode_body(text) for text in TEXTS
    ]


def test_tokens_that_tokenizer_json_has_stay_as_they_are(tmp_path: Path) -> None:
    backend = byte_level()
    backend.add_tokens([AddedToken(EXTRA, rstrip=True)])
    number = backend.token_to_id(EXTRA)
    folder = written(tmp_path / "known", backend, {"additional_special_tokens": [EXTRA]})
    (folder / "added_tokens.json").write_text(json.dumps({EXTRA: number}))
    ours = Tokenizer.load(folder)
    assert ours.vocab_size == backend.get_vocab_size()
    assert [ours.encode_body(text) for text in TEXTS] == [backend.encode(text).ids for text in TEXTS]


def test_an_added_token_that_would_get_another_number_is_refused(tmp_path: Path) -> None:
    backend = byte_level()
    folder = written(tmp_path / "hole", backend, {})
    (folder / "added_tokens.json").write_text(json.dumps({EXTRA: backend.get_vocab_size() + 5}))
    with pytest.raises(CheckpointError, match=rf"number {backend.get_vocab_size() + 5} in added_tokens\.json, but"):
        Tokenizer.load(folder)


# ---------------------------------------------------------------- a space in front


@pytest.mark.parametrize("space", [True, False, None])
def test_a_space_before_a_text_of_llama_is_what_the_settings_say(space: bool | None, tmp_path: Path) -> None:
    settings = {"tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {} if space is None else {"add_prefix_space": space}
    folder = written(tmp_path / "llama", llama(), settings)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    # before a text that begins with a space itself, transformers 5 leaves out the one that tokenizer.json puts there
    for text in ("lo", *[" lo"] * (space is False), "lo lo", "中 lo", "a中"):
        encoded = ours.encode(text)
        assert encoded.ids == theirs(text)["input_ids"], text
        assert ours.decode(encoded.ids) == text == theirs.decode(encoded.ids, skip_special_tokens=True)
    first = ours.encode("lo").pieces[1]
    assert first == ("lo" if space is False else "▁lo")


@pytest.mark.parametrize("space", [True, False])
def test_a_space_before_a_text_of_metaspace_is_what_the_settings_say(space: bool, tmp_path: Path) -> None:
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁lo", -1.0), ("lo", -1.5),
             ("<mask>", 0.0)]  # fmt: skip
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=3, byte_fallback=False))
    scheme = "never" if space else "always"  # tokenizer.json says the opposite
    pieces = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pieces])
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    settings = {"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": space}
    folder = written(tmp_path / "metaspace", backend, settings)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("lo", "lo lo"):
        assert ours.encode_body(text) == theirs(text, add_special_tokens=False)["input_ids"]
