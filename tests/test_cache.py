"""Facts about cache.py. That cached decoding equals the full forward is in test_attention.py."""

import pytest
import torch

from clearhead.cache import KVCache
from clearhead.errors import ShapeError


def cache(max_len: int = 5) -> KVCache:
    return KVCache(n_layers=2, batch=1, n_kv_heads=2, max_len=max_len, d_head=3)


def test_rows_come_back_in_the_order_they_were_written() -> None:
    remembered, k, v = cache(), torch.randn(1, 2, 5, 3), torch.randn(1, 2, 5, 3)
    remembered[0].append(k[:, :, :2], v[:, :, :2])
    keys, values = remembered[0].append(k[:, :, 2:], v[:, :, 2:])
    assert torch.equal(keys, k) and torch.equal(values, v)


def test_memory_is_taken_once() -> None:
    remembered = cache()
    home = remembered[1].keys.data_ptr()
    keys, _ = remembered[1].append(torch.randn(1, 2, 4, 3), torch.randn(1, 2, 4, 3))
    assert keys.data_ptr() == home == remembered[1].keys.data_ptr()


def test_length_is_that_of_the_last_layer() -> None:
    remembered, row = cache(), torch.randn(1, 2, 1, 3)
    remembered[0].append(row, row)
    assert remembered.length == 0
    remembered[1].append(row, row)
    assert remembered.length == 1


@pytest.mark.parametrize("shape", [(1, 2, 6, 3), (2, 2, 1, 3), (1, 1, 1, 3)])
def test_what_does_not_fit_is_refused_and_nothing_is_written(shape: tuple[int, ...]) -> None:
    remembered = cache()
    with pytest.raises(ShapeError, match="a cache for"):
        remembered[0].append(torch.ones(shape), torch.ones(shape))
    assert remembered[0].length == 0 and not remembered[0].keys.any()
