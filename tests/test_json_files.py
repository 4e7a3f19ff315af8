"""Small JSON files of a checkpoint: what is wrong in one is said, with file and key, when the checkpoint opens."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clearhead.checkpoints import load
from clearhead.checkpoints.endings import stated_tokens
from clearhead.cli.sentence_transformers import Before
from clearhead.data.images import ImageProcessor
from clearhead.data.sound import SoundProcessor
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import CheckpointError
from clearhead.json_files import (
    BOOLEAN,
    MAX_BYTES,
    MAX_DEPTH,
    POSITIVE,
    TEXT,
    Kind,
    list_of,
    mapping_to,
    number,
    one_or_several,
    read_json,
    whole,
)
from test_cli import folder as folder
from test_cli_models import hearing as hearing
from test_cli_models import photos as photos
from test_cli_models import places as places
from test_cli_models import speech as speech
from test_cli_models import tokenizer as tokenizer

# ---------------------------------------------------------------- the reader


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b'{"a": "\xff"}', "invalid start byte"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": -Infinity}', "holds -Infinity"),
        (b'{"a": 1e999}', "holds 1e999"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "a number of 5,000 digits"),
        (b'{"a": {"b": "\\ud800"}}', "'a': '\\\\ud800' holds half of a surrogate pair"),
        (b'{"\\udfff": 1}', "half of a surrogate pair"),
        (b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}", f"'a': .* more than {MAX_DEPTH} deep"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b'{"b": ' * 950 + b"1" + b"}" * 950 + b"}", f"more than {MAX_DEPTH} deep|nested too deeply"),
    ],
)
def test_a_file_that_no_model_can_use_is_refused_with_its_name_and_the_reason(
    content: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as raised:
        read_json(path)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 500


def test_letters_beyond_16_bits_are_read_as_pairs_and_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": "\\ud83d\\ude00", "b": "😀", "n": 1e30, "big": 1' + 30 * "0" + "}")
    said = read_json(tmp_path / "config.json")
    assert said == {"a": "😀", "b": "😀", "n": 1e30, "big": 10**30}


def test_what_is_no_small_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no absent\.json"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(CheckpointError, match="is not a file"):
        read_json(tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(CheckpointError, match="expected a small JSON file"):
        read_json(tmp_path / "large.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is not a file"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("kind", "fits", "others"),
    [
        (BOOLEAN, [True, False], [0, 1, "true", []]),
        (TEXT, ["", "x"], [1, None, ["x"], {}]),
        (whole(0, 9), [0, 9], [-1, 10, True, 3.0, "3", 10**300]),
        (number(0, 1), [0, 1, 0.5], [-0.1, 2, True, float("nan"), "1", 10**300]),
        (number(), [-1, 10**300], [float("inf"), float("nan"), None, 10**400]),
        (POSITIVE, [1, 1e-300], [0, 0.0, -1]),
        (list_of(TEXT), [[], ["a"]], ["a", [1], {"a": "b"}, None]),
        (mapping_to(TEXT), [{}, {"a": "b"}], [["a"], {"a": 1}, "a"]),
        (one_or_several(whole(0, 9)), [3, [3, 4], []], [10, [10], [[3]], "3"]),
    ],
)
def test_a_kind_is_what_its_words_say(kind: Kind, fits: list[Any], others: list[Any]) -> None:
    assert all(kind.check("key", value) is value for value in fits)
    for value in others:
        with pytest.raises(CheckpointError) as raised:
            kind.check("key", value)
        inner = kind if kind.each is None or not kind.fits(value) else kind.each
        assert f": expected {inner.expected}, got " in str(raised.value) and str(raised.value).startswith("key")
        assert len(str(raised.value)) < 200


# ---------------------------------------------------------------- when a checkpoint opens


def changed(source: Path, target: Path, file: str, **keys: Any) -> Path:
    """Return a copy of a checkpoint in which one JSON file says something else."""
    shutil.copytree(source, target)
    path = target / file
    path.parent.mkdir(exist_ok=True)
    said = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**said, **keys}))
    return target


def opened(source: Path) -> None:
    """Open all that a checkpoint holds; no text, picture or sound is read."""
    model: Any = load(source)
    if (source / "tokenizer.json").is_file() or (source / "vocab.txt").is_file():
        Tokenizer.load(source)
        stated_tokens(source, "eos_token_id", model.config.vocab_size)
    if getattr(model.config, "n_mels", None) is not None:
        SoundProcessor.load(source).require_fits(model.config.n_mels, 2 * model.config.max_source_len)
    elif hasattr(model.config, "patch_size"):
        ImageProcessor.load(source).require_fits(model.config.patch_size, model.config.image_size)
    Before.of(source)


@pytest.mark.parametrize(
    ("model", "file", "key", "value", "expected"),
    [
        ("gpt", "config.json", "vocab_size", 10**12, "expected a whole number from 0 to 2,147,483,647"),
        ("gpt", "config.json", "n_embd", "32", "expected a whole number"),
        ("gpt", "config.json", "attn_pdrop", 10**250, "GPTConfig: attention_dropout must be in"),
        ("gpt", "config.json", "layer_norm_epsilon", [1], "expected a number from 0"),
        ("gpt", "tokenizer_config.json", "eos_token", 3, "expected a token"),
        ("gpt", "tokenizer_config.json", "unk_token", {"content": 3}, "expected a token"),
        ("gpt", "tokenizer_config.json", "add_prefix_space", "no", "expected true or false"),
        ("gpt", "special_tokens_map.json", "mask_token", [1], "expected a token"),
        (
            "gpt",
            "tokenizer_config.json",
            "added_tokens_decoder",
            {"x": "y"},
            "expected an object with a token for each",
        ),
        (
            "gpt",
            "tokenizer_config.json",
            "added_tokens_decoder",
            {"5": {"content": "a", "special": 1}},
            "expected a to",
        ),
        ("gpt", "tokenizer_config.json", "extra_special_tokens", {"a": 3}, "expected several tokens"),
        ("gpt", "added_tokens.json", "<x>", "5", "expected the number of a piece"),
        ("gpt", "generation_config.json", "eos_token_id", "x", "expected a token id"),
        ("gpt", "generation_config.json", "forced_bos_token_id", 10**6, "expected a token id from 0 to"),
        ("gpt", "generation_config.json", "suppress_tokens", {}, "expected a list"),
        ("gpt", "model.safetensors.index.json", "weight_map", {"x": "../x"}, "the name of a file in this folder"),
        ("gpt", "model.safetensors.index.json", "weight_map", [3], "expected an object"),
        ("bert", "1_Pooling/config.json", "pooling_mode_cls_token", "x", "expected true or false"),
        ("bert", "1_Pooling/config.json", "pooling_mode", 7, "expected a text"),
        ("bert", "config_sentence_transformers.json", "prompts", {"query": 3}, "expected a text"),
        ("bert", "sentence_bert_config.json", "do_lower_case", "yes", "expected true or false"),
        ("vit", "config.json", "id2label", {"0": []}, "expected an object with a name for each of 0, 1, 2"),
        ("vit", "preprocessor_config.json", "do_resize", 1, "expected true or false"),
        ("vit", "preprocessor_config.json", "size", {"height": 10**9, "width": 3}, "expected a whole number, or"),
        ("vit", "preprocessor_config.json", "size", 60_000, "expected at most 256, 16 times the image_size"),
        ("vit", "preprocessor_config.json", "size", 17, "expected multiples of patch_size 4, got (17, 17)"),
        ("pair", "config.json", "decoder_start_token_id", 10**6, "start_id 1000000 is not one of the"),
        ("whisper", "config.json", "decoder_start_token_id", 10**6, "start_id 1000000 is not one of the"),
        ("pair", "config.json", "pad_token_id", 10**6, "pad_id 1000000 is not one of the"),
        ("vit", "preprocessor_config.json", "image_std", [0, 1, 1], "expected a number above 0"),
        ("vit", "preprocessor_config.json", "resample", 2.0, "expected a whole number from 0 to 5"),
        ("vit", "preprocessor_config.json", "image_processor_type", ["ViT"], "expected a text"),
        ("whisper", "preprocessor_config.json", "n_fft", 10**12, "expected a whole number from 2 to"),
        ("whisper", "preprocessor_config.json", "chunk_length", 0.5, "expected a whole number from 1 to"),
        ("whisper", "preprocessor_config.json", "feature_size", 9, "expect 100 of 8"),
        ("whisper", "preprocessor_config.json", "chunk_length", 4000, "expect 100 of 8"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_file_and_key_before_anything_is_read(
    model: str,
    file: str,
    key: str,
    value: Any,
    expected: str,
    places: dict[str, Path],
    hearing: Path,
    tmp_path: Path,
) -> None:
    source = changed({**places, "whisper": hearing}[model], tmp_path / "copy", file, **{key: value})
    if "index" in file:
        (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as raised:
        opened(source)
    for part in (Path(file).name, expected, *([key] if type(value) is not int or value < 10**5 else [])):
        assert part in str(raised.value)


# ---------------------------------------------------------------- any damage

VALUES = (True, -1, 0, 7, 10**12, 10**250, 0.5, 1e300, "", "x", [], [1], ["x"], {}, {"a": 1}, [10**9], {"content": 3})
KEYS = {
    "config.json": "num_labels id2label eos_token_id forced_bos_token_id decoder_start_token_id pad_token_id "
    "architecture architectures model_type pretrained_cfg model_args rope_parameters num_channels dtype",
    "tokenizer_config.json": "unk_token cls_token sep_token pad_token mask_token eos_token do_lower_case strip_accents "
    "tokenize_chinese_chars add_prefix_space additional_special_tokens added_tokens_decoder extra_special_tokens "
    "tokenizer_class",
    "added_tokens.json": "x",
    "special_tokens_map.json": "unk_token mask_token additional_special_tokens",
    "generation_config.json": "eos_token_id forced_bos_token_id suppress_tokens begin_suppress_tokens is_multilingual "
    "lang_to_id",
    "preprocessor_config.json": "do_resize size resample do_center_crop crop_size do_rescale rescale_factor "
    "do_normalize image_mean image_std default_to_square image_processor_type feature_size sampling_rate n_fft "
    "hop_length chunk_length do_convert_rgb padding_value",
    "config_sentence_transformers.json": "prompts default_prompt_name",
    "sentence_bert_config.json": "do_lower_case max_seq_length",
    "1_Pooling/config.json": "pooling_mode pooling_mode_cls_token word_embedding_dimension",
}


def damages(source: Path, chance: random.Random) -> Iterator[tuple[str, str, Any]]:
    """Yield files, keys and values without end."""
    while True:
        file = chance.choice(sorted(KEYS))
        path = source / file
        said = json.loads(path.read_text()) if path.is_file() else {}
        yield file, chance.choice(sorted({*said, *KEYS[file].split()})), chance.choice(VALUES)


def test_no_damage_ends_in_an_error_of_pythons_own(
    call: Any, places: dict[str, Path], hearing: Path, folder: Path, photos: Path, speech: Path, tmp_path: Path
) -> None:
    commands = {
        places["gpt"]: ("generate", "fox", "--max-new-tokens", "2"),
        places["bert"]: ("embed", "fox"),
        places["pair"]: ("translate", "fox", "--max-new-tokens", "2"),
        places["vit"]: ("classify", photos / "0.png"),
        hearing: ("transcribe", speech),
        folder: ("classify", "attention"),
    }
    chance, each = random.Random(6), int(os.environ.get("CLEARHEAD_FUZZ", "60")) // len(commands)
    for i, (source, argv) in enumerate(commands.items()):
        for trial, (file, key, value) in zip(range(each), damages(source, chance)):
            place = changed(source, tmp_path / f"{i}-{trial}", file, **{key: value})
            done = call(*argv, "--json", "--model", place)  # raises whatever is no error of ours
            assert done.code in (0, 1), (file, key, value)
            assert len(done.err) < 1_000 and (done.code == 0 or "clearhead: " in done.err), (file, key, value)
            shutil.rmtree(place)
