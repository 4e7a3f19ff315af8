"""`Runner`: models that can be run for new scenes, with edits and with progress.

Next: `questions/running.py`, which asks it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from clearhead.checkpoints.endings import end_tokens
from clearhead.errors import InputError
from clearhead.explorer.edits import NOTE, editing
from clearhead.explorer.jobs import Report, stoppable
from clearhead.explorer.reading import PairReader, PictureReader, Prepared, Reader, TextReader, reader_of
from clearhead.explorer.scene import Origin, Scene
from clearhead.generation import Greedy, Sampled, generate
from clearhead.models.gpt import GPTForCausalLM
from clearhead.seeing import watch

if TYPE_CHECKING:
    from PIL.Image import Image

Opener = Callable[[str], tuple[Path, nn.Module]]
EditList = Sequence[Mapping[str, Mapping[str, Any]]]


CONTEXT = 8  # tokens before an answer that decide whether it begins with a space
BROKEN = "\ufffd"  # what a tokenizer makes of half a letter


@dataclass(frozen=True)
class Writing:
    """How a decoder goes on with a text: how many tokens, and at which temperature; None takes the likeliest."""

    max_new_tokens: int
    temperature: float | None = None
    seed: int = 0


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

    def read(
        self,
        model: str,
        given: "str | Path | Image",
        *,
        target: str | None = None,
        title: str = "",
        edits: EditList = (),
        writing: Writing | None = None,
        report: Report | None = None,
    ) -> Scene:
        """Return the scene of a model that reads a text or a picture.

        Args:
            model: The name of the model.
            given: A text, the path of a picture, or an open picture.
            target: What an encoder-decoder writes; None: what it writes itself.
            title: What the input is called where it has no text.
            edits: Edits in force while it reads and writes.
            writing: How a decoder goes on with the text; None: it does not.
            report: Told what is going on, and stops it.
        """
        reader = self.reader(model)
        kind = "picture" if isinstance(reader, PictureReader) else "text"
        origin = Origin(model, title or str(given), kind, target)
        with _running(reader, edits, report, "reading"):
            prepared = reader.prepare(given, target)
            return self._run(reader, prepared, origin, edits, writing, report)

    def again(
        self, scene: Scene, *, edits: EditList = (), writing: Writing | None = None, report: Report | None = None
    ) -> Scene:
        """Return the scene of the same input under other edits.

        What an encoder-decoder was not told to write it writes again; what a decoder wrote is left out, and it goes
        on with the text that it was given if `writing` says how.
        """
        if scene.prepared is None or scene.origin.model not in self.names:
            raise InputError("this scene cannot be run again: its model is not at hand")
        reader, prepared = self.reader(scene.origin.model), scene.prepared
        with _running(reader, edits, report, "reading"):
            if isinstance(reader, PairReader) and scene.origin.target is None:
                prepared = reader.prepare(scene.origin.text)
            prompt = prepared.axes[0].prompt
            if isinstance(reader, TextReader) and prompt is not None:
                prepared = reader.prepare_ids(prepared.inputs[0][0, :prompt].tolist(), notes=prepared.notes)
            return self._run(reader, prepared, scene.origin, edits, writing, report)

    def _run(
        self,
        reader: Reader,
        prepared: Prepared,
        origin: Origin,
        edits: EditList,
        writing: Writing | None,
        report: Report | None,
    ) -> Scene:
        """Return the scene of an input that is ready to be read."""
        if writing is not None:
            prepared = self._write(reader, prepared, writing, report)
            origin = replace(origin, max_new_tokens=writing.max_new_tokens)
        with watch(reader.model, values=True) as seen:
            output = reader.run(prepared)
        answer = reader.answer(prepared, output)
        if writing is not None and isinstance(reader, TextReader):
            n_given = prepared.axes[0].prompt
            written = reader.tokenizer.decode(prepared.inputs[0][0, n_given:].tolist())
            answer = (answer or {}) | {"kind": "text", "text": written}
        return Scene(
            seen,
            list(prepared.axes),
            origin,
            tokens=prepared.tokens,
            answer=answer,
            picture=prepared.picture,
            edits=tuple(edits),
            notes=(*prepared.notes, NOTE) if edits else prepared.notes,
            model=reader.model,
            given=reader.given,
            prepared=prepared,
        )

    def _write(self, reader: Reader, prepared: Prepared, writing: Writing, report: Report | None) -> Prepared:
        """Return what a decoder was given and what it wrote after it, token by token."""
        if not isinstance(reader, TextReader) or not isinstance(reader.model, GPTForCausalLM):
            raise InputError(f"{reader.folder.name} does not go on with a text: expected a decoder, such as a GPT")
        ids = [int(token) for token, mark in zip(prepared.inputs[0][0], prepared.axes[0].special) if not mark]
        room = min(writing.max_new_tokens, reader.config.max_len - len(ids))
        if not ids or room < 1:
            longest = reader.config.max_len
            raise InputError(f"the model reads {longest:,} tokens: nothing can be written after {len(ids):,}")
        warm = writing.temperature
        choose = Sampled(temperature=warm, seed=writing.seed) if warm else Greedy()
        context, shown = ids[-CONTEXT:], ""
        written: list[int] = []
        before = len(reader.tokenizer.decode(context))
        stop = end_tokens(reader.folder, reader.config.vocab_size)
        for step in generate(reader.model, [ids], max_new_tokens=room, choose=choose, stop=stop):
            for token in step:
                written.append(token.id)
                if report is not None:
                    text = reader.tokenizer.decode([*context, *written])[before:].rstrip(BROKEN)
                    report("token", text=text[len(shown) :], id=token.id)
                    shown = text
        return reader.prepare_ids([*ids, *written], prompt=len(ids), notes=prepared.notes)

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


@contextlib.contextmanager
def _running(reader: Reader, edits: EditList, report: Report | None, what: str) -> Iterator[None]:
    """Run the body with edits in force, and stop it where nobody waits any more."""
    with contextlib.ExitStack() as stack:
        if report is not None:
            stack.enter_context(stoppable(reader.model, report, what))
        stack.enter_context(editing(reader.model, edits))
        yield
