"""A view in the terminal: every head as a small map, the sentence shaded by what one word looks at, the top links.

At a terminal each character holds two cells, one above the other, in 24-bit colour. In a pipe, or where colour is
unwanted (NO_COLOR, TERM=dumb), the same content in plain characters.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from clearhead.derivation.words import bare, group
from clearhead.explorer.colours import INK, STEPS, colour, letters, step
from clearhead.explorer.view import CAVEAT, COVERAGE, N_STRONGEST, View, shares
from clearhead.seeing import Link

if TYPE_CHECKING:  # rich takes 50 ms, which only who looks should pay for
    from rich.console import Console
    from rich.text import Text

LARGEST, SMALLEST = 10, 4  # cells on a side of a small map
MARGIN = 4  # columns left of the maps, for the layer's name
BAR = 24  # columns of the bar of a weight of 1
MOST_LINKS = 20
ACCENT = "bold dark_orange"


def show(view: View, console: "Console") -> None:
    """Print the whole view on `console`, in colour if it shows some."""
    plain = is_plain(console)
    for part in (title, grid, legend, sentence, links, strongest, remarks):
        lines = list(part(view, console.width, plain))
        for line in lines:
            console.print(line, soft_wrap=True)
        if lines and part is not remarks:
            console.print()


def is_plain(console: "Console") -> bool:
    """Return whether colours or half blocks would not come through."""
    colourless = console.no_color or console.color_system is None or console.is_dumb_terminal
    return colourless or not console.is_terminal or not console.encoding.lower().startswith("utf")


def title(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield whose look this is, and how much there is to see."""
    n_heads = sum(len(view.seen.call(layer.index).heads) for layer in view.seen.layers)
    size = f"{len(view.seen.layers)} layers, {n_heads} heads, {len(view.words)} tokens"
    whole, piece = _whole(view, view.query), _name(view, view.query)
    piece = "" if piece == whole else f" (from its piece {piece})"
    yield _text((f"What {whole} looks at{piece}", "bold"), ("   " + size, "dim"), plain=plain)


def grid(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the small maps: one layer below the other, its heads beside each other, the chosen head between bars."""
    layers = view.seen.layers
    size, in_line = fit(len(view.words), max(len(view.seen.call(layer.index).heads) for layer in layers), width)
    for layer in layers:
        heads = view.seen.call(layer.index).heads
        maps = shares(view, layer.index, size).tolist()
        for start in range(0, len(heads), in_line):
            some = heads[start : start + in_line]
            if layer is layers[0] or len(heads) > in_line:
                names = " ".join(f"H{head}".center(size) for head in some).rstrip()
                yield _text((" " * (MARGIN + 1) + names, "dim"), plain=plain)
            chosen = some.index(view.head) if layer.index == view.layer and view.head in some else None
            name = f"L{layer.index}"
            for row in _band(maps[start : start + in_line], chosen, plain):
                yield _text((name.ljust(MARGIN), "dim"), *row, plain=plain)
                name = ""
        if layer is not layers[-1]:
            yield _text(plain=plain)


def fit(n_words: int, n_heads: int, width: int) -> tuple[int, int]:
    """Return the side of a small map and how many stand in a line: all heads if they fit, else several lines."""
    room = width - MARGIN - 1
    size = min(LARGEST, n_words, room // n_heads - 1)
    if size >= min(SMALLEST, n_words):
        return size, n_heads
    size = min(LARGEST, n_words, 2 * SMALLEST)
    return size, max(1, room // (size + 1))


def legend(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield what a cell is and what its colour means, with the values at which colours change."""
    n = len(view.words)
    size, _ = fit(n, max(len(view.seen.call(one.index).heads) for one in view.seen.layers), width)
    if size == n:
        cell = "One cell is one weight."
    else:
        about = f"{n // size}" if n % size == 0 else f"{n // size} or {n // size + 1}"
        cell = f"One cell is {about} tokens each way: summed over those looked at, mean over those that look."
    for line in _wrap(f"Each map: rows look, columns are looked at, from the first token to the last. {cell}", width):
        yield _text((line, "dim"), plain=plain)
    values = [f"{value:.2f}".lstrip("0") if value else "0" for value in STEPS]
    if plain:
        scale = "  ".join(f"{ink} {value}" for ink, value in zip(["blank", *INK[1:]], values))
        for line in _wrap(f"Share of attention from which a character is used:  {scale}", width):
            yield _text((line, ""), plain=plain)
    else:
        parts = [
            part for s, v in zip(STEPS, values) for part in (("  ", f"on {colour(s)}"), (f" {v}", "dim"), ("  ", ""))
        ]
        yield _text(("Share of attention from which a colour is used:", "dim"), plain=plain)
        yield _text(*parts[:-1], plain=plain)


def sentence(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the tokens shaded by the weight the query gives them, the numbers below; its own stands between marks."""
    yield _text((f"{_address(view.layer, view.head)}  ", "" if plain else ACCENT), (view.chosen, ""), plain=plain)
    goes_on = {place for places in group(view.words) for place in places[1:]}
    above: list[tuple[str, str]] = []
    below, used = "", 0
    for place, weight in enumerate(view.weights):
        name = _printable(view.words[place])
        name = f"[{name}]" if place == view.query and plain else name
        number = f"{weight:.2f}".lstrip("0") if weight >= 0.005 else ""
        wide = max(_width(name), 3)
        if used and used + 1 + wide > width - 2:
            yield from _two_lines(above, below, plain)
            above, below, used = [], "", 0
        gap = "" if not used else "-" if place in goes_on else " "
        style = f"{letters(weight)} on {colour(weight)}" + (" bold underline" if place == view.query else "")
        above += [(gap, "dim"), (name + " " * (wide - _width(name)), style)]
        below += " " * len(gap) + number.ljust(wide)
        used += len(gap) + wide
    yield from _two_lines(above, below, plain)


def links(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the fewest links of the chosen head that together carry most of the query's weight."""
    count = "1 link carries" if len(view.links) == 1 else f"{len(view.links)} links carry"
    total = sum(link.weight for link in view.links)
    yield _text(
        (f"{count} {total:.0%} of the weight", "bold"), (f"   the fewest that reach {COVERAGE:.0%}", "dim"), plain=plain
    )
    shown = view.links[:MOST_LINKS]
    yield from _table(view, shown, plain, address=False)
    if len(shown) < len(view.links):
        yield _text(
            (f"  and {len(view.links) - len(shown)} more, each at most {shown[-1].weight:.2f}", "dim"), plain=plain
        )


def strongest(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the heads in which the query looks hardest at another word."""
    if len(view.strongest) < 2:
        return
    yield _text(("The heads that look hardest at another word from here", "bold"), plain=plain)
    yield from _table(view, view.strongest[:N_STRONGEST], plain, address=True)


def remarks(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield what the picture does not say: what was not seen, what watching changed, and what attention is not."""
    for unseen in view.seen.unseen[:3]:
        yield from (
            _text((line, ""), plain=plain) for line in _wrap(f"Not seen: {unseen.name}: {unseen.reason}", width)
        )
    for note in view.seen.notes:
        yield from (_text((line, ""), plain=plain) for line in _wrap(note, width))
    yield from (_text((line, "dim"), plain=plain) for line in _wrap(CAVEAT, width))


def _band(
    maps: Sequence[Sequence[Sequence[float]]], chosen: int | None, plain: bool
) -> Iterator[list[tuple[str, str]]]:
    """Yield one layer's lines of small maps; two rows of cells a line where half blocks can be drawn."""
    height = len(maps[0])
    for top in range(0, height, 1 if plain else 2):
        line: list[tuple[str, str]] = []
        for i, cells in enumerate(maps):
            line.append(_between(i == chosen, i - 1 == chosen, half=top + 1 == height, plain=plain))
            if plain:
                line.append(("".join(INK[step(weight)] for weight in cells[top]), ""))
            else:
                under = cells[top + 1] if top + 1 < height else [None] * len(cells[top])
                line += [
                    ("▀", colour(over) + ("" if below is None else f" on {colour(below)}"))
                    for over, below in zip(cells[top], under)
                ]
        line.append(_between(False, chosen == len(maps) - 1, half=top + 1 == height, plain=plain))
        yield line


def _between(opens: bool, closes: bool, *, half: bool, plain: bool) -> tuple[str, str]:
    """Return what stands between two small maps: a bar on either side of the chosen head, half as high at its foot."""
    left, right = ("[", "]") if plain else ("▝", "▘") if half else ("▐", "▌")
    return (left if opens else right if closes else " ", ACCENT)


def _table(view: View, rows: Sequence[Link], plain: bool, *, address: bool) -> Iterator["Text"]:
    """Yield a line a link: from, to, weight, bar."""
    names = [(_whole(view, link.query), _name(view, link.key)) for link in rows]
    first, second = (max((_width(pair[i]) for pair in names), default=0) for i in (0, 1))
    arrow, block = ("->", "#") if plain else ("→", "━")
    for link, (source, target) in zip(rows, names):
        where = f"{_address(link.layer, link.head)}  " if address else ""
        here = address and (link.layer, link.head) == (view.layer, view.head)
        pads = " " * (first - _width(source)), " " * (second - _width(target))
        yield _text(
            ("  ", ""),
            (where.ljust(9 if address else 0), ACCENT if here else "dim"),
            (f"{source}{pads[0]} {arrow} {target}{pads[1]}  ", ""),
            (f"{link.weight:.2f}  ", "bold"),
            (block * max(1, round(link.weight * BAR)), colour(max(link.weight, 0.16))),
            plain=plain,
        )


def _two_lines(above: list[tuple[str, str]], below: str, plain: bool) -> Iterator["Text"]:
    """Yield shaded tokens and, unless all are small, the numbers below them."""
    yield _text(("  ", ""), *above, plain=plain)
    if below.strip():
        yield _text(("  " + below.rstrip(), "dim"), plain=plain)


def _name(view: View, place: int) -> str:
    """Return a token as shown in tables; where a word was cut, a hyphen says on which side: sha-, -bby."""
    places = next(places for places in group(view.words) if place in places)
    return f"{'-' * (place > places[0])}{_printable(view.words[place])}{'-' * (place < places[-1])}"


def _whole(view: View, place: int) -> str:
    """Return the whole word that a token is of."""
    return "".join(_printable(view.words[i]) for i in next(p for p in group(view.words) if place in p))


def _address(layer: int, head: int) -> str:
    return f"L{layer} H{head}"


def _printable(piece: str) -> str:
    """Return a token without its tokenizer's mark, and without characters that would move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in bare(piece)) or "?"


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _wrap(text: str, width: int) -> list[str]:
    from textwrap import wrap

    return wrap(text, width)


def _text(*parts: tuple[str, str], plain: bool) -> "Text":
    from rich.text import Text

    return Text.assemble(*((text, "" if plain else style) for text, style in parts))
