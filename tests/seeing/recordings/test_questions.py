"""What is asked of a recording comes back from the right layer, head, text and rows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clearhead.attention import MultiHeadAttention
from clearhead.errors import WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.seeing import Recording, watch

CONFIG = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_len=64)
N = 23


@pytest.fixture(scope="module")
def seen() -> Recording:
    torch.manual_seed(0)
    model, tokens = Bert(CONFIG).eval(), torch.randint(0, 50, (2, N))
    for block in model.blocks:  # sharper than at the start
        block.attention.q_proj.weight.data *= 30
    with watch(model, gradients=True) as seen:
        model(tokens, torch.tensor([N, 15]))[0].square().sum().backward()
    return seen


def whole(seen: Recording, layer: int, batch: int = 0) -> Tensor:
    return torch.stack([seen.map(layer, head, batch=batch) for head in range(4)])


def test_padded_queries_count_in_maps_and_not_in_sums(seen: Recording) -> None:
    assert seen.map(0, 1, batch=1).sum().item() == pytest.approx(N, abs=1e-4)
    assert seen.overview(0, 1, size=5, batch=1).sum().item() == pytest.approx(15, abs=1e-4)
    assert seen.received(0, batch=1).sum(-1) == pytest.approx(torch.full((4,), 15.0), abs=1e-4)
    assert {link.query for link in seen.strongest(2000, layer=0, batch=1)} == set(range(15))


def test_an_overview_of_a_part_is_that_part(seen: Recording) -> None:
    full = whole(seen, 1)[2]
    part = seen.overview(1, 2, size=100, rows=slice(3, 9), cols=slice(-4, None))
    assert part == pytest.approx(full[3:9, -4:], abs=1e-6)
    with pytest.raises(WatchError, match="in one stretch"):
        seen.overview(1, 2, rows=slice(0, 9, 2))


@pytest.mark.parametrize("mode", ["sum", "max"])
def test_tiles_of_a_level_finer_than_the_text_hold_single_weights_and_nothing(seen: Recording, mode: str) -> None:
    finest = seen.pyramid(1, 2, size=64, mode=mode).levels[-1]  # type: ignore[arg-type]
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        tile = seen.zoom(1, 2, 5, (i, j), size=2, mode=mode)  # type: ignore[arg-type]
        torch.testing.assert_close(tile, finest[2 * i : 2 * i + 2, 2 * j : 2 * j + 2])
        assert bool(tile.any()) == (i == j == 1)  # the first position begins at block 2


def test_what_cannot_be_asked_is_refused_with_what_can(seen: Recording) -> None:
    with pytest.raises(WatchError, match="at least 1, got 0"):
        seen.overview(1, 2, size=0)
    with pytest.raises(WatchError, match="at least 1, got -4"):
        seen.pyramid(1, 2, size=-4)
    with pytest.raises(WatchError, match="at least 1, got 0"):
        seen.zoom(1, 2, level=0, place=(0, 0), size=0)


def test_a_recording_printed_says_what_it_holds(seen: Recording) -> None:
    assert repr(seen).startswith(f"Recording of 3 layers, 12 heads, 1 forward, texts x queries x keys 2 x {N} x {N}, ")
    assert "unseen" not in repr(seen) and "notes" not in repr(seen)
    model, tokens = Bert(CONFIG).eval(), torch.randint(0, 50, (1, 5))
    with watch(model, layers=[7]) as none, torch.no_grad():
        assert repr(none) == "Recording of nothing yet"
        model(tokens)
    assert repr(none).startswith("Recording of nothing: layers= or rows= left out all of blocks.0")


def test_tiles_of_a_zoom_level_are_that_level_of_the_pyramid(seen: Recording) -> None:
    for mode in ("sum", "max"):
        levels = seen.pyramid(2, 0, size=16, mode=mode).levels  # type: ignore[arg-type]
        tiles = [
            torch.cat([seen.zoom(2, 0, 2, (i, j), size=4, mode=mode) for j in range(4)], 1)  # type: ignore[arg-type]
            for i in range(4)
        ]
        assert torch.cat(tiles) == pytest.approx(levels[4], abs=1e-6)
    assert levels[0].item() == pytest.approx(whole(seen, 2)[0].max().item(), abs=1e-6)


def test_the_strongest_links_come_from_all_layers_and_heads(seen: Recording) -> None:
    found = seen.strongest(12)
    maps = torch.stack([whole(seen, layer) for layer in range(3)])
    assert [link.weight for link in found] == pytest.approx(maps.flatten().topk(12).values.tolist(), abs=1e-6)
    for link in found:
        assert maps[link.layer, link.head, link.query, link.key].item() == pytest.approx(link.weight, abs=1e-6)
    assert all((link.layer, link.head) == (1, 3) for link in seen.strongest(5, layer=1, head=3))


def test_maps_are_weighed_by_values_and_gradients(seen: Recording) -> None:
    one, weights = seen.call(1), whole(seen, 1)
    assert one.v is not None and one.gradient is not None
    by_value = seen.map(1, 2, [3, 7], of="values")
    assert by_value == pytest.approx(weights[2, [3, 7]] * one.v[0, 2].norm(dim=-1), abs=1e-5)
    assert seen.map(1, 2, slice(3, 9), of="values")[[0, 4]] == pytest.approx(by_value, abs=1e-5)
    by_gradient = weights[2] * (one.gradient[0, 2] @ one.v[0, 2].T)
    assert seen.map(1, 2, of="gradient") == pytest.approx(by_gradient, abs=1e-5)
    assert seen.overview(1, 2, size=1, of="gradient").item() == pytest.approx(by_gradient.sum().item(), abs=1e-4)


def test_rollout_follows_all_layers_or_some(seen: Recording) -> None:
    mixed = [0.5 * whole(seen, layer).mean(0) + 0.5 * torch.eye(N) for layer in range(3)]
    assert seen.rollout() == pytest.approx(mixed[2] @ mixed[1] @ mixed[0], abs=1e-5)
    assert seen.rollout([-1, 4], layers=[1, 2]) == pytest.approx((mixed[2] @ mixed[1])[[-1, 4]], abs=1e-5)
    assert seen.rollout_overview(1).item() == pytest.approx(N, abs=1e-3)


def test_offsets_and_repeats_are_those_of_the_map(seen: Recording) -> None:
    before = seen.offset(0, -1)
    assert before[:, 1:] == pytest.approx(whole(seen, 0).diagonal(-1, 1, 2), abs=1e-6)
    assert before[:, 0].abs().sum() == 0
    text = torch.arange(N) % 10
    same, after = seen.repeats(0, text)
    assert same[3, 21].item() == pytest.approx(whole(seen, 0)[3, 21, [1, 11]].sum().item(), abs=1e-6)
    assert after[3, 21].item() == pytest.approx(whole(seen, 0)[3, 21, [2, 12]].sum().item(), abs=1e-6)
    assert seen.heads(tokens=text)[3].duplicate == pytest.approx(same[3].mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.zoom(0, 0, 1, (0, 2)), r"tiles 0 to 1 down and across, asked for \(0, 2\)"),
        (lambda s: s.overview(0, 0, of="gradient", mode="max"), "two signs"),
        (lambda s: s.heads(tokens=torch.arange(5)), "5 tokens, but no layer saw as many"),
        (lambda s: s.repeats(0, torch.arange(5)), "5 tokens for a layer that saw 23"),
        (lambda s: s.map(0, 0, of=torch.zeros(3, 5)), r"shape \(d_model, 32\)"),
    ],
)
def test_what_cannot_be_answered_is_refused(seen: Recording, ask: Callable[[Recording], object], message: str) -> None:
    with pytest.raises(WatchError, match=message):
        ask(seen)


@pytest.mark.parametrize("n_queries, n_keys", [(6, 6), (10, 4), (1, 8)])
def test_heads_of_cross_attention_are_not_named_for_distances(n_queries: int, n_keys: int) -> None:
    class Crosses(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cross_attention = MultiHeadAttention(16, 2)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return self.cross_attention(x, memory)

    model = Crosses().eval()
    with torch.no_grad(), watch(model) as seen:
        model(torch.randn(1, n_queries, 16), torch.randn(1, n_keys, 16))
    assert {habit.kind for habit in seen.heads()} <= {"sink", "separator", "diffuse", "mixed"}
    tokens = torch.zeros(n_keys, dtype=torch.long)
    for ask in (lambda: seen.heads(tokens=tokens), lambda: seen.repeats(0, tokens)):
        with pytest.raises(WatchError):
            ask()
