"""Every row once an epoch, similar lengths together, in an order that is the same again from any place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clearhead.data.batches import Batches, Rows, collate, plan_epoch
from clearhead.errors import InputError

SIZES = st.one_of(
    st.builds(lambda n: {"batch_size": n}, st.integers(1, 9)),
    st.builds(lambda n: {"batch_tokens": n}, st.integers(1, 200)),
)


@given(lengths=st.lists(st.integers(1, 60), max_size=300), size=SIZES, epoch=st.integers(0, 3))
def test_every_row_comes_once_and_no_batch_is_too_large(lengths: list[int], size: dict[str, int], epoch: int) -> None:
    plan = plan_epoch(lengths, epoch=epoch, seed=0, **size)
    assert sorted(row for batch in plan for row in batch) == list(range(len(lengths)))
    for batch in plan:
        longest = max(lengths[row] for row in batch)
        assert len(batch) <= size.get("batch_size", len(lengths))
        assert len(batch) == 1 or len(batch) * longest <= size.get("batch_tokens", 10**9)
    if "batch_size" in size:
        assert len(plan) == -(-len(lengths) // size["batch_size"])


def test_similar_lengths_share_a_batch() -> None:
    lengths = [1 + (7 * i) % 61 for i in range(2_000)]
    plan = plan_epoch(lengths, epoch=0, seed=0, batch_size=16)
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in plan)
    assert padded < 1.05 * sum(lengths)


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    lengths = [1 + i % 7 for i in range(100)]
    plan = plan_epoch(lengths, epoch=1, seed=3, batch_size=4)
    torch.manual_seed(5)
    assert plan == plan_epoch(lengths, epoch=1, seed=3, batch_size=4)
    assert plan != plan_epoch(lengths, epoch=2, seed=3, batch_size=4)
    assert plan != plan_epoch(lengths, epoch=1, seed=4, batch_size=4)


def rows() -> Rows:
    return Rows(
        tokens=[[i] * (1 + i % 5) for i in range(23)], pad_id=0, targets=torch.eye(23), weights=torch.arange(23.0)
    )


@pytest.mark.parametrize("stop", [0, 1, 7, 8, 30])
def test_batches_go_on_from_any_place(stop: int) -> None:
    whole, first, second = (Batches(rows(), seed=1, batch_size=3) for _ in range(3))
    for _ in range(stop):
        next(first)
    second.state = first.state
    expected = [next(whole).tokens.tolist() for _ in range(stop + 20)]
    assert [next(second).tokens.tolist() for _ in range(20)] == expected[stop:]


def test_a_row_keeps_its_target_and_weight() -> None:
    batches = Batches(rows(), seed=0, batch_tokens=12)
    for _ in range(20):
        batch = next(batches)
        assert batch.targets is not None and batch.weights is not None
        assert batch.targets.argmax(-1).tolist() == batch.tokens[:, 0].tolist() == batch.weights.tolist()


def test_another_seeds_state_is_refused() -> None:
    batches = Batches(rows(), seed=0, batch_size=2)
    with pytest.raises(InputError, match="seed 0, the state is of seed 1"):
        batches.state = {"epoch": 0, "index": 0, "seed": 1}


def test_collate_pads_on_the_right() -> None:
    tokens, lengths = collate([[5, 6, 7], [8]], pad_id=9)
    assert tokens.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert lengths.tolist() == [3, 1]
