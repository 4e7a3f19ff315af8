"""What decoding remembers: the keys and values of the tokens already read, so that each is computed once.

Memory is taken once, for `max_len` tokens, and written in place; growing a tensor token by token would copy
everything at every step. There are two kinds, and attention treats them alike:

- `LayerCache` hands out the rows written so far, one more with every token;
- `FixedLayerCache` always hands out all `max_len` rows and counts on the device, so that no shape ever changes and
  one recorded step (a CUDA graph, a compiled function) serves every token.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.errors import ShapeError


class LayerCache:
    """Keys and values of one layer, `(batch, kv_heads, max_len, d_head)` each, filled up to `length`.

    `memory` holds those of the text that cross-attention looks at: they do not change while the answer grows.
    """

    grows = True  # the last query stands at the last key handed out

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0
        self.memory: tuple[Tensor, Tensor] | None = None

    def places(self, n: int) -> Int[Tensor, " new"]:
        """Return where the next `n` tokens will stand among the keys."""
        return torch.arange(self.length, self.length + n, device=self.keys.device)

    def n_keys(self, n: int) -> int:
        """Return how many keys the next `n` tokens will be shown."""
        return self.length + n

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

    def once(self, project: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return the memory's keys and values: made by `project` in the first call, looked up in all others."""
        if self.memory is None:
            self.memory = project()
        return self.memory

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens; ShapeError when there are not so many."""
        if not 0 <= length <= self.length:
            raise ShapeError(f"a cache of {self.length} tokens cannot be cut to {length}")
        self.length = length

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Let text i be what text `rows[i]` was: beams that split or die, texts that are done and leave."""
        self.keys, self.values = (self._kept(rows, each) for each in (self.keys, self.values))
        if self.memory is not None:
            self.memory = self.memory[0].index_select(0, rows), self.memory[1].index_select(0, rows)

    def _kept(self, rows: Tensor, old: Tensor) -> Tensor:
        filled = old[:, :, : self.length].index_select(0, rows)
        new = old if len(rows) == len(old) else old.new_zeros(len(rows), *old.shape[1:])
        new[:, :, : self.length] = filled
        return new


class FixedLayerCache(LayerCache):
    """The same where no shape may change: all rows are handed out, and the length, `at`, is a number on the device.

    Rows beyond it are zeros or forgotten; attention looks away from them (`Mask.queries_at`). That the tokens fit
    is for the caller to know, since asking the device would wait for it. `keep` cannot change the number of texts:
    with fewer rows, those behind them stay as they are.
    """

    grows = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.memory = keys, values, None
        self.at = torch.zeros((), dtype=torch.long, device=keys.device)

    @property
    def length(self) -> int:  # type: ignore[override]
        """How many tokens have been read: waits for the device."""
        return int(self.at)

    def places(self, n: int) -> Int[Tensor, " new"]:
        """Return where the next `n` tokens will stand among the keys."""
        return self.at + torch.arange(n, device=self.keys.device)

    def n_keys(self, n: int) -> int:
        """Return `max_len`: always all."""
        return self.keys.shape[-2]

    def append(
        self, k: Float[Tensor, "batch kv_heads new d_head"], v: Float[Tensor, "batch kv_heads new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_heads key d_head"], Float[Tensor, "batch kv_heads key d_head"]]:
        """Write the new rows behind the old ones and return all rows, written or not."""
        places = self.places(k.shape[-2])
        self.keys.index_copy_(2, places, k)
        self.values.index_copy_(2, places, v)
        self.at += k.shape[-2]
        return self.keys, self.values

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        self.at.fill_(length)

    def _kept(self, rows: Tensor, old: Tensor) -> Tensor:
        old[: len(rows)] = old.index_select(0, rows)
        return old


class KVCache:
    """One `LayerCache` a layer, of either kind; `cache[i]` is handed to the attention of layer i."""

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
        kind: type[LayerCache] = LayerCache,
    ) -> None:
        shape = (batch, n_kv_heads, max_len, d_head)
        self.layers = [
            kind(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for _ in range(n_layers)
        ]

    @property
    def length(self) -> int:
        """How many tokens have been read, the same for every layer between two forward passes."""
        return self.layers[-1].length

    def places(self, n: int) -> Int[Tensor, " new"]:
        """Return where the next `n` tokens will stand among the keys of every layer."""
        return self.layers[-1].places(n)

    def n_keys(self, n: int) -> int:
        """Return how many keys the next `n` tokens will be shown in every layer."""
        return self.layers[-1].n_keys(n)

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens: what was read on trial and turned out wrong."""
        for layer in self.layers:
            layer.truncate(length)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Let text i be what text `rows[i]` was, in every layer."""
        for layer in self.layers:
            layer.keep(rows)

    def __getitem__(self, layer: int) -> LayerCache:
        return self.layers[layer]
