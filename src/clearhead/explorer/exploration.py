"""`Exploration`: one place that answers every question about recordings, whoever asks.

A page asks through the server, a notebook through its kernel, an exported file is made of answers, and a figure is
drawn from them. All ask the same questions by name, from one table (`questions/`), and get the same numbers: those of
`Recording`. Next: `scene.py`, what is asked about, and `questions/__init__.py`.
"""

import threading
from collections.abc import Iterable
from itertools import count
from typing import Any

from clearhead.errors import InputError, nearest
from clearhead.explorer.questions import QUESTIONS
from clearhead.explorer.runner import Runner
from clearhead.explorer.scene import Scene
from clearhead.explorer.table import Answer

MAX_SCENES = 24  # that are kept: the oldest that was not there at the start is dropped for a new one


class Exploration:
    """Scenes, and answers to questions about them.

    Args:
        scenes: What is explored from the start; these are never dropped.
        runner: What runs models for more scenes, None where nothing can be run.

    Questions may be asked from several threads; one at a time reads the recordings.
    """

    def __init__(self, scenes: Iterable[Scene], runner: Runner | None = None) -> None:
        self.runner, self.lock, self._numbers = runner, threading.RLock(), count(1)
        self.scenes: dict[str, Scene] = {}
        self.kept: dict[tuple[Any, ...], Any] = {}  # answers that took long, by a key that begins with the scene's id
        for scene in scenes:
            self.add(scene)
        self._first = frozenset(self.scenes)
        if not self.scenes:
            raise InputError("there is nothing to explore: expected at least one recording")

    def add(self, scene: Scene) -> str:
        """Add a scene and return its id."""
        with self.lock:
            later = [name for name in self.scenes if name not in getattr(self, "_first", self.scenes)]
            if len(later) >= MAX_SCENES:
                del self.scenes[later[0]]
                self.kept = {key: value for key, value in self.kept.items() if key[0] != later[0]}
            name = f"s{next(self._numbers)}"
            self.scenes[name] = scene
            return name

    def scene(self, name: str | None = None) -> tuple[str, Scene]:
        """Return a scene and its id, the first without a name; InputError where there is none of that name."""
        if name is None:
            return next(iter(self.scenes.items()))
        if name not in self.scenes:
            raise InputError(f"there is no scene {name[:40]!r}{nearest(name, list(self.scenes))}")
        return name, self.scenes[name]

    def ask(self, name: str, **given: Any) -> Answer:
        """Answer a question.

        Args:
            name: Which question.
            given: Its parameters; those that are left out have the defaults of the table.

        Raises:
            InputError: There is no such question, or a parameter is not what the question expects.
            WatchError: The recording cannot say.
        """
        question = QUESTIONS.get(name)
        if question is None or question.method != "GET":
            known = [each.name for each in QUESTIONS.values() if each.method == "GET"]
            raise InputError(f"there is no question {name[:40]!r}{nearest(name, known)}")
        checked = question.check(given)
        with self.lock:
            found: Answer = question.function(self, **checked)
        return found
