"""Streams of rows come back in order, each as if it had been alone, and no more is read than has to be."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

import pytest
import torch
from torch import Tensor, nn

from clearhead.classification import BUDGET, PACKING_PAYS, Row, classify, embed, fastest, padded
from clearhead.errors import ConfigError, InputError, ShapeError
from clearhead.models.bert import Bert, BertConfig, BertForMaskedLM, BertForSequenceClassification
from clearhead.packed import onednn_obstacle, pack

CONFIG = BertConfig(vocab_size=97, d_model=32, n_heads=4, n_layers=2, d_ff=48, max_len=64, labels=("a", "b", "c"))
RUNNERS = {"plain": padded, "packed": pack, "fastest": lambda model: fastest(model)[0]}


@pytest.fixture(scope="module")
def model() -> BertForSequenceClassification:
    """Return a random classifier whose answers differ from row to row."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def rows(n: int, longest: int = CONFIG.max_len) -> list[list[int]]:
    return [[random.randrange(97) for _ in range(random.randint(1, longest))] for _ in range(n)]


def alone(model: nn.Module, some: list[list[int]]) -> Tensor:
    """Return what the model says of each row by itself."""
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])) for row in some])


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
@pytest.mark.parametrize("window", [1, 7, 256])
def test_every_row_is_answered_in_order_as_if_alone(model, runner, window) -> None:
    some = rows(60, longest=20)
    answers = torch.stack(list(classify(model, some, runner=runner(model), window=window)))
    torch.testing.assert_close(answers, alone(model, some).softmax(-1), rtol=0, atol=1e-5)
    vectors = torch.stack(list(embed(model, some, runner=runner(model.bert), window=window)))
    with torch.no_grad():
        expected = torch.cat([model.bert.embed(torch.tensor([row])) for row in some])
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)


def test_a_single_label_is_no_choice_and_refused_at_once() -> None:
    scorer = BertForSequenceClassification(replace(CONFIG, labels=("stars",))).eval()
    with pytest.raises(ConfigError, match="at least two labels to choose from, and this model has one, 'stars'"):
        classify(scorer, [[1, 2]])


def test_nothing_in_nothing_out(model) -> None:
    assert list(classify(model, [])) == [] and list(embed(model, iter(()))) == []


@pytest.mark.parametrize("runner", RUNNERS.values(), ids=RUNNERS)
@pytest.mark.parametrize("nothing", [[], [[3], []]], ids=str)
def test_a_runner_says_that_it_was_given_nothing(model, runner, nothing: list[list[int]]) -> None:
    with pytest.raises(ShapeError, match=f"at least one token, got {len(nothing)} rows"):
        runner(model)(nothing)


def test_an_endless_source_is_read_one_window_ahead(model) -> None:
    n_read = 0

    def endless() -> Iterator[Row]:
        nonlocal n_read
        for n_read in count(1):
            yield [n_read % 97] * (n_read % 60 + 1)

    answers = classify(model, endless(), window=10)
    assert n_read == 0
    for answered, read in ((1, 10), (9, 10), (1, 20)):
        assert len(list(islice(answers, answered))) == answered
        assert n_read == read


def test_a_window_of_one_answers_before_it_reads_on(model) -> None:
    def asks_for_answers() -> Iterator[Row]:
        for n in range(3):
            assert len(answered) == n
            yield [n]

    answered: list[Tensor] = []
    for answer in classify(model, asks_for_answers(), window=1):
        answered.append(answer)
    assert len(answered) == 3


def test_batches_hold_at_most_the_budget_even_padded(model) -> None:
    widths = []

    def run(batch: list[Row]) -> Tensor:
        widths.append(len(batch) * max(map(len, batch)))
        return torch.zeros(len(batch), 3)

    some = rows(500)
    assert len(list(classify(model, some, runner=run, window=500))) == 500
    assert max(widths) <= BUDGET["cpu"]
    assert sum(widths) < 1.25 * sum(map(len, some))  # sorted by length there is little to pad; unsorted it is 2x


def test_a_row_longer_than_the_budget_runs_alone() -> None:
    long = BertConfig(
        vocab_size=9, d_model=8, n_heads=1, n_layers=1, d_ff=8, max_len=BUDGET["cpu"] + 1, labels=("a", "b")
    )
    answers = classify(BertForSequenceClassification(long).eval(), [[1], [1] * (BUDGET["cpu"] + 1), [1]])
    assert len(list(answers)) == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "row 3: expected 1 to 64 token ids, got 0"),
        ([1] * 65, "row 3: expected 1 to 64 token ids, got 65"),
        ([1, 97], "row 3: expected token ids from 0 to 96, got 1 to 97"),
        ([-1], "row 3: expected token ids from 0 to 96"),
    ],
)
def test_rows_before_a_bad_one_are_answered_first(model, bad, message) -> None:
    answers = classify(model, [[1], [2, 3], bad, [4]])
    assert len(list(islice(answers, 2))) == 2
    with pytest.raises(InputError, match=message):
        next(answers)


def test_what_cannot_work_is_refused_before_a_row_is_read(model) -> None:
    masked = BertForMaskedLM(CONFIG).eval()
    with pytest.raises(ConfigError, match=r"BertForMaskedLM: try embed"):
        classify(masked, [])
    assert len(list(embed(masked, [[1]]))) == 1
    with pytest.raises(ConfigError, match=r"a Linear"):
        embed(nn.Linear(2, 2), [])
    with pytest.raises(ConfigError, match=r"model.eval"):
        classify(BertForSequenceClassification(CONFIG), [])
    with pytest.raises(ConfigError, match=r"at least 1 row, got 0"):
        classify(model, [], window=0)


def test_the_fast_path_is_taken_once_it_pays(model) -> None:
    run, note = fastest(model)
    assert note.startswith("packed rows, ")
    few, many = [[1] * 64], [[1] * 64] * (PACKING_PAYS // 64)
    run(few)
    assert "blocks" not in vars(run.encoder)  # nothing is packed for one sentence
    torch.testing.assert_close(run(many), alone(model, many), rtol=0, atol=1e-5)
    assert "blocks" in vars(run.encoder)


def test_a_fallback_says_its_reason(model) -> None:
    run, note = fastest(BertForSequenceClassification(CONFIG).to(torch.bfloat16).eval())
    assert (
        note == "padded batches, the model as it is: its weights are torch.bfloat16: load it with dtype=torch.float32"
    )
    assert run([[1, 2]]).shape == (1, 3)
    run, note = fastest(model, torch.float16)
    assert "float32" in note and "its weights are torch.float32; load it with dtype=torch.float16" in note
    torch.testing.assert_close(run([[1, 2]]), alone(model, [[1, 2]]), rtol=0, atol=1e-5)


def test_padded_runs_in_half_precision_when_asked(model) -> None:
    some = rows(9)
    exact = alone(model, some)
    logits = padded(model, torch.bfloat16)(some)
    assert logits.dtype == torch.float32
    assert 1e-6 < (logits - exact).abs().max() / exact.abs().max() < 0.05


@pytest.mark.skipif(onednn_obstacle(torch.bfloat16) is not None, reason=f"{onednn_obstacle(torch.bfloat16)}")
def test_bfloat16_is_packed_from_the_first_row(model) -> None:
    run, note = fastest(model, torch.bfloat16)
    assert note == "packed rows, oneDNN's packed weights, bfloat16"
    run([[1]])
    assert "blocks" in vars(run)


def test_a_gpu_takes_padded_batches(model, cuda) -> None:
    some = rows(50)
    expected = torch.stack(list(classify(model, some)))
    there = BertForSequenceClassification(CONFIG, Bert(CONFIG)).eval().to(cuda)
    there.load_state_dict(model.state_dict())
    run, note = fastest(there)
    assert note == "padded batches, the model as it is: it is on cuda:0, where padded batches are faster"
    answers = torch.stack(list(classify(there, some, runner=run)))
    assert answers.device.type == "cpu"
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-3)
