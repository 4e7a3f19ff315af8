"""Facts about pairs: which share a batch, and what is padding."""

import torch

from clearhead.data.batches import NOT_ASKED, Batches, plan_epoch
from clearhead.data.pairs import Pairs

PAIRS = Pairs(
    sources=[[5] * (3 + n % 4) for n in range(120)], answers=[[7] * (2 + n % 3) for n in range(120)], pad_id=0
)


def test_pairs_of_the_same_two_lengths_share_a_batch() -> None:
    plan = plan_epoch(PAIRS.lengths, epoch=0, seed=0, batch_size=10)  # 10 pairs of each of 12 kinds
    assert sorted(n for rows in plan for n in rows) == list(range(120))
    assert all(len({PAIRS.lengths[n] for n in rows}) == 1 for rows in plan)


def test_a_batch_stays_within_its_tokens_on_both_sides_together() -> None:
    lengths = PAIRS.lengths
    for rows in plan_epoch(lengths, epoch=0, seed=0, batch_tokens=60):
        padded = len(rows) * (max(lengths[n][0] for n in rows) + max(lengths[n][1] for n in rows))
        assert padded <= 60


def test_answers_end_where_they_end_and_padding_is_asked_of_nobody() -> None:
    batch = Pairs(sources=[[5, 6], [5]], answers=[[7], [7, 8, 9]], pad_id=0).batch([0, 1])
    assert batch.tokens.tolist() == [[5, 6], [5, 0]]
    assert batch.lengths is not None and batch.lengths.tolist() == [2, 1]
    assert batch.targets.tolist() == [[7, NOT_ASKED, NOT_ASKED], [7, 8, 9]]
    assert batch.n_items == 7
    assert PAIRS.batch([0, 4, 8]).lengths is None  # of one length


def test_pairs_go_on_where_they_stopped() -> None:
    whole, stopped = (Batches(PAIRS, seed=3, batch_size=16) for _ in range(2))
    for _ in range(11):  # into the second epoch
        next(whole), next(stopped)
    resumed = Batches(PAIRS, seed=3, batch_size=16)
    resumed.state = stopped.state
    one, other = next(whole), next(resumed)
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.targets, other.targets)  # type: ignore[attr-defined]
