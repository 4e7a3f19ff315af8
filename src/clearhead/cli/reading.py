"""What `derive` and `see` both begin with: a model that is watched while it reads a text, a picture, or a text and
what it makes of it.

Words are named as the model has them: pieces of a text, patches by row and column, and in an encoder-decoder the source
as what is looked at. What becomes of an input before it is read is in `explorer/reading.py`.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from clearhead.attention import MultiHeadAttention
from clearhead.cli.opening import open_for
from clearhead.cli.output import note
from clearhead.data.images import find_images
from clearhead.derivation import Derivation, derive, find_word
from clearhead.errors import InputError
from clearhead.explorer.axes import numbered_axis
from clearhead.explorer.reading import Given, PairReader, PictureReader, Prepared, Reader, reader_of
from clearhead.explorer.view import Source, View, look, pick_query
from clearhead.seeing import Recording, open_recording, watch

# Tokens that are not written in a text but put around it.
SPECIAL = re.compile(r"\[[A-Z]+\]|<\|.*\|>|</?s>|<(pad|unk|bos|eos|mask|cls|sep)>")


@dataclass(frozen=True)
class Asked:
    """What a person asks for; what is None is chosen, and `View.chosen` says how."""

    query: str | None = None
    layer: int | None = None
    head: int | None = None
    target: str | None = None  # of an encoder-decoder; None: what it writes itself


@dataclass(frozen=True)
class Reading:
    """A text or a picture that a model has read, seen from one word; `target` is what was written of it."""

    text: str
    view: View
    attention: MultiHeadAttention | None = None  # of a recording that was opened there is neither
    given: Given | None = None
    target: str | None = None

    def derive(self) -> Derivation:
        """Derive the head that is seen."""
        view, given = self.view, self.given
        assert self.attention is not None and given is not None
        return derive(
            self.attention,
            given.x,
            view.words,
            query=view.query,
            head=view.head,
            mask=given.mask,
            memory=given.memory,
            memory_words=view.keys if view.crosses else (),
            thing="patch" if view.patches else "word",
        )


class Watched:
    """A model that is watched while it reads."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.reads = reader, reader.reads

    def inputs(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield what is to be read one by one: of pictures the files, those of a folder by name."""
        yield from map(str, find_images(texts)) if isinstance(self.reader, PictureReader) else texts

    def read(self, text: str, asked: Asked) -> Reading:
        """Read and look; InputError for a query, a layer or a head that is not there.

        Of an encoder-decoder the cross-attention is looked at, its layers counted from 0.
        """
        prepared = self.reader.prepare(text, asked.target)
        for remark in prepared.notes:
            note(remark)
        pair = isinstance(self.reader, PairReader)
        with watch(self.reader.model, layers=["*cross_attention"] if pair else None) as seen:
            self.reader.run(prepared)
        seen = numbered_anew(seen) if pair else seen
        require_place(seen, asked)
        view = seen_from(seen, prepared, asked)
        name = next(layer.name for layer in seen.layers if layer.index == view.layer)
        attention = self.reader.model.get_submodule(name)
        assert isinstance(attention, MultiHeadAttention)
        return Reading(text, view, attention, self.reader.given[name], prepared.written)


class Recorded:
    """Recordings in files, which were made before."""

    reads = "file"

    def inputs(self, texts: Sequence[str]) -> Iterator[str]:
        """Yield the files one by one."""
        yield from texts

    def read(self, path: str, asked: Asked) -> Reading:
        """Open a recording and look, at the whole text where it was read in several forwards.

        Words are those that were saved in it, or numbers.
        """
        seen = open_recording(path)
        if any(len(calls) > 1 for calls in seen.calls.values()):
            seen = seen.joined()
        first = seen.layers[0]
        if first.n_queries != first.n_keys:
            raise InputError(
                f"{path}: {first.n_queries} queries look at {first.n_keys} keys, expected a text that looks at itself: "
                f"`clearhead explore {path}` shows every recording"
            )
        axis = numbered_axis(first.n_keys, seen.words)
        special = [SPECIAL.fullmatch(piece) is not None for piece in axis.pieces]
        query = pick_query(axis.pieces, special) if asked.query is None else find_word(axis.pieces, asked.query)
        return Reading(path, look(seen, axis.pieces, special, query=query, layer=asked.layer, head=asked.head))


def open_watched(verb: str, name: str, max_pixels: int | None = None) -> Watched:
    """Return the model called `name`, ready to be watched; InputError where it reads neither text nor pictures.

    `max_pixels` is the largest picture that it is given, ImageProcessor's own limit where None.
    """
    reader = reader_of(*open_for(verb, name))
    if max_pixels is not None and isinstance(reader, PictureReader):
        reader.processor = replace(reader.processor, max_pixels=max_pixels)
    return Watched(reader)


def seen_from(seen: Recording, prepared: Prepared, asked: Asked) -> View:
    """Return the view from the word asked for, or from the last content word, or of a picture from its first token."""
    axis, source = prepared.axes[-1], None
    patches = None if axis.picture is None else (axis.picture.rows, axis.picture.cols)
    if patches is not None:
        query = patch_at(axis.pieces, patches, asked.query)
    elif asked.query is None:
        query = pick_query(axis.pieces, axis.special)
    else:
        query = find_word(axis.pieces, asked.query)
    if len(prepared.axes) > 1:
        source = Source(prepared.axes[0].pieces, prepared.axes[0].special)
    return look(
        seen,
        axis.pieces,
        axis.special,
        query=query,
        layer=asked.layer,
        head=asked.head,
        source=source,
        patches=patches,
    )


def patch_at(words: Sequence[str], patches: tuple[int, int], query: str | None) -> int:
    """Return where a patch stands among the words, by row,column or by its number; without one, the class token.

    A picture that has no class token is looked at from its middle.
    """
    n_rows, n_columns = patches
    before = len(words) - n_rows * n_columns
    if query is None:
        return 0 if before else before + (n_rows // 2) * n_columns + n_columns // 2
    name = query.replace(" ", "")
    if name.isdecimal() and int(name) < n_rows * n_columns:
        return before + int(name)
    if name not in words:
        others = "".join(f", or {word}" for word in words[:before])
        raise InputError(
            f"there is no patch {query!r}: expected row,column from 0,0 to {n_rows - 1},{n_columns - 1}, or a number "
            f"from 0 to {n_rows * n_columns - 1}{others}"
        )
    return list(words).index(name)


def numbered_anew(seen: Recording) -> Recording:
    """Return a recording whose layers are counted from 0: those that were asked for alone."""
    found = Recording()
    for layer in seen.layers:
        found.calls[found.index(layer.name)] = seen.calls[layer.index]
    return found


def require_place(seen: Recording, asked: Asked) -> None:
    """Raise InputError where there is no such layer or head."""
    n_layers, n_heads = len(seen.layers), seen.layers[0].n_heads
    for what, number, n in (("layer", asked.layer, n_layers), ("head", asked.head, n_heads)):
        if number is not None and not 0 <= number < n:
            raise InputError(f"there is no {what} {number}: this model has {n}, counted from 0")
