"""torch's varlen_attn is seen and edited; transformers' padded and packed batches are seen as its models have them.

Neither has a kernel for CPUs: torch's operator is given one here, and transformers the flash_attn in plain torch.
"""

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention import varlen
from transformers import modeling_flash_attention_utils as theirs

from clearhead.seeing import Recording, edit, watch
from seeing import flash_attn_in_torch

# Before torch 2.13 it knew neither grouped heads nor an output given beforehand.
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}
N_KV_HEADS = 2 if GROUPED else 4
ENDS = torch.tensor([0, 5, 7, 16], dtype=torch.int32)


def on_cpu(q: Tensor, k: Tensor, v: Tensor, ends_q: Tensor, ends_k: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp by the formula."""
    _, _, causal, scale, window, *_ = rest
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return flash_attn_in_torch.packed(q, k, v, ends_q, ends_k, 0.0, scale, causal, *window, 0.0, None)


@torch.library.register_kernel("torch_attn::_varlen_attn", "cpu")
def _varlen_attn(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    out, lse = on_cpu(*given)
    return out, lse.contiguous(), torch.zeros(2, dtype=torch.uint64)


@torch.library.register_kernel("torch_attn::_varlen_attn_out", "cpu")
def _varlen_attn_out(out: Tensor, *given: Any) -> Tensor:
    made, lse = on_cpu(*given)
    out.copy_(made)
    return lse.contiguous()


@torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu")
def _varlen_attn_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *given: Any) -> tuple[Tensor, ...]:
    """Return the gradients by the formula: below autograd there is nothing else to ask."""
    _, lse, ends, *_, scale, window = given
    made, group = [torch.zeros_like(x) for x in (q, k, v)], q.shape[1] // k.shape[1]
    for a, b in pairwise(ends.tolist()):
        k_, v_ = (x[a:b].repeat_interleave(group, 1).transpose(0, 1) for x in (k, v))
        q_, out_ = q[a:b].transpose(0, 1), gradient[a:b].transpose(0, 1)
        apart = torch.arange(b - a)[:, None] - torch.arange(b - a)
        hidden = (apart > window[0]) & (window[0] >= 0) | (apart < -window[1]) & (window[1] >= 0)
        weights = (scale * q_ @ k_.mT - lse[:, a:b, None]).exp().masked_fill(hidden, 0)
        by_weights = out_ @ v_.mT
        by_scores = weights * (by_weights - (by_weights * weights).sum(-1, keepdim=True)) * scale
        made[0][a:b] = (by_scores @ k_).transpose(0, 1)
        made[1][a:b] = (by_scores.mT @ q_).transpose(0, 1).unflatten(1, (-1, group)).sum(2)
        made[2][a:b] = (weights.mT @ out_).transpose(0, 1).unflatten(1, (-1, group)).sum(2)
    return tuple(made)


class Varlen(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Any:
        return varlen.varlen_attn(q, k, v, ENDS, ENDS, 9, 9, **GROUPED, **how)


def tokens() -> list[Tensor]:
    return [x.requires_grad_() for x in (torch.randn(16, n_heads, 8) for n_heads in (4, N_KV_HEADS, N_KV_HEADS))]


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 0), (1, 3)])
def test_torchs_varlen_is_seen_unchanged_with_its_normaliser(window: tuple[int, int]) -> None:
    q, k, v = tokens()
    model = Varlen()

    def run() -> list[Tensor]:
        out = model(q, k, v, window_size=window, scale=0.4)
        return [out, *torch.autograd.grad(out.square().sum(), (q, k, v))]

    blind = run()
    with watch(model) as seen:
        watched = run()
    assert all(torch.equal(a, b) for a, b in zip(blind, watched, strict=True))
    assert seen.unseen == () and seen.call(0).lse is not None
    for text, (a, b) in enumerate(pairwise(ENDS.tolist())):
        keys = k[a:b].double().repeat_interleave(4 // N_KV_HEADS, 1)
        scores = 0.4 * q[a:b].double().transpose(0, 1) @ keys.permute(1, 2, 0)
        apart = torch.arange(b - a)[:, None] - torch.arange(b - a)
        hidden = (apart > window[0]) & (window[0] >= 0) | (apart < -window[1]) & (window[1] >= 0)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        have = torch.stack([seen.map(0, head, batch=text) for head in range(4)])[:, : b - a, : b - a]
        torch.testing.assert_close(have.double(), weights, rtol=0, atol=2e-6)


def test_an_edit_reaches_output_and_gradient_and_an_output_given_beforehand() -> None:
    q, k, v = tokens()
    model = Varlen()
    with edit(model) as change:
        change.switch_off(0, 2, batch=1)
        out, lse = model(q, k, v, scale=0.4, return_aux=varlen.AuxRequest(lse=True))
    gradient = torch.autograd.grad(out.sum(), q)[0]
    assert out[5:7, 2].abs().sum() == 0 and gradient[5:7, 2].abs().sum() == 0
    assert lse.shape == (4, 16) and out[7:, 2].abs().sum() > 0

    if not hasattr(varlen, "varlen_attn_out"):
        return

    class Into(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            made = torch.empty_like(q)
            varlen.varlen_attn_out(made, q, k, v, ENDS, ENDS, 9, 9, scale=0.4, **GROUPED)
            return made

    with torch.no_grad(), edit(into := Into()) as change, watch(into) as seen:
        change.switch_off(0, 2, batch=1)
        again = into(q, k, v)
    assert torch.equal(again, out) and len(seen.layers) == 1


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let transformers have loaded flash_attn, as it does where there is a GPU."""
    package = flash_attn_in_torch.install(monkeypatch)
    functions = {
        "_flash_fn": package.flash_attn_func,
        "_flash_varlen_fn": package.flash_attn_varlen_func,
        "_flash_with_kvcache_fn": package.flash_attn_with_kvcache,
        "_pad_fn": theirs._pad_input,
        "_unpad_fn": theirs._unpad_input,
        "_process_flash_kwargs_fn": theirs._lazy_define_process_function(package.flash_attn_varlen_func),
        "_loaded_implementation": "flash_attention_2",
    }
    for name, value in functions.items():
        monkeypatch.setattr(theirs, name, value)
    yield


def model_of(kind: str, **settings: Any) -> Any:
    config = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind](
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        pad_token_id=0,
        **settings,
    )
    return transformers.AutoModel.from_config(config).eval()


def by_flash(model: Any) -> Any:
    """Return the model asking for flash_attn, whose absence transformers would otherwise complain of."""
    model.config._attn_implementation = "flash_attention_2"
    return model


def assert_as_fused(flash: Recording, fused: Recording, kept: Tensor) -> None:
    """Compare the maps of every token that is none of padding."""
    assert [layer.name for layer in flash.layers] == [layer.name for layer in fused.layers]
    for layer in range(2):
        assert flash.call(layer).lse is not None
        for text in range(len(kept)):
            for head in range(4):
                have, want = (seen.map(layer, head, batch=text) for seen in (flash, fused))
                rows = kept[text].bool()
                torch.testing.assert_close(have[rows], want[rows], rtol=0, atol=1e-5)
                assert have[~rows].sum() == 0


SIDES = {"none": (0, 0), "right": (0, 3), "left": (3, 0), "both": (2, 3)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_padded_texts_stand_where_the_model_has_them(flash: None, kind: str, side: str) -> None:
    settings = {"sliding_window": 4} if kind != "llama" else {}
    model = model_of(kind, **settings)
    before, after = SIDES[side]
    kept = torch.ones(2, 9, dtype=torch.long)
    kept[1, :before] = kept[1, 9 - after :] = 0
    given = {"input_ids": torch.randint(1, 60, (2, 9)), "attention_mask": kept}
    with torch.no_grad(), watch(model) as fused:
        model(**given)
    by_flash(model)
    with torch.no_grad():
        blind = model(**given)[0]
        with watch(model) as seen:
            assert torch.equal(model(**given)[0], blind)
    assert seen.unseen == () and seen.notes == []
    assert seen.layers[0].n_kv_heads == 2
    assert_as_fused(seen, fused, kept)
    assert seen.call(0).rule is seen.call(1).rule or kind == "gemma2"


def test_generation_after_padding_is_seen_as_the_fused_call_is(flash: None) -> None:
    config = model_of("llama", eos_token_id=None).config
    model = transformers.LlamaForCausalLM(config).eval()
    kept = torch.ones(2, 6, dtype=torch.long)
    kept[0, :2] = 0
    given = {"attention_mask": kept, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    prompt, found = torch.randint(1, 60, (2, 6)), []
    for choose in (lambda m: m, by_flash):
        with torch.no_grad(), watch(choose(model)) as seen:
            written = model.generate(prompt, **given)
        found.append((seen, written))
    (fused, one), (flash_seen, other) = found
    assert torch.equal(one, other) and flash_seen.unseen == ()
    assert [layer.calls for layer in flash_seen.layers] == [4, 4]
    for call in range(1, 4):
        for text in range(2):
            have, want = (seen.map(1, 2, batch=text, call=call) for seen in (flash_seen, fused))
            torch.testing.assert_close(have, want, rtol=0, atol=1e-5)


def test_documents_in_one_row_stay_in_it(flash: None) -> None:
    model, text = by_flash(model_of("llama")), torch.randint(1, 60, (1, 12))
    places = torch.cat([torch.arange(5), torch.arange(7)])[None]
    with torch.no_grad(), watch(model) as seen:
        whole = model(input_ids=text, position_ids=places, use_cache=False)[0]
    with torch.no_grad(), watch(model) as alone:
        second = model(input_ids=text[:, 5:], use_cache=False)[0]
    torch.testing.assert_close(whole[:, 5:], second)
    assert seen.layers[0].batch == 1 and seen.call(0).rule.reach == 0
    torch.testing.assert_close(seen.map(1, 2)[5:, 5:], alone.map(1, 2), rtol=0, atol=1e-5)
    assert seen.map(1, 2)[5:, :5].sum() == 0


def test_padding_in_the_midst_of_a_text_is_said(flash: None) -> None:
    model, kept = by_flash(model_of("llama")), torch.tensor([[1, 1, 0, 1, 1, 1], [1] * 6])
    with torch.no_grad(), watch(model) as seen:
        model(input_ids=torch.randint(1, 60, (2, 6)), attention_mask=kept)
    assert "padding in their midst" in seen.notes[0]
    assert seen.map(0, 0).shape == (6, 6) and seen.map(0, 0)[5].sum() == 0


def test_an_edit_of_a_padded_text_is_that_of_the_fused_call(flash: None) -> None:
    model, found = model_of("llama"), []
    kept = torch.ones(2, 9, dtype=torch.long)
    kept[1, :3] = 0
    given = {"input_ids": torch.randint(1, 60, (2, 9)), "attention_mask": kept}
    for choose in (lambda m: m, by_flash):
        with torch.no_grad(), edit(choose(model)) as change:
            change.cut(0, 1, slice(6, None), 4, batch=1)
            change.switch_off(1, 3)
            found.append(model(**given)[0][kept.bool()])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_kernel_unknown_here_is_named_and_not_edited(flash: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(torch.autograd.Function):
        """An extension that no mode sees."""

        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():
                return q * 1

    monkeypatch.setattr(theirs, "_flash_fn", lambda q, k, v, **_: Elsewhere.apply(q, k, v))
    model, text = by_flash(model_of("llama")), torch.randint(1, 60, (1, 5))
    with torch.no_grad(), watch(model) as seen:
        model(input_ids=text)
    assert [one.name for one in seen.unseen] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert "flash_attention_forward made no call that can be seen" in seen.unseen[0].reason
    with pytest.raises(Exception, match="made no call that can be seen"), torch.no_grad(), edit(model) as change:
        change.switch_off(0)
        model(input_ids=text)
