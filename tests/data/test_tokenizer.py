"""Our tokenizer gives the ids that transformers gives, from every form a checkpoint keeps it in, and loses nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, RobertaTokenizer

from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import CheckpointError, InputError

ODD_TEXTS = [
    "attention is not too shabby",
    "",
    " ",
    "naïve café ÉCOLE",
    "emoji 😀 👨‍👩‍👧 \U0001f9d1\U0001f3fd",
    "[MASK] written out, [CLS] and <mask> and </s> too",
    "中文字符 beside latin",
    "x" * 300,
    "word " * 2_000,
    "\x00\x01 controls \u200b\u202e and \ufffd",
    "İstanbul ß ﬁ ½ ａｂｃ",
    "don't can't\t\n new\r\nline\u2028separator",
    "‘quotes’ — dash…",
    "e\u0301 combined, Ω θ א ب",
]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with RoBERTa's two files, learned from the odd texts."""
    from tokenizers import ByteLevelBPETokenizer

    learner = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learner.train_from_iterator(ODD_TEXTS, vocab_size=500, special_tokens=special, show_progress=False)
    folder = tmp_path_factory.mktemp("roberta")
    learner.save_model(str(folder))
    return folder


def assert_same(ours: Tokenizer, theirs: Any) -> None:
    for text in ODD_TEXTS:
        full = theirs(text, return_offsets_mapping=True, verbose=False)
        encoded = ours.encode(text)
        assert encoded.ids == full["input_ids"], text[:40]
        assert encoded.spans == [tuple(span) for span in full["offset_mapping"]], text[:40]
        cut = theirs(text, truncation=True, max_length=8)["input_ids"]
        assert ours.encode(text, max_len=8).ids == cut, text[:40]
        assert ours.encode_body(text) == theirs(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_tokenizer_json_gives_transformers_ids(minilm: Path) -> None:
    assert_same(Tokenizer.load(minilm), AutoTokenizer.from_pretrained(minilm))


def test_vocabulary_alone_gives_the_same_ids(minilm: Path, tmp_path: Path) -> None:
    shutil.copy(minilm / "vocab.txt", tmp_path)
    assert_same(Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(minilm))


def test_byte_level_files_give_robertas_ids(byte_level: Path) -> None:
    from transformers import AddedToken

    vocab = json.loads((byte_level / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (byte_level / "merges.txt").read_text().splitlines()[1:]]
    mask = AddedToken("<mask>", lstrip=True, normalized=False)
    assert_same(Tokenizer.load(byte_level), RobertaTokenizer(vocab=vocab, merges=merges, mask_token=mask))


@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.txt", "byte_level"])
def test_saved_tokenizer_opens_in_transformers_with_the_same_ids(
    form: str, minilm: Path, byte_level: Path, tmp_path: Path
) -> None:
    source = minilm if form == "tokenizer.json" else byte_level
    if form == "vocab.txt":
        source = tmp_path / "source"
        source.mkdir()
        shutil.copy(minilm / "vocab.txt", source)
    Tokenizer.load(source).save(tmp_path / "saved")
    assert_same(Tokenizer.load(source), AutoTokenizer.from_pretrained(tmp_path / "saved"))
    assert_same(Tokenizer.load(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved"))


def test_case_is_kept_where_the_settings_say_so(minilm: Path, tmp_path: Path) -> None:
    shutil.copy(minilm / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert Tokenizer.load(tmp_path).encode("Shabby").pieces[1:-1] == ["[UNK]"]  # the vocabulary has no capitals


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "said", [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_settings_that_tokenizer_json_contradicts_count_as_in_transformers(
    said: dict[str, bool], kind: str, minilm: Path, tmp_path: Path
) -> None:
    Tokenizer.load(minilm).save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **said, "tokenizer_class": kind}))
    ours, theirs, before = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(minilm)
    found = [ours.encode(text).ids for text in ODD_TEXTS]
    assert found == [theirs(text, verbose=False)["input_ids"] for text in ODD_TEXTS]
    assert (found == [before.encode(text).ids for text in ODD_TEXTS]) == (kind == "PreTrainedTokenizerFast")


@pytest.mark.parametrize("space", [True, False])
def test_a_space_before_the_text_is_what_the_settings_say(space: bool, byte_level: Path, tmp_path: Path) -> None:
    Tokenizer.load(byte_level).save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"add_prefix_space": space}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("word").ids == theirs("word")["input_ids"]
    assert (ours.encode("word").ids == ours.encode(" word").ids) == space


def test_byte_level_files_of_another_kind_are_no_robertas(byte_level: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(byte_level, tmp_path / "gpt2")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(CheckpointError, match=r"is for a GPT2Tokenizer, of which tokenizer\.json is read alone"):
        Tokenizer.load(folder)


def test_padding_stored_in_the_file_is_switched_off(minilm: Path) -> None:
    stored = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))
    assert stored["padding"]["strategy"] == {"Fixed": 128}
    assert Tokenizer.load(minilm).encode("not too shabby").pieces == ["[CLS]", "not", "too", "sha", "##bby", "[SEP]"]


def test_what_is_cut_off_is_counted(minilm: Path) -> None:
    tokenizer = Tokenizer.load(minilm)
    assert tokenizer.encode("one two three four", max_len=6).truncated == 0
    cut = tokenizer.encode("one two three four", max_len=5)
    assert (cut.pieces, cut.truncated) == (["[CLS]", "one", "two", "three", "[SEP]"], 1)


def test_windows_cover_a_hundred_thousand_words(minilm: Path) -> None:
    tokenizer = Tokenizer.load(minilm)
    text = "attention shabby " * 50_000
    windows = tokenizer.windows(text, 512)
    assert all(len(w.ids) <= 512 and w.special[0] and w.special[-1] and not w.truncated for w in windows)
    assert [i for w in windows for i in w.ids[1:-1]] == tokenizer.encode(text).ids[1:-1]
    last = windows[-1]
    assert text[slice(*last.spans[-2])] == "bby" and last.spans[-1] == (0, 0)


def test_an_empty_text_is_one_window_of_special_tokens(minilm: Path) -> None:
    (window,) = Tokenizer.load(minilm).windows("", 512)
    assert window.pieces == ["[CLS]", "[SEP]"]


def test_decoding_returns_the_words(minilm: Path) -> None:
    tokenizer = Tokenizer.load(minilm)
    assert tokenizer.decode(tokenizer.encode("attention is not too shabby").ids) == "attention is not too shabby"
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.mask_id) == (30_522, 0, 103)


def test_half_a_surrogate_pair_is_refused(minilm: Path) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        Tokenizer.load(minilm).encode("\ud800")


def test_no_room_for_text_is_refused(minilm: Path) -> None:
    with pytest.raises(InputError, match="max_len 2 leaves no room"):
        Tokenizer.load(minilm).windows("word", 2)


def test_a_folder_without_a_tokenizer_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json, or vocab\.txt"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"version": ')
    with pytest.raises(CheckpointError, match=tmp_path.name):
        Tokenizer.load(tmp_path)


def test_a_vocabulary_without_special_tokens_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nword\n")
    with pytest.raises(CheckpointError, match=r"lacks \[CLS\], \[SEP\], \[MASK\]"):
        Tokenizer.load(tmp_path)
