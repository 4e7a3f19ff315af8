"""Facts about cache.py. That cached decoding equals the full forward is in test_attention.py."""

import pytest
import torch

from clearhead.cache import FixedLayerCache, KVCache
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


def test_what_is_cut_off_is_written_over() -> None:
    remembered, k = cache(), torch.randn(1, 2, 5, 3)
    for layer in remembered.layers:
        layer.append(k[:, :, :4], k[:, :, :4])
    remembered.truncate(2)
    assert remembered.length == 2
    keys, _ = remembered[0].append(k[:, :, 4:], k[:, :, 4:])
    assert torch.equal(keys, k[:, :, [0, 1, 4]])
    with pytest.raises(ShapeError, match="3 tokens cannot be cut to 4"):
        remembered[0].truncate(4)


@pytest.mark.parametrize("rows", [[1, 0, 2], [2, 2, 0], [1], [0, 1, 2, 1, 0]])
def test_texts_are_kept_in_the_order_asked_for(rows: list[int]) -> None:
    remembered = KVCache(n_layers=2, batch=3, n_kv_heads=2, max_len=4, d_head=3)
    k, memory = torch.randn(3, 2, 3, 3), (torch.randn(3, 2, 7, 3), torch.randn(3, 2, 7, 3))
    for layer in remembered.layers:
        layer.append(k, 2 * k)
        layer.once(lambda: memory)
    remembered.keep(torch.tensor(rows))
    new = torch.randn(len(rows), 2, 1, 3)
    for layer in remembered.layers:
        keys, values = layer.append(new, new)
        assert torch.equal(keys, torch.cat((k[rows], new), 2)) and torch.equal(values, torch.cat((2 * k[rows], new), 2))
        assert all(torch.equal(came, old[rows]) for came, old in zip(layer.once(lambda: memory), memory))


def test_a_memory_is_projected_once() -> None:
    calls = []
    layer = cache()[0]

    def project() -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        return torch.ones(1), torch.zeros(1)

    assert layer.once(project) is layer.once(project) and len(calls) == 1


def test_a_fixed_cache_hands_out_all_rows_and_says_where_the_new_ones_stand() -> None:
    remembered = KVCache(n_layers=1, batch=2, n_kv_heads=2, max_len=5, d_head=3, kind=FixedLayerCache)
    k = torch.randn(2, 2, 4, 3)
    for piece, places in ((k[:, :, :3], [0, 1, 2]), (k[:, :, 3:], [3])):
        assert remembered.places(piece.shape[2]).tolist() == places
        keys, _ = remembered[0].append(piece, piece)
        assert keys.shape == (2, 2, 5, 3) and remembered.n_keys(1) == 5
    assert torch.equal(keys[:, :, :4], k) and not keys[:, :, 4].any() and remembered.length == 4
    remembered.keep(torch.tensor([1]))
    assert torch.equal(remembered[0].keys[0, :, :4], k[1]) and remembered[0].keys.shape == (2, 2, 5, 3)
    remembered.truncate(1)
    assert remembered.places(2).tolist() == [1, 2]
