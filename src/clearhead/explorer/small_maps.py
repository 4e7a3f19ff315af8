"""Every head as a small map: one layer below the other, its heads beside each other, and what a cell means.

At a terminal each character holds two cells, one above the other, in 24-bit colour; elsewhere each is a character.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from clearhead.errors import counted
from clearhead.explorer.colours import INK, STEPS, colour, step
from clearhead.explorer.lines import ACCENT, fitted, line_of, wrap_to
from clearhead.explorer.view import View, shares
from clearhead.seeing.recordings.recording import Layer

if TYPE_CHECKING:  # rich takes 50 ms, which only who looks should pay for
    from rich.text import Text

LARGEST, SMALLEST = 10, 4  # cells on a side of a small map
NARROW = 72  # columns below which maps that do not fit are drawn as small as they can be
MARGIN = 4  # columns left of the maps, for the layer's name
MOST_LAYERS = 12  # that are drawn; how many are left out is said


def grid(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the small maps: one layer below the other, its heads beside each other, the chosen head between bars."""
    layers = drawn(view)
    size, in_line = fit(longest(view), max(len(view.seen.call(layer.index).heads) for layer in layers), width)
    for layer in layers:
        heads = view.seen.call(layer.index).heads
        maps = shares(view, layer.index, size).tolist()
        for start in range(0, len(heads), in_line):
            some = heads[start : start + in_line]
            if layer is layers[0] or len(heads) > in_line:
                names = " ".join(f"H{head}".center(len(maps[0][0])) for head in some).rstrip()
                yield line_of((" " * (MARGIN + 1) + names, "dim"), plain=plain)
            chosen = some.index(view.head) if layer.index == view.layer and view.head in some else None
            name = f"L{layer.index}"
            for row in band(maps[start : start + in_line], chosen, plain):
                yield line_of((name.ljust(MARGIN), "dim"), *row, plain=plain)
                name = ""
        if layer is not layers[-1]:
            yield line_of(plain=plain)
    if left_out := len(view.seen.layers) - len(layers):
        yield from fitted(
            (
                f"{counted(left_out, 'layer')} not drawn: from here their heads look less hard at {view.another}",
                "dim",
            ),
            width=width,
            plain=plain,
        )


def drawn(view: View) -> list[Layer]:
    """Return the layers whose maps are drawn: of many, those that look hardest from the query."""
    layers = list(view.seen.layers)
    hardest = list(
        dict.fromkeys([view.layer, *(link.layer for link in view.strongest), *(one.index for one in layers)])
    )
    return [layer for layer in layers if layer.index in hardest[:MOST_LAYERS]]


def longest(view: View) -> int:
    """Return how many tokens look or are looked at, whichever are more."""
    return max(len(view.words), len(view.keys))


def fit(n_words: int, n_heads: int, width: int) -> tuple[int, int]:
    """Return the side of a small map and how many stand in a line: all heads if they fit, else several lines."""
    room = width - MARGIN - 1
    size = min(LARGEST, n_words, room // n_heads - 1)
    if size >= min(SMALLEST, n_words):
        return size, n_heads
    size = min(LARGEST, n_words, 2 * SMALLEST if width >= NARROW else SMALLEST)
    return size, max(1, room // (size + 1))


def legend(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield what a cell is and what its colour means, with the values at which colours change."""
    size, _ = fit(longest(view), max(len(view.seen.call(one.index).heads) for one in view.seen.layers), width)
    if size == longest(view):
        cell = "One cell is one weight."
    else:
        each = [about(len(words), size) for words in (view.words, view.keys)]
        tokens = f"{each[0]} tokens each way" if each[0] == each[1] else f"{each[0]} by {each[1]} tokens"
        cell = f"One cell is {tokens}: summed over those looked at, mean over those that look."
    for line in wrap_to(f"Each map: rows look, columns are looked at, from the first token to the last. {cell}", width):
        yield line_of((line, "dim"), plain=plain)
    values = [f"{value:.2f}".lstrip("0") if value else "0" for value in STEPS]
    if plain:
        scale = "  ".join(f"{ink}\N{NO-BREAK SPACE}{value}" for ink, value in zip(["blank", *INK[1:]], values))
        for line in wrap_to(f"Share of attention from which a character is used:  {scale}", width):
            yield line_of((line.replace("\N{NO-BREAK SPACE}", " "), ""), plain=plain)
        return
    for line in wrap_to("Share of attention from which a colour is used:", width):
        yield line_of((line, "dim"), plain=plain)
    in_line = max(1, (width + 2) // 8)  # a colour, a blank, a value of up to three characters, two blanks
    for start in range(0, len(STEPS), in_line):
        some = list(zip(STEPS, values))[start : start + in_line]
        parts = [part for s, v in some for part in (("  ", f"on {colour(s)}"), (f" {v}", "dim"), ("  ", ""))]
        yield line_of(*parts[:-1], plain=plain)


def about(n: int, size: int) -> str:
    """Return how many of n tokens stand in each of `size` blocks, in words."""
    size = min(size, n)
    return f"{n // size}" if n % size == 0 else f"{n // size} or {n // size + 1}"


def band(maps: Sequence[Sequence[Sequence[float]]], chosen: int | None, plain: bool) -> Iterator[list[tuple[str, str]]]:
    """Yield one layer's lines of small maps; two rows of cells a line where half blocks can be drawn."""
    height = len(maps[0])
    for top in range(0, height, 1 if plain else 2):
        line: list[tuple[str, str]] = []
        for i, cells in enumerate(maps):
            line.append(between(i == chosen, i - 1 == chosen, half=top + 1 == height, plain=plain))
            if plain:
                line.append(("".join(INK[step(weight)] for weight in cells[top]), ""))
            else:
                under = cells[top + 1] if top + 1 < height else [None] * len(cells[top])
                line += [
                    ("▀", colour(over) + ("" if below is None else f" on {colour(below)}"))
                    for over, below in zip(cells[top], under)
                ]
        line.append(between(False, chosen == len(maps) - 1, half=top + 1 == height, plain=plain))
        yield line


def between(opens: bool, closes: bool, *, half: bool, plain: bool) -> tuple[str, str]:
    """Return what stands between two small maps: a bar on either side of the chosen head, half as high at its foot."""
    left, right = ("[", "]") if plain else ("▝", "▘") if half else ("▐", "▌")
    return (left if opens else right if closes else " ", ACCENT)
