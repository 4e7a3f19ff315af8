"""A view in the terminal: every head as a small map, the sentence shaded by what one word looks at, the top links.

In 24-bit colour at a terminal; in a pipe, or where colour is unwanted (NO_COLOR, TERM=dumb), the same content in plain
characters. However narrow the terminal and long the text, no line is wider and the page has an end.
Next: `small_maps.py`, the maps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from clearhead.derivation.words import group
from clearhead.errors import counted
from clearhead.explorer.colours import INK, colour, letters, step
from clearhead.explorer.lines import ACCENT, address_of, cut, fitted, line_of, printable, width_of, wrap_to
from clearhead.explorer.small_maps import grid, legend
from clearhead.explorer.view import CAVEAT, COVERAGE, N_STRONGEST, View
from clearhead.seeing import Link

if TYPE_CHECKING:  # rich takes 50 ms, which only who looks should pay for
    from rich.console import Console
    from rich.text import Text

BAR, SHORTEST_BAR = 24, 6  # columns of the bar of a weight of 1
MOST_LINES, MOST_LINKS = 12, 20  # that are drawn; what is left out is said
MOST_UNSEEN = 3


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
    things = "patches and tokens" if view.patches else "tokens"
    count = (
        f"{len(view.words)} {things}, {len(view.keys)} in the source" if view.crosses else f"{len(view.words)} {things}"
    )
    whole, piece = _whole(view.words, view.query), _name(view.words, view.query)
    piece = "" if piece == whole else f" (from its piece {piece})"
    looks = "looks at in the source" if view.crosses else "looks at"
    size = f"{counted(len(view.seen.layers), 'layer')}, {counted(n_heads, 'head')}, {count}"
    yield from fitted((f"What {whole} {looks}{piece}", "bold"), (size, "dim"), width=width, plain=plain)


def sentence(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the tokens shaded by the weight the query gives them, the numbers below; its own stands between marks."""
    address = address_of(view.layer, view.head)
    first, *rest = wrap_to(f"{address}  {view.chosen}", width)
    yield line_of((address, "" if plain else ACCENT), (first.removeprefix(address), ""), plain=plain)
    yield from (line_of((line, ""), plain=plain) for line in rest)
    n_before = len(view.keys)
    if view.patches is not None:
        n_before -= view.patches[0] * view.patches[1]
        yield from picture(view, n_before, width, plain)
    rows = list(shaded(view, n_before, width, plain))
    kept = set(range(len(rows)))
    if len(rows) > MOST_LINES:
        hardest = sorted(kept, key=lambda i: (not rows[i].has_query, -rows[i].weight))
        kept = {i for i in hardest[:MOST_LINES] if rows[i].has_query or rows[i].weight >= 0.005}
    for is_kept, some in groupby(range(len(rows)), key=kept.__contains__):
        if is_kept:
            for i in some:
                yield from rows[i].lines
        else:
            left_out = [rows[i] for i in some]
            weight = sum(row.weight for row in left_out)
            share = f"{weight:.2f}".lstrip("0") if weight >= 0.01 else "less than .01"
            count = sum(row.n_tokens for row in left_out)
            for line in wrap_to(f"  ... {counted(count, 'token')} with {share} of the weight", width):
                yield line_of((line, "dim"), plain=plain)


def picture(view: View, n_before: int, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the patches where they stand, shaded by the weight the query gives them; the query between marks."""
    assert view.patches is not None
    n_rows, n_columns = view.patches
    wide = 2 if 2 * n_columns + 2 <= width else 1
    for row in range(n_rows):
        parts: list[tuple[str, str]] = [("  ", "")]
        for column in range(n_columns):
            place = n_before + row * n_columns + column
            weight, asks = view.weights[place], place == view.query
            cell = "[]"[:wide] if asks else (INK[step(weight)] if plain else " ") * wide
            parts.append((cell, f"{letters(weight)} on {colour(weight)}"))
        yield line_of(*parts, plain=plain)


@dataclass
class Row:
    """One line of shaded tokens and the numbers below it."""

    lines: list["Text"]
    n_tokens: int
    weight: float
    has_query: bool


def shaded(view: View, n: int, width: int, plain: bool) -> Iterator[Row]:
    """Yield the first `n` keys in lines, shaded by the weight the query gives them."""
    goes_on = {place for places in group(view.keys) for place in places[1:]}
    above: list[tuple[str, str]] = []
    below, used, start = "", 0, 0

    def row(end: int) -> Row:
        lines = [line_of(("  ", ""), *above, plain=plain)]
        if below.strip():
            lines.append(line_of(("  " + below.rstrip(), "dim"), plain=plain))
        asks = not view.crosses and start <= view.query < end
        return Row(lines, end - start, sum(view.weights[start:end]), asks)

    for place, weight in enumerate(view.weights[:n]):
        asks = place == view.query and not view.crosses
        name = cut(printable(view.keys[place]), width - 6)
        name = f"[{name}]" if asks and plain else name
        number = f"{weight:.2f}".lstrip("0") if weight >= 0.005 else ""
        wide = max(width_of(name), 3)
        if used and used + 1 + wide > width - 2:
            yield row(place)
            above, below, used, start = [], "", 0, place
        gap = "" if not used else "-" if place in goes_on else " "
        style = f"{letters(weight)} on {colour(weight)}" + (" bold underline" if asks else "")
        above += [(gap, "dim"), (name + " " * (wide - width_of(name)), style)]
        below += " " * len(gap) + number.ljust(wide)
        used += len(gap) + wide
    if n:
        yield row(n)


def links(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the fewest links of the chosen head that together carry most of the query's weight."""
    count = f"{counted(len(view.links), 'link')} {'carries' if len(view.links) == 1 else 'carry'}"
    total = sum(link.weight for link in view.links)
    yield from fitted(
        (f"{count} {total:.0%} of the weight", "bold"),
        (f"the fewest that reach {COVERAGE:.0%}", "dim"),
        width=width,
        plain=plain,
    )
    shown = view.links[:MOST_LINKS]
    yield from _table(view, shown, width, plain, address=False)
    if len(shown) < len(view.links):
        yield line_of(
            (f"  and {len(view.links) - len(shown)} more, each at most {shown[-1].weight:.2f}", "dim"), plain=plain
        )


def strongest(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield the heads in which the query looks hardest at another word."""
    if len(view.strongest) < 2:
        return
    yield from fitted(
        (f"The heads that look hardest at {view.another} from here", "bold"),
        *([(f"{view.placed} that look mostly at a place come last", "dim")] if view.placed else []),
        width=width,
        plain=plain,
    )
    yield from _table(view, view.strongest[:N_STRONGEST], width, plain, address=True)


def remarks(view: View, width: int, plain: bool) -> Iterator["Text"]:
    """Yield what the picture does not say: what was not seen, what watching changed, and what attention is not."""
    found = list(map(str, view.seen.unseen))
    if len(found) > MOST_UNSEEN:
        found[MOST_UNSEEN:] = [f"{len(found) - MOST_UNSEEN} more places, listed in the recording's .unseen"]
    for remark in [*(f"Not seen: {one}" for one in found), *view.seen.notes]:
        yield from (line_of((line, ""), plain=plain) for line in wrap_to(remark, width))
    yield from (line_of((line, "dim"), plain=plain) for line in wrap_to(CAVEAT, width))


def _table(view: View, rows: Sequence[Link], width: int, plain: bool, *, address: bool) -> Iterator["Text"]:
    """Yield a line a link: from, to, weight, bar; where the terminal is narrow, a shorter bar or none."""
    arrow, block = ("->", "#") if plain else ("→", "━")
    room = width - 2 - (9 if address else 0) - len(arrow) - 2 - 8
    names = [(_whole(view.words, link.query), _name(view.keys, link.key)) for link in rows]
    if max((width_of(source) + width_of(target) for source, target in names), default=0) > room:
        names = [(cut(source, room // 2), cut(target, room - room // 2)) for source, target in names]
    first, second = (max((width_of(pair[i]) for pair in names), default=0) for i in (0, 1))
    bar = min(BAR, room - first - second)
    for link, (source, target) in zip(rows, names):
        where = f"{address_of(link.layer, link.head)}  " if address else ""
        here = address and (link.layer, link.head) == (view.layer, view.head)
        pads = " " * (first - width_of(source)), " " * (second - width_of(target))
        length = max(1, round(link.weight * bar)) if bar >= SHORTEST_BAR else 0
        yield line_of(
            ("  ", ""),
            (where.ljust(9 if address else 0), ACCENT if here else "dim"),
            (f"{source}{pads[0]} {arrow} {target}{pads[1]}  ", ""),
            (f"{link.weight:.2f}" + "  " * (length > 0), "bold"),
            (block * length, colour(max(link.weight, 0.16))),
            plain=plain,
        )


def _name(words: Sequence[str], place: int) -> str:
    """Return a token as shown in tables; where a word was cut, a hyphen says on which side: sha-, -bby."""
    places = next(places for places in group(words) if place in places)
    return f"{'-' * (place > places[0])}{printable(words[place])}{'-' * (place < places[-1])}"


def _whole(words: Sequence[str], place: int) -> str:
    """Return the whole word that a token is of."""
    return "".join(printable(words[i]) for i in next(p for p in group(words) if place in p))
