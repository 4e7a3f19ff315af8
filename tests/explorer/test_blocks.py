"""A part of a call answers as the whole does, whatever the call keeps."""

import torch
from torch import Tensor, nn

from clearhead.explorer import blocks
from clearhead.seeing import watch
from clearhead.seeing.maps import formula


class Squared(nn.Module):
    """Attention by hand whose weights are kept."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.mT).softmax(-1).square() @ v


def test_a_part_of_kept_weights_has_the_rows_asked_for() -> None:
    with torch.no_grad(), watch(model := Squared()) as seen:
        model(*(torch.randn(1, 2, 8, 4) for _ in range(3)))
    rows = torch.tensor([1, 4, 6])
    part = blocks.subset(seen.call(0), rows)
    heads, cols = torch.arange(2), torch.arange(8)
    assert torch.equal(formula.weights(part, 0, heads, torch.arange(3), cols), seen.to_dense(0)[0][:, rows])
