"""Through all layers: where what arrives at the top came from, if every layer mixed as its attention says.

Attention rollout (Abnar & Zuidema 2020, "Quantifying attention flow in Transformers", section 3) multiplies the
layers' maps, heads averaged, each with half of the identity for the residual stream:

    R = A'_n ... A'_2 A'_1        A' = 0.5 I + 0.5 mean_h A_h

Rows of R need no product of T x T matrices: r <- r A' from the last layer down, one sweep over the tiles of each. Any
number of rows, or any sums of rows, in memory of rows x T. With gradients recorded the same walk gives the relevance of
Chefer et al. 2021 ("Generic attention-model explainability", equations 5 and 6):

    r <- r + r mean_h max(0, dA_h * A_h)

Both assume that mixing is all that happens in a layer; values, projections and feed-forwards are not looked at.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.maps import products, pyramid, tiles

By = Literal["weights", "gradient"]

RESIDUAL = 0.5  # of a row goes straight on; Abnar & Zuidema


@torch.no_grad()
def rows(
    calls: Sequence[Call], batch: int, start: Float[Tensor, "rows query"], by: By = "weights"
) -> Float[Tensor, "rows key"]:
    """Return the rows of the rollout of square calls, first layer first, that `start` asks for (or sums of them)."""
    if by not in ("weights", "gradient"):
        raise WatchError(f'a rollout goes by "weights" or by "gradient", not by {by!r}')
    found = start
    for call in reversed(calls):
        moved = torch.zeros_like(found)
        for tile in tiles.sweep(call, batch, range(len(call.heads)), tiles.Part(gradient=by == "gradient")):
            weights = tile.weights.clamp_(min=0) if by == "gradient" else tile.weights
            with products.full_precision():
                moved[:, tile.cols] += found[:, tile.rows] @ weights.sum(0)
        moved /= len(call.heads)
        found = found + moved if by == "gradient" else RESIDUAL * found + (1 - RESIDUAL) * moved
    return found


def overview(
    calls: Sequence[Call], batch: int, size: int, by: By = "weights"
) -> Float[Tensor, "row_blocks col_blocks"]:
    """Return the rollout summed over blocks of queries x keys."""
    n, device = calls[0].n_keys, calls[0].q.device
    ends = torch.tensor(pyramid.edges(n, size), device=device)
    places = torch.arange(n, device=device)
    member = ((places >= ends[:-1, None]) & (places < ends[1:, None])).to(calls[0].exact)
    found = rows(calls, batch, member, by)
    with products.full_precision():
        return found @ member.mT
