"""Gradients flow through an edited model as if it had been written that way, at every site of attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from clearhead.attention import attend
from clearhead.seeing import edit

PATTERN, GIVEN = torch.rand(5, 6).double(), torch.randn(5, 8).double()


def by_hand(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5 + bias, -1) @ v


def behind_values(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    weights = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5 + bias, -1)
    return (v.transpose(-1, -2) @ weights.transpose(-1, -2)).transpose(-1, -2)


def by_einsum(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q * 8**-0.5, k).add(bias)
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)


def fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, bias)


def fused_without_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


class Attends(nn.Module):
    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, *given: Tensor) -> Tensor:
        return self.how(*given)


def edited(change: Any) -> None:
    change.cut(0, 1, [2, 4], [0, 3])
    change.cut(0, 2, [1, 4], 5, renormalise=False)
    change.replace(0, 3, PATTERN, batch=1)
    change.patch(0, 0, GIVEN, batch=0)
    change.switch_off(0, 0, batch=1)


def by_formula(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    scores = q @ k.mT * 8**-0.5 + bias
    hidden, zeroed = torch.zeros(2, *scores.shape, dtype=torch.bool)
    hidden[:, 1, [[2], [4]], [0, 3]] = True
    zeroed[:, 2, [1, 4], 5] = True
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(zeroed, 0)
    third = torch.stack([weights[0, 3], PATTERN])
    out = torch.cat([weights[:, :3], third[:, None]], 1) @ v
    return torch.cat([torch.stack([GIVEN, torch.zeros(5, 8)])[:, None], out[:, 1:]], 1)


@pytest.mark.parametrize(
    "how", [by_hand, behind_values, by_einsum, fused, fused_without_bias], ids=lambda how: how.__name__
)
def test_gradients_by_what_went_in_are_those_of_the_formula(how: Callable[..., Tensor]) -> None:
    biased = how is not fused_without_bias
    shapes = (2, 4, 5, 8), (2, 4, 6, 8), (2, 4, 6, 8), (4, 5, 6)
    given = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    given[3] *= biased
    found = []
    for way in (Attends(how), by_formula):
        leaves = [x.clone().requires_grad_() for x in given]
        if way is by_formula:
            out = way(*leaves)
        else:
            with edit(way) as change:
                edited(change)
                out = way(*leaves)
        out.square().sum().backward()
        found.append([out.detach(), *(leaf.grad for leaf in leaves[: 3 + biased])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs.double(), atol=1e-6, rtol=1e-6)


def test_gradients_by_a_learned_temperature_are_those_of_the_formula() -> None:
    class Warm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.warmth = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, q: Tensor, mask: Tensor | None = None) -> Tensor:
            scores = q @ q.transpose(-1, -2) * self.warmth
            return (scores if mask is None else scores.masked_fill(mask, -torch.inf)).softmax(-1) @ q

    model, q, found = Warm(), torch.randn(2, 4, 5, 8, dtype=torch.float64), []
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[:, 3] = True
    with edit(model) as change:
        change.cut(0, None, None, 3)
        found += torch.autograd.grad(model(q).square().sum(), model.warmth)
    found += torch.autograd.grad(model(q, mask).square().sum(), model.warmth)
    torch.testing.assert_close(*found)


def test_gradients_by_learned_sinks_are_those_of_the_formula() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    sinks = torch.randn(4, requires_grad=True)
    model = Attends(lambda sinks: attend(q, k, v, sinks=sinks))
    with edit(model) as change:
        change.cut(0, None, None, 3)
        (ours,) = torch.autograd.grad(model(sinks).square().sum(), sinks)
    scores = torch.cat([(q @ k.mT * 8**-0.5), sinks[:, None, None].expand(2, 4, 5, 1)], -1)
    scores = scores.masked_fill(torch.arange(6) == 3, -torch.inf)
    (theirs,) = torch.autograd.grad((scores.softmax(-1)[..., :5] @ v).square().sum(), sinks)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", ["sdpa", "eager"])
def test_hidden_words_of_a_t5_move_inputs_and_learned_positions_as_a_mask_would(path: str) -> None:
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=1, num_heads=4, dropout_rate=0.0
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.set_attn_implementation(path)
    target, kept, found = torch.randint(3, 60, (1, 4)), torch.ones(1, 7, dtype=torch.long), []
    words = torch.randn(1, 7, 32)
    learned = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    for way in ("edit", "mask"):
        leaf = words.clone().requires_grad_()
        if way == "edit":
            with edit(model) as change:
                change.cut("encoder.*", None, None, 3)
                change.cut("*EncDecAttention", None, None, 3)
                logits = model(inputs_embeds=leaf, decoder_input_ids=target).logits
        else:
            kept[0, 3] = 0
            logits = model(inputs_embeds=leaf, attention_mask=kept, decoder_input_ids=target).logits
        found.append(torch.autograd.grad(logits.square().sum(), [leaf, learned]))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_what_is_put_in_learns_too() -> None:
    q, k, v = torch.randn(3, 1, 4, 5, 8)
    pattern, output = torch.rand(5, 5, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    model = Attends(lambda q: F.scaled_dot_product_attention(q, k, v))
    with edit(model) as change:
        change.replace(0, 1, pattern)
        change.patch(0, 2, output)
        out = model(q)
    ours = torch.autograd.grad(out.square().sum(), [pattern, output])
    torch.testing.assert_close(ours[0], 2 * (pattern @ v[0, 1]).detach() @ v[0, 1].mT)
    torch.testing.assert_close(ours[1], 2 * output.detach())
