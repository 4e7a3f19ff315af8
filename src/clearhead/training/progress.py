"""What a person sees while a run goes on: a bar in a terminal, a plain line now and then in a file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from clearhead.controls import without_controls
from clearhead.training.loop import Step


@runtime_checkable
class Progress(Protocol):
    """Somewhere to tell how the run goes."""

    def step(self, step: Step) -> None:
        """Show one step."""
        ...

    def say(self, text: str) -> None:
        """Show one sentence."""
        ...


@contextmanager
def progress(done: int, n_steps: int) -> Iterator[Progress]:
    """Show progress on standard error: a bar in a terminal, plain lines otherwise."""
    if sys.stderr is None or not sys.stderr.isatty():  # FORCE_COLOR makes a terminal of a log in rich's eyes
        yield PlainLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        yield RichBar(bar, bar.add_task("", completed=done, total=n_steps))


class PlainLines:
    """Some fifty lines a run."""

    def step(self, step: Step) -> None:
        """Print every fiftieth part of the run, the first step and the last."""
        if step.number in (1, step.n_steps) or step.number % max(1, step.n_steps // 50) == 0:
            self.say(f"step {step.number}/{step.n_steps}  {describe(step)}")

    def say(self, text: str) -> None:
        """Print one line."""
        print(without_controls(text), file=sys.stderr, flush=True)


class RichBar:
    """A bar with loss, rate and time left."""

    def __init__(self, bar: Any, task: Any) -> None:
        self.bar, self.task = bar, task

    def step(self, step: Step) -> None:
        """Move the bar."""
        self.bar.update(self.task, completed=step.number, description=describe(step))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(without_controls(text), markup=False, highlight=False)


def describe(step: Step) -> str:
    """Return loss, learning rate, pace and time left in one line."""
    minutes, seconds = divmod(round(step.seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"loss {step.loss:.4f}  lr {step.lr:.2e}  {step.items_per_second:,.0f} {step.unit}/s  {left} left"
