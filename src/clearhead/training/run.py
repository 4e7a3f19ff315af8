"""A run: the one place that saves.

The run folder *is* a checkpoint folder, which `clearhead.load` and transformers open at any time after the first save.
Beside the checkpoint it holds

    recipe.toml       the recipe as it was read
    metrics.jsonl     a line a step, {"step", "loss", ...}, and a line an evaluation, {"step", "valid_loss", ...}
    training_state/   run.json, what the run is made of, and step-N/, all that changes: safetensors and JSON

The checkpoint holds the last weights (their average, with `ema`), or with `keep = "best"` those with the lowest loss
on the valid files; metrics.jsonl tells of both. Delete training_state/ to ship the folder.

Killed at any moment, a run continues with `resume=True` from its last save. On a CPU, with as many threads, it ends
bit for bit as if it had never stopped. Ctrl-C and SIGTERM save first.
"""

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clearhead.checkpoints import CanSave, find, save
from clearhead.data.batches import Batches, Portion, Source, plan_epoch
from clearhead.errors import InputError, Interrupted, TrainingError
from clearhead.training.assembly import TASKS, build_model, device_named
from clearhead.training.loop import Learner, Step, count_steps, evaluate, seed_everything, train
from clearhead.training.objectives import Objective
from clearhead.training.progress import Progress, progress
from clearhead.training.recipe import Recipe
from clearhead.training.store import RunFolder
from clearhead.training.task import DataSet

SAME_SIGNAL = 1.0  # seconds within which a second signal is the first one again


def run_recipe(
    recipe_path: Path | str,
    *,
    data: Path | str | None = None,
    start: str | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    device: str | None = None,
) -> Path:
    """Train what the recipe describes and return the run folder, `runs/<name of the recipe>` unless `out` is given.

    `data` is the folder of the recipe's files, the recipe's own unless given; `start` replaces the checkpoint it
    starts from, `device` where it runs. TrainingError when the folder holds another run, when recipe or data changed
    since, and when the loss is no number; Interrupted when a signal stopped the run, its message holds the way on.
    """
    recipe_path = Path(recipe_path)
    recipe = Recipe.load(recipe_path)
    folder = RunFolder(Path("runs") / recipe_path.stem if out is None else Path(out))
    before = folder.begun() if resume else None
    if before is None:
        folder.require_free()
    else:
        start = start or before["recipe"]["model"]["start"]
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, start=start or recipe.model.start),
        training=dataclasses.replace(recipe.training, device=device or recipe.training.device),
    )

    source = find(recipe.model.start)
    task = TASKS[recipe.objective.name]
    reader = task.reader(source)
    data = recipe_path.parent if data is None else Path(data)
    if lost := [name for name in (*recipe.data.train, *recipe.data.valid) if not (data / name).exists()]:
        raise InputError(f"{data} holds no {', '.join(lost)}: give the folder of the recipe's files as --data")
    sets = {
        name: task.rows(files, data, recipe, reader)
        for name, files in (("train", recipe.data.train), ("valid", recipe.data.valid))
    }
    description = describe(recipe, sets)
    if before is not None and (changes := differences(before, description)):
        raise TrainingError(f"{folder.path} was begun with something else: {'; '.join(changes)}. Start a new --out")
    run = Run(recipe, folder, reader, task.objective(recipe, reader), sets, source)
    if before is None:
        folder.begin(description, recipe_path.read_text(encoding="utf-8"))
    with folder.held():
        run.go()
    return folder.path


class Run:
    """A learner, and everything around it that keeps what it learns."""

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        reader: CanSave,
        objective: Objective[Any],
        sets: Mapping[str, DataSet],
        source: Path,
    ) -> None:
        self.recipe, self.folder, self.reader, self.objective, self.sets = recipe, folder, reader, objective, sets
        section = recipe.training
        seed_everything(section.seed)
        model, self.family = build_model(source, recipe, reader)
        model.to(device_named(section.device))
        sizes = {"batch_size": section.batch_size, "batch_tokens": section.batch_tokens}
        batches = Batches(sets["train"].rows, seed=section.seed, **sizes)
        self.learner = Learner(model, batches, recipe)
        self.n_steps = count_steps(batches, recipe)
        self.best: dict[str, float] | None = None

    def go(self) -> None:
        """Make the steps that are left, evaluating and saving as the recipe says; the folder then holds the result."""
        section, learner = self.recipe.training, self.learner
        if latest := self.folder.latest():
            tensors, facts = latest
            self.best = facts["best"]
            learner.restore(tensors, facts)
        self.folder.forget_after(learner.step)
        evaluate_every = section.evaluate_every or self.n_steps
        with stop_signals() as signals, progress(learner.step, self.n_steps) as show:
            for name, data in self.sets.items():
                if data.note and getattr(self.recipe.data, name):
                    show.say(f"{name}: {data.note}")
            for step in train(learner, self.objective, self.recipe, n_steps=self.n_steps):
                self.folder.log(record(step))
                show.step(step)
                last = step.number == self.n_steps
                if self.recipe.data.valid and (last or step.number % evaluate_every == 0):
                    self.evaluate(show)
                if not last and (signals or step.number % section.save_every == 0):
                    self.save()
                if signals and not last:
                    raise Interrupted(
                        f"interrupted at step {step.number} of {self.n_steps}; everything is saved in "
                        f"{self.folder.path}. To go on, give the same command with --resume",
                        signals[0],
                    )
        self.save()  # of a finished run resumed, too: it may have been killed between the state and the checkpoint

    def evaluate(self, show: Progress) -> None:
        """Measure the result on the valid files, and keep it if it is the best so far and that is asked for."""
        step, result = self.learner.step, self.learner.result
        measures = evaluate(result, self.objective, in_order(self.sets["valid"].rows, self.recipe), self.recipe)
        self.folder.log({"step": step, **{f"valid_{name}": value for name, value in measures.items()}})
        better = self.best is None or measures["loss"] < self.best["loss"]
        if better:
            self.best = {"step": step, **measures}
            if self.recipe.training.keep == "best":
                self.save_checkpoint()
        said = "  ".join(f"{name} {value:.4f}" for name, value in measures.items())
        show.say(f"step {step}: valid {said}{'  (best so far)' if better else ''}")

    def save(self) -> None:
        """Keep the learner's state, then the checkpoint people open."""
        tensors, facts = self.learner.snapshot()
        self.folder.save(tensors, {**facts, "best": self.best})
        if self.recipe.training.keep == "last":
            self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Keep the result as a folder that `clearhead.load` and transformers open."""
        save(self.learner.result, self.folder.path, tokenizer=self.reader, family=self.family)


def in_order(rows: Source, recipe: Recipe) -> Iterator[Portion]:
    """Yield all rows in the same batches every time."""
    section = recipe.training
    for numbers in plan_epoch(
        rows.lengths, epoch=0, seed=0, batch_size=section.batch_size, batch_tokens=section.batch_tokens
    ):
        yield rows.batch(numbers)


def record(step: Step) -> dict[str, Any]:
    """Return a step's line for metrics.jsonl."""
    fields = dataclasses.asdict(step)
    number = fields.pop("number")
    del fields["n_steps"], fields["seconds_left"]
    return {"step": number, **fields}


def describe(recipe: Recipe, sets: Mapping[str, DataSet]) -> dict[str, Any]:
    """Return what makes this run this run, as JSON has it; the device is no part of it."""
    fields = dataclasses.asdict(recipe)
    del fields["training"]["device"]
    described: dict[str, Any] = json.loads(
        json.dumps({"recipe": fields, "rows": {name: data.digest for name, data in sets.items()}})
    )
    return described


def differences(before: Mapping[str, Any], now: Mapping[str, Any], path: Sequence[str] = ()) -> list[str]:
    """Return a phrase for every leaf in which two descriptions differ."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        was, is_, here = before.get(key), now.get(key), [*path, key]
        if isinstance(was, dict) and isinstance(is_, dict):
            found += differences(was, is_, here)
        elif was != is_ and here[0] == "rows":
            found.append(f"the {key} rows (the files, or the tokenizer)")
        elif was != is_ and (key in before or is_ != default(here[1:])):  # an older run lacks what is newer than it
            found.append(f"{'.'.join(here[1:])} was {was!r}, is {is_!r}")
    return found


def default(path: Sequence[str]) -> Any:
    """Return what a section's field of the recipe is when nothing is said, as JSON has it."""
    sections = {field.name: field.type for field in dataclasses.fields(Recipe)}
    section: Any = sections.get(path[0])
    fields = {field.name: field.default for field in dataclasses.fields(section)} if len(path) == 2 else {}
    return fields.get(path[-1])


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Put the first SIGINT or SIGTERM into a list that is looked at after each step; the second one kills.

    Within `SAME_SIGNAL` it is the same one: torchrun passes on to its processes what their terminal sent them already.
    """
    arrived: list[int] = []
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield arrived  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        nonlocal first
        if arrived and time.monotonic() - first > SAME_SIGNAL:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        first = first or time.monotonic()
        arrived.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
