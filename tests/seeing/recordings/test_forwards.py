"""A question about several layers is about one forward, also where some layers were left out of some."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from clearhead.errors import WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from clearhead.seeing import Recording, watch

BERT = BertConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=3, d_ff=32)


class Dropped(nn.Module):
    """Leaves layers out, as LayerDrop does in training."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = Bert(BERT)

    def forward(self, tokens: Tensor, layers: Sequence[int]) -> Tensor:
        x: Tensor = self.bert.embeddings(tokens)
        for i in layers:
            x = self.bert.blocks[i](x)
        return x


@pytest.fixture
def model() -> Dropped:
    return Dropped().eval()


def recorded(model: nn.Module, *runs: tuple[Tensor, Sequence[int]]) -> Recording:
    with watch(model) as seen, torch.no_grad():
        for tokens, layers in runs:
            model(tokens, layers)
    return seen


@pytest.fixture
def first() -> Tensor:
    return torch.randint(0, 50, (1, 6))


@pytest.fixture
def last() -> Tensor:
    return torch.randint(0, 50, (1, 6))


def test_heads_are_those_of_the_layers_that_ran_last(model: Dropped, first: Tensor, last: Tensor) -> None:
    mixed, alone = recorded(model, (first, [0, 1, 2]), (last, [0, 2])), recorded(model, (last, [0, 2]))
    rename = {0: 0, 1: 2}  # a layer has the number in which it first ran
    expected = [(rename[habit.layer], habit.head, habit.entropy) for habit in alone.heads()]
    assert [(habit.layer, habit.head, habit.entropy) for habit in mixed.heads()] == expected
    assert {link.layer for link in mixed.strongest(200)} == {0, 2}
    assert {sink.layer for sink in mixed.sinks(share=0.0)} == {0, 2}
    assert {name.split(".")[1] for name in mixed.cache()} == {"0", "2"}
    assert {habit.layer for habit in mixed.heads(call=0)} == {0, 1, 2}


def test_a_rollout_goes_through_the_layers_that_ran(model: Dropped, first: Tensor, last: Tensor) -> None:
    mixed, alone = recorded(model, (first, [0, 1, 2]), (last, [0, 2])), recorded(model, (last, [0, 2]))
    assert torch.equal(mixed.rollout(), alone.rollout())
    assert torch.equal(mixed.rollout(call=0), recorded(model, (first, [0, 1, 2])).rollout())
    with pytest.raises(WatchError, match=r"layer 1 'bert.blocks.1.attention' did not run in the forward of call=-1"):
        mixed.rollout(layers=[0, 1])


def test_tables_of_all_layers_are_refused_where_one_did_not_run(model: Dropped, first: Tensor, last: Tensor) -> None:
    mixed = recorded(model, (first, [0, 1, 2]), (last, [0, 2]))
    with pytest.raises(WatchError, match=r"layer 1 .* did not run in the forward of call=-1, which has layers 0, 2"):
        mixed.to_dense()
    assert len(mixed.to_dense(call=0)) == 3
    assert torch.equal(mixed.to_dense(1), recorded(model, (first, [0, 1, 2])).to_dense(1))


def test_a_call_counts_forwards_where_layers_were_left_out_of_some(model: Dropped, first: Tensor, last: Tensor) -> None:
    mixed = recorded(model, (first, [0, 2]), (last, [0, 1, 2]), (first, [1]))
    for call, layers in ((0, {0, 1}), (1, {0, 1, 2}), (2, {2}), (-3, {0, 1})):
        assert {habit.layer for habit in mixed.heads(call=call)} == layers
    assert mixed.name(2) == "bert.blocks.1.attention"
    with pytest.raises(WatchError, match="3 forwards of these layers: there is no call 3"):
        mixed.heads(call=3)


def test_an_encoder_that_ran_before_all_steps_is_still_there() -> None:
    sizes = {"n_encoder_layers": 1, "n_decoder_layers": 1, "n_heads": 2}
    pair = EncoderDecoder(EncoderDecoderConfig(vocab_size=50, d_model=16, d_ff=32, **sizes)).eval()
    with watch(pair) as seen, torch.no_grad():
        pair.encoder(torch.randn(1, 6, 16))
        for length in (1, 2, 3):
            pair.decoder(torch.randn(1, length, 16), torch.randn(1, 6, 16))
    assert len(seen.forwards) == 4
    assert {habit.layer for habit in seen.heads()} == {0, 1, 2}
    assert [table.shape[2] for table in seen.to_dense()] == [6, 3, 3]
