"""Lines for a terminal: pieces of text with their styles, side by side where they fit, wrapped where they do not."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clearhead.controls import without_controls
from clearhead.derivation.words import bare

if TYPE_CHECKING:  # rich takes 50 ms, which only who looks should pay for
    from rich.text import Text

ACCENT = "bold dark_orange"


def fitted(*parts: tuple[str, str], width: int, plain: bool) -> Iterator["Text"]:
    """Yield the parts beside each other if they fit, else below each other, wrapped."""
    gap = "   "
    if sum(width_of(text) for text, _ in parts) + len(gap) * (len(parts) - 1) <= width:
        apart = [piece for part in parts for piece in ((gap, ""), part)]
        yield line_of(*apart[1:], plain=plain)
        return
    for text, style in parts:
        yield from (line_of((line, style), plain=plain) for line in wrap_to(text, width))


def cut(text: str, width: int) -> str:
    """Return `text` in at most `width` columns."""
    while len(text) > 1 and width_of(text) > width:
        text = text[:-2] + "."
    return text


def address_of(layer: int, head: int) -> str:
    """Return how a head is called: L2 H0."""
    return f"L{layer} H{head}"


def printable(piece: str) -> str:
    """Return a token without its tokenizer's mark, and with ? for what has no shape."""
    return "".join(letter if letter.isprintable() else "?" for letter in bare(piece)) or "?"


def width_of(text: str) -> int:
    """Return how many columns a text takes."""
    from rich.cells import cell_len

    return cell_len(text)


def wrap_to(text: str, width: int) -> list[str]:
    """Return `text` in lines of at most `width` characters, broken between words."""
    from textwrap import wrap

    return wrap(text, width)


def line_of(*parts: tuple[str, str], plain: bool = False) -> "Text":
    """Return pieces of (text, style) as one line, without control characters; `plain` drops the styles."""
    from rich.text import Text

    return Text.assemble(*((without_controls(text), "" if plain else style) for text, style in parts))
