"""A mask of any kind comes back link by link from the rule that was kept of it, and the rule is a short one."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clearhead.seeing import recognition, watch
from clearhead.seeing.recognition import recognise
from clearhead.seeing.rule import Rule


def dense(rule: Rule, shape: tuple[int, int, int, int]) -> Tensor:
    """Return who may look where, written out."""
    heads, rows, cols = (torch.arange(n) for n in shape[1:])
    tiles = [rule.sees(text, heads, rows, cols) for text in range(shape[0])]
    return torch.stack([torch.ones(()).bool().expand(shape[1:]) if t is None else t.expand(shape[1:]) for t in tiles])


def words(rule: Rule) -> dict[str, Any]:
    """Return what a rule says, numbers as they are, tables by their shape."""
    said = {"reach": rule.reach, "since": rule.since} | {name: tuple(t.shape) for name, t in rule.tables.items()}
    return {name: value for name, value in said.items() if value is not None}


ROW, COL = torch.arange(9)[:, None], torch.arange(9)
CAUSAL, WINDOW = ROW >= COL, (ROW >= COL) & (ROW - COL < 3)
DOCUMENTS = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
PADDED = torch.tensor([9, 3])[:, None, None, None]
HOLES = torch.tensor([1, 1, 0, 1, 1, 1, 0, 0, 1]).bool()


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.ones(2, 1, 9, 9).bool(), {}),
        (CAUSAL, {"reach": 0}),
        (CAUSAL[5:], {"reach": 5}),
        (CAUSAL[2:3], {"keys": (1, 2)}),
        (WINDOW, {"reach": 0, "since": -2}),
        (WINDOW[5:], {"reach": 5, "since": 3}),
        ((ROW - COL).abs() < 3, {"reach": 2, "since": -2}),
        (ROW <= COL, {"since": 0}),
        (COL < PADDED, {"keys": (2, 2)}),
        (COL >= 9 - PADDED, {"keys": (2, 2)}),
        (CAUSAL & (COL < PADDED), {"reach": 0, "keys": (2, 2)}),
        (CAUSAL & (COL >= 9 - PADDED), {"reach": 0, "keys": (2, 2)}),
        (WINDOW & (COL >= 9 - PADDED), {"reach": 0, "since": -2, "keys": (2, 2)}),
        (DOCUMENTS[:, None] == DOCUMENTS, {"spans": (1, 1, 9, 2)}),
        (CAUSAL & (DOCUMENTS[:, None] == DOCUMENTS), {"spans": (1, 1, 9, 2)}),
        (CAUSAL | (COL < 4), {"spans": (1, 1, 9, 2)}),
        ((ROW < PADDED) & (COL < PADDED), {"spans": (2, 1, 9, 2)}),
        (HOLES.expand(2, 1, 1, 9), {"allowed": (1, 1, 1, 9)}),
        (CAUSAL & HOLES, {"reach": 0, "allowed": (1, 1, 1, 9)}),
        ((ROW[:2] + 3 <= COL) & HOLES, {"since": 3, "allowed": (1, 1, 1, 9)}),  # nobody sees the holes either way
        (torch.zeros(9, 9).bool(), {"keys": (1, 2)}),
        ((ROW + COL) % 2 == 0, {"packed": (1, 1, 9, 2)}),
    ],
)
@pytest.mark.parametrize("kind", ["true and false", "-inf", "lowest number"])
def test_masks_are_kept_as_the_sentence_they_are(mask: Tensor, said: dict[str, Any], kind: str) -> None:
    shape = (2, 3, mask.shape[-2] if mask.ndim < 4 or mask.shape[2] > 1 else 9, 9)
    low = {"-inf": -torch.inf, "lowest number": torch.finfo(torch.bfloat16).min}
    blind = not mask.any(-1).all()
    came = mask if kind == "true and false" else torch.zeros(mask.shape, dtype=torch.bfloat16)
    if kind != "true and false":
        came = came.masked_fill(~mask, low[kind])
    rule = recognise(came, False, shape)
    if kind == "lowest number" and blind:
        assert words(rule) == {"bias": (*([1] * (4 - came.ndim)), *came.shape)}  # such a row looks everywhere alike
        return
    assert torch.equal(dense(rule, shape), mask.expand(shape))
    assert words(rule) == said


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    """Draw a mask of up to three rules on each other, and sometimes one link that breaks them."""
    batch, heads, n_queries, n_keys = (draw(st.integers(1, high)) for high in (3, 2, 12, 40))
    i, j = torch.arange(n_queries)[:, None], torch.arange(n_keys)
    mask = torch.ones(draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), n_queries, n_keys).bool()
    numbers = st.integers(-5, 45)
    for kind in draw(st.lists(st.sampled_from(["reach", "since", "keys", "documents", "holes", "prefix"]), max_size=3)):
        if kind in ("reach", "since"):
            c = draw(numbers)
            mask = mask & ((j <= i + c) if kind == "reach" else (j >= i + c - n_keys // 2))
        elif kind == "keys":
            ends = torch.tensor([sorted([draw(numbers), draw(numbers)]) for _ in mask])[:, :, None, None, None]
            mask = mask & (j >= ends[:, 0]) & (j < ends[:, 1])
        elif kind == "documents":
            size = draw(st.integers(1, 9))
            mask = mask & (i // size == j // size)
        elif kind == "holes":
            mask = mask & (torch.rand(n_keys, generator=torch.manual_seed(draw(numbers) + 5)) < 0.7)
        else:
            mask = mask | (j < draw(numbers))
    if draw(st.booleans()):
        text, head, row, col = (draw(st.integers(0, n - 1)) for n in mask.shape)
        mask = mask.clone()
        mask[text, head, row, col] ^= True
    return mask.expand(batch, heads, -1, -1)


@given(masks(), st.integers(1, 60))
def test_every_mask_comes_back_link_by_link(mask: Tensor, piece: int) -> None:
    before, recognition.PIECE = recognition.PIECE, piece  # many small pieces
    try:
        for came in (mask, torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)):
            rule = recognise(came, False, tuple(mask.shape))
            assert torch.equal(dense(rule, tuple(mask.shape)), mask)
            assert rule.bias is None
    finally:
        recognition.PIECE = before


@given(masks())
def test_no_query_sees_beyond_what_is_visible(mask: Tensor) -> None:
    stop = recognise(mask, False, tuple(mask.shape)).visible(mask.shape[2], mask.shape[3])
    assert 0 <= stop <= mask.shape[3]
    assert not mask[..., stop:].any()


@given(masks(), st.sets(st.integers(0, 11)))
def test_the_rule_of_some_rows_is_that_part_of_the_mask(mask: Tensor, wanted: set[int]) -> None:
    rows = torch.tensor(sorted(row for row in wanted if row < mask.shape[2]), dtype=torch.long)
    kept = recognise(mask, False, tuple(mask.shape)).keep(rows)
    assert torch.equal(dense(kept, (*mask.shape[:2], len(rows), mask.shape[3])), mask[:, :, rows])


def test_what_is_no_rule_is_kept_at_one_bit_a_link() -> None:
    mask = torch.rand(1, 1, 64, 64) < 0.5
    assert recognise(mask, False, (4, 8, 64, 64)).nbytes == 64 * 64 // 8


def test_numbers_are_kept_as_they_came() -> None:
    bias = torch.randn(1, 4, 5, 5, dtype=torch.float16)
    rule = recognise(bias, False, (2, 4, 5, 5))
    assert rule.bias is not None and torch.equal(rule.bias, bias)
    assert rule.bias.data_ptr() != bias.data_ptr()


def test_layers_given_the_same_mask_share_its_rule_until_it_is_written_to() -> None:
    allowed, other = torch.rand(1, 1, 6, 6) < 0.7, torch.rand(1, 1, 6, 6) < 0.3

    class Five(nn.Module):
        def forward(self, x: Tensor) -> None:
            F.scaled_dot_product_attention(x, x, x, attn_mask=allowed)
            F.scaled_dot_product_attention(x, x, x, attn_mask=other)
            F.scaled_dot_product_attention(x, x, x, attn_mask=allowed[:, :, :, :6])  # a new view of the same
            allowed.fill_(True)
            F.scaled_dot_product_attention(x, x, x, attn_mask=allowed)
            F.scaled_dot_product_attention(x, x, x, attn_mask=other.clone())

    model = Five()
    with watch(model) as seen:
        model(torch.randn(1, 2, 6, 8))
    first, second, third, fourth, fifth = (seen.call(i).rule for i in range(5))
    assert first is third and second is fifth
    assert first.packed is not None and words(fourth) == {}
    seen.calls = {0: seen.calls[0], 2: seen.calls[2]}
    assert seen.nbytes == 2 * seen.layers[0].nbytes + first.nbytes


def test_masks_of_earlier_forwards_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    read = []

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("fixed", torch.rand(6, 6) < 0.5)

        def forward(self, x: Tensor) -> None:
            mask = torch.rand(6, 6) < 0.5
            alive.append(weakref.ref(mask))
            F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
            F.scaled_dot_product_attention(x, x, x, attn_mask=self.fixed)

    whole = recognition.recognise
    monkeypatch.setattr(recognition, "recognise", lambda *given: read.append(1) or whole(*given))
    model = Two()
    with watch(model) as seen:
        for _ in range(3):
            model(torch.randn(1, 2, 6, 8))
        assert [mask() is None for mask in alive] == [True, True, False]
    assert alive[2]() is None
    assert len(read) == 6  # every forward reads both of its masks
    assert len({id(call.rule) for call in seen.calls[1]}) == 1


def by_data(mask: Tensor) -> None:
    mask.data[0, 0] = False


def by_assigning_data(mask: Tensor) -> None:
    mask.data = mask.data & (torch.arange(6) > 0)


def by_numpy(mask: Tensor) -> None:
    mask.numpy()[:, 1] = False


@pytest.mark.parametrize("change", [by_data, by_assigning_data, by_numpy])
def test_a_mask_that_is_changed_between_two_runs_is_read_again(change: Callable[[Tensor], None]) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(6, 6).bool())

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask)

    model, x = Masked(), torch.randn(1, 1, 6, 8)
    with watch(model) as seen:
        model(x)
        change(model.mask)
        model(x)
    for call, mask in ((0, torch.ones(6, 6).bool()), (1, model.mask)):
        expected = (x[0, 0] @ x[0, 0].mT / 8**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        torch.testing.assert_close(seen.map(0, 0, call=call), expected)
