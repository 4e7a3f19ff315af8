"""What the queries and the keys of an attention map are: the tokens of a text, the patches of a picture, or numbers.

An `Axis` holds names for a terminal (the tokenizer's own pieces, `##by`) and strings to display (`by`), and says where
words begin and where a space stands, so that a page can show running text. Next: `scene.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from clearhead.data.tokenizer import Tokenizer
from clearhead.derivation.words import BEGINNINGS, bare, group

# How tokens are spelled that a tokenizer adds: [CLS], <s>, </s>, <pad>, <|endoftext|>.
SPECIAL = re.compile(r"\[[A-Z]+\]|</?[a-z]+>|<\|\w+\|>")


@dataclass(frozen=True)
class PictureArea:
    """Which part of a picture the patches of an axis cover.

    Attributes:
        id: The name under which the picture is fetched.
        width, height: The size of the picture in pixels.
        rows, cols: How many rows and columns of patches there are.
        first: The index of the first patch on the axis; special tokens come before it.
        x, y, w, h: The area that the patches cover, in pixels of the picture. A model may crop what it is given.
    """

    id: str
    width: int
    height: int
    rows: int
    cols: int
    first: int
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True)
class Axis:
    """The positions along one side of a map.

    Attributes:
        name: "text", "source", "target", "patches", or "keys" where nothing is known but their number.
        pieces: The tokens as the tokenizer spells them, or names of patches.
        special: Which tokens were added by the tokenizer or the model rather than written in the text.
        shown: The strings to display; None: the pieces without their marks.
        spaces: Before which tokens a space stands, where tokens join to running text; None where they do not.
        spelled: The pieces with marks that say how they form words, where the tokenizer's own do not.
        picture: The picture, where positions are patches.
        prompt: How many tokens were given, where a model wrote the rest.
    """

    name: str
    pieces: tuple[str, ...]
    special: tuple[bool, ...] = ()
    shown: tuple[str, ...] | None = None
    spaces: tuple[bool, ...] | None = None
    spelled: tuple[str, ...] | None = None
    picture: PictureArea | None = None
    prompt: int | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def words(self) -> list[tuple[int, int]]:
        """Return from where to where the pieces of each word stand."""
        if self.picture is not None or self.name == "keys":
            return [(i, i + 1) for i in range(len(self))]
        return [(places.start, places.stop) for places in group(self.marked)]

    @property
    def marked(self) -> tuple[str, ...]:
        """Return the pieces as words are formed of them: `##by` goes on with a word, `Ġsh` begins one."""
        return self.pieces if self.spelled is None else self.spelled

    def name_of(self, position: int) -> str:
        """Return a position in words: the word in quotation marks, with the piece where it is one of several."""
        if self.picture is not None:
            kind = "patch" if position >= self.picture.first else "the token"
            return f"{kind} {self.pieces[position]}"
        if self.name == "keys":
            return f"position {position}"
        start, stop = next(word for word in self.words if position in range(*word))
        whole = "".join(self.tokens[start:stop])
        return f"“{whole}”" if stop - start == 1 else f"“{whole}” ({self.marked[position]})"

    @property
    def tokens(self) -> tuple[str, ...]:
        """Return the strings to display."""
        return tuple(map(bare, self.pieces)) if self.shown is None else self.shown

    def to_json(self) -> dict[str, Any]:
        """Return the axis as `meta` describes it."""
        picture = None if self.picture is None else vars(self.picture)
        return {
            "name": self.name,
            "tokens": list(self.tokens),
            "special": [int(mark) for mark in self.special] or [0] * len(self),
            "words": self.words,
            "text": self.spaces is not None,
            "spaces": None if self.spaces is None else [int(space) for space in self.spaces],
            "image": picture,
            "prompt": self.prompt,
        }


def text_axis(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    special: Sequence[bool] = (),
    spans: Sequence[tuple[int, int]] | None = None,
    *,
    name: str = "text",
    prompt: int | None = None,
) -> Axis:
    """Return the axis of a text's tokens.

    Args:
        tokenizer: The tokenizer that the ids belong to.
        ids: The tokens.
        special: Which of them are no part of the text; none where not given.
        spans: Where in the text each token stands, (0, 0) for special ones; without them, spaces are told from marks.
        name: What the axis is called.
        prompt: How many of the tokens were given, where a model wrote the rest.
    """
    pieces = [tokenizer.backend.id_to_token(token) or str(token) for token in ids]
    special = [*special] or [False] * len(pieces)
    decoder = tokenizer.backend.decoder
    if type(decoder).__name__ == "ByteLevel":
        decoded = [decoder.decode([piece]) for piece in pieces]
        shown = [text.removeprefix(" ") or text for text in decoded]
        spaces = [text != one for text, one in zip(decoded, shown)]
        spelled = tuple(f"Ġ{one}" if space else one for one, space in zip(shown, spaces))
    else:
        spelled = None
        shown = [bare(piece) for piece in pieces]
        spaces = _spaces(pieces, special, spans)
    spaces = [space or mark for space, mark in zip(spaces, special)]
    return Axis(name, tuple(pieces), tuple(special), tuple(shown), tuple(spaces), spelled, prompt=prompt)


def _spaces(pieces: Sequence[str], special: Sequence[bool], spans: Sequence[tuple[int, int]] | None) -> list[bool]:
    """Return before which pieces a space stands: where the text has a gap, or where the piece's mark says so."""
    if any(piece.startswith(BEGINNINGS) for piece in pieces):
        return [piece.startswith(BEGINNINGS) for piece in pieces]
    if spans is not None:
        ends = [0, *(end for _, end in spans)]
        return [start > end for (start, _), end in zip(spans, ends)]
    begins = {places.start for places in group(pieces)}
    return [i in begins and not mark and any(map(str.isalnum, pieces[i])) for i, mark in enumerate(special)]


def numbered_axis(n: int, words: Sequence[str] | None = None) -> Axis:
    """Return the axis of `n` positions of which nothing is known but perhaps their words."""
    if words is not None and len(words) >= n:
        some = tuple(words[:n])
        special = tuple(SPECIAL.fullmatch(word) is not None for word in some)
        spaces = [space or mark for space, mark in zip(_spaces(some, special, None), special)]
        return Axis("text", some, special, tuple(map(bare, some)), tuple(spaces))
    return Axis("keys", tuple(map(str, range(n))), (False,) * n)
