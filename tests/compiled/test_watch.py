"""A compiled model is seen while its compiled graphs run, and its own graphs are there afterwards as they were before.

"Compiled" is by a backend that counts its graphs, in the tests that are not about what a backend makes of them.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clearhead.attention import CAUSAL, attend, attention_map
from clearhead.models.bert import Bert, BertConfig
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing import Recording, edit, effect, watch

TOKENS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
X = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))


class Counting:
    """A backend of torch.compile that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch._dynamo.eval_frame._stance.stance == "default"


class Attention(nn.Module):
    """Two layers' worth of ways to attend."""

    def __init__(self, how: str = "causal") -> None:
        super().__init__()
        self.qkv, self.out, self.how = nn.Linear(32, 96), nn.Linear(32, 32), how
        self.sinks = torch.randn(4)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, 4, 8).permute(2, 0, 3, 1, 4)
        if self.how == "by hand":
            out = F.softmax(q @ k.mT * 8**-0.5, -1) @ v
        elif self.how == "exponentials":
            weights = (q @ k.mT * 8**-0.5).exp()
            out = weights / weights.sum(-1, keepdim=True) @ v
        elif self.how == "logarithms":
            out = F.log_softmax(q @ k.mT * 8**-0.5, -1).exp() @ v
        elif self.how == "turned":
            out = (v.mT @ F.softmax(q @ k.mT * 8**-0.5, -1).transpose(-2, -1)).mT
        elif self.how == "sinks":
            out = attend(q, k, v, CAUSAL, sinks=self.sinks)
        elif self.how == "chosen":  # another mask in every layer, of what it was given
            mask = (x[:, None, :, None, 0] + x[:, None, None, :, 1] > 0) | torch.eye(time, dtype=torch.bool)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif self.how == "operator":  # as torch.export writes it
            out = torch.ops.aten.scaled_dot_product_attention.default(q, k, v, is_causal=True)
        else:
            if self.how == "break":
                torch._dynamo.graph_break()
            out = F.scaled_dot_product_attention(
                q, k, v, dropout_p=0.1 if self.how == "dropout" else 0.0, is_causal=True
            )
        return self.out(out.transpose(1, 2).flatten(2))


class Stack(nn.Module):
    """Layers, one after another."""

    def __init__(self, *how: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(one) for one in how)

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        for layer in self.layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if layer.how == "again" else layer(x))
        if fail:
            raise ValueError("as it was asked to")
        return x


def same(one: Recording, other: Recording) -> None:
    """Assert that two recordings hold the same layers, and the same weights to 1e-5."""
    assert [layer.name for layer in one.layers] == [layer.name for layer in other.layers]
    for layer, there in zip(one.layers, other.layers):
        assert (layer.n_heads, layer.n_kv_heads, layer.dtype) == (there.n_heads, there.n_kv_heads, there.dtype)
        torch.testing.assert_close(one.to_dense(layer.index), other.to_dense(layer.index), atol=1e-5, rtol=0)


BERT = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, d_ff=64)
GPT = GPTConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, max_len=16)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("make", [lambda: Bert(BERT), lambda: GPTForCausalLM(GPT)], ids=["bert", "gpt"])
def test_a_compiled_model_is_seen_and_stays_compiled(make: Callable[[], nn.Module], in_place: bool) -> None:
    count, plain = Counting(), make().eval()
    with torch.no_grad(), watch(plain) as uncompiled:
        plain(TOKENS)
    model: Any = plain if in_place else torch.compile(plain, backend=count)
    if in_place:
        model.compile(backend=count)
    with torch.no_grad():
        before = model(TOKENS)
        for _ in range(2):
            with watch(model) as seen:
                watched = model(TOKENS)
        assert count.graphs == 2  # the second for watching, and it is kept
        after = model(TOKENS)
    assert count.graphs == 2
    assert torch.equal(before, watched) and torch.equal(before, after)
    same(seen, uncompiled)
    assert (seen.notes, seen.unseen, seen.n_forwards) == ([], (), 1)
    assert seen.call(0).lse is not None  # the kernel's own
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_outputs_and_gradients_of_training_keep_their_bits() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    model = nn.Sequential(Stack("dropout"), nn.TransformerEncoder(layer, 1)).train()
    compiled = torch.compile(model, backend="aot_eager")

    def step() -> list[Tensor]:
        torch.manual_seed(1)  # of the dropout
        out = compiled(X)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), list(model.parameters()))]

    before = step()
    with watch(compiled, values=True, outputs=True) as seen:
        watched = step()
    assert all(map(torch.equal, before, watched))
    assert [layer.name for layer in seen.layers] == ["0.layers.0", "1.layers.0.self_attn"]
    assert seen.notes == []
    assert seen.output(0, head=1).shape == (9, 8)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
def test_inductor_writes_over_masks_and_none_of_it_shows() -> None:
    model = Stack("chosen", "chosen", "chosen", "causal", "operator")
    compiled = torch.compile(model)
    with watch(model) as uncompiled:
        model(X)
    before = compiled(X)
    with watch(compiled) as seen:
        watched = compiled(X)
    assert torch.equal(before, watched)
    assert seen.notes == []
    same(seen, uncompiled)
    given = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (before, watched)]
    assert all(map(torch.equal, *given))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_compiled_models_of_transformers_are_seen_as_they_are_uncompiled(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="a peer: tests/peers.txt")
    small = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "bert": lambda: transformers.BertConfig(**small, intermediate_size=64),
        "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4),
        "llama": lambda: transformers.LlamaConfig(**small, intermediate_size=64, num_key_value_heads=2),
    }
    model = transformers.AutoModel.from_config(configs[kind](), attn_implementation="sdpa").eval()
    padded = torch.ones_like(TOKENS)
    padded[1, :3] = 0
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        with watch(model) as uncompiled:
            model(TOKENS, attention_mask=padded)
        before = compiled(TOKENS, attention_mask=padded).last_hidden_state
        with watch(compiled) as seen:
            watched = compiled(TOKENS, attention_mask=padded).last_hidden_state
    assert torch.equal(before, watched)
    assert (seen.notes, seen.unseen) == ([], ())
    same(seen, uncompiled)  # of llama, keys before they were repeated, too
    assert seen.nbytes == uncompiled.nbytes


@torch.no_grad()
def test_blocks_compiled_one_by_one_share_a_graph_and_have_their_own_names() -> None:
    model, count = Stack("causal", "causal", "causal"), Counting()
    for layer in model.layers:
        layer.compile(backend=count)
    before = model(X)
    assert count.graphs == 1
    with watch(model) as seen:
        assert torch.equal(model(X), before)
    assert count.graphs == 2
    assert [layer.name for layer in seen.layers] == ["layers.0", "layers.1", "layers.2"]
    assert seen.notes == []


@torch.no_grad()
def test_lengths_that_vary_are_compiled_as_often_as_without_watching() -> None:
    model, count = Stack("causal"), Counting()
    compiled = torch.compile(model, backend=count)
    lengths = (9, 11, 13, 14)
    before = [compiled(torch.ones(2, n, 32)) for n in lengths]
    assert count.graphs == 2  # one for 9, one for all others
    with watch(compiled) as seen:
        watched = [compiled(torch.ones(2, n, 32)) for n in lengths]
    assert count.graphs == 4
    assert all(map(torch.equal, before, watched))
    assert [seen.call(0, n).n_queries for n in range(4)] == list(lengths)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_mask_that_is_written_to_between_layers_is_two_masks(backend: str) -> None:
    class Writes(Stack):
        def forward(self, x: Tensor, fail: bool = False) -> Tensor:
            mask = torch.ones(9, 9, dtype=torch.bool).tril()
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
            mask[:, 0].logical_and_(torch.eye(9, dtype=torch.bool)[0])
            mask.fill_diagonal_(True)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    model = Writes()
    with watch(model) as uncompiled:
        model(X)
    compiled = torch.compile(model, backend=backend)
    with watch(compiled) as seen:
        compiled(X)
    assert seen.notes == []
    same(seen, uncompiled)


@torch.no_grad()
def test_where_torch_compiles_nothing_attention_is_seen_all_the_same() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Looks(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    compiled = torch.compile(Stack("causal", "causal"), backend=Counting())
    for how in (torch._dynamo.config.patch(disable=True), Looks()):
        with watch(compiled) as seen, how:
            compiled(X)
        assert len(seen.layers) == 2
        assert "torch compiles nothing now" in seen.notes[0]
    with watch(compiled) as seen:
        compiled(X)
    assert (len(seen.layers), seen.notes) == (2, [])


@torch.no_grad()
def test_a_model_that_is_compiled_again_while_it_is_watched_stays_so() -> None:
    model, count = Stack("causal"), Counting()
    model.compile(backend="eager")
    with watch(model):
        model.compile(backend=count)
        again = vars(model)["_compiled_call_impl"]
    assert vars(model)["_compiled_call_impl"] is again
    model(X)
    assert count.graphs == 1


@torch.no_grad()
def test_where_torch_keeps_backends_otherwise_a_compiled_model_is_seen_uncompiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = torch.compile(Stack("causal"), backend=Counting())
    monkeypatch.delattr(torch._dynamo.eval_frame, "innermost_backend")
    with watch(compiled) as seen:
        compiled(X)
    assert len(seen.layers) == 1
    assert "a way that is not known here" in seen.notes[0]


@torch.no_grad()
def test_a_forward_that_was_compiled_by_itself_is_said_to_run_uncompiled() -> None:
    model = Stack("causal")
    model.forward = torch.compile(model.forward, backend=Counting())  # type: ignore[method-assign]
    with watch(model) as seen:
        model(X)
    assert len(seen.layers) == 1
    assert "its forward was compiled, not the module" in seen.notes[0]


@torch.no_grad()
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("by hand", "its graph holds attention written by hand, which is recognised only where it runs as Python"),
        ("turned", "its graph holds attention written by hand"),
        ("exponentials", "its graph holds attention written by hand"),
        ("logarithms", "its graph holds attention written by hand"),
        ("sinks", "its graph holds attention with sinks of our own"),
        ("again", "its graph holds attention in a graph inside it: activation checkpointing, a condition"),
        ("break", "torch could not make one graph of it: "),
    ],
)
def test_what_a_graph_cannot_tell_is_seen_uncompiled_and_said(how: str, reason: str) -> None:
    model = Stack("causal", how)
    compiled = torch.compile(model, backend=Counting())
    before = compiled(X)
    for _ in range(2):
        with watch(compiled) as seen:
            assert torch.allclose(compiled(X), before, atol=1e-5)
        assert len(seen.layers) == 2
        assert len(seen.notes) == 1
        assert seen.notes[0].startswith(f"the compiled model ran uncompiled while it was watched: {reason}")
    assert torch.equal(compiled(X), before)


def test_gradients_and_edits_are_of_the_uncompiled_model() -> None:
    compiled = torch.compile(Stack("causal", "causal"), backend=Counting())
    with watch(compiled, gradients=True) as seen:
        compiled(X).sum().backward()
    assert seen.call(0).gradient is not None
    assert "gradients were asked for" in seen.notes[0]
    before = compiled(X)
    with watch(compiled) as seen, edit(compiled) as change:
        change.switch_off(layer=0)
        edited = compiled(X)
    assert not torch.allclose(edited, before, atol=1e-3)
    assert "something else is watched or edited at the same time" in seen.notes[0]
    with edit(compiled) as change:
        change.switch_off(layer=0)
        assert torch.equal(compiled(X), edited)
    assert "it is edited" in change.notes[0]
    said = effect(compiled.eval(), X, lambda out: out.flatten(1).sum(-1), over="heads").notes
    assert any("it is edited" in note for note in said)


@torch.no_grad()
def test_two_watchers_of_compiled_graphs_see_both() -> None:
    count = Counting()
    inner = torch.compile(Stack("causal"), backend=count)
    model = nn.Sequential(nn.Linear(32, 32), inner)
    before = model(X)
    with watch(model) as outer:
        with watch(inner) as within:
            assert torch.equal(model(X), before)
        model(X)
    assert (outer.notes, within.notes, count.graphs) == ([], [], 2)
    assert [layer.name for layer in outer.layers] == ["1.layers.0"]
    assert [layer.name for layer in within.layers] == ["layers.0"]
    assert (outer.layers[0].calls, within.layers[0].calls) == (2, 1)
    assert (outer.n_forwards, within.n_forwards) == (2, 1)


def test_an_error_of_the_model_is_the_model_s_and_is_not_held_against_it() -> None:
    compiled = torch.compile(Stack("causal"), backend=Counting())
    entry = vars(compiled)["forward"]
    with pytest.raises(ValueError, match="as it was asked to"), watch(compiled):
        compiled(X, fail=True)
    assert vars(compiled)["forward"] is entry
    with watch(compiled) as seen:
        compiled(X)
    assert seen.notes == []


def test_whoever_told_torch_not_to_compile_is_obeyed() -> None:
    count = Counting()
    compiled = torch.compile(Stack("causal"), backend=count)
    with torch.compiler.set_stance("force_eager"), watch(compiled) as seen:
        compiled(X)
    assert count.graphs == 0
    assert len(seen.layers) == 1
    assert "set_stance" in seen.notes[0]


def test_an_attention_function_compiled_inside_a_plain_model_is_seen() -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fast = torch.compile(torch.nn.functional.scaled_dot_product_attention, backend="eager")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fast(x, x, x)

    model, x = Inner(), torch.randn(1, 2, 5, 8)
    before = model(x)
    with watch(model) as seen:
        assert torch.equal(model(x), before)
    assert torch.allclose(seen.map(0, 0), attention_map(x, x)[0, 0], atol=1e-6)


@torch.no_grad()
def test_compiled_functions_are_said_to_run_uncompiled_and_compiled_modules_are_not() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(32, 32)
            self.fast = torch.compile(self.by_name, backend=Counting())
            self.plain = torch.compile(nn.Linear(32, 32), backend=Counting())

        def by_name(self, x: torch.Tensor) -> torch.Tensor:
            return self.project(x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fast(self.plain(x))

    model, before = Inner(), torch._dynamo.eval_frame._callback_from_stance
    with watch(model) as outer, watch(model) as seen:
        model(X)
    said = "the compiled function by_name ran uncompiled while it was watched: only modules stay compiled"
    assert said in seen.notes and said in outer.notes
    assert not any("compiled function" in note for note in {*seen.notes, *outer.notes} - {said})
    with torch.compiler.set_stance("force_eager"), watch(model) as obeyed:
        model(X)
    assert said not in obeyed.notes
    assert torch._dynamo.eval_frame._callback_from_stance is before


@torch.no_grad()
def test_what_is_only_named_like_attention_is_cleared_in_a_graph_too() -> None:
    class Projects(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.dense(x).relu() + x)

    class Gates(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.relu()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.gate_attention, self.stack = Projects(), Gates(), Stack("causal")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.stack(self.gate_attention(self.attention(x)))

    model = Both()
    for one in (model, torch.compile(model, backend=Counting())):
        with watch(one) as seen:
            one(X)
        assert seen.notes == [] and [unseen.name for unseen in seen.unseen] == ["gate_attention"]


@torch.no_grad()
def test_a_graph_for_sizes_that_vary_is_said() -> None:
    compiled = torch.compile(Stack("causal"), backend=Counting(), dynamic=True)
    with watch(compiled) as seen:
        compiled(X)
    assert len(seen.notes) == 1 and "outputs may move in the last digits" in seen.notes[0]


@torch.no_grad()
def test_a_run_of_a_compiled_model_that_attends_otherwise_is_named_with_its_forward() -> None:
    class AttentionOrNot(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = Stack("causal")

        def forward(self, x: Tensor) -> Tensor:
            return self.stack(x) if x.shape[1] > 1 else x * x.relu()

    compiled = torch.compile(AttentionOrNot(), backend=Counting())
    with watch(compiled) as seen:
        for n in (9, 1, 9):
            compiled(X[:, :n])
    assert [(one.kind, one.how_often) for one in seen.unseen] == [("AttentionOrNot", "in forward 1 of 3")]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_that_nobody_compiled_is_told_of_no_compiled_function() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    class Flex(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return flex_attention(x, x, x)

    for _ in range(2):
        with watch(model := Flex()) as seen:
            model(torch.randn(1, 2, 16, 16))
        assert (seen.notes, seen.unseen, len(seen.layers)) == ([], (), 1)
