"""flex_attention is seen with its mask, whatever function that is; weights of scores changed by a function are kept."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from clearhead.seeing import edit, watch

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's: flex_attention is slow where it is not compiled


@pytest.fixture(autouse=True)
def written_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let flex_attention run without the compiler it asks for, which would take minutes."""
    import torch.nn.attention.flex_attention as flex

    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with torch.compiler.set_stance("force_eager"):
        yield


class Flex(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(q, k, v, enable_gqa=True, **self.options)


def attends(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return (i >= j) & (i - j < 4)


@pytest.mark.parametrize("mask", [None, attends])
def test_calls_are_seen_with_their_masks(mask: Callable[..., Tensor] | None) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    q, k, v = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    block_mask = None if mask is None else create_block_mask(mask, None, None, 9, 9, device="cpu")
    model = Flex(block_mask=block_mask, scale=0.3)
    blind = model(q, k, v)
    with watch(model) as seen:
        assert torch.equal(model(q, k, v), blind)
    assert (seen.layers[0].n_heads, seen.layers[0].n_kv_heads) == (4, 2)
    scores = 0.3 * q @ k.repeat_interleave(2, 1).mT
    if mask is not None:
        at = torch.arange(9)
        scores = scores.masked_fill(~attends(at, at, at[:, None], at), -torch.inf)
        assert (seen.call(0).rule.reach, seen.call(0).rule.since) == (0, -3)
    assert seen.map(0, 3, batch=1) == pytest.approx(scores.softmax(-1)[1, 3], abs=1e-6)


SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])


def squared_and_sloped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return score * score - SLOPES[h] * (i - j).abs()


def test_the_weights_of_scores_that_go_through_a_function_are_kept() -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    q, k, v = torch.randn(2, 4, 9, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    block_mask = create_block_mask(attends, None, None, 9, 9, device="cpu")
    model = Flex(score_mod=squared_and_sloped, block_mask=block_mask)
    with torch.no_grad():
        blind = model(q, k, v)
        with watch(model, values=True) as seen:
            assert torch.equal(model(q, k, v), blind)
    at = torch.arange(9)
    scores = (q @ k.repeat_interleave(2, 1).mT / 4).square() - SLOPES[:, None, None] * (at[:, None] - at).abs()
    expected = scores.masked_fill(~attends(at, at, at[:, None], at), -torch.inf).softmax(-1)
    assert seen.unseen == () and seen.notes[0].endswith("its scores go through a score_mod of its own")
    assert seen.layers[0].weights_kept and (seen.layers[0].n_heads, seen.layers[0].n_kv_heads) == (4, 2)
    assert (seen.call(0).rule.reach, seen.call(0).rule.since) == (0, -3)
    torch.testing.assert_close(seen.to_dense(0), expected)
    torch.testing.assert_close(seen.map(0, 3, of="values"), expected[0, 3] * v[0, 1].norm(dim=-1))
    with torch.no_grad(), edit(model) as change:
        change.cut(0, 3, query=4, key=4)
        edited = model(q, k, v)
    row = expected[0, 3, 4].index_fill(0, torch.tensor(4), 0)
    torch.testing.assert_close(edited[0, 3, 4], row / row.sum() @ v[0, 1])


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_what_transformers_asks_of_it_is_known(kind: str) -> None:
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    config = config_class(
        vocab_size=60,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
    )
    model = transformers.AutoModel.from_config(config, attn_implementation="flex_attention").eval()
    eager = transformers.AutoModel.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    tokens, mask = torch.randint(3, 60, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    with torch.no_grad():
        blind = model(tokens, attention_mask=mask)[0]
        with watch(model) as seen:
            watched = model(tokens, attention_mask=mask)[0]
        expected = eager(tokens, attention_mask=mask, output_attentions=True).attentions
    assert torch.equal(blind, watched)
    assert seen.unseen == ()
    assert seen.notes == ["flex_attention ran uncompiled while it was watched; outputs may move in the last digits"]
    for layer in range(2):
        assert seen.call(layer).softcap == (50.0 if kind == "gemma2" else None)
        assert seen.map(layer, 3, batch=1)[:6] == pytest.approx(expected[layer][1, 3, :6], abs=1e-5)
