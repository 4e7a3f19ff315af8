"""The loop makes the step it says, however it is cut up, and a restored learner is the one that never stopped."""

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from clearhead.data.batches import Rows
from clearhead.errors import TrainingError
from clearhead.models.bert import BertConfig, BertForSequenceClassification
from clearhead.training.loop import Average, Learner, Step, autocast, count_steps, evaluate, train
from clearhead.training.objectives import Classification

from .conftest import make_learner, make_recipe


def run(learner: Learner, recipe: Any, n: int | None = None, n_steps: int = 20) -> list[Step]:
    steps = train(learner, Classification(), recipe, n_steps=n_steps)
    return list(steps) if n is None else [next(steps) for _ in range(n)]


def told(steps: list[Step]) -> list[tuple[float, ...]]:
    """Return what a step says apart from the time it took."""
    return [(s.number, s.epoch, s.loss, s.lr, s.gradient_norm, s.items) for s in steps]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_a_tiny_bert_learns_the_sentences(config: BertConfig, rows: Rows) -> None:
    recipe = make_recipe(training={"steps": 60})
    learner = make_learner(config, rows, recipe)
    before = evaluate(learner.result, Classification(), [rows.batch(range(len(rows.tokens)))], recipe)
    run(learner, recipe, n_steps=60)
    after = evaluate(learner.result, Classification(), [rows.batch(range(len(rows.tokens)))], recipe)
    assert after["accuracy"] > 0.95 > before["accuracy"]
    assert after["loss"] < 0.3 < before["loss"]


def test_a_step_is_torchs_adamw_written_out(config: BertConfig, rows: Rows) -> None:
    recipe = make_recipe(optimizer={"lr": 1e-2, "clip": 0.1}, schedule={"warmup": 0.5})
    learner = make_learner(config, rows, recipe)
    twin = make_learner(config, rows, recipe)
    steps = run(learner, recipe, 3)
    torch.manual_seed(recipe.training.seed)
    BertForSequenceClassification(config)  # draws what the learner's model drew
    for i in range(3):
        (optimizer,) = twin.optimizers
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (i + 1) / 10
        batch = next(twin.batches)
        twin.model.train()
        loss = nn.functional.cross_entropy(twin.model(batch.tokens, batch.lengths), batch.targets)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(twin.model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        assert (loss.item(), norm.item()) == pytest.approx((steps[i].loss, steps[i].gradient_norm), rel=1e-5)
    for name, x in twin.model.state_dict().items():
        torch.testing.assert_close(learner.model.state_dict()[name], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_batches", [2, 4])
def test_small_batches_accumulated_are_one_large_batch(n_batches: int, config: BertConfig, rows: Rows) -> None:
    still = BertConfig(**{**vars(config), "dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0})
    rows = Rows(
        tokens=rows.tokens, pad_id=rows.pad_id, targets=rows.targets, weights=torch.rand(len(rows.tokens)) + 0.1
    )
    n = len(rows.tokens)
    learners = []
    for size, accumulation in ((n, 1), (-(-n // n_batches), n_batches)):  # one epoch each: the same rows
        recipe = make_recipe(training={"steps": 1, "batch_size": size, "accumulation": accumulation})
        learner = make_learner(still, rows, recipe)
        learners.append((run(learner, recipe, n_steps=1)[0], weights(learner.model)))
    (large, large_weights), (small, small_weights) = learners
    assert small.items == large.items
    assert (small.loss, small.gradient_norm) == pytest.approx((large.loss, large.gradient_norm), rel=1e-5)
    moved = max((small_weights[name] - large_weights[name]).abs().mean().item() for name in small_weights)
    assert moved < 1e-3 * recipe.optimizer.lr or moved < 1e-6


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9, "accumulation": 2}, {"precision": "bf16", "batch_tokens": 90}])
@pytest.mark.parametrize("stop", [0, 1, 11])
def test_a_restored_learner_goes_on_bit_for_bit(
    stop: int, changes: dict[str, Any], config: BertConfig, rows: Rows
) -> None:
    if "batch_tokens" in changes:
        changes = {**changes, "batch_size": None}
    recipe = make_recipe(training=changes, optimizer={"layer_decay": 0.8})
    straight = make_learner(config, rows, recipe)
    expected = run(straight, recipe)

    first = make_learner(config, rows, recipe)
    begun = run(first, recipe, stop)
    tensors, facts = first.snapshot()
    tensors, facts = {k: x.clone() for k, x in tensors.items()}, json.loads(json.dumps(facts))
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    second = make_learner(config, rows, recipe)
    second.restore(tensors, facts)
    assert told(begun + run(second, recipe)) == told(expected)
    assert_equal(weights(second.model), weights(straight.model))
    assert_equal(weights(second.result), weights(straight.result))
    assert second.batches.state == straight.batches.state


def test_every_random_number_is_restored(config: BertConfig, rows: Rows) -> None:
    recipe = make_recipe()
    learner = make_learner(config, rows, recipe)
    tensors, facts = learner.snapshot()
    facts = json.loads(json.dumps(facts))
    drawn = (random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(3).tolist())
    learner.restore(tensors, facts)
    assert (random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(3).tolist()) == drawn


def test_the_average_follows_by_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = Average(model, 0.5)
    expected = model.weight.item()
    for step in range(1, 20):
        nn.init.normal_(model.weight)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.item()
        assert average.model.weight.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_evaluating_between_steps_changes_nothing(config: BertConfig, rows: Rows) -> None:
    recipe = make_recipe()
    quiet = run(make_learner(config, rows, recipe), recipe)
    learner = make_learner(config, rows, recipe)
    steps = []
    for step in train(learner, Classification(), recipe, n_steps=20):
        evaluate(learner.result, Classification(), [rows.batch(range(9))], recipe)
        steps.append(step)
    assert told(steps) == told(quiet)


def test_a_loss_that_is_no_number_stops_before_the_weights(config: BertConfig, rows: Rows) -> None:
    recipe = make_recipe()
    learner = make_learner(config, rows, recipe)
    run(learner, recipe, 2)
    assert rows.targets is not None
    rows.targets[:] = float("nan")
    before = weights(learner.model)
    with pytest.raises(TrainingError, match=r"step 3: the loss is nan.*Try a lower lr"):
        run(learner, recipe)
    assert_equal(weights(learner.model), before)
    assert learner.step == 2


def test_epochs_are_rounded_up_to_whole_steps(config: BertConfig, rows: Rows) -> None:
    recipe = make_recipe(training={"steps": None, "epochs": 3, "accumulation": 2})
    learner = make_learner(config, rows, recipe)
    n_batches = -(-len(rows.tokens) // 8) * 3
    assert count_steps(learner.batches, recipe) == -(-n_batches // 2)


def test_bfloat16_on_a_cpu_attends_by_the_formula_and_leaves_torch_as_it_was() -> None:
    q, k, v = (torch.randn(2, 4, 50, 32, requires_grad=True) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (q, k, v), gradient)
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    with autocast(torch.device("cpu"), make_recipe(training={"precision": "bf16"})):
        assert SDPBackend.MATH.value == torch._fused_sdp_choice(q, k, v)
        seen = F.scaled_dot_product_attention(q, k, v)
    assert seen.dtype == torch.bfloat16
    found = torch.autograd.grad(seen, (q, k, v), gradient.bfloat16())
    for ours, exact in zip((seen, *found), (expected, *wanted)):
        assert (ours - exact).norm() < 0.02 * exact.norm()
    assert torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed() == before
    assert torch.backends.cuda.flash_sdp_enabled() and torch._fused_sdp_choice(q, k, v) != SDPBackend.MATH.value
    long = {"training": {"precision": "bf16"}, "data": {"max_len": 4_096}}
    for other in (make_recipe(), make_recipe(**long)):
        with autocast(torch.device("cpu"), other):
            assert torch._fused_sdp_choice(q, k, v) != SDPBackend.MATH.value
