"""An edit is the same edit wherever attention happens: other people's models, their slow paths, sinks, torch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from clearhead.seeing import edit, watch
from seeing.dense import Fused

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MAKE: dict[str, Callable[[], Any]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "llama, grouped": lambda: transformers.LlamaModel(transformers.LlamaConfig(**SIZES, **GROUPED)),
}


def inputs() -> dict[str, Tensor]:
    kept = torch.ones(2, 9, dtype=torch.long)
    kept[1, 6:] = 0
    return {"input_ids": torch.randint(0, 60, (2, 9)), "attention_mask": kept}


def run(model: Any, given: dict[str, Tensor], prepare: Callable[[Any], None]) -> Tensor:
    with edit(model) as change, torch.no_grad():
        prepare(change)
        return model(**given).last_hidden_state


def cut(change: Any) -> None:
    change.cut(0, 1, slice(3, None), 2)
    change.cut(1, 3, [4, 5], [0, 1], renormalise=False)


EDITS: dict[str, Callable[[Any], None]] = {"cut": cut, "off": lambda change: change.switch_off(1, [0, 3])}


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("name", MAKE)
def test_an_edit_gives_the_same_on_the_fused_and_on_the_slow_path(name: str, what: str) -> None:
    model, given = MAKE[name]().eval(), inputs()
    with torch.no_grad():
        plain = model(**given).last_hidden_state
    found = []
    for path in ("sdpa", "eager"):
        model.set_attn_implementation(path)
        found.append(run(model, given, EDITS[what]))
    real = given["attention_mask"].bool()
    torch.testing.assert_close(found[0][real], found[1][real], atol=2e-5, rtol=2e-5)
    assert not torch.allclose(found[0][real], plain[real], atol=1e-3)


def with_a_sink() -> Any:
    config = transformers.GptOssConfig(
        **SIZES, **GROUPED, num_local_experts=2, num_experts_per_tok=1, sliding_window=16, pad_token_id=0
    )
    model = transformers.GptOssModel(config)
    for layer in model.layers:
        nn.init.normal_(layer.self_attn.sinks)
    return model


def with_a_softcap() -> Any:
    config = transformers.Gemma2Config(**SIZES, **GROUPED, sliding_window=4, attn_logit_softcapping=0.01)
    return transformers.Gemma2Model(config)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("build", [with_a_sink, with_a_softcap])
def test_with_sinks_and_softcaps_a_cut_is_that_of_the_formula(build: Callable[[], Any], renormalise: bool) -> None:
    model = build().eval()
    given = {"input_ids": torch.randint(1, 60, (1, 7))}
    with torch.no_grad(), watch(model, outputs=True, values=True) as seen:
        model(**given)
    with edit(model) as change, watch(model, outputs=True) as after, torch.no_grad():
        change.cut(0, 3, 5, [3, 4], renormalise=renormalise)
        model(**given)
    call = seen.call(0)
    assert call.v is not None and (call.sinks is not None or call.softcap == 0.01)
    row = seen.map(0, 3)[5].double()
    assert call.sinks is None or float(row.sum()) < 0.99  # the sink has its share
    weights = row.clone()
    weights[[3, 4]] = 0
    if renormalise:  # the sink stays in the sum that the row is divided by
        weights /= 1 - row[[3, 4]].sum()
    torch.testing.assert_close(after.output(0, 3)[5].double(), weights @ call.v[0, 1].double(), atol=1e-5, rtol=1e-5)
    assert torch.equal(after.output(0, 3)[:5], seen.output(0, 3)[:5])


def test_attention_by_hand_is_edited() -> None:
    class ByHand(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1) @ v

    q, k, v = torch.randn(3, 2, 4, 6, 8)
    found = []
    for model in (ByHand(), Fused()):
        with edit(model) as change:
            change.cut(0, 2, [1, 4], 3)
            change.switch_off(0, 0, batch=1)
            found.append(model(q, k, v))
    torch.testing.assert_close(*found)


def test_weights_that_go_on_after_their_values_are_said() -> None:
    class Shaw(nn.Module):
        """Self-attention with relative positions among the values too (Shaw et al. 2018, equation 3)."""

        def forward(self, q: Tensor, k: Tensor, v: Tensor, near: Tensor) -> Tensor:
            weights = torch.softmax(q @ k.mT * 8**-0.5, -1)
            return weights @ v + torch.einsum("bhij,ijd->bhid", weights, near)

    given, model = (*torch.randn(3, 2, 4, 6, 8), torch.randn(6, 6, 8)), Shaw()
    for off, notes in ((None, 0), (2, 1)):
        with edit(model) as change:
            if off is not None:
                change.switch_off(0, off)
            model(*given)
        assert len(change.notes) == notes
    assert "an edit changes the first alone" in change.notes[0]


@pytest.mark.parametrize("gradient", [False, True])
def test_a_vit_of_timm_is_edited_fused_and_not(timm: Any, gradient: bool) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2).eval()
    pictures, found = torch.randn(2, 3, 32, 32, requires_grad=gradient), []
    for fused in (True, False):
        for block in model.blocks:
            block.attn.fused_attn = fused
        with edit(model) as change, torch.set_grad_enabled(gradient):
            change.cut(None, 0, None, 2, renormalise=False)
            change.replace(1, 1, torch.full((5, 5), 0.2), batch=1)
            change.switch_off(0, 2)
            out = model(pictures)
        found.append(torch.autograd.grad(out.square().sum(), pictures)[0] if gradient else out)
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_in_torchs_own_attention_the_inner_one_sees_what_the_outer_one_left() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 5, 32)
    with (
        torch.no_grad(),
        watch(layer, outputs=True) as outside,
        edit(layer) as change,
        watch(layer, outputs=True) as inside,
    ):
        change.switch_off(0, 1)
        layer(x)
    assert outside.output(0, 1).abs().sum() > 0
    assert inside.output(0, 1).abs().sum() == 0


def test_a_generated_token_cannot_see_what_was_cut() -> None:
    config = transformers.LlamaConfig(**SIZES, **GROUPED, max_position_embeddings=32, eos_token_id=None)
    model = transformers.LlamaForCausalLM(config).eval()
    prompt, steps = torch.randint(0, 60, (1, 6)), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with edit(model) as change, torch.no_grad():
        change.cut(None, None, slice(3, None), [0, 1])
        written = model.generate(prompt, **steps)
    with edit(model) as change, torch.no_grad():
        change.cut(None, None, slice(3, None), [0, 1])
        whole = model(written).logits[0, 5:-1].argmax(-1)
    assert torch.equal(written[0, 6:], whole)  # with the cache, token by token, as in one forward
