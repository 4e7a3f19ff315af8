"""BERT, RoBERTa and DistilBERT compute what transformers computes, on random weights and on real ones."""

from pathlib import Path

import pytest
import torch

from clearhead.checkpoints import load
from published import ARCHITECTURES, answers, make, publish, ragged

TOLERANCE = 1e-5  # float32, logits of order 1


def inside(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return the rows that are text: padding's mean nothing, to either library."""
    return x if x.ndim == 2 else x[torch.arange(x.shape[1]) < lengths[:, None]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_outputs_equal_transformers(architecture: str, tmp_path: Path) -> None:
    theirs = make(architecture)
    theirs.save_pretrained(tmp_path)
    tokens, lengths = ragged(theirs.config.pad_token_id)
    with torch.inference_mode():
        ours = load(tmp_path)(tokens, lengths)
    expected = answers(theirs, tokens, lengths)
    assert expected.std() > 0.1, "numbers too small to tell anything"
    torch.testing.assert_close(inside(ours, lengths), inside(expected, lengths), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])
def test_every_activation_equals_transformers(hidden_act: str, tmp_path: Path) -> None:
    theirs = make("BertForMaskedLM", hidden_act=hidden_act)
    theirs.save_pretrained(tmp_path)
    tokens, lengths = ragged(0)
    with torch.inference_mode():
        ours = load(tmp_path)(tokens, lengths)
    expected = answers(theirs, tokens, lengths)
    torch.testing.assert_close(inside(ours, lengths), inside(expected, lengths), rtol=0, atol=TOLERANCE)


def test_second_segments_equal_transformers(tmp_path: Path) -> None:
    theirs = make("BertModel")
    theirs.save_pretrained(tmp_path)
    tokens, _ = ragged(0)
    segments = (torch.arange(17) > 8).long().expand(4, -1)
    with torch.inference_mode():
        ours = load(tmp_path)(tokens, None, segments)
        expected = theirs(input_ids=tokens, token_type_ids=segments)[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCE)


def test_pooler_equals_transformers(tmp_path: Path) -> None:
    theirs = make("RobertaModel")
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens, _ = ragged(1)
    tokens[tokens == 1] = 7  # no padding
    with torch.inference_mode():
        pooled, expected = ours.pool(ours(tokens)), theirs(input_ids=tokens).pooler_output
    torch.testing.assert_close(pooled, expected, rtol=0, atol=TOLERANCE)


def test_loss_and_gradients_equal_transformers(tmp_path: Path) -> None:
    theirs = make("BertForSequenceClassification")
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    tokens, lengths = ragged(0)
    targets = torch.tensor([0, 2, 1, 2])
    mask = (torch.arange(17) < lengths[:, None]).long()
    theirs(input_ids=tokens, attention_mask=mask, labels=targets).loss.backward()
    torch.nn.functional.cross_entropy(ours(tokens, lengths), targets).backward()
    pairs = {
        "bert.embeddings.words.weight": "bert.embeddings.word_embeddings.weight",
        "bert.blocks.0.attention.k_proj.weight": "bert.encoder.layer.0.attention.self.key.weight",
        "bert.blocks.1.feed_forward.down_proj.bias": "bert.encoder.layer.1.output.dense.bias",
        "classifier.weight": "classifier.weight",
    }
    for mine, other in pairs.items():
        torch.testing.assert_close(
            ours.get_parameter(mine).grad, theirs.get_parameter(other).grad, rtol=1e-4, atol=TOLERANCE
        )


def test_real_minilm_equals_transformers(minilm: Path) -> None:
    import transformers

    theirs = transformers.AutoModel.from_pretrained(minilm).eval()
    ours = load(minilm)
    lengths = torch.tensor([24, 7, 1, 16])
    tokens = torch.randint(1_000, 30_522, (4, 24)).masked_fill(torch.arange(24) >= lengths[:, None], 0)
    expected = answers(theirs, tokens, lengths)
    with torch.inference_mode():
        hidden = ours(tokens, lengths)
        pooled = ours.pool(hidden)
        expected_pooled = theirs(input_ids=tokens, attention_mask=(tokens != 0).long()).pooler_output
    torch.testing.assert_close(inside(hidden, lengths), inside(expected, lengths), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(pooled, expected_pooled, rtol=0, atol=TOLERANCE)


def test_real_minilm_goes_round(minilm: Path, tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file

    from clearhead.checkpoints import save

    save(load(minilm), tmp_path / "again")
    before, after = load_file(minilm / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    del before["embeddings.position_ids"]  # 0, 1, 2, ...: the one tensor the table ignores
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((minilm / "config.json").read_text()) == json.loads((tmp_path / "again/config.json").read_text())


def test_wrong_head_names_are_not_guessed(tmp_path: Path) -> None:
    # The parity above would mean little if any file loaded as anything.
    from clearhead.errors import CheckpointError
    from published import edit

    publish(tmp_path, "BertForMaskedLM")
    edit(tmp_path, architectures=["BertForTokenClassification"])
    with pytest.raises(
        CheckpointError, match=r"missing 'classifier.bias', 'classifier.weight'; unexpected 'cls.predict"
    ):
        load(tmp_path)
