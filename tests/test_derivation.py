"""The derivation arrives at what the layer computes, and every number in it can be computed again."""

import inspect
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import clearhead
from clearhead.attention import CAUSAL, Mask, MultiHeadAttention, attention_map
from clearhead.block import RMSNorm
from clearhead.derivation import Derivation, derive, find_word, steps
from clearhead.errors import ClearheadError, ConfigError, InputError, ShapeError
from clearhead.positions import ALiBi, Order, RelativeBias
from clearhead.rotary import NormedQueriesAndKeys, Rotary, Yarn

THREAD = "[CLS] attention is not too sha ##bby [SEP]".split()


def layer(d_model: int = 16, n_heads: int = 4, **options: object) -> MultiHeadAttention:
    """Return a layer whose biases are not zero and whose output is about as large as its input."""
    attention = MultiHeadAttention(d_model, n_heads, **options)  # type: ignore[arg-type]
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=d_model**-0.5)
    return attention.eval()


def thread(**options: object) -> tuple[MultiHeadAttention, Tensor, Derivation]:
    """Return a random layer, random vectors of the thread's sentence, and what the layer gives *shabby*."""
    attention, x = layer(**options), torch.randn(len(THREAD), 16)
    return attention, x, derive(attention, x, THREAD, query=6, head=2)


# ---------------------------------------------------------------- it arrives


Case = tuple[MultiHeadAttention, Tensor, Mask, Tensor | None, int, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a layer, a text, a mask, perhaps a memory, a query and a head."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    d_head, groups, n_kv_heads = (
        draw(st.sampled_from([2, 4, 8])),
        draw(st.sampled_from([1, 2])),
        draw(st.integers(1, 3)),
    )
    n_heads, n_words = groups * n_kv_heads, draw(st.integers(1, 9))
    memory = torch.randn(draw(st.integers(1, 9)), 12) if draw(st.booleans()) else None
    far = Rotary(d_head, stretch=Yarn(factor=4.0, trained_len=4))
    normed = NormedQueriesAndKeys(RMSNorm(d_head), RMSNorm(d_head), far)
    orders: list[Order | None] = [None, Rotary(d_head), normed, RelativeBias(n_heads), ALiBi(n_heads)]
    attention = layer(
        12,
        n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        bias=draw(st.booleans()),
        dropout=0.3,
        scale=draw(st.sampled_from([None, 1.0, 0.1])),
        softcap=draw(st.sampled_from([None, 0.5])),
        order=None if memory is not None else draw(st.sampled_from(orders)),
    )
    n_keys = n_words if memory is None else len(memory)
    bias = torch.randn(1, n_heads, n_words, n_keys)
    masks = [
        Mask(),
        Mask(causal=n_keys >= n_words),
        Mask(window=(1, 2)),
        Mask(key_lengths=torch.tensor([draw(st.integers(0, n_keys))])),
        Mask(allowed=torch.rand(1, 1, n_words, n_keys) < 0.5),
        Mask(bias=bias.masked_fill(bias > 1, -math.inf)),
        Mask(causal=n_keys >= n_words, allowed=torch.rand(1, n_heads, 1, n_keys) < 0.8, bias=bias[:, :1]),
    ]
    mask = draw(st.sampled_from(masks))
    query, head = draw(st.integers(0, n_words - 1)), draw(st.integers(0, n_heads - 1))
    return attention, torch.randn(n_words, 12), mask, memory, query, head


@given(cases())
def test_the_last_step_is_the_layers_output(
    case: tuple[MultiHeadAttention, Tensor, Mask, Tensor | None, int, int],
) -> None:
    attention, x, mask, memory, query, head = case
    names = [] if memory is None else [f"m{j}" for j in range(len(memory))]
    words = [f"w{i}" for i in range(len(x))]
    derivation = derive(attention, x, words, query=query, head=head, mask=mask, memory=memory, memory_words=names)
    with torch.no_grad():
        expected = attention(x[None], None if memory is None else memory[None], mask=mask)[0, query]
    torch.testing.assert_close(derivation["output"], expected, atol=1e-6, rtol=1e-6)
    assert len(derivation.steps) == 8
    json.dumps(derivation.to_json(), allow_nan=False)


def test_every_head_and_word_of_a_real_model_arrives_at_what_transformers_computes(minilm: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    tokens = torch.tensor([[token for token in tokenizer("attention is not too shabby").input_ids if token]])
    words = tokenizer.convert_ids_to_tokens(tokens[0])
    projected: list[Tensor] = []
    for their_layer in theirs.encoder.layer:
        their_layer.attention.output.dense.register_forward_hook(lambda _, __, output: projected.append(output[0]))
    with torch.no_grad():
        seen = theirs(tokens, output_hidden_states=True, output_attentions=True)

    for i, (their_layer, x) in enumerate(zip(theirs.encoder.layer, seen.hidden_states)):
        ours = MultiHeadAttention(384, 12)
        their_self = their_layer.attention.self
        for mine, their in (
            (ours.q_proj, their_self.query),
            (ours.k_proj, their_self.key),
            (ours.v_proj, their_self.value),
            (ours.out_proj, their_layer.attention.output.dense),
        ):
            mine.load_state_dict(their.state_dict())
        for query in range(len(words)):
            derivation = derive(ours, x[0], words, query=query, head=i)
            torch.testing.assert_close(derivation["output"], projected[i][query], atol=2e-6, rtol=1e-6)
            torch.testing.assert_close(derivation["all_weights"], seen.attentions[i][0, :, query], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_arrive_too(dtype: torch.dtype) -> None:
    attention, x = layer().to(dtype), torch.randn(5, 16).to(dtype)
    derivation = derive(attention, x, list("abcde"), query=3, head=0, mask=CAUSAL)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-13
    with torch.no_grad():
        torch.testing.assert_close(
            derivation["output"], attention(x[None], mask=CAUSAL)[0, 3], atol=tolerance, rtol=tolerance
        )


def test_training_mode_changes_nothing() -> None:
    attention, x, derivation = thread(dropout=0.5)
    again = derive(attention.train(), x, THREAD, query=6, head=2)
    assert torch.equal(derivation["output"], again["output"])
    assert "dropped with probability 0.5" in again.steps[7].sentence


def test_the_steps_on_all_words_at_once_are_the_formula() -> None:
    attention, x = layer(n_kv_heads=2, order=Rotary(4)), torch.randn(7, 16)
    with torch.no_grad():
        q, k = steps.queries_and_keys(attention, x)
        allowed = CAUSAL.dense(7, 7, x.device)
        assert allowed is not None
        weights = steps.softmax(steps.scale(steps.scores(q, k), attention.scale), allowed=allowed[0])
        torch.testing.assert_close(weights, attention_map(q[None], k[None], CAUSAL)[0])
        y = steps.multi_head(attention, steps.mix(weights, steps.values(attention, x)))
        torch.testing.assert_close(y, attention(x[None], mask=CAUSAL)[0])


# ---------------------------------------------------------------- each step from the one before


def test_each_step_can_be_computed_again_from_the_json_alone() -> None:
    attention, x, derivation = thread(order=ALiBi(4))
    told = json.loads(json.dumps(derivation.to_json()))
    t = {
        name: torch.tensor(tensor["values"])
        for step in told["steps"]
        for name, tensor in step["tensors"].items()
        if tensor["shape"] == list(torch.tensor(tensor["values"]).shape)
    }
    assert {name: tensor.shape for name, tensor in t.items()} == {
        name: tensor.shape for step in derivation.steps for name, tensor in step.tensors.items()
    }
    assert torch.equal(t["x"], x), "float32 numbers come back exactly"
    mine = slice(8, 12)  # head 2 of four, four channels each
    with torch.no_grad():
        close = torch.testing.assert_close
        close(t["values"], (t["x"] @ attention.v_proj.weight.T + attention.v_proj.bias)[:, mine])
        close(t["naive_sum"], t["values"].mean(0))
        close(t["query"], (attention.q_proj.weight @ t["x"][6] + attention.q_proj.bias)[mine])
        close(t["scores"], t["keys"] @ t["query"])
        close(t["scaled"], t["scores"] / 2)
        close(t["stds"], t["factors"] * t["scores"].std(correction=0))
        close(t["weights"], (t["scaled"] + t["bias"]).softmax(0))
        close(t["head_output"], t["weights"] @ t["values"])
        close(t["concatenated"][mine], t["head_output"])
        close(t["output"], attention.out_proj.weight @ t["concatenated"] + attention.out_proj.bias)
        close(t["added"].sum(0) + attention.out_proj.bias, t["output"])


def test_large_tensors_are_left_out_of_the_json_and_keep_their_shape() -> None:
    _, _, derivation = thread()
    told = derivation.to_json(max_values=100)
    assert told["steps"][0]["tensors"]["x"] == {"shape": [8, 16], "values": None}
    assert told["steps"][5]["tensors"]["weights"]["values"] is not None


def test_one_over_root_d_lies_between_no_scale_and_one_over_d() -> None:
    _, _, derivation = thread()
    none, root, over_d, own = derivation["peaks"].tolist()
    assert none > root > over_d > 1 / 8
    assert own == root


# ---------------------------------------------------------------- what the naive sum cannot do


def test_the_naive_sum_is_the_same_for_every_word_and_every_order() -> None:
    attention, x = layer(), torch.randn(6, 16)
    shuffled = x[torch.randperm(6)]
    of_each = [derive(attention, x, list("abcdef"), query=i, head=1)["naive_sum"] for i in range(6)]
    moved = derive(attention, shuffled, list("abcdef"), query=0, head=1)["naive_sum"]
    for other in [*of_each, moved]:
        torch.testing.assert_close(other, of_each[0])
    outputs = [derive(attention, x, list("abcdef"), query=i, head=1)["head_output"] for i in range(6)]
    assert (outputs[0] - outputs[1]).abs().max() > 0.01


def test_a_word_that_may_not_be_looked_at_has_no_share() -> None:
    attention, x = layer(), torch.randn(8, 16)
    derivation = derive(attention, x, THREAD, query=3, head=0, mask=CAUSAL)
    assert derivation["weights"][4:].tolist() == [0.0] * 4
    torch.testing.assert_close(derivation["naive_sum"], derivation["values"][:4].mean(0))
    x[5] = 100.0  # what comes later
    assert torch.equal(derive(attention, x, THREAD, query=3, head=0, mask=CAUSAL)["output"], derivation["output"])


def test_who_may_look_nowhere_gets_nothing_and_is_told_so() -> None:
    attention, x = layer(), torch.randn(8, 16)
    derivation = derive(attention, x, THREAD, query=0, head=0, mask=Mask(key_lengths=torch.tensor([0])))
    torch.testing.assert_close(derivation["output"], attention.out_proj.bias)
    assert all("may look at no word" in step.sentence for step in derivation.steps[2:7])


def test_who_may_look_at_one_word_alone_is_told_so() -> None:
    derivation = derive(layer(), torch.randn(8, 16), THREAD, query=0, head=0, mask=CAUSAL)
    assert "may look at one word alone" in derivation.steps[2].sentence
    assert "as spread out as 1 word of equal weight" in derivation.steps[5].sentence


def test_patches_are_called_patches_and_dropout_is_told_only_where_there_is_some() -> None:
    derivation = derive(layer(), torch.randn(8, 16), THREAD, query=0, head=0, thing="patch")
    told = " ".join(step.sentence for step in derivation.steps)
    assert "of the other patches" in told and "patches of equal weight" in told and "word" not in told
    assert "dropped" not in told


# ---------------------------------------------------------------- source lines


def code_that_ran(attention: MultiHeadAttention, x: Tensor) -> Iterator[tuple[str, str, int]]:
    """Yield (file, function, line) of every Python function that runs during a derivation."""
    ran: list[tuple[str, str, int]] = []

    def note(frame: object, event: str, _: object) -> None:
        if event == "call":
            code = frame.f_code  # type: ignore[attr-defined]
            ran.append((code.co_filename, code.co_name, code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        derive(attention, x, THREAD, query=6, head=2)
    finally:
        sys.setprofile(before)
    yield from ran


def test_the_source_lines_are_those_of_the_functions_that_ran() -> None:
    attention, x, derivation = thread()
    ran = set(code_that_ran(attention, x))
    package = Path(clearhead.__file__).parent.parent
    expected = [
        ["vectors"],
        ["values"],
        ["naive_sum"],
        ["queries_and_keys", "scores"],
        ["scale"],
        ["softmax"],
        ["mix"],
        ["multi_head"],
    ]
    for step, names in zip(derivation.steps, expected, strict=True):
        file, first = package / step.source.file, step.source.first_line
        text = step.source.text.splitlines()
        assert file.read_text(encoding="utf-8").splitlines()[first - 1 : first - 1 + len(text)] == text
        for name in names:
            lines = [line for where, called, line in ran if Path(where) == file and called == name]
            assert lines and all(first <= line < first + len(text) for line in lines), f"{name} did not run"
            assert f"def {name}(" in step.source.text


def test_every_step_says_its_step_number_in_its_docstring() -> None:
    _, _, derivation = thread()
    for number, step in enumerate(derivation.steps, 1):
        assert f'"""Step {number}. ' in step.source.text


# ---------------------------------------------------------------- equations and sentences


def test_equations_hold_this_layers_sizes() -> None:
    _, _, derivation = thread(dropout=0.1)
    equations = "\n".join(step.equation for step in derivation.steps)
    for size in ("R^16", "R^(4×16)", "T = 8", "√4 = 2", "o_i^3", "R^(16×16)"):
        assert size in equations


def test_equations_show_turns_biases_and_other_scales() -> None:
    rotary, alibi, unscaled = (thread(order=Rotary(4))[2], thread(order=ALiBi(4))[2], thread(scale=1.0)[2])
    assert "q_i = R_i(W_Q x_i + b_Q)" in rotary.steps[3].equation
    assert "exp(z_ij + b_ij)" in alibi.steps[5].equation
    assert unscaled.steps[4].equation == "z_ij = 1 s_ij, D = 4"
    assert thread(softcap=50.0)[2].steps[4].equation == "z_ij = 50 tanh(0.5 s_ij / 50)"


def test_equations_hold_no_bias_that_the_layer_lacks_and_the_norms_that_it_has() -> None:
    without = "\n".join(step.equation for step in thread(bias=False)[2].steps)
    assert "b_" not in without and "v_j = W_V x_j, W_V" in without and "q_i = W_Q x_i, k_j = W_K x_j, s_ij" in without
    attention, x, _ = thread()
    attention.k_proj.bias = attention.out_proj.bias = None  # Whisper's keys have none
    equations = [step.equation for step in derive(attention, x, THREAD, query=6, head=2).steps]
    assert "k_j = W_K x_j, s_ij" in equations[3] and "W_Q x_i + b_Q" in equations[3]
    assert "+ b_V" in equations[1] and "b_O" not in equations[7]
    for then, said in ((Rotary(4), "R_i(norm(W_Q x_i + b_Q))"), (Order(), "q_i = norm(W_Q x_i + b_Q), ")):
        normed = thread(order=NormedQueriesAndKeys(RMSNorm(4), RMSNorm(4), then))[2]
        assert said in normed.steps[3].equation


def test_sentences_name_the_largest_weight() -> None:
    _, _, derivation = thread()
    weights = derivation["weights"]
    top = THREAD[int(weights.argmax())]
    assert f"takes {weights.max():.3g} from “" in derivation.steps[5].sentence
    assert top in derivation.steps[5].sentence


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"query": 8}, InputError, "query 8 does not exist: there are 8 words, 0 to 7"),
        ({"query": -1}, InputError, "query -1"),
        ({"head": 4}, InputError, "head 4 does not exist: there are 4 heads, 0 to 3"),
        ({"words": THREAD[:5]}, ShapeError, r"5 words need vectors .* got \(8, 16\)"),
        ({"x": torch.randn(7, 16)}, ShapeError, r"8 words need vectors .* got \(7, 16\)"),
        ({"x": torch.randn(8, 16).index_fill(0, torch.tensor(3), math.nan)}, InputError, "'not' at 3 holds NaN"),
        ({"mask": Mask(allowed=torch.ones(1, 1, 7, 7, dtype=torch.bool))}, ShapeError, r"got \(1, 1, 7, 7\)"),
        ({"mask": Mask(key_lengths=torch.tensor([8, 3]))}, ShapeError, "must broadcast"),
        ({"memory": torch.randn(3, 16)}, ShapeError, "0 words need vectors"),
        (
            {"attention": layer(order=Rotary(4)), "memory": torch.randn(1, 16), "memory_words": ["m"]},
            ConfigError,
            "order",
        ),
    ],
)
def test_what_cannot_be_derived_is_refused(change: dict, error: type[ClearheadError], said: str) -> None:
    arguments = {"attention": layer(), "x": torch.randn(8, 16), "words": THREAD, "query": 6, "head": 2, **change}
    with pytest.raises(error, match=said):
        derive(arguments.pop("attention"), arguments.pop("x"), arguments.pop("words"), **arguments)


def test_a_batch_of_texts_is_refused() -> None:
    unchecked = inspect.unwrap(steps.vectors)  # a user's process has no shape checks in front of ours
    with pytest.raises(ShapeError, match=r"8 words need vectors .* got \(1, 8, 16\)"):
        unchecked(THREAD, torch.randn(1, 8, 16))


# ---------------------------------------------------------------- words among pieces


@pytest.mark.parametrize(
    ("pieces", "wanted", "place"),
    [
        (THREAD, "shabby", 6),
        (THREAD, "Shabby", 6),
        (THREAD, "not", 3),
        (THREAD, "shabby@5", 5),
        (THREAD, "@4", 4),
        (THREAD, "[CLS]", 0),
        ("att ention Ġis Ġnot Ġtoo Ġsh abby .".split(), "shabby", 6),
        ("att ention Ġis Ġnot Ġtoo Ġsh abby .".split(), "attention", 1),
        ("<s> att ention Ġis </s>".split(), "attention", 2),
        ("▁is ▁shab by".split(), "shabby", 2),
        ("not shabby not shabby".split(), "not@2", 2),
        ("Polish polish".split(), "polish", 1),
        (["me@home"], "me@home", 0),
    ],
)
def test_a_word_is_found_among_its_pieces(pieces: list[str], wanted: str, place: int) -> None:
    assert find_word(pieces, wanted) == place


@pytest.mark.parametrize(
    ("pieces", "wanted", "said"),
    [
        (THREAD, "shaby", "no word 'shaby'; did you mean 'shabby@6'"),
        (THREAD, "shabby@3", "'shabby' does not stand at 3"),
        (THREAD, "@8", "stands at 7"),
        ("not shabby not shabby".split(), "not", "stands in 2 places: ask for one of not@0, not@2"),
        ([], "not", "no word 'not'"),
    ],
)
def test_a_word_that_is_absent_or_ambiguous_is_refused(pieces: list[str], wanted: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find_word(pieces, wanted)
