"""The families of encoder-decoders: configs as they were published, tensors under older names, and every refusal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead.checkpoints import ENCODER_DECODERS, FAMILIES, load, origin, save
from clearhead.checkpoints.family import HARMLESS
from clearhead.errors import CheckpointError
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from published import ENCODER_DECODERS as ARCHITECTURES
from published import edit, make_encoder_decoder, reopen_decoder, sources, translations

WEIGHTS = "model.safetensors"

# config.json as published, but for keys that every config has and that change nothing.
PUBLISHED: dict[str, dict[str, Any]] = {
    "opus-mt-en-de": {
        "_num_labels": 3,
        "activation_dropout": 0.0,
        "activation_function": "swish",
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "architectures": ["MarianMTModel"],
        "attention_dropout": 0.0,
        "bad_words_ids": [[58100]],
        "bos_token_id": 0,
        "classif_dropout": 0.0,
        "d_model": 512,
        "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048,
        "decoder_layerdrop": 0.0,
        "decoder_layers": 6,
        "decoder_start_token_id": 58100,
        "decoder_vocab_size": 58101,
        "dropout": 0.1,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "encoder_layerdrop": 0.0,
        "encoder_layers": 6,
        "eos_token_id": 0,
        "extra_pos_embeddings": 58101,
        "forced_eos_token_id": 0,
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "max_length": 512,
        "max_position_embeddings": 512,
        "model_type": "marian",
        "normalize_before": False,
        "normalize_embedding": False,
        "num_beams": 6,
        "num_hidden_layers": 6,
        "pad_token_id": 58100,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": True,
        "static_position_embeddings": True,
        "vocab_size": 58101,
    },
    "bart-large-cnn": {
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "add_final_layer_norm": False,
        "architectures": ["BartForConditionalGeneration"],
        "attention_dropout": 0.0,
        "classifier_dropout": 0.0,
        "d_model": 1024,
        "decoder_attention_heads": 16,
        "decoder_ffn_dim": 4096,
        "decoder_layers": 12,
        "decoder_start_token_id": 2,
        "dropout": 0.1,
        "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "encoder_layers": 12,
        "eos_token_id": 2,
        "force_bos_token_to_be_generated": True,
        "forced_bos_token_id": 0,
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "max_position_embeddings": 1024,
        "model_type": "bart",
        "normalize_before": False,
        "pad_token_id": 1,
        "prefix": " ",
        "scale_embedding": False,
        "vocab_size": 50264,
    },
    "bart-base": {
        "activation_dropout": 0.1,
        "add_bias_logits": False,
        "architectures": ["BartModel"],
        "attention_dropout": 0.1,
        "d_model": 768,
        "decoder_attention_heads": 12,
        "decoder_ffn_dim": 3072,
        "decoder_layers": 6,
        "encoder_attention_heads": 12,
        "encoder_ffn_dim": 3072,
        "encoder_layers": 6,
        "is_encoder_decoder": True,
        "max_position_embeddings": 1024,
        "model_type": "bart",
        "normalize_embedding": True,
        "vocab_size": 50265,
    },
    "t5-small": {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 2048,
        "d_kv": 64,
        "d_model": 512,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "num_heads": 8,
        "num_layers": 6,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_num_buckets": 32,
        "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}},
        "vocab_size": 32128,
    },
    "flan-t5-small": {
        "architectures": ["T5ForConditionalGeneration"],
        "d_ff": 1024,
        "d_kv": 64,
        "d_model": 512,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "model_type": "t5",
        "n_positions": 512,
        "num_decoder_layers": 8,
        "num_heads": 6,
        "num_layers": 8,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "vocab_size": 32128,
    },
    "whisper-tiny": {
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "architectures": ["WhisperForConditionalGeneration"],
        "attention_dropout": 0.0,
        "begin_suppress_tokens": [220, 50257],
        "bos_token_id": 50257,
        "d_model": 384,
        "decoder_attention_heads": 6,
        "decoder_ffn_dim": 1536,
        "decoder_layers": 4,
        "decoder_start_token_id": 50258,
        "dropout": 0.0,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "encoder_layers": 4,
        "eos_token_id": 50257,
        "forced_decoder_ids": [[1, 50259], [2, 50359], [3, 50363]],
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "max_length": 448,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "model_type": "whisper",
        "num_hidden_layers": 4,
        "num_mel_bins": 80,
        "pad_token_id": 50257,
        "scale_embedding": False,
        "suppress_tokens": [],
        "vocab_size": 51865,
    },
}
FACTS: dict[str, dict[str, Any]] = {
    "opus-mt-en-de": {"positions": "sinusoidal", "embedding_scale": None, "activation": "silu", "start_id": 58_100},
    "bart-large-cnn": {"first_position": 2, "embedding_norm": True, "embedding_scale": 1.0, "max_source_len": 1_024},
    "bart-base": {"attention_dropout": 0.1, "activation": "gelu", "pad_id": 1, "start_id": 2, "end_id": 2},
    "t5-small": {"feed_forward": "plain", "activation": "relu", "tied": True, "logit_scale": 512**-0.5, "scale": 1.0},
    "flan-t5-small": {"feed_forward": "gated", "activation": "gelu_tanh", "tied": False, "logit_scale": 1.0},
    "whisper-tiny": {"n_mels": 80, "biases": "all_but_keys", "norms": "before", "max_target_len": 448},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_and_written_again(name: str) -> None:
    published, names = PUBLISHED[name], ["lm_head.weight"]
    family, architecture = FAMILIES[published["model_type"]], published["architectures"][0]
    config = family.read_config(published, architecture, names)
    assert {key: getattr(config, key) for key in FACTS[name]} == FACTS[name]
    plain = family.plain(config)
    written = {"model_type": family.model_type, **family.write_config(plain)}
    assert family.plain(family.read_config(written, architecture, names)) == plain


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    "architecture, others",
    [
        ("MarianMTModel", {"lm_head": "shared", "model.encoder.embed_tokens": "shared"}),
        ("BartForConditionalGeneration", {"lm_head": "shared", "model.decoder.embed_tokens": "shared"}),
        ("T5ForConditionalGeneration", {"encoder.embed_tokens": "shared", "lm_head": "shared"}),
        ("WhisperForConditionalGeneration", {"proj_out": "decoder.embed_tokens"}),
    ],
)
def test_copies_of_the_words_are_one_matrix_or_refused(
    architecture: str, others: dict[str, str], tmp_path: Path
) -> None:
    make_encoder_decoder(architecture).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    prefix = "" if architecture.startswith("T5") else "model."
    copies = {f"{name}.weight": tensors[f"{prefix}{words}.weight"].clone() for name, words in others.items()}
    save_file({**tensors, **copies}, tmp_path / WEIGHTS)
    assert load(tmp_path).head is None
    for name in copies:
        save_file({**tensors, **copies, name: copies[name] + 1}, tmp_path / WEIGHTS)
        with pytest.raises(CheckpointError, match=f"'{name}' should equal"):
            load(tmp_path)


def test_bart_base_is_the_trunk_alone_without_a_prefix(tmp_path: Path) -> None:
    theirs = make_encoder_decoder("BartForConditionalGeneration")
    theirs.model.save_pretrained(tmp_path / "old")
    edit(tmp_path / "old", architectures=["BartModel"])
    assert "shared.weight" in load_file(tmp_path / "old" / WEIGHTS)
    ours, (source, lengths) = load(tmp_path / "old"), sources("Bart")
    target = torch.randint(3, 61, (3, 7))
    theirs.final_logits_bias.zero_()
    with torch.inference_mode():
        expected = translations(theirs, source, lengths, target)
        torch.testing.assert_close(ours(source, target, lengths), expected, rtol=0, atol=1e-5)
    save(ours, tmp_path / "new")
    again = reopen_decoder(tmp_path / "new", "BartForConditionalGeneration")
    torch.testing.assert_close(translations(again, source, lengths, target), expected, rtol=0, atol=0)


def test_what_older_files_hold_besides_is_ignored(tmp_path: Path) -> None:
    more = {
        "MarianMTModel": {"model.encoder.embed_positions.weight": torch.rand(40, 32)},
        "T5ForConditionalGeneration": {
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.rand(32, 4)
        },
    }
    for architecture, extra in more.items():
        make_encoder_decoder(architecture).save_pretrained(tmp_path / architecture)
        path, without = tmp_path / architecture / WEIGHTS, load(tmp_path / architecture).state_dict()
        save_file({**load_file(path), **extra}, path)
        again = load(tmp_path / architecture).state_dict()
        assert again.keys() == without.keys()
        assert all(torch.equal(tensor, without[name]) for name, tensor in again.items())


@pytest.mark.parametrize("since", [4, 5])
def test_output_words_of_flan_t5_are_its_own(since: int, tmp_path: Path) -> None:
    # Transformers 4 wrote tie_word_embeddings: false; 5 writes true, and scale_decoder_outputs: false.
    theirs = make_encoder_decoder("T5ForConditionalGeneration", tie_word_embeddings=False)
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(61, 32))
    theirs.save_pretrained(tmp_path / "old", save_original_format=False)
    tensors = load_file(tmp_path / "old" / WEIGHTS)
    save_file({**tensors, "lm_head.weight": theirs.lm_head.weight.detach()}, tmp_path / "old" / WEIGHTS)
    if since == 4:
        edit(tmp_path / "old", tie_word_embeddings=False, scale_decoder_outputs=None)
    ours, (source, lengths) = load(tmp_path / "old"), sources("T5")
    assert not ours.config.tied and ours.config.logit_scale == 1.0
    target = torch.randint(3, 61, (3, 7))
    with torch.inference_mode():
        mine = ours(source, target, lengths)
    torch.testing.assert_close(mine, translations(theirs, source, lengths, target), rtol=0, atol=2e-5)
    ours.config = replace(ours.config, end_id=7)  # and so written anew
    save(ours, tmp_path / "new")
    again = reopen_decoder(tmp_path / "new", "T5ForConditionalGeneration")
    torch.testing.assert_close(translations(again, source, lengths, target), mine, rtol=0, atol=2e-5)


# ---------------------------------------------------------------- saving what was built by hand

BY_HAND = EncoderDecoderConfig(
    vocab_size=61, d_model=32, n_heads=4, n_encoder_layers=2, n_decoder_layers=3, d_ff=37, pad_id=2, start_id=3
)
LEARNED = replace(BY_HAND, positions="learned", max_source_len=40, max_target_len=40)
KINDS: dict[str, EncoderDecoderConfig] = {
    "marian": BY_HAND,  # as it comes
    "bart": replace(LEARNED, first_position=2, embedding_norm=True, logit_bias=True),
    "t5": replace(
        BY_HAND,
        positions="relative",
        norm="rms",
        norms="before",
        biases="none",
        feed_forward="gated",
        activation="gelu",
        scale=1.0,
        embedding_scale=1.0,
        d_head=6,
        max_source_len=99,
    ),
    "whisper": replace(
        LEARNED, n_mels=8, max_source_len=12, norms="before", biases="all_but_keys", embedding_scale=1.0
    ),
}


@pytest.mark.parametrize("family", KINDS)
def test_what_is_built_by_hand_opens_in_transformers_and_here(family: str, tmp_path: Path) -> None:
    ours = EncoderDecoder(KINDS[family]).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save(ours, tmp_path)  # in the first family that has words for it
    again = load(tmp_path)
    assert origin(again).family == family
    assert FAMILIES[family].plain(again.config) == FAMILIES[family].plain(ours.config)
    name = next(iter(FAMILIES[family].architectures))
    theirs, (source, lengths), target = reopen_decoder(tmp_path, name), sources(name), torch.randint(3, 61, (3, 9))
    with torch.inference_mode():
        mine = ours(source, target, lengths)
        expected = translations(theirs, source, lengths, target)
        torch.testing.assert_close(mine, expected, rtol=0, atol=2e-5)
        assert torch.equal(again(source, target, lengths), mine)


@pytest.mark.parametrize("bend", ["relu", "relu_squared", "silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("feed_forward", ["plain", "gated"])
def test_t5_has_words_for_every_feed_forward(feed_forward: Any, bend: str, tmp_path: Path) -> None:
    ours = EncoderDecoder(replace(KINDS["t5"], feed_forward=feed_forward, activation=bend)).eval()
    save(ours, tmp_path)
    assert load(tmp_path).config.activation == bend
    theirs, (source, lengths) = reopen_decoder(tmp_path, "T5ForConditionalGeneration"), sources("T5")
    target = torch.randint(3, 61, (3, 5))
    with torch.inference_mode():
        mine = ours(source, target, lengths)
    torch.testing.assert_close(mine, translations(theirs, source, lengths, target), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "kind, change, said",
    [
        ("marian", {"norms": "before"}, "no place for 'decoder.norm.bias'"),
        ("marian", {"embedding_scale": 3.0}, "embedding_scale 3.0 would be read as 5.65"),
        ("marian", {"max_target_len": 7}, "max_target_len 7 would be read as 1024"),
        ("marian", {"logit_scale": 0.5}, "logit_scale 0.5 would be read as 1.0"),
        ("bart", {"first_position": 0}, "first_position 0 would be read as 2"),
        ("bart", {"tied": False}, "no place for 'head.weight'"),
        ("bart", {"norm_eps": 1e-6}, "norm_eps 1e-06 would be read as 1e-05"),
        ("t5", {"scale": None}, "scale 0.408"),
        ("t5", {"tied": False, "logit_scale": 32**-0.5}, "tied False would be read as True"),
        ("t5", {"logit_scale": 0.5}, "logit_scale 0.5 would be read as 0.17"),
        ("t5", {"attention_dropout": 0.0}, "attention_dropout 0.0 would be read as 0.1"),
        ("whisper", {"embedding_scale": 2.0}, "embedding_scale 2.0 would be read as 1.0"),
    ],
)
def test_a_family_that_cannot_describe_a_model_says_so(
    kind: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        save(EncoderDecoder(replace(KINDS[kind], **change)), tmp_path / "new", family=kind)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- configs of other models

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("MarianMTModel", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings is False"),
    ("MarianMTModel", {"decoder_vocab_size": 60}, "decoder_vocab_size is 60"),
    ("MarianMTModel", {"normalize_before": True}, "normalize_before is True"),
    ("MarianMTModel", {"static_position_embeddings": False}, "static_position_embeddings is False"),
    ("MarianMTModel", {"decoder_ffn_dim": 40}, "decoder_ffn_dim 40 is not encoder_ffn_dim 37"),
    ("MarianMTModel", {"d_model": 34}, "d_model 34 does not divide into 4 heads"),
    ("BartForConditionalGeneration", {"decoder_attention_heads": 2}, "decoder_attention_heads 2 is not encoder"),
    ("BartForConditionalGeneration", {"decoder_attention_heads": None}, "decoder_attention_heads 16 is not encoder"),
    ("BartForConditionalGeneration", {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
    ("BartForConditionalGeneration", {"normalize_embedding": False}, "normalize_embedding is False"),
    ("BartForConditionalGeneration", {"architectures": ["BartForQuestionAnswering"]}, "expected one of BartFor"),
    ("T5ForConditionalGeneration", {"dense_act_fn": "swish2"}, "'swish2' is unknown; did you mean 'swish'"),
    ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-", "dense_act_fn": None}, "'gated-': '' is unknown"),
    ("T5ForConditionalGeneration", {"relative_attention_max_distance": 16}, "32 buckets for max_distance 16"),
    ("T5ForConditionalGeneration", {"is_encoder_decoder": False}, "is_encoder_decoder is False"),
    ("WhisperForConditionalGeneration", {"use_weighted_layer_sum": True}, "use_weighted_layer_sum is True"),
    ("WhisperForConditionalGeneration", {"num_mel_bins": 0}, "expected positive numbers, got n_mels 0"),
    ("WhisperForConditionalGeneration", {"quantization_config": {"bits": 4}}, "unknown key 'quantization_config'"),
]


@pytest.mark.parametrize("architecture, keys, said", REFUSED, ids=str)
def test_a_config_of_another_model_is_refused(
    architecture: str, keys: dict[str, Any], said: str, tmp_path: Path
) -> None:
    make_encoder_decoder(architecture).save_pretrained(tmp_path)
    edit(tmp_path, **keys)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert said in str(caught.value) and str(tmp_path) in str(caught.value)


STRANGE = (None, True, 0, -1, 1.5, 2**31 - 1, 10**30, 1e400, "", "x", "gated-", [], [None], {}, {"0": None})


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_no_value_of_any_key_escapes_the_checks(architecture: str, tmp_path: Path) -> None:
    make_encoder_decoder(architecture).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    read = {"decoder_start_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "scale_decoder_outputs"}
    for key in {key for key in config if key not in HARMLESS} | read:
        for value in STRANGE:
            (tmp_path / "config.json").write_text(json.dumps({**config, key: value}).replace("Infinity", "1e400"))
            try:
                load(tmp_path)
            except CheckpointError as error:
                assert str(tmp_path) in str(error)


def test_every_encoder_decoder_is_listed_and_tested() -> None:
    tested = {make_encoder_decoder(name).config.model_type for name in ARCHITECTURES}
    assert tested == {family.model_type for family in ENCODER_DECODERS} == set(KINDS)
    architectures = {name for family in ENCODER_DECODERS for name in family.architectures}
    assert architectures == {*ARCHITECTURES, "BartModel"}
