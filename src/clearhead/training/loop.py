"""The loop: an iterator that makes one step each time it is asked, and says how it went.

    for step in train(learner, objective, recipe, n_steps=1000):
        print(step.number, step.loss)

What changes from step to step is in one place, the `Learner`: weights, their average, the optimizers' moments, the
place in the data, the random numbers. `snapshot` takes all of it as tensors and JSON, `restore` puts it back; between
the two nothing is lost, so a run that goes on is the run that never stopped.

Next: `run.py` saves it.
"""

import copy
import math
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.data.batches import Batches
from clearhead.errors import TrainingError
from clearhead.training.objectives import Objective
from clearhead.training.optimizer import build_optimizers, lr_share, named_parameters, set_lr
from clearhead.training.recipe import Recipe

FORMULA = 1_024  # tokens; the weights of longer texts would take more memory than they save time


@dataclass(frozen=True, kw_only=True)
class Step:
    """One update, made."""

    number: int  # updates made so far, this one included
    n_steps: int
    epoch: int  # of the step's last batch, from 0
    loss: float  # before the update
    lr: float
    gradient_norm: float  # before clipping
    unit: str  # what items are: tokens, pictures
    items: int  # without padding
    items_per_second: float  # over the last 50 steps, evaluations and saving included
    seconds_left: float


class Average:
    """A second model whose weights follow the first's slowly; it often scores better (Polyak & Juditsky 1992)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move a share of the way to `model`: a larger one at first, as TensorFlow's ExponentialMovingAverage does."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for mine, theirs in zip(self.model.parameters(), model.parameters()):
            mine.lerp_(theirs, 1 - decay)


class Learner:
    """Everything that changes while a model is trained."""

    def __init__(self, model: nn.Module, batches: Batches, recipe: Recipe) -> None:
        self.model, self.batches, self.step = model, batches, 0
        self.average = None if recipe.training.ema is None else Average(model, recipe.training.ema)
        self.optimizers = build_optimizers(model, recipe.optimizer)
        if recipe.training.compile:
            model.compile()  # in place: the names of the weights stay

    @property
    def result(self) -> nn.Module:
        """The weights to evaluate and to keep: the average where there is one."""
        return self.model if self.average is None else self.average.model

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all of it as tensors by name and as JSON."""
        tensors = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": x for name, x in self.average.model.state_dict().items()}
        for optimizer in self.optimizers:
            for name, parameter in named_parameters(optimizer):
                tensors |= {f"{key}.{name}": x for key, x in optimizer.state[parameter].items()}
        tensors["random.cpu"] = torch.get_rng_state()
        for i, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []):
            tensors[f"random.cuda.{i}"] = state
        numpy_state = np.random.get_state(legacy=False)
        assert isinstance(numpy_state, dict)
        words = {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}
        facts = {"step": self.step, "batches": self.batches.state, "python": random.getstate()}
        return tensors, facts | {"numpy": {**numpy_state, "state": words}}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Put a snapshot back, on whatever device the model is."""
        self.step, self.batches.state = facts["step"], facts["batches"]
        self.model.load_state_dict(_below("model.", tensors))
        if self.average is not None:
            self.average.model.load_state_dict(_below("average.", tensors))
        for optimizer in self.optimizers:
            state: dict[int, dict[str, Tensor]] = {}
            for i, (name, _) in enumerate(named_parameters(optimizer)):
                keys = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")
                state[i] = {key: tensors[f"{key}.{name}"] for key in keys if f"{key}.{name}" in tensors}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state if self.step else {}})
        torch.set_rng_state(tensors["random.cpu"])
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            if f"random.cuda.{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"random.cuda.{i}"], i)
        version, words, gauss = facts["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(facts["numpy"])


def train(learner: Learner, objective: Objective[Any], recipe: Recipe, *, n_steps: int) -> Iterator[Step]:
    """Make the steps that are left until `n_steps`, yielding after each.

    Stop asking whenever you like: the learner is then exactly at the step that was yielded last. TrainingError on a
    loss or gradient that is no number, before it reaches the weights.
    """
    model, training = learner.model, recipe.training
    device = next(model.parameters()).device
    pace = deque([(time.perf_counter(), 0)], maxlen=51)
    while learner.step < n_steps:
        model.train()
        lr = recipe.optimizer.lr * lr_share(learner.step, n_steps, recipe.schedule)
        for optimizer in learner.optimizers:
            set_lr(optimizer, lr)
            optimizer.zero_grad()
        batches = [objective.prepare(next(learner.batches)) for _ in range(training.accumulation)]
        counts = [objective.count(batch) for batch in batches]
        loss = torch.zeros((), device=device)
        for batch, count in zip(batches, counts):
            if count == 0:
                continue  # a batch that asks nothing
            with autocast(device, recipe):
                share = objective.loss(model, batch.to(device)) * (count / sum(counts))
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        clip = math.inf if recipe.optimizer.clip is None else recipe.optimizer.clip
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip).item()
        _require_finite(learner.step + 1, loss.item(), norm, lr)
        for optimizer in learner.optimizers:
            optimizer.step()
        learner.step += 1
        if learner.average is not None:
            learner.average.update(model, learner.step)
        n_items = sum(batch.n_items for batch in batches)
        pace.append((time.perf_counter(), pace[-1][1] + n_items))
        seconds = pace[-1][0] - pace[0][0]
        yield Step(
            number=learner.step,
            n_steps=n_steps,
            epoch=learner.batches.state["epoch"],
            loss=loss.item(),
            lr=lr,
            gradient_norm=norm,
            unit=batches[0].unit,
            items=n_items,
            items_per_second=(pace[-1][1] - pace[0][1]) / seconds,
            seconds_left=(n_steps - learner.step) * seconds / (len(pace) - 1),
        )


def evaluate(model: nn.Module, objective: Objective[Any], batches: Iterable[Any], recipe: Recipe) -> dict[str, float]:
    """Return the objective's measures; what is random in `batches` is the same every time, the run's RNG untouched."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    model.eval()
    with autocast(device, recipe):
        return objective.evaluate(model, (objective.prepare(batch, generator).to(device) for batch in batches))


@contextmanager
def autocast(device: torch.device, recipe: Recipe) -> Iterator[None]:
    """Multiply matrices in bfloat16 where the recipe says "bf16"; everything delicate stays float32.

    On a CPU attention over up to FORMULA tokens is then computed by the formula, every weight of it in bfloat16:
    forwards and backwards that takes 0.3 of the fused kernel's time at 50 tokens, 0.6 at 512 (LOG.md, 2026-11-23).
    """
    lowered = recipe.training.precision == "bf16"
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16, enabled=lowered))
        if lowered and device.type == "cpu" and recipe.data.max_len <= FORMULA:
            stack.callback(torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp, _formula_in_bf16())
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # of the CPU too, whatever its name
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _formula_in_bf16() -> bool:
    return bool(torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed())  # type: ignore[no-untyped-call]


def count_steps(batches: Batches, recipe: Recipe) -> int:
    """Return the number of steps that a recipe asks for, epochs rounded up to whole steps."""
    if recipe.training.steps is not None:
        return recipe.training.steps
    n_batches = sum(len(batches.plan(epoch)) for epoch in range(recipe.training.epochs or 0))
    return math.ceil(n_batches / recipe.training.accumulation)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's own random numbers: a run owns them."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _require_finite(step: int, loss: float, norm: float, lr: float) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    raise TrainingError(
        f"step {step}: the loss is {loss:g} and the gradient's norm {norm:g}, so the step was not made. Try a lower lr "
        f"(now {lr:.2g}), a longer warmup, a smaller clip, or precision = 'fp32', and look at the data of this step"
    )


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
