"""translate and transcribe write what transformers writes from the same generation_config.json."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clearhead.checkpoints import save
from clearhead.checkpoints.generation_settings import GenerationSettings
from clearhead.cli.answers import Choices, Writer
from clearhead.cli.checkpoint_choices import beams_of, most_new
from clearhead.cli.languages import language_code
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import CheckpointError
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig

WORDS, PAD, END = 40, 2, 0
TEXTS = ([5, 6, 7, END], [9, 9, 4, 30, 31, END])
CASES: list[dict[str, Any]] = [
    {},
    {"bad_words_ids": [[5], [34, 34], [END]]},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 3.0},
    {"min_length": 9},
    {"min_new_tokens": 10},
    {"max_new_tokens": 4},
    {"max_length": 6, "forced_eos_token_id": END},
    {"forced_bos_token_id": 7},
    {"forced_bos_token_id": 7, "begin_suppress_tokens": list(range(3, 36))},
    {"begin_suppress_tokens": list(range(3, 36))},
    {"decoder_start_token_id": 6},
    {"num_beams": 4, "no_repeat_ngram_size": 2},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 3, "length_penalty": -1.0, "forced_bos_token_id": 7, "no_repeat_ngram_size": 1},
    {"num_beams": 2, "early_stopping": "never", "max_length": 8, "forced_eos_token_id": END, "min_length": 5},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a Marian, random, whose tokens are numbers in words."""
    import tokenizers

    config = EncoderDecoderConfig(
        vocab_size=WORDS, d_model=32, n_heads=4, d_ff=48, n_encoder_layers=1, n_decoder_layers=1, max_source_len=16,
        max_target_len=16, pad_id=PAD, start_id=PAD, end_id=END, dropout=0.0, logit_bias=True,
    )  # fmt: skip
    torch.manual_seed(7)
    model = EncoderDecoder(config).eval()
    for name, parameter in model.named_parameters():
        std = 0.3 if name.startswith("words") else 0.1 if parameter.ndim == 1 else 0.6
        torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=std)
    assert model.logit_bias is not None
    model.logit_bias.data.zero_()[END] = 2.5  # one answer ends by itself, the other does not
    vocab = {f"w{i}": i for i in range(WORDS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w1"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("pairs") / "pair"
    save(model, folder, family="marian", tokenizer=Tokenizer(backend, {}))
    return folder


def ours(folder: Path, beams: int | None = None) -> list[list[int]]:
    """Return the tokens that `translate` would write of each text."""
    writer = Writer("translate", str(folder))
    n_new = most_new(writer.settings, 1) or 12
    choices = Choices(n_new, beams_of(writer.settings, beams))
    found: list[list[int]] = [[] for _ in TEXTS]
    for step in writer.write([list(text) for text in TEXTS], n_new, choices):
        for token in step:
            found[token.row].append(token.id)
    return found


def theirs(folder: Path) -> list[list[int]]:
    """Return the tokens that transformers writes, each text alone."""
    model = transformers.MarianMTModel.from_pretrained(folder).eval()
    limit = {} if {"max_length", "max_new_tokens"} & json.loads(
        (folder / "generation_config.json").read_text()
    ).keys() else {"max_new_tokens": 12}  # fmt: skip
    rows = [model.generate(torch.tensor([text]), **limit)[0, 1:].tolist() for text in TEXTS]
    return [row[: row.index(END) + 1] if END in row else row for row in rows]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_answers_equal_those_of_transformers(settings: dict[str, Any], pair: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pair, tmp_path / "pair")
    # ours never writes padding, which transformers has to be told
    said = {"eos_token_id": END, "pad_token_id": PAD, "decoder_start_token_id": PAD, "suppress_tokens": [PAD]}
    (folder / "generation_config.json").write_text(json.dumps(said | settings))
    expected = theirs(folder)
    assert ours(folder) == expected
    if settings:  # else the setting is not tested at all
        (folder / "generation_config.json").write_text(json.dumps(said))
        assert ours(folder) != expected


def test_the_settings_of_an_older_config_count_where_there_is_no_file_about_writing(pair: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pair, tmp_path / "pair")
    config = json.loads((folder / "config.json").read_text()) | {"num_beams": 4, "no_repeat_ngram_size": 3}
    (folder / "config.json").write_text(json.dumps(config))
    settings = GenerationSettings.load(folder, WORDS)
    assert (settings.beams, settings.no_repeat, settings.unread) == (4, 3, ())


def test_what_is_not_honored_is_named(pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(pair, tmp_path / "pair")
    said = {"do_sample": True, "diversity_penalty": 0.0, "sequence_bias": [[[3], 1.0]], "temperature": 0.7, "new": None}
    (folder / "generation_config.json").write_text(json.dumps(said))
    Writer("translate", str(folder))
    assert "not done here: do_sample True, sequence_bias [[[3], 1.0]]\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [{"num_beams": 0}, {"bad_words_ids": [3]}, {"bad_words_ids": [[]]}, {"suppress_tokens": [WORDS]},
     {"forced_decoder_ids": [[1]]}, {"early_stopping": "ever"}, {"length_penalty": "long"}],
    ids=str,
)  # fmt: skip
def test_a_value_that_its_key_does_not_allow_is_refused(said: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=rf"generation_config\.json: {next(iter(said))}(\[0\])?: expected"):
        GenerationSettings.load(tmp_path, WORDS)


def test_languages_are_known_by_code_token_and_name() -> None:
    names = ("de", "<|de|>", "German", "haitian creole", "Castilian", "xx")
    assert [language_code(name) for name in names] == ["de", "de", "de", "ht", "es", "xx"]
