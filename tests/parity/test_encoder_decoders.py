"""Marian, BART, T5 and Whisper compute what transformers computes, whatever their configs ask for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clearhead.checkpoints import FAMILIES, load, origin, save
from published import ENCODER_DECODERS, make_encoder_decoder, reopen_decoder, sources, translations

TOLERANCE = 1e-5  # float32, logits of order 1

# One setting of every key that changes the mathematics, away from its default.
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ENCODER_DECODERS),
    ("MarianMTModel", {"scale_embedding": False, "activation_function": "relu"}),
    ("BartForConditionalGeneration", {"scale_embedding": True, "activation_function": "gelu_new"}),
    ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-2}),
    ("T5ForConditionalGeneration", {"feed_forward_proj": "gated-silu", "tie_word_embeddings": False}),
    ("T5ForConditionalGeneration", {"feed_forward_proj": "gelu", "num_decoder_layers": None}),
    (
        "T5ForConditionalGeneration",
        {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "decoder_start_token_id": 5},
    ),
    ("WhisperForConditionalGeneration", {"activation_function": "relu", "scale_embedding": True}),
]


def targets() -> Tensor:
    """Return the beginnings of three answers."""
    return torch.randint(3, 61, (3, 11))


def assert_equal(ours: Tensor, expected: Tensor) -> None:
    """Compare numbers that are large enough to tell."""
    assert expected.std() > 0.1, "numbers too small to tell anything"
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("architecture, settings", CASES, ids=str)
def test_outputs_equal_transformers_and_go_round(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    theirs = make_encoder_decoder(architecture, **settings)
    theirs.save_pretrained(old)
    ours, (source, lengths), target = load(old), sources(architecture), targets()
    with torch.inference_mode():
        assert_equal(ours(source, target, lengths), translations(theirs, source, lengths, target))
    save(ours, new)
    assert (new / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()
    assert json.loads((new / "config.json").read_text()) == json.loads((old / "config.json").read_text())


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_decoding_with_a_cache_equals_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make_encoder_decoder(architecture)
    theirs.save_pretrained(tmp_path)
    ours, (source, lengths), target = load(tmp_path), sources(architecture), targets()
    with torch.inference_mode():
        memory, cache = ours.encode(source, lengths), ours.new_cache(3, 11)
        pieces = target.split([4, 1, 1, 5], dim=1)
        came = torch.cat([ours.decode(piece, memory, lengths, cache=cache) for piece in pieces], dim=1)
        assert_equal(ours.logits(came), translations(theirs, source, lengths, target))


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_what_was_changed_opens_in_transformers(architecture: str, tmp_path: Path) -> None:
    # The config is then written anew.
    theirs = make_encoder_decoder(architecture)
    theirs.save_pretrained(tmp_path / "old")
    ours = load(tmp_path / "old")
    ours.config = replace(ours.config, end_id=7)
    save(ours, tmp_path / "new")
    plain = FAMILIES[origin(ours).family].plain
    assert plain(load(tmp_path / "new").config) == plain(ours.config)
    (source, lengths), target = sources(architecture), targets()
    again = translations(reopen_decoder(tmp_path / "new", architecture), source, lengths, target)
    torch.testing.assert_close(again, translations(theirs, source, lengths, target), rtol=0, atol=0)


def test_relative_positions_reach_as_far_as_in_transformers(tmp_path: Path) -> None:
    # Sources longer than max_distance, so that every bucket is used on both sides.
    theirs = make_encoder_decoder("T5ForConditionalGeneration", relative_attention_max_distance=40)
    theirs.save_pretrained(tmp_path)
    ours, source, target = load(tmp_path), torch.randint(3, 61, (2, 70)), torch.randint(3, 61, (2, 60))
    lengths = torch.tensor([70, 45])
    with torch.inference_mode():
        assert_equal(ours(source, target, lengths), translations(theirs, source, lengths, target))


def test_sinusoids_far_into_a_text_are_those_of_marian(tmp_path: Path) -> None:
    theirs = make_encoder_decoder("MarianMTModel", max_position_embeddings=512)
    theirs.save_pretrained(tmp_path)
    expected = theirs.model.encoder.embed_positions.weight
    ours = load(tmp_path).encoder.positions(torch.arange(512))
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-5)  # of angles in float32


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_bfloat16_differs_from_transformers_no_more_than_its_rounding(architecture: str, tmp_path: Path) -> None:
    theirs = make_encoder_decoder(architecture).bfloat16()
    theirs.save_pretrained(tmp_path)
    (source, lengths), target = sources(architecture), targets()
    exact, ours = load(tmp_path), load(tmp_path, dtype=None)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    rounded = source.bfloat16() if source.is_floating_point() else source  # which ours does by itself
    with torch.inference_mode():
        truth, mine = exact(source, target, lengths), ours(source, target, lengths).float()
    their_error = (translations(theirs, rounded, lengths, target).float() - truth).square().mean().sqrt()
    assert (mine - truth).square().mean().sqrt() < 1.25 * their_error


def test_gradients_equal_transformers(tmp_path: Path) -> None:
    theirs = make_encoder_decoder("T5ForConditionalGeneration")
    theirs.save_pretrained(tmp_path)
    ours, target = load(tmp_path), targets()
    source = torch.randint(3, 61, (3, 13))
    theirs(input_ids=source, decoder_input_ids=target).logits.logsumexp(-1).mean().backward()
    ours(source, target).logsumexp(-1).mean().backward()
    pairs = {
        "words.weight": "shared.weight",
        "encoder.order.weight": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.blocks.1.feed_forward.up_proj.weight": "encoder.block.1.layer.1.DenseReluDense.wi.weight",
        "decoder.order.weight": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.blocks.2.cross_attention.k_proj.weight": "decoder.block.2.layer.1.EncDecAttention.k.weight",
    }
    for mine, other in pairs.items():
        expected = theirs.get_parameter(other).grad
        assert expected.abs().max() > 1e-5
        torch.testing.assert_close(ours.get_parameter(mine).grad, expected, rtol=1e-3, atol=1e-6)
