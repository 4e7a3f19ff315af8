"""A derivation in the terminal: eight steps, then the numbers of steps 1 to 7 word by word, then the heads.

Shades and bars where the output is a terminal; plain aligned text where it goes into a pipe or a file.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F

from clearhead.derivation import Derivation, Step
from clearhead.derivation.words import label
from clearhead.errors import counted
from clearhead.explorer.colours import colour, letters
from clearhead.explorer.lines import line_of

if TYPE_CHECKING:  # rich takes 50 ms, which only who looks should pay for
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

INDENT = 3
LONGEST_NAME = len("words to vectors")
LONGEST_WORD = 16
BAR = 12  # columns of the bar of a weight of 1
MOST_WORDS = 24  # of a long text only those with the largest weights are listed
TITLES = ("1 cosine", "2 |v|", "3 1/T", "4 q·k", "5 z", "6 w", "7 w|v|")
FIRST_TO_GO = (
    "",
    "3 1/T",
    "5 z",
    "2 |v|",
    "7 w|v|",
    "1 cosine",
    "4 q·k",
)  # columns that a narrow terminal does without


def show(derivation: Derivation, console: "Console", *, source: bool = False, heading: str = "") -> None:
    """Print the derivation on `console`; with `source` each step is followed by the lines that computed it.

    `heading` says below the title where in a model this is; without it, which head.
    """
    asker = label(derivation.words, derivation.query)
    console.print(line_of((f"What {asker} at {derivation.query} takes from each {derivation.thing}", "bold")))
    console.print(line_of((heading or f"head {derivation.head}", "")))
    console.print()
    for number, step in enumerate(derivation.steps, 1):
        for line in _step(number, step, console.width):
            console.print(line)
        if source:
            for line in _source(step):
                console.print(line, soft_wrap=True)
        if step.name == "one head":
            console.print()
            console.print(_words(derivation, width=console.width, bars=console.is_terminal))
        console.print()
    console.print(_heads(derivation, width=console.width, bars=console.is_terminal))


def _step(number: int, step: Step, width: int) -> Iterator["Text"]:
    """Yield the lines of one step: its number and name, the equation beside or below, the sentence wrapped."""
    from textwrap import wrap

    title = line_of((f"{number}  ", "bold dark_orange"), (step.name, "bold"))
    gap = " " * (INDENT + LONGEST_NAME + 2 - len(title))
    beside = len(title) + len(gap) + len(step.equation) <= width
    yield title.append_text(line_of((gap, ""), (step.equation, "cyan"))) if beside else title
    fold = partial(wrap, width=min(width, 100), initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
    if not beside:
        yield from (line_of((line, "cyan")) for line in fold(step.equation))
    yield from (line_of((line, "")) for line in fold(step.sentence))


def _source(step: Step) -> Iterator["Text"]:
    """Yield the source lines of a step with their numbers, as an editor shows them."""
    indent = " " * INDENT
    yield line_of((f"{indent}{step.source.file}:{step.source.first_line}", "dim underline"))
    for number, line in enumerate(step.source.text.splitlines(), step.source.first_line):
        yield line_of((f"{indent}{number:>4}  ", "dim"), (line, ""))


def _words(derivation: Derivation, *, width: int, bars: bool) -> "Table":
    """Return one row a word, one column a step: what steps 1 to 7 say of each word, for the word that asks.

    Where the terminal is narrow the bars go first, then the columns that follow from others.
    """
    weights, allowed = derivation["weights"], derivation["allowed"]
    x = derivation["x"]
    seen = derivation.steps[0].tensors.get("memory", x)
    cosines = F.cosine_similarity(x[derivation.query], seen, dim=-1)
    lengths = derivation["values"].norm(dim=-1)
    columns = (cosines, lengths, allowed / allowed.sum(), derivation["scores"], derivation["scaled"], weights)
    listed = sorted(weights.argsort(descending=True)[:MOST_WORDS].tolist())

    rows: list[list[Text]] = []
    for j in listed:
        weight = weights[j].item()
        word = derivation.memory_words[j] + (" *" if seen is x and j == derivation.query else "")
        numbers = [*(column[j].item() for column in columns), weight * lengths[j].item()]
        cells = [_aligned(number, 3 if title.endswith(("1/T", "w")) else 2) for title, number in zip(TITLES, numbers)]
        if not allowed[j]:
            cells[2:] = ["-"] * len(cells[2:])
        rows.append([_word(word, weight, shaded=bars), *map(_plain, cells), *[_bar(weight)] * bars])
    if left_out := len(weights) - len(listed):
        rest = weights.sum().item() - weights[listed].sum().item()
        cells = [counted(left_out, "other"), *[""] * 5, _aligned(rest, 3), "", *[""] * bars]
        rows.append([*map(_plain, cells)])
    return _fitted([derivation.thing, *TITLES, *[""] * bars], rows, width)


def _heads(derivation: Derivation, *, width: int, bars: bool) -> "Table":
    """Return what step 8 puts together: what each head looks at most, and the length of what it adds."""
    lengths = derivation["added"].norm(dim=-1)
    weights, places = derivation["all_weights"].max(dim=-1)
    rows: list[list[Text]] = []
    for head, (weight, place, length) in enumerate(zip(weights.tolist(), places.tolist(), lengths.tolist())):
        word = _word(derivation.memory_words[place], weight, shaded=False)
        name = f"{head} *" if head == derivation.head else f"{head}  "
        bar = [_bar(length / lengths.max().item())] * bars
        rows.append([_plain(name), word, _plain(_aligned(weight, 3)), _plain(_aligned(length)), *bar])
    return _fitted(["head", "looks most at", "w", "adds", *[""] * bars], rows, width, left=2)


def _fitted(titles: Sequence[str], rows: Sequence[Sequence["Text"]], width: int, left: int = 1) -> "Table":
    """Return a table of the columns that fit into `width`, two blanks between them; the first `left` are words."""
    wide = [max(len(title), *(row[i].cell_len for row in rows)) for i, title in enumerate(titles)]
    kept = list(range(len(titles)))
    for title in FIRST_TO_GO:
        if sum(wide[i] + 2 for i in kept) - 2 <= width:
            break
        kept = [i for i in kept if titles[i] != title]
    table = _table(*(titles[i] for i in kept), left=left)
    for row in rows:
        table.add_row(*(row[i] for i in kept))
    return table


def _table(*columns: str, left: int = 1) -> "Table":
    """Return a table without lines: the first `left` columns are words, the others numbers."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left or not column else "right", no_wrap=True)
    return table


def _aligned(number: float, digits: int = 2) -> str:
    """Return a number with its point where the others of its column have theirs."""
    return f"{number:.{digits}f}" if abs(number) < 1e4 else f"{number:.1e}"


def _word(word: str, weight: float, *, shaded: bool) -> "Text":
    """Return `word`, on the colour of its weight where wanted; as Text, since rich reads meaning into [brackets]."""
    short = word if len(word) <= LONGEST_WORD else word[: LONGEST_WORD - 1] + "…"
    return line_of((short, f"{letters(weight)} on {colour(weight)}" if shaded and weight >= 0.005 else ""))


def _bar(weight: float) -> "Text":
    return line_of(("▇" * round(weight * BAR), "dark_orange"))


def _plain(text: str) -> "Text":
    return line_of((text, ""))
