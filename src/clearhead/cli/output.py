"""How the command line speaks: answers on stdout, remarks on stderr, colour only for a person at a terminal."""

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from clearhead.controls import escape_controls, without_controls
from clearhead.errors import InputError, counted

if TYPE_CHECKING:  # rich takes 50 ms, which only who looks should pay for
    from rich.console import Console


def note(remark: str) -> None:
    """Say something beside the answer, on stderr."""
    sys.stdout.flush()
    Progress.clear()
    print(f"clearhead: {without_controls(remark)}", file=sys.stderr, flush=True)


def refuse(why: str) -> NoReturn:
    """Leave with exit code 2: the command was understood by tyro, but asks for something that cannot be meant."""
    print(f"clearhead: {without_controls(why)}", file=sys.stderr)
    raise SystemExit(2)


def require_text(text: str, what: str = "the text") -> None:
    """Raise InputError for an argument that is no text."""
    if not text.strip():
        raise InputError(f"{what} is empty: expected at least one word, got {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes that Python could not read when it was given the command
        raise InputError(f"{what} is not UTF-8: expected words, got {text!r}") from error


def dump(fields: Mapping[str, Any]) -> str:
    """Return `fields` as JSON on one line, in letters that stdout can take."""
    return escape_controls(json.dumps(fields, ensure_ascii=(sys.stdout.encoding or "utf-8").lower() != "utf-8"))


def is_for_eyes(stream: TextIO) -> bool:
    """Return whether a person reads `stream` at a terminal that shows colour (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def one_line(text: str, width: int | None = None) -> str:
    """Return `text` without control characters, cut to `width` columns at most."""
    text = without_controls(text)
    return text if width is None or len(text) <= width else text[: max(width - 1, 0)] + "…"


def answer(text: str) -> None:
    """Print an answer that is one line, at once."""
    print(without_controls(text), flush=True)


def say(text: str, hanging: int = 0) -> None:
    """Print a line; at a terminal it is broken between words, and what follows is indented by `hanging` more."""
    text = without_controls(text)
    if sys.stdout.isatty():
        from textwrap import fill

        indent = " " * (len(text) - len(text.lstrip()) + hanging)
        text = fill(text, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    print(text)


def columns() -> int:
    """Return how wide the terminal is; COLUMNS overrules it."""
    return shutil.get_terminal_size().columns


def console() -> "Console":
    """Return what draws on standard output; a reader that has left ends it as it ends every command.

    rich would leave with exit code 1.
    """
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Quiet(highlight=False)


class Progress:
    """How many were done, on one line of stderr that is gone at the end: where a person waits and sees no answers."""

    LATE, BETWEEN = 1.0, 0.2  # seconds until it appears, and until it changes
    shown = False

    def __init__(self, thing: str) -> None:
        self.thing, self.done = thing, 0
        self.begun = self.last = time.monotonic()
        self.wanted = sys.stderr is not None and is_for_eyes(sys.stderr) and not sys.stdout.isatty()

    def advance(self, n: int = 1) -> None:
        """Count `n` more."""
        self.done += n
        now = time.monotonic()
        if self.wanted and now - self.begun > self.LATE and now - self.last > self.BETWEEN:
            self.last = now
            rate = self.done / (now - self.begun)
            line = f"\r\x1b[K{counted(self.done, self.thing)}, {rate:,.{int(rate < 10)}f} a second"
            print(line, end="", file=sys.stderr, flush=True)
            Progress.shown = True

    @classmethod
    def clear(cls) -> None:
        """Take the line away."""
        if cls.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            cls.shown = False

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()
