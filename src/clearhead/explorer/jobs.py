"""What takes long, in a thread of its own: events come as they happen, and whoever leaves stops it.

A job is a function that is given a `Report`. It reports events, and is stopped at the next report, or at the next
module of a model that runs under `stoppable`. Next: `questions/running.py`, the jobs that there are.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from clearhead.errors import ClearheadError

Event = dict[str, Any]

BETWEEN = 0.1  # seconds between two events of progress

LOG = logging.getLogger(__name__)


class Cancelled(BaseException):
    """Nobody waits for the job any more."""


class Report:
    """Takes the events of one job, and says when it is to stop."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.cancelled = threading.Event()
        self._last = 0.0

    def __call__(self, event: str, **fields: Any) -> None:
        """Report an event."""
        self.check()
        self.events.put({"event": event, **fields})

    def progress(self, done: int, of: int | None, what: str) -> None:
        """Report how much is done, but not more often than a person can see."""
        self.check()
        if (now := time.monotonic()) - self._last >= BETWEEN:
            self._last = now
            self.events.put({"event": "progress", "done": done, "of": of, "what": what})

    def check(self) -> None:
        """Raise `Cancelled` where nobody waits any more."""
        if self.cancelled.is_set():
            raise Cancelled


class Events(Iterator[Event]):
    """The events of a function that runs in a thread of its own; an error becomes the last of them.

    The thread is started when the first event is asked for. `close` stops the function, from any thread, and returns
    when it has stopped.
    """

    def __init__(self, work: Callable[[Report], None]) -> None:
        self.report, self.work = Report(), work
        self.thread = threading.Thread(target=self._run, name="clearhead job", daemon=True)
        self.started = False

    def __next__(self) -> Event:
        if not self.started:
            self.started = True
            self.thread.start()
        event = self.report.events.get()
        if event is None:
            self.report.events.put(None)  # for whoever asks again
            raise StopIteration
        return event

    def close(self) -> None:
        """Stop the function and wait until it has stopped."""
        self.report.cancelled.set()
        if self.started:
            self.thread.join()

    def _run(self) -> None:
        report = self.report
        try:
            self.work(report)
        except Cancelled:
            pass
        except ClearheadError as error:
            report.events.put({"event": "error", "message": str(error)})
        except Exception as error:  # a bug of ours or of the model's: the page says so, the log says where
            LOG.exception("a question failed")
            report.events.put({"event": "error", "message": f"it failed with {type(error).__name__}: {error}"})
        finally:
            report.events.put(None)


@contextlib.contextmanager
def stoppable(model: nn.Module, report: Report, what: str) -> Iterator[None]:
    """While the body runs, let the model stop where nobody waits any more, and report how often it ran."""
    n_runs = 0

    def before(module: nn.Module, inputs: Any) -> None:
        nonlocal n_runs
        report.check()
        if module is model:
            report.progress(n_runs, None, what)
            n_runs += 1

    handles = [module.register_forward_pre_hook(before) for module in model.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
