"""GPT-2, Llama, Mistral, Qwen and Gemma compute what transformers computes, whatever their configs ask for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clearhead.checkpoints import FAMILIES, load, origin, save
from published import DECODERS, TRUNKS, continuations, edit, make_decoder, padded, reopen_decoder

TOLERANCE = 1e-5  # float32, logits of order 1

# One setting of every key that changes the mathematics, away from its default. Texts are longer than the windows.
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in (*DECODERS, *TRUNKS)),
    ("GPT2LMHeadModel", {"n_inner": 50, "activation_function": "relu", "scale_attn_weights": False}),
    ("GPT2LMHeadModel", {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-2}),
    ("LlamaForCausalLM", {"tie_word_embeddings": True, "num_key_value_heads": None}),
    ("LlamaForCausalLM", {"attention_bias": True, "head_dim": 12, "rms_norm_eps": 1e-2}),
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    ("MistralForCausalLM", {"sliding_window": None}),
    ("MistralForCausalLM", {"sliding_window": 1, "head_dim": 10}),
    ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    ("Qwen3ForCausalLM", {"attention_bias": True, "tie_word_embeddings": True}),
    (
        "Qwen3ForCausalLM",
        {
            "use_sliding_window": True,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        },
    ),
    ("Gemma2ForCausalLM", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    ("Gemma2ForCausalLM", {"final_logit_softcapping": 2.0, "attention_bias": True, "query_pre_attn_scalar": 12}),
    ("Gemma3ForCausalLM", {"final_logit_softcapping": 2.0, "layer_types": ["full_attention"] * 4}),
    ("Gemma3ForCausalLM", {"hidden_activation": "silu", "tie_word_embeddings": False}),
    (
        "Gemma3ForCausalLM",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }
        },
    ),
]
STRETCHES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0},
    {"rope_type": "dynamic", "factor": 2.5},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 16},
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 8.0,
        "beta_slow": 0.5,
        "truncate": False,
        "attention_factor": 0.7,
    },
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "mscale": 1.0,
        "mscale_all_dim": 0.5,
    },
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
]


def assert_equal(ours: Tensor, expected: Tensor, starts: Tensor) -> None:
    """Compare where there is text; what padding gives means nothing, to either library."""
    inside = torch.arange(expected.shape[1]) >= starts[:, None]
    assert expected.std() > 0.1, "numbers too small to tell anything"
    torch.testing.assert_close(ours[inside], expected[inside], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("architecture, settings", CASES, ids=str)
def test_outputs_equal_transformers_and_go_round(architecture: str, settings: dict[str, Any], tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    theirs = make_decoder(architecture, **settings)
    theirs.save_pretrained(old)
    ours, (tokens, starts) = load(old), padded(17, 9, 1)
    with torch.inference_mode():
        assert_equal(ours(tokens, starts), continuations(theirs, tokens, starts), starts)
    save(ours, new)
    assert (new / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()
    assert json.loads((new / "config.json").read_text()) == json.loads((old / "config.json").read_text())


@pytest.mark.parametrize("rope", STRETCHES, ids=str)
@pytest.mark.parametrize("words", ["new", "old"])
def test_every_stretch_of_rotary_positions_equals_transformers(
    rope: dict[str, Any], words: str, tmp_path: Path
) -> None:
    theirs = make_decoder("LlamaForCausalLM", rope_parameters=dict(rope), max_position_embeddings=48)
    theirs.save_pretrained(tmp_path / "old")
    if words == "old":  # as transformers 4 wrote it
        scaling = None if rope["rope_type"] == "default" else {k: v for k, v in rope.items() if k != "rope_theta"}
        rope_theta = rope.get("rope_theta", 10_000.0)
        edit(tmp_path / "old", rope_parameters=None, rope_scaling=scaling, rope_theta=rope_theta)
    ours = load(tmp_path / "old")
    for length in (20, 60):  # a text within what was trained, a text beyond
        tokens, starts = padded(length, length)
        with torch.inference_mode():
            assert_equal(ours(tokens, starts), continuations(theirs, tokens, starts), starts)


@pytest.mark.parametrize("architecture", DECODERS)
def test_decoding_with_a_cache_equals_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make_decoder(architecture)
    theirs.save_pretrained(tmp_path)
    ours, (tokens, starts) = load(tmp_path), padded(14, 6)
    mask = (torch.arange(14) >= starts[:, None]).long()
    cache, remembered, came, expected = ours.new_cache(2, 14), None, [], []
    with torch.inference_mode():
        for first, last in ((0, 9), (9, 10), (10, 11), (11, 14)):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, first:last]
            step = theirs(
                input_ids=tokens[:, first:last],
                attention_mask=mask[:, :last],
                position_ids=positions,
                past_key_values=remembered,
                use_cache=True,
            )
            remembered = step.past_key_values
            expected.append(step.logits)
            came.append(ours(tokens[:, first:last], starts, cache=cache))
    assert_equal(torch.cat(came, dim=1), torch.cat(expected, dim=1), starts)


@pytest.mark.parametrize("architecture", DECODERS)
def test_bfloat16_differs_from_transformers_no_more_than_its_rounding(architecture: str, tmp_path: Path) -> None:
    theirs = make_decoder(architecture).bfloat16()
    theirs.save_pretrained(tmp_path)
    tokens, starts = padded(17, 9)
    exact = load(tmp_path)
    ours = load(tmp_path, dtype=None)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        truth, mine = exact(tokens, starts), ours(tokens, starts).float()
    inside = torch.arange(17) >= starts[:, None]
    their_error = (continuations(theirs, tokens, starts).float() - truth)[inside].square().mean().sqrt()
    my_error = (mine - truth)[inside].square().mean().sqrt()
    assert my_error < 1.25 * their_error


def test_loss_and_gradients_equal_transformers(tmp_path: Path) -> None:
    theirs = make_decoder("Gemma2ForCausalLM")
    theirs.save_pretrained(tmp_path)
    ours, (tokens, _) = load(tmp_path), padded(12, 12)
    theirs(input_ids=tokens, labels=tokens).loss.backward()
    torch.nn.functional.cross_entropy(ours(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    pairs = {
        "gpt.words.weight": "model.embed_tokens.weight",
        "gpt.blocks.0.attention.k_proj.weight": "model.layers.0.self_attn.k_proj.weight",
        "gpt.blocks.1.attention_norm.after.weight": "model.layers.1.post_attention_layernorm.weight",
        "gpt.blocks.3.feed_forward.gate_proj.weight": "model.layers.3.mlp.gate_proj.weight",
    }
    for mine, other in pairs.items():
        expected = theirs.get_parameter(other).grad
        torch.testing.assert_close(ours.get_parameter(mine).grad, expected, rtol=1e-4, atol=TOLERANCE)


@pytest.mark.parametrize("architecture", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_a_gemma_without_windows_built_by_hand_opens_in_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make_decoder(architecture, layer_types=["full_attention"] * 4)
    theirs.save_pretrained(tmp_path / "old")
    ours = load(tmp_path / "old")
    by_hand = type(ours)(ours.config).eval()
    by_hand.load_state_dict(ours.state_dict())
    save(by_hand, tmp_path / "new", family=origin(ours).family)
    tokens, starts = padded(17, 9)
    again = continuations(reopen_decoder(tmp_path / "new", architecture), tokens, starts)
    assert_equal(again, continuations(theirs, tokens, starts), starts)


@pytest.mark.parametrize("architecture", [*DECODERS, *TRUNKS])
def test_what_was_changed_opens_in_transformers(architecture: str, tmp_path: Path) -> None:
    # The config is then written anew, in the words of transformers 4.
    theirs = make_decoder(architecture)
    theirs.save_pretrained(tmp_path / "old")
    ours = load(tmp_path / "old")
    ours.config = replace(ours.config, attention_dropout=0.25)
    save(ours, tmp_path / "new")
    plain = FAMILIES[origin(ours).family].plain
    assert plain(load(tmp_path / "new").config) == plain(ours.config)
    tokens, starts = padded(17, 9)
    again = continuations(reopen_decoder(tmp_path / "new", architecture), tokens, starts)
    torch.testing.assert_close(again, continuations(theirs, tokens, starts), rtol=0, atol=0)
