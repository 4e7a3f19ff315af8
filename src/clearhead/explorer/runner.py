"""`Runner`: models that can be run for new scenes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from clearhead.explorer.reading import PictureReader, Prepared, Reader, TextReader, reader_of
from clearhead.explorer.scene import Origin, Scene
from clearhead.models.gpt import GPTForCausalLM
from clearhead.seeing import watch

if TYPE_CHECKING:
    from PIL.Image import Image

Opener = Callable[[str], tuple[Path, nn.Module]]


class Runner:
    """Models by name, opened when they are first needed.

    Args:
        names: The models that may be run. No other name is ever opened.
        open: What opens a model of that name and returns its folder and the module.
    """

    def __init__(self, names: Sequence[str], open: Opener) -> None:
        self.names, self._open = tuple(dict.fromkeys(names)), open
        self._readers: dict[str, Reader] = {}

    def reader(self, name: str) -> Reader:
        """Return the reader of a model, opened if it was not."""
        if name not in self._readers:
            self._readers[name] = reader_of(*self._open(name))
        return self._readers[name]

    def read(self, model: str, given: "str | Path | Image", *, target: str | None = None, title: str = "") -> Scene:
        """Return the scene of a model that reads a text or a picture.

        Args:
            model: The name of the model.
            given: A text, the path of a picture, or an open picture.
            target: What an encoder-decoder writes; None: what it writes itself.
            title: What the input is called where it has no text.
        """
        reader = self.reader(model)
        prepared = reader.prepare(given, target)
        kind = "picture" if isinstance(reader, PictureReader) else "text"
        return self.run(reader, prepared, Origin(model, title or str(given), kind, target))

    def run(self, reader: Reader, prepared: Prepared, origin: Origin) -> Scene:
        """Return the scene of an input that is ready to be read."""
        with watch(reader.model, values=True) as seen:
            output = reader.run(prepared)
        return Scene(
            seen,
            list(prepared.axes),
            origin,
            tokens=prepared.tokens,
            answer=reader.answer(prepared, output),
            picture=prepared.picture,
            notes=prepared.notes,
            model=reader.model,
            given=reader.given,
            prepared=prepared,
        )

    @property
    def reads_pictures(self) -> bool:
        """Return whether some model that can be run is known to read pictures."""
        opened = any(isinstance(reader, PictureReader) for reader in self._readers.values())
        return opened or "pictures" in self.names

    def can_run(self, scene: Scene) -> bool:
        """Return whether a scene can be run again, with edits."""
        return scene.prepared is not None and scene.origin.model in self.names

    def can_generate(self, scene: Scene) -> bool:
        """Return whether the model of a scene goes on with texts."""
        reader = self._readers.get(scene.origin.model)
        return isinstance(reader, TextReader) and isinstance(reader.model, GPTForCausalLM)
