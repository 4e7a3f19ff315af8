"""`Exploration`: one place that answers every question about recordings, whoever asks.

A page asks through the server, a notebook through its kernel, an exported file is made of answers, and a figure is
drawn from them. All ask the same questions by name, from one table (`questions/`), and get the same numbers: those of
`Recording`. Next: `scene.py`, what is asked about, and `questions/__init__.py`.
"""

import threading
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearhead.errors import InputError, nearest
from clearhead.explorer.jobs import Events
from clearhead.explorer.kept import open_overviews
from clearhead.explorer.pictures import decode
from clearhead.explorer.questions import QUESTIONS
from clearhead.explorer.runner import Runner
from clearhead.explorer.scene import Scene
from clearhead.explorer.table import Answer, Question

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_IMAGES = 8  # that were sent and are kept: the oldest is dropped for a new one
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
        self.images: dict[str, Image] = {}  # that were sent, to be read
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
            if scene.origin.kind == "recording":
                self.kept |= open_overviews(Path(scene.origin.text), name)
            return name

    def scene(self, name: str | None = None) -> tuple[str, Scene]:
        """Return a scene and its id, the first without a name; InputError where there is none of that name."""
        if name is None:
            return next(iter(self.scenes.items()))
        if name not in self.scenes:
            raise InputError(f"there is no scene {name[:40]!r}{nearest(name, list(self.scenes))}")
        return name, self.scenes[name]

    def add_image(self, data: bytes) -> dict[str, Any]:
        """Add a picture from the bytes of a file, and return its id and size; InputError where they are none."""
        image = decode(data)
        with self.lock:
            if len(self.images) >= MAX_IMAGES:
                del self.images[next(iter(self.images))]
            name = f"p{next(self._numbers)}"
            self.images[name] = image
        return {"image": name, "width": image.width, "height": image.height}

    def ask(self, name: str, **given: Any) -> Answer:
        """Answer a question.

        Args:
            name: Which question.
            given: Its parameters; those that are left out have the defaults of the table.

        Raises:
            InputError: There is no such question, or a parameter is not what the question expects.
            WatchError: The recording cannot say.
        """
        question = self.question(name, "GET")
        checked = question.check(given)
        with self.lock:
            found: Answer = question.function(self, **checked)
        return found

    def stream(self, name: str, **given: Any) -> Events:
        """Answer a question that takes long: return its events as they come, the last of which is "done" or "error".

        Closing the iterator stops what is going on. Arguments and errors are those of `ask`; an error on the way is
        the last event.
        """
        question = self.question(name, "POST")
        found: Events = question.function(self, **question.check(given))
        return found

    def question(self, name: str, method: str) -> Question:
        """Return a question by its name; InputError where there is none of that name that is asked so."""
        if (method, name) not in QUESTIONS:
            known = [each for kind, each in QUESTIONS if kind == method]
            raise InputError(f"there is no question {name[:40]!r}{nearest(name, known)}")
        return QUESTIONS[method, name]
