"""A run folder on disk, written so that a process killed at any moment leaves one that continues.

Whatever replaces something is written beside it, forced to disk and renamed: at every moment the old or the new is
there, whole. Used by `run.py` alone.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from clearhead.checkpoints.files import save_tensors, to_disk
from clearhead.errors import TrainingError


class RunFolder:
    """What a run keeps beside its checkpoint: its description, its latest state, its metrics."""

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, path / "training_state"
        self.description, self.metrics = self.state / "run.json", path / "metrics.jsonl"

    def require_free(self) -> None:
        """Raise TrainingError if the folder holds a run or anything else."""
        if self.path.is_file():
            raise TrainingError(f"{self.path} is a file: give a folder as --out")
        if self.description.is_file():
            raise TrainingError(f"{self.path} holds a run already: continue it with --resume, or give another --out")
        held = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        unbegun = {self.state.name, "recipe.toml", "recipe.toml.partial"}  # what a run killed before it began leaves
        if self.path.exists() and held and not {self.state.name} <= held <= unbegun:
            raise TrainingError(f"{self.path} exists and is no empty folder: give another --out")

    def begin(self, description: Mapping[str, Any], recipe: str) -> None:
        """Make the folder, which `require_free` has seen."""
        self.state.mkdir(parents=True, exist_ok=True)
        write(self.path / "recipe.toml", recipe)
        write(self.description, json.dumps(description, indent=2) + "\n")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other process out: TrainingError if one is training here. A killed one holds nothing."""
        if os.name != "posix":
            yield  # Windows has no such lock
            return
        import fcntl

        with (self.state / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"another process is training in {self.path}: wait for it, or give another --out. One run is one "
                    f"process (torchrun starts several)"
                ) from None
            yield

    def begun(self) -> dict[str, Any] | None:
        """Return the description of the run to continue, None if it was killed before it had one."""
        if self.description.is_file():
            description: dict[str, Any] = json.loads(self.description.read_text(encoding="utf-8"))
            return description
        if self.state.is_dir():
            return None
        raise TrainingError(f"{self.path} holds no run to continue: start it without --resume, or give its --out")

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Keep a learner's snapshot in place of the one before. TrainingError, with that one kept, if it cannot be."""
        from safetensors import SafetensorError

        try:
            self._replace(tensors, facts)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"step {facts['step']} could not be saved in {self.path}: {error}. What was saved before is whole: "
                f"make room and go on with --resume"
            ) from error

    def _replace(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        complete = self.state / f"step-{facts['step']:09d}"
        if complete.is_dir():
            return
        partial = self.state / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        save_tensors({name: x.contiguous() for name, x in tensors.items()}, partial / "tensors.safetensors")
        (partial / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        for path in (*partial.iterdir(), partial, *([self.metrics] if self.metrics.exists() else [])):
            to_disk(path)
        partial.rename(complete)
        to_disk(self.state)
        for old in self._complete():
            if old != complete:
                shutil.rmtree(old)

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the latest complete snapshot, None if the run was killed before its first."""
        from safetensors.torch import load_file

        if not (complete := self._complete()):
            return None
        try:
            facts = json.loads((complete[-1] / "facts.json").read_text(encoding="utf-8"))
            return load_file(complete[-1] / "tensors.safetensors"), facts
        except Exception as error:
            raise TrainingError(f"{complete[-1]} is damaged and cannot be continued: {error}") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Take out of metrics.jsonl what came after `step`, and a line that was cut short."""
        kept = [line for line in self._lines() if line["step"] <= step]
        write(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def _lines(self) -> Iterator[dict[str, Any]]:
        for line in self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []:
            try:
                yield json.loads(line)
            except ValueError:
                return

    def _complete(self) -> list[Path]:
        return sorted(self.state.glob("step-*"))


def write(path: Path, text: str) -> None:
    """Replace a file's contents in one moment."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(text, encoding="utf-8")
    to_disk(beside)
    beside.rename(path)
    to_disk(path.parent)
