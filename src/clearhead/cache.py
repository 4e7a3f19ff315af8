"""What decoding remembers: the keys and values of the tokens already read, so that each is computed once.

Memory is taken once, for `max_len` tokens, and written in place; growing a tensor token by token would copy
everything at every step.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import ShapeError


class LayerCache:
    """Keys and values of one layer, `(batch, kv_heads, max_len, d_head)` each, filled up to `length`."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0

    def append(
        self, k: Float[Tensor, "batch kv_heads new d_head"], v: Float[Tensor, "batch kv_heads new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_heads key d_head"], Float[Tensor, "batch kv_heads key d_head"]]:
        """Write the new rows behind the old ones and return views of all rows so far.

        Raises ShapeError when they do not fit; the cache is then unchanged.
        """
        end = self.length + k.shape[-2]
        if end > self.keys.shape[-2]:
            raise ShapeError(
                f"a cache for {self.keys.shape[-2]} tokens holds {self.length} and cannot take {k.shape[-2]} more: "
                f"make it with a larger max_len"
            )
        if k.shape[:2] != self.keys.shape[:2]:
            raise ShapeError(
                f"a cache for (batch, kv_heads) = {tuple(self.keys.shape[:2])} was given keys of shape {tuple(k.shape)}"
            )
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """One `LayerCache` a layer; `cache[i]` is handed to the attention of layer i."""

    def __init__(
        self,
        *,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        max_len: int,
        d_head: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, n_kv_heads, max_len, d_head)
        self.layers = [
            LayerCache(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(n_layers)
        ]

    @property
    def length(self) -> int:
        """How many tokens have been read, the same for every layer between two forward passes."""
        return self.layers[-1].length

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]
