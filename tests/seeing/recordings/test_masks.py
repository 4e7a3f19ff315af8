"""Which queries are padding can be said, where the model's own mask does not say it."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from clearhead import InputError, WatchError, open_recording, watch
from clearhead.models.bert import Bert, BertConfig
from clearhead.seeing.positions import Positions
from clearhead.seeing.recordings.recording import Recording

MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])


def read(hidden: bool) -> Recording:
    """Return a recording of two texts, the padding of the second hidden from the others or read like tokens."""
    torch.manual_seed(0)
    model = Bert(BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, d_ff=48)).eval()
    tokens = torch.randint(50, (2, 7))
    with torch.no_grad(), watch(model) as seen:
        model(tokens, MASK.sum(1)) if hidden else model(tokens)
    return seen


def by_hand(seen: Recording, real: Tensor) -> Tensor:
    return seen.to_dense(1, batch=1)[0][:, real].sum(1)


def test_queries_that_are_said_to_be_padding_count_nowhere() -> None:
    seen, real = read(hidden=False), MASK[1].bool()
    assert [one.queries for one in seen.heads(batch=1)] == [7] * 8
    seen.set_mask(MASK)
    torch.testing.assert_close(seen.received(1, batch=1), by_hand(seen, real))
    assert [one.queries for one in seen.heads(batch=1)] == [4] * 8 and seen.heads(batch=0)[0].queries == 7
    assert seen.overview(1, 0, 1, batch=1).item() == pytest.approx(4, abs=1e-5)
    assert all(link.query < 4 for link in seen.strongest(100, batch=1))
    weights = seen.map(0, 0, batch=1)[:4]
    away = (torch.arange(4)[:, None] - torch.arange(7)).abs()
    assert seen.heads(batch=1)[0].distance == pytest.approx(float((weights * away).sum(-1).mean()), abs=1e-5)


def test_what_is_said_stands_above_what_the_mask_shows_and_goes_into_files(tmp_path: Path) -> None:
    seen = read(hidden=True)
    assert seen.heads(batch=1)[0].queries == 4
    seen.set_mask(torch.ones(1, 7))
    assert seen.heads(batch=1)[0].queries == 7
    seen.set_mask(MASK, layers=["*1*"])
    seen.save(tmp_path / "said.seen")
    again = open_recording(tmp_path / "said.seen")
    for one in (seen, again):
        assert [habit.queries for habit in one.heads(batch=1)] == [7] * 4 + [4] * 4


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 5), "a mask of 2 texts x 5 positions, but layer .* read 2 x 7"),
        (torch.ones(3, 7), "a mask of 3 texts x 7 positions, but layer .* read 2 x 7"),
        (torch.ones(2, 9), "a mask of 9 positions, but layer 0 .* read 7"),
    ],
)
def test_a_mask_of_another_text_is_refused_when_it_is_asked_for(mask: Tensor, message: str) -> None:
    seen = read(hidden=False)
    seen.set_mask(mask)
    with pytest.raises(InputError, match=message):
        seen.received(0)


@pytest.mark.parametrize("mask", [torch.tensor([[2, 1]]), torch.randn(2, 7)])
def test_what_is_no_mask_is_refused(mask: Tensor) -> None:
    with pytest.raises(InputError, match="texts x time, 1 for a token and 0 for padding"):
        Recording().set_mask(mask)


def test_what_a_model_writes_after_a_padded_prompt_counts() -> None:
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4, n_positions=64, eos_token_id=None)
    model, mask = transformers.GPT2LMHeadModel(config).eval(), torch.tensor([[0, 0, 1, 1, 1]])
    tokens = torch.randint(1, 60, (1, 5))
    with torch.no_grad(), watch(model) as seen:  # all are given as tokens
        model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=4, do_sample=False)
    seen.set_mask(mask)
    assert [seen.heads(call=i)[0].queries for i in range(4)] == [3, 1, 1, 1]
    assert seen.joined().heads()[0].queries == 6


def test_a_call_of_which_nothing_tells_its_place_is_not_masked_by_guessing() -> None:
    seen = read(hidden=False)
    seen.call(0).located = Positions(0, (), False, "nothing says it")
    seen.set_mask(MASK)
    with pytest.raises(WatchError, match=r"which of its queries are padding is not known\. nothing says it"):
        seen.received(0)
