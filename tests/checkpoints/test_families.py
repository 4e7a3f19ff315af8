"""Families: what is read is written again bit for bit, others open it, and what cannot be computed is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead.checkpoints import FAMILIES, load, origin, save, with_head
from clearhead.errors import CheckpointError, ConfigError
from clearhead.models.bert import (
    Bert,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from published import ARCHITECTURES, ENCODERS, LABELS, answers, edit, make, publish, ragged, reopen

TINY = BertConfig(vocab_size=61, d_model=32, n_heads=4, n_layers=2, d_ff=37, max_len=40, labels=LABELS)


def config_of(folder: Path) -> dict[str, Any]:
    """Return config.json."""
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_trip_is_bit_exact_and_opens_in_transformers(architecture: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    theirs = make(architecture)
    theirs.save_pretrained(old)
    save(load(old), new)
    assert (new / "model.safetensors").read_bytes() == (old / "model.safetensors").read_bytes()
    assert config_of(new) == config_of(old)
    tokens, lengths = ragged(theirs.config.pad_token_id)
    expected = answers(theirs, tokens, lengths)
    assert torch.equal(answers(reopen(new, architecture), tokens, lengths), expected)


HEADS = (Bert, BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ENCODERS)
def test_what_is_built_by_hand_opens_in_transformers_and_here(family: str, head: type, tmp_path: Path) -> None:
    pooled = head is BertForSequenceClassification or (head is Bert and family != "distilbert")
    config = replace(TINY, pooler=FAMILIES[family].pooler if pooled else None)
    if family == "distilbert":
        config = replace(config, n_segments=0)
    if "roberta" in family:
        config = replace(config, pad_id=1, first_position=2, n_segments=1)
    ours = head(config).eval()
    save(ours, tmp_path, family=family)
    theirs = reopen(tmp_path, next(name for name, known in FAMILIES[family].architectures.items() if known is head))
    tokens, lengths = ragged(config.pad_id)
    with torch.inference_mode():
        mine, again = ours(tokens, lengths), load(tmp_path)(tokens, lengths)
    inside = (slice(None),) if mine.ndim == 2 else (torch.arange(17) < lengths[:, None],)
    assert torch.equal(mine, again)
    torch.testing.assert_close(mine[inside], answers(theirs, tokens, lengths)[inside], rtol=0, atol=1e-5)
    assert load(tmp_path).config == config


def test_names_of_2018_are_read(tmp_path: Path) -> None:
    publish(tmp_path, "BertForMaskedLM")
    modern = load(tmp_path).state_dict()
    old = load_file(tmp_path / "model.safetensors")
    old = {k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for k, v in old.items()}
    assert sum(name.endswith((".gamma", ".beta")) for name in old) == 2 * (1 + 2 * 2 + 1)
    old["cls.seq_relationship.weight"], old["cls.seq_relationship.bias"] = torch.randn(2, 32), torch.randn(2)
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"].clone()
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(old, tmp_path / "model.safetensors")
    legacy = load(tmp_path).state_dict()
    assert legacy.keys() == modern.keys() and all(torch.equal(legacy[name], modern[name]) for name in modern)


def test_pretraining_architecture_is_the_language_model_with_its_pooler(tmp_path: Path) -> None:
    publish(tmp_path, "BertForPreTraining")
    model = load(tmp_path)
    assert isinstance(model, BertForMaskedLM) and model.bert.pooler is not None
    save(model, tmp_path / "again")
    assert load(tmp_path / "again").config == model.config


@pytest.mark.parametrize("prefix, architecture", [("bert.", "BertForTokenClassification"), ("", "RobertaModel")])
def test_a_pooler_may_be_there_or_not(prefix: str, architecture: str, tmp_path: Path) -> None:
    publish(tmp_path, architecture)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("weight", "bias"):
        removed = tensors.pop(f"{prefix}pooler.dense.{name}", None)
        if removed is None:
            tensors[f"{prefix}pooler.dense.{name}"] = torch.randn(32, 32) if name == "weight" else torch.randn(32)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(tmp_path)
    assert (model.config.pooler is None) == (architecture == "RobertaModel")
    save(model, tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == tensors.keys()


def test_a_pooler_left_over_in_a_roberta_classifier_is_ignored(tmp_path: Path) -> None:
    publish(tmp_path, "RobertaForSequenceClassification")
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {"roberta.pooler.dense.weight": torch.randn(32, 32), "roberta.pooler.dense.bias": torch.randn(32)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    pooler = load(tmp_path).bert.pooler
    assert torch.equal(pooler.weight, tensors["classifier.dense.weight"])


def test_an_output_matrix_that_is_not_the_embedding_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, "DistilBertForMaskedLM")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["vocab_projector.weight"] = tensors["distilbert.embeddings.word_embeddings.weight"] * 1.001
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'vocab_projector.weight' should equal 'distilbert.embeddings.word_emb"):
        load(tmp_path)


# ---------------------------------------------------------------- config


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'"),
        ("is_decoder", True, "is_decoder is True"),
        ("add_cross_attention", True, "add_cross_attention is True"),
        ("problem_type", "multi_label_classification", "problem_type is 'multi_label_classification'"),
        ("hidden_act", "quick_gelu", "hidden_act 'quick_gelu' is unknown"),
        ("hidden_size", "32", "hidden_size: expected a whole number from 0 to 2,147,483,647, got '32'"),
        ("num_hidden_layers", True, "num_hidden_layers: expected a whole number from 0 to 2,147,483,647, got True"),
        ("num_hidden_layers", 10**9, "1000000000 layers, but there are only"),
        ("vocab_size", 10**30, "vocab_size: expected a whole number"),
        ("num_attention_heads", 5, "d_model 32 does not divide into 5 heads"),
        ("layer_norm_eps", -1e-12, "layer_norm_eps: expected a number from 0, got"),
        ("hidden_dropout_prob", 1.5, "dropout must be in"),
        ("type_vocab_size", 0, "type_vocab_size is 0"),
        ("id2label", {"0": "a", "2": "b"}, "id2label: expected an object with a name for each of 0, 1, 2"),
        ("embedding_size", 16, "unknown key 'embedding_size' (16)"),
        ("sliding_window_size", 8, "unknown key 'sliding_window_size' (8)"),
        ("model_type", "brt", "no family here for model_type 'brt'; did you mean 'bert'?"),
        ("model_type", "rwkv", "no family here for model_type 'rwkv'"),
        ("architectures", ["BertForQuestionAnswering"], "expected one of BertModel, BertForMaskedLM"),
        ("architectures", [], "architectures [], expected one of"),
        ("vocab_size", 62, "has shape (61, 32), expected (62, 32)"),
    ],
)
def test_a_config_of_another_model_is_refused(key: str, value: Any, said: str, tmp_path: Path) -> None:
    publish(tmp_path, "BertForSequenceClassification")
    edit(tmp_path, **{key: value})
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_value_of_any_key_escapes_the_checks(tmp_path: Path) -> None:
    publish(tmp_path, "BertForSequenceClassification")
    config = config_of(tmp_path)
    strange = (None, True, 0, -1, 1.5, 2**31 - 1, 10**30, 1e400, "", "x", [], [None], {}, {"0": None}, {"a": {}})
    for key in (*config, "num_labels", "problem_type"):
        for value in strange:
            text = json.dumps({**config, key: value}).replace("Infinity", "1e400")
            (tmp_path / "config.json").write_text(text)
            try:
                load(tmp_path)
            except CheckpointError as error:
                assert str(tmp_path) in str(error)


def test_an_untied_language_model_is_refused_and_other_heads_are_not(tmp_path: Path) -> None:
    for head in ("ForMaskedLM", "ForTokenClassification"):
        publish(tmp_path / head, f"Bert{head}")
        edit(tmp_path / head, tie_word_embeddings=False)
    load(tmp_path / "ForTokenClassification")
    with pytest.raises(CheckpointError, match="tie_word_embeddings is false"):
        load(tmp_path / "ForMaskedLM")


def test_a_roberta_language_model_bends_with_gelu_only(tmp_path: Path) -> None:
    publish(tmp_path, "RobertaForMaskedLM", hidden_act="relu")
    with pytest.raises(CheckpointError, match="always uses gelu"):
        load(tmp_path)


def test_keys_that_change_nothing_are_kept(tmp_path: Path) -> None:
    publish(tmp_path / "old", "BertForSequenceClassification")
    edit(tmp_path / "old", finetuning_task="sst-2", output_past=True, torch_dtype="float32", label2id={"positive": 2})
    save(load(tmp_path / "old"), tmp_path / "new")
    assert config_of(tmp_path / "new") == config_of(tmp_path / "old")


def test_bookkeeping_of_strangers_changes_nothing_and_is_noted(tmp_path: Path) -> None:
    publish(tmp_path / "old", "BertModel")
    own_code, crossed = {"AutoModel": "code.Model"}, "torch.nn.modules.linear.Identity"
    edit(tmp_path / "old", auto_map=own_code, unsloth_fixed=True, padding="max_length", mask_token_id=4)
    edit(tmp_path / "old", sbert_ce_default_activation_function=crossed)
    ours = load(tmp_path / "old")
    tokens, lengths = ragged(0)
    with torch.no_grad():
        expected = answers(reopen(tmp_path / "old", "BertModel"), tokens, lengths)
        real = torch.arange(17) < lengths[:, None]
        torch.testing.assert_close(ours(tokens, lengths)[real], expected[real], rtol=0, atol=1e-5)
    (remark,) = origin(ours).notes
    assert "auto_map, padding, sbert_ce_default_activation_function, unsloth_fixed are not read here" in remark
    save(ours, tmp_path / "new")
    assert config_of(tmp_path / "new") == config_of(tmp_path / "old")


@pytest.mark.parametrize("architecture", [*ARCHITECTURES[::4], *ARCHITECTURES[1::4]])
def test_a_trunk_comes_with_or_without_the_prefix_it_has_under_a_head(architecture: str, tmp_path: Path) -> None:
    publish(tmp_path, architecture)
    expected, prefix = load(tmp_path), FAMILIES[config_of(tmp_path)["model_type"]].prefix
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {name.removeprefix(prefix) if name.startswith(prefix) else name: x for name, x in tensors.items()}
    if architecture.endswith("Model"):
        renamed = {prefix + name: x for name, x in tensors.items()} | {"classifier.weight": torch.ones(3, 32)}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = load(tmp_path)
    assert found.config == expected.config
    assert all(torch.equal(x, expected.state_dict()[name]) for name, x in found.state_dict().items())
    assert any("classifier.weight" in remark for remark in origin(found).notes) == architecture.endswith("Model")


def test_a_head_beside_a_trunk_of_other_names_is_not_left_out(tmp_path: Path) -> None:
    publish(tmp_path, "BertModel")
    tensors = load_file(tmp_path / "model.safetensors") | {"classifier.weight": torch.ones(3, 32)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected 'classifier\.weight'"):
        load(tmp_path)


def test_labels_nobody_named_are_numbered(tmp_path: Path) -> None:
    publish(tmp_path, "BertForTokenClassification", id2label=None, label2id=None, num_labels=2)
    assert load(tmp_path).config.labels == ("LABEL_0", "LABEL_1")


def test_a_changed_config_is_written_in_the_familys_words(tmp_path: Path) -> None:
    publish(tmp_path / "old", "RobertaForSequenceClassification")
    model = load(tmp_path / "old")
    model.config = replace(model.config, dropout=0.2, labels=("a", "b", "c"))
    save(model, tmp_path / "new")
    assert load(tmp_path / "new").config == model.config  # classifier_dropout stayed 0.1 though theirs follows dropout
    assert config_of(tmp_path / "new")["label2id"] == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize(
    "change, family, said",
    [
        ({"n_segments": 0}, "bert", "type_vocab_size is 0"),
        ({"first_position": 2}, "bert", "first_position 2 would be read as 0"),
        ({"pooler": "relu"}, "bert", "pooler 'relu' would be read as 'tanh'"),
        ({}, "roberta", "first_position 0 would be read as 1"),
        ({"n_segments": 0, "norm_eps": 1e-5, "pooler": "relu"}, "distilbert", "norm_eps 1e-05 would be read as 1e-12"),
        ({}, "distilbert", "no place for 'bert.embeddings.segments.weight'"),
        ({}, "brt", "unknown family 'brt'; did you mean 'bert'?"),
    ],
)
def test_a_family_that_cannot_describe_a_model_says_so(
    change: dict[str, Any], family: str, said: str, tmp_path: Path
) -> None:
    model = BertForSequenceClassification(replace(TINY, **change))
    with pytest.raises(CheckpointError) as caught:
        save(model, tmp_path / "new", family=family)
    assert said in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_stranger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got Linear"):
        save(torch.nn.Linear(2, 2), tmp_path / "new")
    with pytest.raises(CheckpointError, match="holds one of Bert, BertForMaskedLM"):
        save(torch.nn.ModuleDict({"bert": Bert(TINY)}), tmp_path / "new")


# ---------------------------------------------------------------- a head for fine-tuning


@pytest.mark.parametrize(
    "trunk", ["BertModel", "RobertaForMaskedLM", "DistilBertModel", "BertForSequenceClassification"]
)
def test_a_fresh_head_trains_and_saves_in_the_family_of_its_trunk(trunk: str, tmp_path: Path) -> None:
    start = load(publish(tmp_path / "start", trunk))
    words = start.state_dict()[next(name for name in start.state_dict() if name.endswith("words.weight"))]
    model = with_head(start, ["bad", "good"])
    assert model.bert.embeddings.words.weight.data_ptr() == words.data_ptr(), "the trunk is taken over, not copied"
    tokens, lengths = ragged(model.config.pad_id)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(tokens, lengths), torch.tensor([0, 1, 1, 0])).backward()
    optimizer.step()
    save(model.eval(), tmp_path / "tuned")
    family = trunk.split("Model")[0].split("For")[0]
    theirs = reopen(tmp_path / "tuned", f"{family}ForSequenceClassification")
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens, lengths), answers(theirs, tokens, lengths), rtol=0, atol=1e-5)
    assert theirs.config.id2label == {0: "bad", 1: "good"}
    assert load(tmp_path / "tuned").config == model.config


def test_a_loaded_trunk_under_a_constructor_keeps_its_origin(tmp_path: Path) -> None:
    trunk = load(publish(tmp_path / "start", "RobertaModel"))
    model = BertForTokenClassification(replace(trunk.config, labels=("noun", "verb")), bert=trunk)
    assert origin(model) is origin(trunk) is not None
    save(model, tmp_path / "new")
    assert config_of(tmp_path / "new")["architectures"] == ["RobertaForTokenClassification"]
    assert load(tmp_path / "new").config == model.config


def test_a_head_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs labels"):
        with_head(load(publish(tmp_path, "BertModel")), [])


def test_what_was_built_by_hand_has_no_origin() -> None:
    assert origin(Bert(TINY)) is None
