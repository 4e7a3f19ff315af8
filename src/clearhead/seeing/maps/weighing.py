"""What else a weight can be multiplied by: how much it moves, and how much the answer would change.

A large weight on a short vector moves little. With values recorded (`watch(values=True)`) a map can show

    weight_ij * |v_j|            or, with the projection W_O of the layer,          weight_ij * |W_O v_j|

(Kobayashi et al. 2020, "Attention is not only a weight", equation 5: the norm of what key j adds to query i). With the
gradient recorded (`watch(gradients=True)`, and then a run backwards) it can show

    weight_ij * d(what was run backwards) / d(weight_ij)        where that derivative is  dO_i . v_j

because a head's output is O_i = sum_j weight_ij v_j. Each is one more factor of a tile, at any length. Gradient x
attention is what Chefer et al. (2021) average over heads; the product says by how much the answer would fall, to first
order, were that one weight 0 and the others as they are.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.maps import products

Of = Literal["weights", "values", "gradient"] | Tensor
Places = tuple[slice, slice] | tuple[Tensor, Tensor]


def weigh(tile: Tensor, call: Call, batch: int, head: int, places: Places, of: Of) -> Float[Tensor, "rows cols"]:
    """Return a tile of weights of queries x keys at `places`, each multiplied by what `of` says."""
    rows, cols = places
    if isinstance(of, str) and of == "gradient":
        return tile * ByWeight(call, batch, [head]).tile(rows, cols)[0]
    return tile * lengths(call, batch, [head], of)[0, cols]


class ByWeight:
    """The derivative by each weight, dO_i . v_j, tile by tile; raises WatchError where it was not recorded."""

    def __init__(self, call: Call, batch: int, heads: Sequence[int]) -> None:
        if call.gradient is None:
            raise WatchError(
                "no gradient was recorded: watch(model, gradients=True), run the model with gradients on, and call "
                "backward() on a number of interest before asking; the recording's notes say where none could be kept"
            )
        self.gradient = call.gradient[batch][list(heads)].to(call.exact)
        self.v = values(call, batch, heads).mT

    def tile(self, rows: slice | Tensor, cols: slice | Tensor) -> Float[Tensor, "heads rows cols"]:
        """Return the derivatives by the weights of queries `rows` on keys `cols`."""
        with products.full_precision():
            return self.gradient[:, rows] @ self.v[:, :, cols]


def values(call: Call, batch: int, heads: Sequence[int]) -> Float[Tensor, "heads key d_value"]:
    """Return the values that serve `heads` (rows of `call.q`); raises WatchError where they were not recorded."""
    if call.v is None:
        raise WatchError("no values were recorded: watch(model, values=True)")
    grouped = call.v.shape[1] == call.k.shape[1]
    return call.v[batch][[call.kv_of[h] if grouped else h for h in heads]].to(call.exact)


def lengths(call: Call, batch: int, heads: Sequence[int], of: Of) -> Float[Tensor, "heads key"]:
    """Return |v_j|, or where `of` is the weight of the layer's output nn.Linear |W_O v_j|, for each head and key."""
    if not isinstance(of, Tensor) and of != "values":
        raise WatchError(f'weights are multiplied by "values", "gradient" or a projection matrix, not by {of!r}')
    v = values(call, batch, heads)
    if isinstance(of, str):
        return v.norm(dim=-1)
    projection, width = of, v.shape[-1]
    if projection.ndim != 2 or projection.shape[1] != call.n_heads * width:
        raise WatchError(
            f"a projection of {call.n_heads} heads with values {width} long has shape (d_model, "
            f"{call.n_heads * width}), as the weight of nn.Linear; got {tuple(projection.shape)}"
        )
    blocks = projection.detach().to(v).reshape(-1, call.n_heads, width)
    with products.full_precision():
        return torch.stack([(one @ blocks[:, call.heads[h]].mT).norm(dim=-1) for one, h in zip(v, heads)])
