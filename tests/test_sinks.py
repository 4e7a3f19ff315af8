"""Sinks: a score a head for giving attention to nothing, as gpt-oss computes it."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from clearhead.attention import CAUSAL, EVERYWHERE, Mask, MultiHeadAttention, attend, attention_map
from clearhead.checkpoints import save
from clearhead.derivation import derive
from clearhead.errors import CheckpointError
from clearhead.generation import answers, generate
from clearhead.generation.packed import pack_decoder
from clearhead.models.gpt import GPTForCausalLM

MASKS = {
    "none": EVERYWHERE,
    "causal": CAUSAL,
    "window": Mask(causal=True, window=(3, 0)),
    "lengths": Mask(key_lengths=torch.tensor([9, 4])),
    "starts": Mask(causal=True, key_starts=torch.tensor([0, 5])),
    "bias": Mask(bias=torch.linspace(-2, 2, 81).view(1, 1, 9, 9)),
}


def random(n_queries: int = 9, n_keys: int = 9, n_kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q = torch.randn(2, 4, n_queries, 16)
    k, v = torch.randn(2, 2, n_kv_heads, n_keys, 16)
    return q, k, v, torch.tensor([-1.0, 0.0, 1.5, 4.0])


@pytest.mark.parametrize("name", MASKS)
def test_the_fused_call_is_the_formula(name: str) -> None:
    q, k, v, sinks = random()
    weights = attention_map(q, k, MASKS[name], sinks=sinks)
    out = attend(q, k, v, MASKS[name], sinks=sinks)
    torch.testing.assert_close(out, weights @ v.repeat_interleave(2, dim=1), rtol=1e-5, atol=1e-6)
    total = weights.sum(-1)
    assert (total < 1).all()
    assert (total[:, 3] <= total[:, 0]).float().mean() > 0.9  # the higher the sink, the less is left


@pytest.mark.parametrize("n_queries", [1, 3])
def test_queries_at_the_end_of_a_cache(n_queries: int) -> None:
    q, k, v, sinks = random(9)
    whole = attend(q, k, v, CAUSAL, sinks=sinks)
    last = attend(q[:, :, -n_queries:], k, v, CAUSAL, sinks=sinks)
    torch.testing.assert_close(last, whole[:, :, -n_queries:], rtol=1e-5, atol=1e-6)


def test_a_sink_of_minus_infinity_is_none_at_all() -> None:
    q, k, v, _ = random()
    never = torch.full((4,), -1e4)
    torch.testing.assert_close(attend(q, k, v, CAUSAL, sinks=never), attend(q, k, v, CAUSAL), rtol=1e-5, atol=1e-6)


def test_numbers_and_gradients_are_those_of_gpt_oss() -> None:
    from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward

    def run(theirs: bool) -> list[Tensor]:
        torch.manual_seed(0)
        q, k, v, sinks = (x.requires_grad_() for x in random())
        if theirs:
            module = SimpleNamespace(sinks=sinks, num_key_value_groups=2, training=False)
            hidden = torch.full((9, 9), -torch.inf).triu(1)
            out = eager_attention_forward(module, q, k, v, hidden, scaling=0.25)[0].transpose(1, 2)
        else:
            out = attend(q, k, v, CAUSAL, sinks=sinks)
        (out * torch.arange(16)).sum().backward()
        return [out, *(x.grad for x in (q, k, v, sinks) if x.grad is not None)]

    for ours, theirs in zip(run(False), run(True), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_cached_packed_and_uncached_are_the_same_text(gpt_with_sinks: GPTForCausalLM) -> None:
    prompt = [[3, 4, 5], [6]]
    tokens = list(prompt[0])
    with torch.inference_mode():
        for _ in range(6):
            tokens.append(int(gpt_with_sinks(torch.tensor([tokens]))[0, -1].argmax()))
    for model in (gpt_with_sinks, pack_decoder(gpt_with_sinks)):
        assert answers(generate(model, prompt, max_new_tokens=6), 2)[0] == tokens[3:]


def test_the_derivation_says_what_the_sink_takes(gpt_with_sinks: GPTForCausalLM) -> None:
    attention = gpt_with_sinks.gpt.blocks[0].attention
    assert isinstance(attention, MultiHeadAttention)
    x = torch.randn(4, 32)
    told = derive(attention, x, list("abcd"), query=3, head=1, mask=CAUSAL)
    with torch.inference_mode():
        torch.testing.assert_close(told["output"], attention(x[None], mask=CAUSAL)[0, 3], rtol=1e-4, atol=1e-5)
    assert told["weights"].sum() < 1 and "sink" in told.steps[5].equation


def test_no_family_has_words_for_sinks_yet(gpt_with_sinks: GPTForCausalLM, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(CheckpointError, match="sinks"):
        save(gpt_with_sinks, tmp_path / "sinks")
