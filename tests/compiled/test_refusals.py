"""What a user meets when tensors do not fit; elsewhere the test run's own shape checks stand in front of these."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from clearhead.attention import Mask, attend
from clearhead.classification import classify
from clearhead.errors import InputError, ShapeError, WatchError
from clearhead.generation import generate
from clearhead.models.bert import Bert, BertConfig, BertForSequenceClassification
from clearhead.models.gpt import GPTConfig, GPTForCausalLM
from clearhead.seeing import Recording, edit, effect, estimate, watch

Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 2, 6, 8)
BERT = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, d_ff=64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(2, 2, 7, 8)}, r"k and v must agree.*\(2, 2, 6, 8\).*\(2, 2, 7, 8\)"),
        ({"k": torch.zeros(2, 2, 6, 4)}, "q and k must agree in batch and d_head"),
        ({"k": torch.zeros(3, 2, 6, 8), "v": torch.zeros(3, 2, 6, 8)}, "q and k must agree in batch"),
        ({"k": torch.zeros(2, 3, 6, 8), "v": torch.zeros(2, 3, 6, 8)}, "4 query heads cannot share 3"),
        ({"q": torch.zeros(2, 5, 8)}, r"expected \(batch, heads, time, d_head\)"),
        ({"q": Q.double()}, "differ in dtype: q torch.float64"),
        ({"k": K.to("meta")}, "different devices: q cpu, k meta"),
        ({"mask": torch.ones(5, 6, dtype=torch.bool)}, "mask is a Tensor: expected clearhead.Mask"),
        ({"mask": Mask(allowed=torch.ones(2, 1, 5, 7, dtype=torch.bool))}, r"broadcast to .*= \(2, 4, 5, 6\), got"),
        ({"mask": Mask(allowed=torch.ones(5, 6, dtype=torch.bool)[None, None, None])}, "must broadcast"),
        ({"mask": Mask(allowed=torch.zeros(1, 1, 5, 6))}, "Mask.allowed must be boolean"),
        ({"mask": Mask(bias=torch.zeros(1, 1, 5, 6, dtype=torch.long))}, "Mask.bias is added to the scores"),
        ({"mask": Mask(bias=torch.zeros(1, 1, 5, 6, device="meta"))}, "Mask.bias is on meta, q on cpu"),
        ({"mask": Mask(key_lengths=torch.tensor([1, 2, 3]))}, "key_lengths must be 2 whole numbers"),
        ({"mask": Mask(key_lengths=torch.tensor([1, 2], device="meta"))}, "key_lengths is on meta"),
        ({"mask": Mask(window=(-1, 0))}, "cannot be negative"),
        ({"mask": Mask(window=3)}, "is a pair"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_came(change: dict[str, object], message: str) -> None:
    arguments = {"q": Q, "k": K, "v": K, "mask": Mask()} | change
    with pytest.raises(ShapeError, match=message):
        attend(**arguments)


def test_what_edit_and_effect_do_not_know_is_refused_with_what_they_do() -> None:
    with pytest.raises(WatchError, match=r"expects the torch\.nn\.Module"), edit("sentiment"):
        pass
    config = BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, d_ff=64, labels=("bad", "good"))
    model = BertForSequenceClassification(config).eval()
    with pytest.raises(InputError, match="over='head'; did you mean 'heads'"):
        effect(model, torch.arange(5)[None], over="head")


@pytest.fixture(scope="module")
def seen() -> Recording:
    model = Bert(BERT).eval()
    with torch.no_grad(), watch(model, values=True) as seen:
        model(torch.arange(12).reshape(2, 6))
    return seen


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda seen: seen.map(0, None), "head= expects a whole number, got None"),
        (lambda seen: seen.map(0, 0, batch=1.0), "batch= expects a whole number, got 1.0"),
        (lambda seen: seen.map(0, 0, call="x"), "call= expects a whole number, got 'x'"),
        (lambda seen: seen.map(0, 0, rows=[1.5]), "rows= expects a whole number, got 1.5"),
        (lambda seen: seen.map(0, 0, rows=torch.ones(6).bool()), r"rows= expects whole numbers in a list.*got tensor"),
        (lambda seen: seen.map(0, 0, cols=3), r"cols= expects whole numbers in a list, such as \[0, 5\], got 3"),
        (lambda seen: seen.map(0, 0, rows=slice(None, None, 0)), "rows= expects a slice of whole numbers"),
        (
            lambda seen: seen.map(0, 0, of=None),
            'multiplied by "values", "gradient" or a projection matrix, not by None',
        ),
        (lambda seen: seen.row(0, 0, True), "query= expects a whole number, got True"),
        (lambda seen: seen.overview(0, 0, size=1.5), "size= expects a whole number, got 1.5"),
        (lambda seen: seen.zoom(0, 0, -1, (0, 0)), "count from 0, the whole map in one tile: there is no level -1"),
        (lambda seen: seen.zoom(0, 0, 1, (0,)), r"place= expects \(tile down, tile across\).*got \(0,\)"),
        (lambda seen: seen.links(0, 0, 1, coverage=70), "coverage= expects a number from 0 to 1, got 70"),
        (lambda seen: seen.sinks(share=30), "share= expects a number from 0 to 1, got 30"),
        (lambda seen: seen.strongest(True), "count= expects a whole number, got True"),
        (lambda seen: seen.strongest(without=3), "without= expects whole numbers in a list"),
        (lambda seen: seen.offset(0, 0.5), "offset= expects a whole number, got 0.5"),
        (lambda seen: seen.repeats(0, [1, 2]), r"tokens= expects the numbers of one text.*got \[1, 2\]"),
        (lambda seen: seen.heads(tokens=torch.ones(6, 2)), r"such as tokens\[0\], got a tensor \(6, 2\)"),
        (lambda seen: seen.rollout(layers=[]), r"layers= expects numbers or names in a list, at least one, got \[\]"),
        (lambda seen: seen.to_dense(batch="x"), "batch= expects a whole number, got 'x'"),
        (lambda seen: seen.save("unwritten", words="abcdef"), "words= expects one string for each position"),
        (lambda seen: estimate(seen, 9.5), "n_tokens= expects a whole number, got 9.5"),
        (lambda seen: estimate(seen, 9, heads=0), "heads= expects whole numbers in a list"),
    ],
)
def test_a_question_of_the_wrong_kind_is_not_answered_for_another(
    ask: Callable[[Recording], object], message: str, seen: Recording
) -> None:
    with pytest.raises((InputError, WatchError), match=message):
        ask(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "decoder.*"}, r"layers= expects numbers or names in a list.*got 'decoder\.\*'"),
        ({"heads": 0}, "heads= expects whole numbers in a list"),
        ({"rows": 3}, "rows= expects whole numbers in a list"),
        ({"rows": slice(0, 5, 0)}, "rows= expects a slice of whole numbers"),
        ({"dtype": torch.float8_e4m3fn}, "dtype= expects a floating dtype of 16 bits or more"),
        ({"to": 3}, 'to= expects "cpu", "disk" or the path of a file, got 3'),
        ({"budget": "1 GiB"}, "budget= expects a whole number, got '1 GiB'"),
    ],
)
def test_an_option_of_watch_is_refused_before_the_model_runs(options: dict[str, object], message: str) -> None:
    with pytest.raises((InputError, WatchError), match=message), watch(torch.nn.Linear(2, 2), **options):
        raise AssertionError("the body ran")


def test_positions_from_the_end_are_marks_too(seen: Recording) -> None:
    last = seen.heads(separators=[-1])
    assert last == seen.heads(separators=[5]) and last[0].separator > 0
    assert seen.strongest(300, without=[-1, 99]) == seen.strongest(300, without=[5])


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda change: change.switch_off(1.0), "layer= expects a whole number, got 1.0"),
        (lambda change: change.switch_off(0, slice(0, 1)), "head= expects a whole number, got slice"),
        (lambda change: change.switch_off(0, 0, batch=True), "batch= expects a whole number, got True"),
        (lambda change: change.cut(0, 0, 1.5, 0), "query= expects a whole number, got 1.5"),
        (lambda change: change.cut(0, 0, 0, torch.ones(6).bool()), "key= expects whole numbers in a list"),
        (lambda change: change.cut(0, 0, 0, slice("a")), "key= expects a slice of whole numbers"),
        (lambda change: change.replace(0, 0, [[1]]), r"pattern= expects a tensor of queries x keys, got \[\[1\]\]"),
        (lambda change: change.patch(0, 0, None), "output= expects a tensor of queries x d_value, or a recording"),
    ],
)
def test_an_edit_of_the_wrong_kind_is_refused_where_it_is_made(ask: Callable[[object], None], message: str) -> None:
    with pytest.raises(InputError, match=message), edit(Bert(BERT)) as change:
        ask(change)


@pytest.mark.parametrize(
    ("tokens", "asked", "message"),
    [
        ((2, 6), {"head": -1}, "there is no head -1: the layers have up to 4"),
        ((2, 6), {"layer": 1.5}, "layer= expects a whole number, got 1.5"),
        ((2, 6), {"over": "links", "query": "not"}, "query= expects a whole number, got 'not'"),
        (
            (2, 6),
            {"target": 0.5},
            "target= expects the number or name of a class, .* a function of the logits .*; got 0.5",
        ),
        ((2, 6), {"target": [1, 1]}, r"target= expects the number or name of a class, .*; got \[1, 1\]"),
        ((2, 6), {"target": lambda logits: 3.0}, "one number a text, 2 here, .*: it gave a float"),
        ((2, 6), {"at_once": "all"}, "at_once= expects a whole number, got 'all'"),
        ((1, 1), {"over": "tokens"}, "hides a token from the others, and this text has one"),
        ((0, 6), {}, "inputs hold nothing: expected what the model is called with"),
        ((2, 0), {}, "inputs hold nothing: expected what the model is called with"),
    ],
)
def test_what_effect_cannot_try_is_refused(tokens: tuple[int, int], asked: dict[str, object], message: str) -> None:
    model = BertForSequenceClassification(dataclasses.replace(BERT, labels=("bad", "good"))).eval()
    with pytest.raises(InputError, match=message):
        effect(model, torch.zeros(tokens, dtype=torch.long), **asked)


@pytest.mark.parametrize("row", ["a text", 3])
def test_who_is_given_no_token_ids_says_where_they_come_from(row: object) -> None:
    encoder = BertForSequenceClassification(dataclasses.replace(BERT, labels=("bad", "good"))).eval()
    with pytest.raises(InputError, match=rf"row 2: expected token ids, got {type(row).__name__}: tokenizer\.encode"):
        list(classify(encoder, [[1, 2], row]))
    writer = GPTForCausalLM(GPTConfig(vocab_size=50, d_model=8, n_heads=1, n_layers=1, d_ff=8, max_len=8)).eval()
    with pytest.raises(InputError, match=rf"prompt 2: expected token ids, got {type(row).__name__}: tokenizer\.encode"):
        list(generate(writer, [[1], row], max_new_tokens=1))
