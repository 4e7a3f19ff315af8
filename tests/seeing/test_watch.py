"""Watching changes nothing, leaves nothing behind, and never says nothing where something happened."""

import copy
import gc
import pickle
import re
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clearhead.attention import CAUSAL, Mask, MultiHeadAttention, attention_map
from clearhead.errors import WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.seeing import watch

CONFIG = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=3, d_ff=64, max_len=64)


@pytest.fixture
def bert() -> Bert:
    return Bert(CONFIG).eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 50, (2, 9))


def gradients(model: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    model.zero_grad()
    run().square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


# ---------------------------------------------------------------- nothing changes


@pytest.mark.parametrize("lengths", [None, [9, 4]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_the_same_bits(
    bert: Bert, tokens: Tensor, lengths: list[int] | None, dtype: torch.dtype
) -> None:
    bert = bert.to(dtype)
    rows = None if lengths is None else torch.tensor(lengths)
    blind, blind_grads = bert(tokens, rows), gradients(bert, lambda: bert(tokens, rows))
    with watch(bert) as seen:
        watched, grads = bert(tokens, rows), gradients(bert, lambda: bert(tokens, rows))
    assert torch.equal(blind, watched)
    assert all(torch.equal(a, b) for a, b in zip(blind_grads, grads, strict=True))
    assert [layer.calls for layer in seen.layers] == [2, 2, 2]


def test_training_with_dropout_draws_the_same_numbers(bert: Bert, tokens: Tensor) -> None:
    bert.train()
    torch.manual_seed(1)
    blind = gradients(bert, lambda: bert(tokens))
    torch.manual_seed(1)
    with watch(bert) as seen:
        watched = gradients(bert, lambda: bert(tokens))
    assert all(torch.equal(a, b) for a, b in zip(blind, watched, strict=True))
    assert seen.call(0).dropout == 0.1
    assert seen.map(0, 0).sum(-1) == pytest.approx(1)  # before dropout


def test_the_kernel_that_runs_is_the_same_one(bert: Bert, tokens: Tensor) -> None:
    def kernels() -> set[str]:
        cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=cpu, acc_events=True) as profile, torch.no_grad():
            bert(tokens)
        return {event.name for event in profile.events() if re.search("attention|softmax|mm|gelu|norm", event.name)}

    blind = kernels()
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in blind
    with watch(bert):
        assert kernels() == blind


def test_checkpointed_layers_are_seen_once(tokens: Tensor) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = MultiHeadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.attention, x, use_reentrant=False)

    model, x = Checkpointed(), torch.randn(1, 5, 8)
    blind = gradients(model, lambda: model(x))
    with watch(model) as seen:
        watched = gradients(model, lambda: model(x))
    assert [layer.calls for layer in seen.layers] == [1]
    assert all(torch.equal(a, b) for a, b in zip(blind, watched, strict=True))


# ---------------------------------------------------------------- what is seen


def test_every_layer_is_named_and_sized(bert: Bert, tokens: Tensor) -> None:
    with torch.no_grad(), watch(bert) as seen:
        bert(tokens)
    assert [layer.name for layer in seen.layers] == [f"blocks.{i}.attention" for i in range(3)]
    first = seen.layers[0]
    assert (first.batch, first.n_heads, first.n_kv_heads, first.n_queries, first.n_keys) == (2, 4, 4, 9, 9)
    # q and k, 32 numbers a token each, and one log-sum-exp a head and token, in float32
    assert first.nbytes == 2 * 9 * (32 + 32 + 4) * 4
    assert seen.nbytes == 3 * first.nbytes
    assert seen.unseen == ()


def test_each_forward_adds_a_call(bert: Bert) -> None:
    texts = [torch.randint(0, 50, (1, n)) for n in (4, 7, 5)]
    with torch.no_grad(), watch(bert) as seen:
        for text in texts:
            bert(text)
    assert seen.layers[2].calls == 3
    assert [seen.map(2, 1, call=i).shape[0] for i in range(3)] == [4, 7, 5]
    assert torch.equal(seen.map(2, 1), seen.map(2, 1, call=2))


def test_a_layer_that_runs_twice_in_one_forward_is_two_layers() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = MultiHeadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(self.attention(x))

    model = Shared()
    with watch(model) as seen:
        model(torch.randn(1, 5, 8))
        model(torch.randn(1, 5, 8))
    assert [(layer.name, layer.calls) for layer in seen.layers] == [("attention", 2), ("attention#2", 2)]


def test_only_the_layers_and_heads_asked_for_are_kept(bert: Bert, tokens: Tensor) -> None:
    with torch.no_grad():
        with watch(bert) as everything:
            bert(tokens)
        with watch(bert, layers=[1], heads=[2, 0]) as some:
            bert(tokens)
        with watch(bert, layers=["*.2.attention"]) as named:
            bert(tokens)
    assert [layer.index for layer in some.layers] == [1]
    assert torch.equal(some.map(1, 2), everything.map(1, 2))
    assert some.nbytes * 2 == everything.layers[1].nbytes
    assert torch.equal(named.map("blocks.2.attention", 3), everything.map(2, 3))
    with pytest.raises(WatchError, match="no head 1; 2 of 4 were recorded: 0, 2"):
        some.map(1, 1)
    with pytest.raises(WatchError, match=r"layer 0 is not in this recording, which has 1 'blocks\.1\.attention'"):
        some.map(0, 0)


def test_many_layers_are_counted_and_not_listed_when_one_is_not_there(tokens: Tensor) -> None:
    deep = Bert(replace(CONFIG, n_layers=6)).eval()
    with torch.no_grad(), watch(deep) as seen, watch(deep, layers=[0, 2, 3, 5]) as some:
        deep(tokens)
    for recording, asked, said in (
        (seen, 7, "layer 7 is not in this recording, which has 6 layers, 0 to 5"),
        (seen, "x", "6 layers, 0 'blocks.0.attention' to 5 'blocks.5.attention'"),
        (some, 1, "layer 1 is not in this recording, which has 4 layers: 0, 2, 3, 5"),
    ):
        with pytest.raises(WatchError, match=re.escape(said) + "$"):
            recording.map(asked, 0)


def test_heads_of_grouped_keys_are_told_apart() -> None:
    model = MultiHeadAttention(32, 8, n_kv_heads=2)
    x = torch.randn(1, 6, 32)
    with watch(model) as everything:
        model(x, mask=CAUSAL)
    with watch(model, heads=[5, 6]) as some:
        model(x, mask=CAUSAL)
    assert everything.call(0).k.shape[1] == 2
    assert some.call(0).k.shape[1] == 1
    assert torch.equal(some.map(0, 6), everything.map(0, 6))


def test_names_bound_early_are_seen() -> None:
    from torch.nn.functional import scaled_dot_product_attention as early

    class Early(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return early(x, x, x)

    model = Early()
    with watch(model) as seen:
        model(torch.randn(1, 2, 4, 8))
    assert len(seen.layers) == 1


def test_later_writes_into_the_models_tensors_do_not_show() -> None:
    class Overwriting(nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            out = F.scaled_dot_product_attention(*qkv)
            qkv.zero_()
            return out

    qkv = torch.randn(3, 1, 2, 5, 8)
    expected = attention_map(qkv[0].clone(), qkv[1].clone())
    model = Overwriting()
    with watch(model) as seen:
        model(qkv)
    assert torch.allclose(seen.map(0, 1), expected[0, 1], atol=1e-6)


def test_autocast_is_recorded_in_the_dtype_the_kernel_read() -> None:
    class Fused(nn.Module):
        def forward(self, q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k, attn_mask=bias)

    model, q, k = Fused(), 4 * torch.randn(1, 2, 6, 16), torch.randn(1, 2, 6, 16)
    bias = 4 * torch.randn(1, 2, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16), watch(model) as seen:
        model(q, k, bias)
    assert seen.layers[0].dtype == torch.bfloat16
    expected = attention_map(q.bfloat16().float(), k.bfloat16().float(), Mask(bias=bias.bfloat16().float()))
    assert seen.map(0, 1) == pytest.approx(expected[0, 1], abs=2e-5)


def test_multi_head_attention_of_torch_is_seen_inside_its_own_function() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
    )
    x = torch.randn(2, 5, 16)
    encoder.eval()
    with watch(encoder) as outer, watch(encoder) as inner:
        encoder(x)
    for seen in (outer, inner):
        assert [layer.name for layer in seen.layers] == ["layers.0.self_attn", "layers.1.self_attn"]
        assert seen.unseen == ()
        attention = encoder.layers[0].self_attn
        expected = attention(x, x, x, need_weights=True, average_attn_weights=False)[1]
        assert torch.allclose(seen.map(0, 1, batch=1), expected[1, 1], atol=1e-6)


def test_leaving_the_inference_kernel_is_said() -> None:
    model, x = nn.MultiheadAttention(16, 2, batch_first=True).eval(), torch.randn(1, 5, 16)
    with torch.no_grad():
        blind = model(x, x, x, need_weights=False)[0]
        with watch(model) as seen:
            watched = model(x, x, x, need_weights=False)[0]
    assert torch.allclose(blind, watched, atol=1e-6)
    assert seen.notes == ["nn.MultiheadAttention ran in its Python form, not in its inference kernel"]


# ---------------------------------------------------------------- everything is restored


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_and_names_are_gone_afterwards_also_after_an_exception(bert: Bert, tokens: Tensor) -> None:
    fused = F.scaled_dot_product_attention
    with pytest.raises(RuntimeError, match="stop"), watch(bert):
        assert hooks(bert) > 0
        raise RuntimeError("stop")
    assert hooks(bert) == 0
    assert F.scaled_dot_product_attention is fused
    assert torch.overrides._get_current_function_mode() is None


def test_a_model_can_be_copied_and_pickled_while_it_is_watched(bert: Bert, tokens: Tensor) -> None:
    with torch.no_grad(), watch(bert) as seen:
        copied = copy.deepcopy(bert)
        pickle.dumps(bert)
        bert(tokens)
    copied(tokens)
    assert seen.n_forwards == 1
    with watch(bert):
        for module in bert.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
    assert hooks(bert) == 0


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@torch.no_grad()
def test_padding_that_an_encoder_would_have_left_out_is_said() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2).eval()
    x, padding = torch.randn(2, 5, 16), torch.arange(5) > torch.tensor([[4], [2]])
    blind = encoder(x, src_key_padding_mask=padding)
    with watch(encoder) as seen:
        watched = encoder(x, src_key_padding_mask=padding)
        encoder(x)
    assert blind[padding].abs().max() == 0 < watched[padding].abs().max()
    assert torch.allclose(blind[~padding], watched[~padding], atol=1e-5)
    assert sum("without nested tensors" in note for note in seen.notes) == 1
    with watch(encoder) as whole:
        encoder(x)
    assert not any("without nested tensors" in note for note in whole.notes)


def test_a_forward_that_failed_does_not_confuse_the_next(bert: Bert, tokens: Tensor) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("in the middle")

    with torch.no_grad(), watch(bert) as seen:
        handle = bert.blocks[1].feed_forward.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            bert(tokens)
        handle.remove()
        bert(tokens)
    assert [layer.name for layer in seen.layers] == [f"blocks.{i}.attention" for i in range(3)]
    assert [layer.calls for layer in seen.layers] == [2, 2, 1]


def test_two_watchers_at_once_see_the_same(bert: Bert, tokens: Tensor) -> None:
    with torch.no_grad():
        blind = bert(tokens)
        with watch(bert) as outer:
            with watch(bert.blocks[1], heads=[3]) as inner:
                assert torch.equal(bert(tokens), blind)
            bert(tokens)
    assert [layer.calls for layer in outer.layers] == [2, 2, 2]
    assert [(layer.name, layer.calls) for layer in inner.layers] == [("attention", 1)]
    assert torch.equal(inner.map(0, 3), outer.map(1, 3, call=0))


def test_nothing_is_kept_alive(bert: Bert, tokens: Tensor) -> None:
    model = Bert(CONFIG)
    with watch(model) as seen:
        out = model(tokens)
    q = weakref.ref(seen.call(0).q)
    gone = weakref.ref(model)
    del model, out
    gc.collect()
    assert gone() is None  # though the recording lives
    assert seen.map(0, 0).shape == (9, 9)
    del seen
    gc.collect()
    assert q() is None


# ---------------------------------------------------------------- what is not seen is named


class Linear(nn.Module):
    """Attention without a softmax: there are no weights to see."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x) @ (F.elu(x).mT @ x)


class Net(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.self_attn, self.attention_norm, self.fused = attention, nn.LayerNorm(8), MultiHeadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fused(self.attention_norm(self.self_attn(x)))


def test_attention_that_cannot_be_seen_is_listed_beside_what_was() -> None:
    model = Net(Linear())
    with watch(model) as seen:
        model(torch.randn(1, 4, 8))
    assert [layer.name for layer in seen.layers] == ["fused"]
    assert [(u.name, u.kind) for u in seen.unseen] == [("self_attn", "Linear")]
    assert "no attention that can be seen" in seen.unseen[0].reason


def test_asking_an_empty_recording_says_what_was_not_seen() -> None:
    model = nn.Sequential()
    model.attention = Linear()
    with watch(model) as seen, pytest.raises(WatchError, match="run the model inside the with block"):
        seen.layers  # noqa: B018
    with watch(model) as seen:
        model.attention(torch.randn(1, 4, 8))
    with pytest.raises(WatchError, match=r"attention \(Linear\): it ran, but made no attention that can be seen"):
        seen.map(0, 0)


def test_calls_from_outside_the_model_are_counted_not_mixed_in(bert: Bert, tokens: Tensor) -> None:
    q = torch.randn(1, 1, 3, 4)
    with torch.no_grad(), watch(bert) as seen:
        F.scaled_dot_product_attention(q, q, q)
        bert(tokens)
    assert len(seen.layers) == 3
    assert seen.unseen[0].reason == "1 fused call came from outside the watched model"


def test_a_model_that_ran_in_another_thread_is_named(bert: Bert, tokens: Tensor) -> None:
    with watch(bert) as seen:
        thread = threading.Thread(target=lambda: bert(tokens))
        thread.start()
        thread.join()
    with pytest.raises(WatchError, match="in another thread"):
        seen.layers  # noqa: B018


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_by_name() -> None:
    class Ragged(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    ragged = torch.nested.nested_tensor([torch.randn(3, 2, 4), torch.randn(5, 2, 4)], layout=torch.jagged)
    model = Ragged()
    with watch(model) as seen:
        model(ragged.transpose(1, 2))
    with pytest.raises(WatchError, match="nested"):
        seen.layers  # noqa: B018


def test_a_call_that_cannot_be_copied_is_named_and_the_model_goes_on(
    bert: Bert, tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("clearhead.seeing.recorder.recognise", fail)
    with torch.no_grad(), watch(bert) as seen:
        assert torch.equal(bert(tokens), bert(tokens))
    assert [unseen.name for unseen in seen.unseen] == [f"blocks.{i}.attention" for i in range(3)]
    with pytest.raises(WatchError, match="could not be copied: out of memory"):
        seen.map(0, 0)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(Exception, match="Module"), watch("bert"):  # type: ignore[arg-type]
        pass


def test_first_watch_does_not_import_the_compiler() -> None:
    import subprocess
    import sys

    code = (
        "import sys, torch; from clearhead.seeing import watch; from clearhead.attention import MultiHeadAttention\n"
        "m = MultiHeadAttention(8, 2)\n"
        "with watch(m) as seen: m(torch.randn(1, 3, 8)).sum().backward()\n"
        "seen.map(0, 0); print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_outputs_are_what_the_heads_gave(bert: Bert, tokens: Tensor) -> None:
    given: list[Tensor] = []
    hook = bert.blocks[1].attention.out_proj.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    with watch(bert, outputs=True, heads=[1, 3]) as seen:
        bert(tokens)
    hook.remove()
    assert torch.equal(seen.output(1, 3, batch=1), given[0][1, :, 24:])
    with watch(bert) as seen:
        bert(tokens)
    with pytest.raises(WatchError, match="outputs=True"):
        seen.output(1, 3)


@pytest.mark.parametrize("overload", [False, True])
def test_the_operator_that_exported_models_call_is_seen(overload: bool) -> None:
    class Exported(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            packet = torch.ops.aten.scaled_dot_product_attention
            out: Tensor = (packet.default if overload else packet)(x, x, x, is_causal=True)
            return out

    model, x = Exported(), torch.randn(1, 2, 5, 8)
    before = model(x)
    with watch(model) as seen:
        assert torch.equal(model(x), before)
    assert torch.allclose(seen.map(0, 1), attention_map(x, x, CAUSAL)[0, 1], atol=1e-6)
