"""What a user meets when tensors do not fit; elsewhere the test run's own shape checks stand in front of these."""

import pytest
import torch

from clearhead.attention import Mask, attend
from clearhead.errors import InputError, ShapeError, WatchError
from clearhead.models.bert import BertConfig, BertForSequenceClassification
from clearhead.seeing import edit, effect

Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 6, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(2, 2, 7, 8)}, r"k and v must agree.*\(2, 2, 6, 8\).*\(2, 2, 7, 8\)"),
        ({"k": torch.zeros(2, 2, 6, 4)}, "q and k must agree in batch and d_head"),
        ({"k": torch.zeros(3, 2, 6, 8), "v": torch.zeros(3, 2, 6, 8)}, "q and k must agree in batch"),
        ({"k": torch.zeros(2, 3, 6, 8), "v": torch.zeros(2, 3, 6, 8)}, "4 query heads cannot share 3"),
        ({"q": torch.zeros(2, 5, 8)}, r"expected \(batch, heads, time, d_head\)"),
        ({"q": Q.double()}, "differ in dtype: q torch.float64"),
        ({"k": K.to("meta")}, "different devices: q cpu, k meta"),
        ({"mask": torch.ones(5, 6, dtype=torch.bool)}, "mask is a Tensor: expected clearhead.Mask"),
        ({"mask": Mask(allowed=torch.ones(2, 1, 5, 7, dtype=torch.bool))}, r"broadcast to .*= \(2, 4, 5, 6\), got"),
        ({"mask": Mask(allowed=torch.ones(5, 6, dtype=torch.bool)[None, None, None])}, "must broadcast"),
        ({"mask": Mask(allowed=torch.zeros(1, 1, 5, 6))}, "Mask.allowed must be boolean"),
        ({"mask": Mask(bias=torch.zeros(1, 1, 5, 6, dtype=torch.long))}, "Mask.bias is added to the scores"),
        ({"mask": Mask(bias=torch.zeros(1, 1, 5, 6, device="meta"))}, "Mask.bias is on meta, q on cpu"),
        ({"mask": Mask(key_lengths=torch.tensor([1, 2, 3]))}, "key_lengths must be 2 whole numbers"),
        ({"mask": Mask(key_lengths=torch.tensor([1, 2], device="meta"))}, "key_lengths is on meta"),
        ({"mask": Mask(window=(-1, 0))}, "cannot be negative"),
        ({"mask": Mask(window=3)}, "is a pair"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_came(change: dict[str, object], message: str) -> None:
    arguments = {"q": Q, "k": K, "v": K, "mask": Mask()} | change
    with pytest.raises(ShapeError, match=message):
        attend(**arguments)


def test_what_edit_and_effect_do_not_know_is_refused_with_what_they_do() -> None:
    with pytest.raises(WatchError, match=r"expects the torch\.nn\.Module"), edit("sentiment"):
        pass
    config = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, d_ff=64, labels=("bad", "good"))
    model = BertForSequenceClassification(config).eval()
    with pytest.raises(InputError, match="over='head'; did you mean 'heads'"):
        effect(model, torch.arange(5)[None], over="head")
