"""ModernBERT computes what transformers computes, and goes round bit for bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from clearhead.checkpoints import load, save, with_head
from clearhead.classification import classify, embed
from clearhead.errors import CheckpointError, ConfigError
from clearhead.models.gpt import RotaryConfig
from clearhead.models.modernbert import (
    ModernBert,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)
from published import answers, edit, ragged

HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "local_attention": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


def make(head: str, **settings: Any) -> Any:
    """Return transformers' ModernBERT, every parameter random: fresh norms and biases would hide mistakes."""
    labels = {"id2label": dict(enumerate("abc")), "label2id": {name: i for i, name in enumerate("abc")}}
    config = transformers.ModernBertConfig(**{**SIZES, **labels, **settings})
    model = getattr(transformers, f"ModernBert{head}")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, std=0.2)
    return model


SETTINGS: list[dict[str, Any]] = [
    {},
    {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True},
    {"classifier_pooling": "mean", "decoder_bias": False, "layer_types": ["sliding_attention"] * 4},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("head", HEADS)
def test_outputs_equal_transformers_and_files_go_round(head: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = make(head, **settings)
    theirs.save_pretrained(tmp_path / "old")
    ours = load(tmp_path / "old")
    tokens, lengths = ragged(0)
    with torch.inference_mode():
        mine = ours(tokens, lengths)
    expected = answers(theirs, tokens, lengths)
    rows = (slice(None),) if mine.ndim == 2 else (torch.arange(17) < lengths[:, None],)
    assert expected.std() > 0.05, "numbers too small to tell anything"
    torch.testing.assert_close(mine[rows], expected[rows], rtol=0, atol=1e-5)
    save(ours, tmp_path / "new")
    for name in ("model.safetensors", "config.json"):
        before, after = ((tmp_path / folder / name).read_bytes() for folder in ("old", "new"))
        assert before == after if name != "config.json" else json.loads(before) == json.loads(after)


def test_the_config_of_transformers_4_says_the_same(tmp_path: Path) -> None:
    make("Model").save_pretrained(tmp_path)
    modern = load(tmp_path).config
    published = json.loads((tmp_path / "config.json").read_text())
    for key in ("layer_types", "rope_parameters"):
        del published[key]
    published |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    (tmp_path / "config.json").write_text(json.dumps(published))
    assert load(tmp_path).config == modern
    edit(tmp_path, global_rope_theta=80_000.0)
    assert load(tmp_path).config.rotary == RotaryConfig(base=80_000.0)


@pytest.mark.parametrize(
    "head, kind",
    [
        ("Model", ModernBert),
        ("ForMaskedLM", ModernBertForMaskedLM),
        ("ForSequenceClassification", ModernBertForSequenceClassification),
        ("ForTokenClassification", ModernBertForTokenClassification),
    ],
)
def test_what_is_built_by_hand_opens_in_transformers(head: str, kind: type, tmp_path: Path) -> None:
    config = ModernBertConfig(
        vocab_size=61, d_model=32, n_heads=4, n_layers=3, d_ff=24, max_len=64, pad_id=0, windows=(5, None),
        rotary=RotaryConfig(base=500.0), labels=("a", "b"), pool="mean",
    )  # fmt: skip
    ours = kind(config).eval()
    save(ours, tmp_path)
    auto = getattr(transformers, f"AutoModel{head.removeprefix('Model')}")
    theirs, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens, lengths = ragged(0)
    with torch.inference_mode():
        mine = ours(tokens, lengths)
    rows = (slice(None),) if mine.ndim == 2 else (torch.arange(17) < lengths[:, None],)
    torch.testing.assert_close(mine[rows], answers(theirs.eval(), tokens, lengths)[rows], rtol=0, atol=1e-5)
    assert load(tmp_path).config == config


def test_no_padding_is_no_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    make("ForMaskedLM").save_pretrained(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    ours = load(tmp_path / "old")
    assert ours.config.pad_id == 0
    ours.config = replace(ours.config, max_len=63)  # written anew
    save(ours, tmp_path / "new")
    assert transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "new").config.pad_token_id == 0
    with pytest.raises(ConfigError, match="pad_id 50283 is not one of the 61 token ids"):
        ModernBertConfig(vocab_size=61)


def test_texts_are_labelled_and_embedded_as_if_alone() -> None:
    config = ModernBertConfig(vocab_size=61, d_model=32, n_heads=4, n_layers=3, d_ff=24, labels=("a", "b"), pad_id=0)
    model = ModernBertForSequenceClassification(config).eval()
    rows = [[5, 6, 7], [8] * 12, [9]]
    with torch.inference_mode():
        alone = [model(torch.tensor([row])).softmax(-1)[0] for row in rows]
        vectors = [model.bert.embed(torch.tensor([row]))[0] for row in rows]
    torch.testing.assert_close(list(classify(model, rows)), alone)
    torch.testing.assert_close(list(embed(model, rows)), vectors)


@pytest.mark.parametrize("keys", [{"embedding_dropout": 0.1}, {"tie_word_embeddings": False}, {"local_attention": 1}])
def test_another_model_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    make("ForMaskedLM").save_pretrained(tmp_path)
    edit(tmp_path, **keys)
    with pytest.raises(CheckpointError, match=next(iter(keys))):
        load(tmp_path)


def test_a_classifier_begins_with_the_head_of_the_language_model(tmp_path: Path) -> None:
    make("ForMaskedLM").save_pretrained(tmp_path)
    words = load(tmp_path)
    assert isinstance(words, ModernBertForMaskedLM)
    labelled = with_head(words, ("a", "b"))
    assert torch.equal(labelled.head.dense.weight, words.head.dense.weight)  # type: ignore[union-attr]
