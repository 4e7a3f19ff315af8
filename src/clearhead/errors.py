"""Every error clearhead raises on purpose, as one tree.

    ClearheadError
    ├── ConfigError        a model or recipe is described in a way that cannot be built
    ├── ShapeError         tensors that do not fit together (also a ValueError)
    ├── CheckpointError    a checkpoint folder that cannot be trusted: nothing of it was loaded
    ├── InputError         a text, file or argument that cannot be used
    ├── TrainingError      a run that cannot start, resume or go on
    │   └── Interrupted    a run that a signal stopped: all it had learned is saved
    ├── WatchError         attention that cannot be recorded, shown or edited
    └── MissingExtra       an optional package is needed; the message holds the `pip install` line

A message says what was expected, what came, and what to do. `assert` is kept for our own invariants: an
AssertionError is a bug in clearhead, a ClearheadError is something its reader can act on.
"""


class ClearheadError(Exception):
    """Base of every error clearhead raises on purpose; the command line prints it as one sentence."""


class ConfigError(ClearheadError, ValueError):
    """A model or recipe described in a way that cannot be built: names the field, its value and what it allows."""


class ShapeError(ClearheadError, ValueError):
    """Tensors that do not fit together: shows both shapes, dtypes or devices, and which one to change."""


class CheckpointError(ClearheadError):
    """A checkpoint folder that cannot be trusted: names the file and the tensor. Nothing of it was loaded."""


class InputError(ClearheadError, ValueError):
    """A text, file or argument that cannot be used: says where it is and what was expected there."""


class TrainingError(ClearheadError):
    """A training run that cannot start, resume or go on: what is on disk stays as it was."""


class Interrupted(TrainingError):
    """A run stopped by `signal`, SIGINT or SIGTERM, after everything was saved: the message says how to go on."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class WatchError(ClearheadError):
    """Attention that cannot be recorded, shown or edited: names the call or the layer and what to ask for instead."""


class MissingExtra(ClearheadError, ImportError):
    """An optional package is needed for this: the message holds the `pip install` line that brings it."""


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return `; did you mean 'x'?` for the closest known name, or `; known: a, b, ...` when none is close."""
    import difflib  # 3 ms that only a mistake should pay for

    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"


def a(name: str) -> str:
    """Return `name` after the article that it takes."""
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def counted(n: int, thing: str) -> str:
    """Return how many there are: `1 text`, `2 texts`, `1,000 patches`."""
    return f"{n:,} {thing if n == 1 else several(thing)}"


def several(thing: str) -> str:
    """Return the plural of what a message counts."""
    return thing + ("es" if thing.endswith("ch") else "s")
