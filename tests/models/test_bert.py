"""Facts about models/bert.py that need no other implementation; parity/test_bert.py compares with transformers."""

from dataclasses import replace

import pytest
import torch

from clearhead.errors import ConfigError, ShapeError
from clearhead.models.bert import (
    SIZES,
    Bert,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
)

TINY = BertConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=2, d_ff=32, max_len=12, labels=("no", "yes"))
TOKENS = torch.tensor([[2, 7, 9, 3, 0, 0], [2, 7, 9, 8, 11, 3]])
LENGTHS = torch.tensor([4, 6])


def test_padding_changes_nothing() -> None:
    bert = Bert(TINY).eval()
    torch.testing.assert_close(bert(TOKENS, LENGTHS)[:1, :4], bert(TOKENS[:1, :4]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(bert.embed(TOKENS, LENGTHS)[:1], bert.embed(TOKENS[:1, :4]), atol=1e-6, rtol=1e-5)
    model = BertForSequenceClassification(TINY).eval()
    torch.testing.assert_close(model(TOKENS, LENGTHS)[:1], model(TOKENS[:1, :4]), atol=1e-6, rtol=1e-5)


def test_every_position_sees_every_other() -> None:
    bert = Bert(TINY).eval()
    changed = TOKENS.clone()
    changed[1, -1] = 4
    assert not torch.isclose(bert(TOKENS)[1, 0], bert(changed)[1, 0]).all()


def test_heads_give_one_row_a_text_or_a_token() -> None:
    assert BertForSequenceClassification(TINY)(TOKENS, LENGTHS).shape == (2, 2)
    assert BertForTokenClassification(TINY)(TOKENS, LENGTHS).shape == (2, 6, 2)
    assert BertForMaskedLM(TINY)(TOKENS, LENGTHS).shape == (2, 6, 50)


def test_masked_words_are_scored_by_the_word_embedding_itself() -> None:
    model = BertForMaskedLM(TINY)
    model(TOKENS).sum().backward()
    assert "words" not in "".join(name for name, _ in model.named_parameters() if not name.startswith("bert."))
    assert model.bert.embeddings.words.weight.grad.abs().sum(1).gt(0).all()  # also of words that were not read


def test_embeddings_have_length_one() -> None:
    torch.testing.assert_close(Bert(TINY).eval().embed(TOKENS, LENGTHS).norm(dim=-1), torch.ones(2))


def test_the_second_text_is_told_apart_by_its_segment() -> None:
    bert = Bert(TINY).eval()
    second = torch.ones_like(TOKENS)
    assert not torch.allclose(bert(TOKENS, LENGTHS, second), bert(TOKENS, LENGTHS))
    with pytest.raises(ShapeError, match="this model has no segments"):
        Bert(replace(TINY, n_segments=0))(TOKENS, LENGTHS, second)


def test_weights_start_as_the_original_draws_them() -> None:
    bert = Bert(BertConfig(n_layers=1, vocab_size=1000))
    assert bert.embeddings.words.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert bert.blocks[0].attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not bert.blocks[0].attention.q_proj.bias.any()


def test_named_sizes_have_the_published_number_of_parameters() -> None:
    # google-research/bert, README, less the pre-training heads that its 11.3, 29.1, 41.7 and 110.1 M include
    millions = {"tiny": 4.4, "mini": 11.2, "small": 28.8, "medium": 41.4, "base": 109.5}
    for name, expected in millions.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in Bert(SIZES[name]).parameters())
        assert count / 1e6 == pytest.approx(expected, abs=0.05), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 15}, "d_model 15 does not divide into 2 heads"),
        ({"n_layers": 0}, "expected positive numbers, got n_layers 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"activation": "gelo"}, "did you mean 'gelu'"),
        ({"pooler": "tan"}, "unknown activation 'tan'"),
        ({"pad_id": 50}, "pad_id 50 is not one of the 50 token ids"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_classifiers_need_labels_and_a_pooler() -> None:
    with pytest.raises(ConfigError, match="a classifier needs labels"):
        BertForTokenClassification(replace(TINY, labels=()))
    with pytest.raises(ConfigError, match="reads the pooler"):
        BertForSequenceClassification(replace(TINY, pooler=None))


def test_a_text_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ShapeError, match="13 tokens, but this model has 12 learned positions"):
        Bert(TINY)(torch.zeros(1, 13, dtype=torch.long))
