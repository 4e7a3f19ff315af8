"""Our own attention with sinks is seen as its models mean it: keys are the tokens, and rows sum to less than one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clearhead.attention import CAUSAL, EVERYWHERE, Mask, attend, attention_map
from clearhead.models.gpt import GPTForCausalLM
from clearhead.seeing import edit, watch

SINKS = torch.tensor([-1.0, 0.0, 1.5, 4.0])
MASKS: dict[str, Callable[[], Mask]] = {
    "everywhere": lambda: EVERYWHERE,
    "causal": lambda: CAUSAL,
    "window": lambda: Mask(window=(2, 0)),
    "padding": lambda: Mask(causal=True, key_lengths=torch.tensor([7, 4])),
    "bias": lambda: Mask(bias=torch.randn(1, 4, 7, 7)),
}


class Attends(nn.Module):
    def __init__(self, mask: Mask, **how: Any) -> None:
        super().__init__()
        self.mask, self.how = mask, how

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self.mask, sinks=SINKS, **self.how)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MASKS)
def test_maps_are_the_formula_and_nothing_changes(name: str, dtype: torch.dtype) -> None:
    inputs = [torch.randn(2, n, 7, 8).to(dtype).requires_grad_() for n in (4, 2, 2)]
    model = Attends(MASKS[name]())

    def run() -> list[Tensor]:
        out = model(*inputs)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    blind = run()
    with watch(model) as seen:
        watched = run()
    assert all(torch.equal(a, b) for a, b in zip(blind, watched, strict=True))
    call = seen.call(0)
    assert call.lse is not None and call.sinks is not None and call.n_keys == call.n_queries == 7
    wanted = attention_map(*(x.double() for x in inputs[:2]), model.mask, sinks=call.sinks.flatten().double())
    for text in range(2):
        for head in range(4):
            have = seen.map(0, head, batch=text).double()
            torch.testing.assert_close(have, wanted[text, head], rtol=0, atol=1e-6 if dtype == torch.float32 else 5e-3)
    torch.testing.assert_close(call.sinks.flatten(), SINKS, rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-6)


def test_a_model_with_sinks_is_seen_by_its_tokens(gpt_with_sinks: GPTForCausalLM) -> None:
    tokens = torch.randint(0, 50, (2, 6))
    with torch.no_grad(), watch(gpt_with_sinks) as seen:
        gpt_with_sinks(tokens)
    assert [(layer.n_queries, layer.n_keys, layer.n_kv_heads) for layer in seen.layers] == [(6, 6, 2)] * 2
    assert seen.call(0).rule.reach == 0
    assert (seen.map(1, 2).sum(-1) < 0.99).all()
    cache = gpt_with_sinks.new_cache(2, 8)
    with torch.no_grad(), watch(gpt_with_sinks) as steps:
        gpt_with_sinks(tokens[:, :5], cache=cache)
        gpt_with_sinks(tokens[:, 5:], cache=cache)
    assert steps.map(1, 2, batch=1)[0].numpy() == pytest.approx(seen.map(1, 2, batch=1)[5].numpy(), abs=1e-5)


def test_a_cut_leaves_the_sink_its_share() -> None:
    q, k, v = torch.randn(3, 1, 4, 5, 8)
    model = Attends(CAUSAL)
    with watch(model) as seen, edit(model) as change:
        change.cut(0, 2, 4, [0, 1])
        out = model(q, k, v)
    row = seen.map(0, 2)[4]
    left = row.clone()
    left[:2] = 0
    torch.testing.assert_close(out[0, 2, 4], (left / (1 - row[:2].sum())) @ v[0, 2], rtol=1e-4, atol=1e-5)
