"""A derivation in the terminal: eight steps, then the numbers of steps 1 to 7 word by word, then the heads.

Shades and bars where the output is a terminal; plain aligned text where it goes into a pipe or a file.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F

from clearhead.derivation import Derivation, Step
from clearhead.derivation.words import label

if TYPE_CHECKING:  # rich takes 50 ms, which only who looks should pay for
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

INDENT = 3
LONGEST_NAME = len("words to vectors")
BAR = 12  # columns of the bar of a weight of 1
MOST_WORDS = 24  # of a long text only those with the largest weights are listed


TITLES = ("1 cosine", "2 |v|", "3 1/T", "4 q·k", "5 /√D", "6 w", "7 w|v|")


def show(derivation: Derivation, console: "Console", *, source: bool = False, heading: str = "") -> None:
    """Print the derivation on `console`; with `source` each step is followed by the lines that computed it."""
    from rich.text import Text

    asker = label(derivation.words, derivation.query)
    about = [f"What {asker} at {derivation.query} takes from each word", heading, f"head {derivation.head}"]
    console.print(Text(" · ".join(part for part in about if part), style="bold"))
    console.print()
    for number, step in enumerate(derivation.steps, 1):
        for line in _step(number, step, console.width):
            console.print(line)
        if source:
            for line in _source(step):
                console.print(line, soft_wrap=True)
        if step.name == "one head":
            console.print()
            console.print(_words(derivation, bars=console.is_terminal))
        console.print()
    console.print(_heads(derivation, bars=console.is_terminal))


def shade(text: str, weight: float) -> "Text":
    """Return `text` on a ground from grey to orange, by the square root of `weight`: small weights stay visible."""
    from rich.text import Text

    depth = max(0.0, min(1.0, weight)) ** 0.5
    red, green, blue = (round(low + depth * (high - low)) for low, high in zip((150, 150, 150), (255, 140, 0)))
    return Text(text, style=f"#000000 on #{red:02x}{green:02x}{blue:02x}" if weight >= 0.005 else "")


def _step(number: int, step: Step, width: int) -> Iterator["Text"]:
    """Yield the lines of one step: its number and name, the equation beside or below, the sentence wrapped."""
    from textwrap import wrap

    from rich.text import Text

    title = Text.assemble((f"{number}  ", "bold dark_orange"), (step.name, "bold"))
    gap = " " * (INDENT + LONGEST_NAME + 2 - len(title))
    beside = len(title) + len(gap) + len(step.equation) <= width
    yield Text.assemble(title, gap, (step.equation, "cyan")) if beside else title
    fold = partial(wrap, width=min(width, 100), initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
    if not beside:
        yield from (Text(line, style="cyan") for line in fold(step.equation))
    yield from (Text(line) for line in fold(step.sentence))


def _source(step: Step) -> Iterator["Text"]:
    """Yield the source lines of a step with their numbers, as an editor shows them."""
    from rich.text import Text

    indent = " " * INDENT
    yield Text(f"{indent}{step.source.file}:{step.source.first_line}", style="dim underline")
    for number, line in enumerate(step.source.text.splitlines(), step.source.first_line):
        yield Text.assemble((f"{indent}{number:>4}  ", "dim"), line)


def _words(derivation: Derivation, *, bars: bool) -> "Table":
    """Return one row a word, one column a step: what steps 1 to 7 say of each word, for the word that asks."""
    weights, allowed = derivation["weights"], derivation["allowed"]
    x = derivation["x"]
    seen = derivation.steps[0].tensors.get("memory", x)
    cosines = F.cosine_similarity(x[derivation.query], seen, dim=-1)
    lengths = derivation["values"].norm(dim=-1)
    columns = (cosines, lengths, allowed / allowed.sum(), derivation["scores"], derivation["scaled"], weights)
    listed = sorted(weights.argsort(descending=True)[:MOST_WORDS].tolist())

    table = _table("word", *TITLES, *[""] * bars)
    for j in listed:
        word, weight = _cut(derivation.memory_words[j]), weights[j].item()
        numbers = [*(column[j].item() for column in columns), weight * lengths[j].item()]
        cells = [_aligned(number, 3 if title.endswith(("1/T", "w")) else 2) for title, number in zip(TITLES, numbers)]
        if not allowed[j]:
            cells[2:] = ["-"] * len(cells[2:])
        table.add_row(shade(word, weight) if bars else word, *cells, *[_bar(weight)] * bars)
    if left_out := len(weights) - len(listed):
        rest = weights.sum().item() - weights[listed].sum().item()
        table.add_row(f"{left_out} others", *[""] * 5, _aligned(rest, 3), "", *[""] * bars)
    return table


def _heads(derivation: Derivation, *, bars: bool) -> "Table":
    """Return what step 8 puts together: what each head looks at most, and the length of what it adds."""
    lengths = derivation["added"].norm(dim=-1)
    weights, places = derivation["all_weights"].max(dim=-1)
    table = _table("head", "looks most at", "w", "adds", *[""] * bars, left=2)
    for head, (weight, place, length) in enumerate(zip(weights.tolist(), places.tolist(), lengths.tolist())):
        word = _cut(derivation.memory_words[place])
        name = f"{head} *" if head == derivation.head else f"{head}  "
        bar = [_bar(length / lengths.max().item())] * bars
        table.add_row(name, shade(word, weight) if bars else word, _aligned(weight, 3), _aligned(length), *bar)
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


def _bar(weight: float) -> "Text":
    from rich.text import Text

    return Text("▇" * round(weight * BAR), style="dark_orange")


def _cut(word: str) -> str:
    return word if len(word) <= 14 else word[:13] + "…"
