"""Editing changes what is named, exactly, and nothing else; what was asked for and did not happen is said."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clearhead.errors import InputError, ShapeError, WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing import edit, watch
from seeing.dense import Fused

CONFIG = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_len=64)
LIMITS = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float64: 1e-12}


@pytest.fixture
def bert() -> Bert:
    return Bert(CONFIG).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 50, (2, 9))


def dense(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the weights of a small call in float64; keys are repeated for their group of heads."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1).double()
    scores = q.double() @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0)


def masks(n_queries: int, n_keys: int) -> dict[str, Tensor | None]:
    padding = torch.ones(2, 1, 1, n_keys, dtype=torch.bool)
    padding[1, ..., -3:] = False
    blind = torch.ones(n_queries, n_keys, dtype=torch.bool).tril()
    blind[2] = False
    return {"none": None, "padding": padding, "a blind row": blind, "bias": torch.randn(1, 4, n_queries, n_keys)}


# ---------------------------------------------------------------- what an edit computes


@pytest.mark.parametrize("kind", ["none", "padding", "a blind row", "bias"])
def test_a_temperature_divides_scores_and_biases(kind: str) -> None:
    q, k, v = (torch.randn(2, heads, time, 8) for heads, time in ((4, 6), (2, 7), (2, 7)))
    mask, model = masks(6, 7)[kind], Fused()
    plain = model(q, k, v, mask, enable_gqa=True)
    with edit(model) as change:
        change.temperature(0, [1, 3], 2.5)
        found = model(q, k, v, mask, enable_gqa=True)
    cooled = mask / 2.5 if kind == "bias" and mask is not None else mask
    wanted = dense(q / 2.5, k, cooled) @ v.repeat_interleave(2, 1).double()
    assert torch.equal(found[:, [0, 2]], plain[:, [0, 2]])
    torch.testing.assert_close(found[:, [1, 3]].double(), wanted[:, [1, 3]], atol=3e-6, rtol=0)


def test_temperatures_multiply_and_go_with_cuts() -> None:
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    with edit(model := Fused()) as change:
        change.temperature(0, None, 2.0)
        change.temperature(0, None, 1.5)
        change.cut(0, None, 3, 1)
        found = model(q, k, v)
    may = torch.ones(5, 5, dtype=torch.bool)
    may[3, 1] = False
    torch.testing.assert_close(found.double(), dense(q / 3, k, may) @ v.double(), atol=3e-6, rtol=0)


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), True])
def test_a_temperature_is_a_number_above_0(factor: float, bert: Bert) -> None:
    with pytest.raises(InputError, match="factor= expects a number above 0"), edit(bert) as change:
        change.temperature(0, 0, factor)


def test_a_replaced_pattern_has_no_temperature(bert: Bert, tokens: Tensor) -> None:
    with pytest.raises(WatchError, match="no scores that a temperature divides"), edit(bert) as change:
        change.replace(0, 0, torch.eye(9))
        change.temperature(0, 0, 2.0)
        bert(tokens)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", ["none", "padding", "a blind row", "bias"])
def test_a_cut_link_is_what_the_formula_says(kind: str, dtype: torch.dtype, renormalise: bool, gradient: bool) -> None:
    q, k, v = (torch.randn(2, heads, time, 8).to(dtype) for heads, time in ((4, 6), (2, 7), (2, 7)))
    q.requires_grad_(gradient)
    mask = masks(6, 7)[kind]
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    model = Fused()
    plain = model(q, k, v, mask, enable_gqa=True)
    with edit(model) as change:
        change.cut(0, [1, 3], [0, 2, -1], slice(1, 4), renormalise=renormalise)
        out = model(q, k, v, mask, enable_gqa=True)
    weights = dense(q, k, mask)
    weights[:, [1, 3], 0, 1:4] = weights[:, [1, 3], 2, 1:4] = weights[:, [1, 3], 5, 1:4] = 0
    if renormalise:
        weights = (weights / weights.sum(-1, keepdim=True)).nan_to_num(0)
    exact = weights @ v.repeat_interleave(2, 1).double()
    for head in (1, 3):
        for row in (0, 2, 5):
            torch.testing.assert_close(
                out[:, head, row].double(), exact[:, head, row], atol=LIMITS[dtype], rtol=LIMITS[dtype]
            )
    assert torch.equal(out[:, [0, 2]], plain[:, [0, 2]])
    assert torch.equal(out[:, :, [1, 3, 4]], plain[:, :, [1, 3, 4]])
    assert out.stride() == plain.stride()


def test_a_renormalised_cut_is_what_the_kernel_gives_under_that_mask() -> None:
    q, k, v = torch.randn(3, 2, 4, 9, 8)
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    model = Fused()
    with edit(model) as change:
        change.cut(0, None, None, 3)
        cut = model(q, k, v, is_causal=True)
    mask[:, 3] = False
    torch.testing.assert_close(cut, model(q, k, v, mask))


def test_cuts_add_up_in_any_order() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    model = Fused()
    found = []
    for order in (((1, True), (2, True), (4, False)), ((4, False), (2, True), (1, True))):
        with edit(model) as change:
            for key, renormalise in order:
                change.cut(0, 0, 5, key, renormalise=renormalise)
            found.append(model(q, k, v))
    weights = dense(q, k)[0, 0, 5]
    weights[[1, 2]] = 0
    weights /= weights.sum()
    weights[4] = 0
    torch.testing.assert_close(found[0][0, 0, 5].double(), weights @ v[0, 0].double(), atol=3e-6, rtol=3e-6)
    assert torch.equal(*found)


def test_gradients_flow_through_what_is_left() -> None:
    q, k, v = torch.randn(3, 1, 2, 6, 8, dtype=torch.float64)
    q.requires_grad_()
    model = Fused()
    with edit(model) as change:
        change.cut(0, 0, 5, [1, 2])
        model(q, k, v)[0, 0, 5].square().sum().backward()
    assert q.grad is not None
    ours, q.grad = q.grad, None
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[5, [1, 2]] = False
    model(q, k, v, mask)[0, 0, 5].square().sum().backward()
    torch.testing.assert_close(ours, q.grad)


def test_long_rows_are_cut_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 3, 40, 8)
    model = Fused()
    found = []
    for tile in (2**22, 64):
        monkeypatch.setattr("clearhead.seeing.maps.formula.TILE", tile)
        for renormalise in (True, False):
            with edit(model) as change:
                change.cut(0, None, slice(3, 30), [5, 7], renormalise=renormalise)
                found.append(model(q, k, v))
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


def test_a_pattern_is_used_as_it_is_and_can_be_cut() -> None:
    q, k, v = torch.randn(3, 2, 2, 5, 8)
    pattern = torch.rand(5, 5)
    model = Fused()
    with edit(model) as change:
        change.replace(0, 1, pattern, batch=1)
        replaced = model(q, k, v)
        change.cut(0, 1, 4, 0, renormalise=False, batch=1)
        cut = model(q, k, v)
    torch.testing.assert_close(replaced[1, 1], pattern @ v[1, 1])
    pattern[4, 0] = 0
    torch.testing.assert_close(cut[1, 1], pattern @ v[1, 1])
    assert torch.equal(replaced[0], model(q, k, v)[0])


def test_a_heads_own_pattern_changes_nothing(bert: Bert, tokens: Tensor) -> None:
    with watch(bert) as seen:
        plain = bert(tokens)
    with edit(bert) as change:
        for text in (0, 1):
            change.replace(1, 2, seen.map(1, 2, batch=text), batch=text)
        torch.testing.assert_close(bert(tokens), plain)


# ---------------------------------------------------------------- heads and layers


def test_a_head_that_is_off_is_a_head_whose_projection_is_zero(bert: Bert, tokens: Tensor) -> None:
    with edit(bert) as change:
        change.switch_off(1, 2)
        off = bert(tokens)
    bert.blocks[1].attention.out_proj.weight.data[:, 16:24] = 0
    torch.testing.assert_close(off, bert(tokens))


def test_keeping_only_a_head_switches_off_the_others(bert: Bert, tokens: Tensor) -> None:
    with edit(bert) as change:
        change.keep_only("blocks.0.attention", [0, 3])
        kept = bert(tokens)
    with edit(bert) as change:
        change.switch_off(0, [1, 2])
        assert torch.equal(kept, bert(tokens))


def test_a_layer_that_is_off_gives_its_bias(bert: Bert, tokens: Tensor) -> None:
    given: list[Tensor] = []
    hook = bert.blocks[1].attention.register_forward_hook(lambda layer, x, out: given.append(out))
    with edit(bert) as change:
        change.switch_off("blocks.1.*")
        bert(tokens)
    hook.remove()
    assert torch.equal(given[0], bert.blocks[1].attention.out_proj.bias.expand_as(given[0]))


def test_layers_before_an_edit_and_texts_beside_it_keep_their_bits(bert: Bert, tokens: Tensor) -> None:
    with watch(bert, outputs=True) as before:
        plain = bert(tokens)
    with edit(bert) as change, watch(bert, outputs=True) as after:
        change.switch_off(1, 0, batch=1)
        edited = bert(tokens)
    for layer in (0, 1):
        assert torch.equal(before.call(layer).q, after.call(layer).q)
        assert torch.equal(before.output(layer, 3, batch=1), after.output(layer, 3, batch=1))
    assert torch.equal(plain[0], edited[0])
    assert not torch.equal(plain[1], edited[1])


def test_an_edit_of_nothing_yet_changes_nothing_and_all_is_restored(bert: Bert, tokens: Tensor) -> None:
    plain = bert(tokens)
    with edit(bert) as change:
        assert torch.equal(bert(tokens), plain)
        change.switch_off(0)
        assert not torch.equal(bert(tokens), plain)
    assert torch.equal(bert(tokens), plain)
    with pytest.raises(RuntimeError, match="mine"), edit(bert) as change:
        change.switch_off(7)
        raise RuntimeError("mine")  # not hidden behind the edit that never applied
    assert torch.equal(bert(tokens), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bert.modules())


# ---------------------------------------------------------------- patching


def test_patching_a_head_with_its_own_output_changes_no_bit(bert: Bert, tokens: Tensor) -> None:
    with watch(bert, outputs=True) as seen:
        plain = bert(tokens)
    with edit(bert) as change:
        change.patch(None, None, seen)
        assert torch.equal(bert(tokens), plain)


def test_patching_all_heads_of_the_last_layer_brings_the_other_runs_attention(bert: Bert, tokens: Tensor) -> None:
    with watch(bert, outputs=True) as seen:
        bert(tokens[:1])
    with edit(bert) as change, watch(bert, outputs=True) as inside:
        change.patch(2, [0, 1], seen)
        change.patch(2, 2, seen.output(2, 2)[[4, 5]], query=[4, 5])
        bert(tokens)
    for text in (0, 1):
        assert torch.equal(inside.output(2, 1, batch=text), seen.output(2, 1))
        assert torch.equal(inside.output(2, 2, batch=text)[4:6], seen.output(2, 2)[4:6])


def test_an_output_of_another_length_is_refused_unless_positions_are_named(bert: Bert, tokens: Tensor) -> None:
    with watch(bert, outputs=True) as seen:
        bert(tokens[:, :5])
    with pytest.raises(ShapeError, match=r"9 queries, 8 numbers each, got \(5, 8\)"), edit(bert) as change:
        change.patch(0, 0, seen.output(0, 0))
        bert(tokens)
    with pytest.raises(ShapeError, match="9 queries and 9 keys, the pattern is 5 x 5"), edit(bert) as change:
        change.replace(0, 0, seen.map(0, 0))
        bert(tokens)


def test_a_link_that_carries_nearly_all_is_cut_as_exactly(tokens: Tensor) -> None:
    q, k, v = 12 * torch.randn(2, 4, 6, 8), torch.randn(2, 4, 7, 8), torch.randn(2, 4, 7, 8)
    weights = dense(q, k)
    row, key = divmod(int(weights[0, 1].argmax()), 7)
    assert weights[0, 1, row, key] > 0.9999
    hidden = torch.ones(6, 7, dtype=torch.bool)
    hidden[:, key] = False
    with edit(model := Fused()) as change:
        change.cut(0, 1, None, key, batch=0)
        out = model(q, k, v)
    assert (out[0, 1] - (dense(q, k, hidden) @ v.double())[0, 1]).abs().max() < 2e-5


def test_positions_count_padding_and_a_note_says_where_a_text_begins() -> None:
    model, x = Fused(), torch.randn(2, 4, 6, 8)
    mask = (torch.arange(6) >= torch.tensor([[0], [2]]))[:, None, None] & torch.ones(6, 6).tril().bool()
    with edit(model) as change, watch(model) as seen:
        change.cut(0, 0, 4, 3)
        out = model(x, x, x, mask)
    weights = torch.stack([seen.map(0, 0, batch=i) for i in range(2)])
    weights[:, 4, 3] = 0
    weights[:, 4] /= weights[:, 4].sum(-1, keepdim=True)
    torch.testing.assert_close(out[:, 0, 4], (weights @ x[:, 0])[:, 4])
    assert change.notes == [
        "cut(layer=0, head=0, query=4, key=3): positions count the padding before a text, as maps do; "
        "text 1 begins at 2"
    ]


# ---------------------------------------------------------------- with watching, with itself


def test_a_watcher_inside_sees_what_the_edit_left_and_one_outside_what_the_kernel_gave(
    bert: Bert, tokens: Tensor
) -> None:
    with watch(bert, outputs=True) as outside, edit(bert) as change, watch(bert, outputs=True) as inside:
        change.switch_off(1, 2)
        change.cut(1, 0, None, 0)
        bert(tokens)
    assert outside.output(1, 2).abs().sum() > 0
    assert inside.output(1, 2).abs().sum() == 0
    for seen in (outside, inside):  # of the weights, both see those before the edit
        assert seen.map(1, 0)[:, 0].min() > 0
        assert len(seen.layers) == 3 and not seen.unseen
    for layer in range(3):
        assert torch.equal(outside.map(layer, 0), inside.map(layer, 0))


def test_the_inner_edit_acts_on_what_the_outer_one_left(bert: Bert, tokens: Tensor) -> None:
    with edit(bert) as outer, edit(bert) as inner:
        outer.switch_off(0, 0)
        inner.switch_off(0, 1)
        both = bert(tokens)
    with edit(bert) as change:
        change.switch_off(0, [0, 1])
        assert torch.equal(both, bert(tokens))


# ---------------------------------------------------------------- other models, other ways to run


def test_torchs_own_encoder_is_edited() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    x = torch.randn(2, 7, 32)
    with edit(model) as change, torch.no_grad():
        change.switch_off(1, 3)
        off = model(x)
    model.layers[1].self_attn.out_proj.weight.data[:, 24:] = 0
    torch.testing.assert_close(off, model(x))


def test_checkpointed_layers_are_edited_when_they_run_again() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert, self.again = Bert(CONFIG), False

        def forward(self, tokens: Tensor) -> Tensor:
            if self.again:
                return checkpoint(self.bert, tokens, use_reentrant=False)
            return self.bert(tokens)

    model, tokens, found = Twice().eval(), torch.randint(0, 50, (1, 9)), []
    for model.again in (False, True):
        model.zero_grad()
        with edit(model) as change:
            change.cut(1, 2, 4, 3)
            model(tokens).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_positions_go_on_counting_where_a_cache_grows() -> None:
    model = GPTForCausalLM(GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_len=64)).eval()
    tokens = torch.randint(0, 50, (1, 8))
    with edit(model) as change, torch.no_grad():
        change.cut(None, None, [3, 6], [0, 2])
        whole = model(tokens)
    with edit(model) as change, torch.no_grad():
        change.cut(None, None, [3, 6], [0, 2])
        cache = model.new_cache(1, 64)
        steps = [model(some, cache=cache) for some in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:7], tokens[:, 7:])]
    torch.testing.assert_close(torch.cat(steps, 1), whole)


# ---------------------------------------------------------------- never silent


def test_a_head_or_text_that_a_layer_lacks_is_refused_when_it_runs(bert: Bert, tokens: Tensor) -> None:
    with pytest.raises(WatchError, match=r"layer 1 'blocks.1.attention' has 4 heads.*no head 4"), edit(bert) as change:
        change.switch_off(1, 4)
        bert(tokens)
    with pytest.raises(WatchError, match=r"has 2 texts.*no text 2"), edit(bert) as change:
        change.cut(1, 0, 0, 0, batch=2)
        bert(tokens)
    with pytest.raises(InputError, match=r"head=\[\] names none"), edit(bert) as change:
        change.switch_off(0, [])


@pytest.mark.parametrize(
    "layer, query, key, why",
    [
        (3, 0, 0, "no layer 3 ran, of 3: 0 'blocks.0.attention'"),
        ("encoder.*", 0, 0, r"no layer 'encoder\.\*' ran"),
        (0, 9, 0, "there is no query 9: its last call had 9"),
        (0, 0, [9, 12], r"there is no key \[9, 12\]: its last call had 9"),
    ],
)
def test_an_edit_that_never_applied_is_an_error_when_the_body_ends(
    bert: Bert, tokens: Tensor, layer: int | str, query: int, key: int | list[int], why: str
) -> None:
    with pytest.raises(WatchError, match=f"1 of 2 edits never applied: cut.*{why}"), edit(bert) as change:
        change.cut(layer, 0, query, key)
        change.switch_off(0)
        bert(tokens)
        assert len(change.unused) == 1


def test_an_edit_of_a_model_that_did_not_run_or_was_not_seen_is_an_error(bert: Bert) -> None:
    with pytest.raises(WatchError, match="run the model inside the with block"), edit(bert) as change:
        change.switch_off(0)

    class ByHandAttention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    model = nn.Sequential(ByHandAttention())
    with pytest.raises(WatchError, match=r"0 \(ByHandAttention\): it ran, but made no"), edit(model) as change:
        change.switch_off(0)
        model(torch.randn(1, 5, 8))


def test_links_of_a_call_that_drops_weights_cannot_be_cut() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    model = Fused()
    with pytest.raises(WatchError, match=r"model\.eval"), edit(model) as change:
        change.cut(0, 0, 1, 1)
        model(q, k, v, dropout_p=0.5)


def test_a_recording_of_some_rows_is_not_patched_into_others() -> None:
    model = Bert(BertConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=2, d_ff=32)).eval()
    tokens = torch.randint(0, 50, (1, 8))
    with torch.no_grad():
        with watch(model, outputs=True, rows=[5]) as seen:
            model(tokens)
        with pytest.raises(WatchError, match="kept only some rows"), edit(model) as change:
            change.patch(1, 0, seen, query=3)
            model(tokens)
