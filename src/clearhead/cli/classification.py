"""`clearhead classify`: texts or pictures in, one line of answer each, as they come. The model says which it reads.

A text longer than the model reads at once is read in windows to its end, and their probabilities averaged, each by how
much of the text it holds.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from clearhead.cli.arguments import at_least_1
from clearhead.cli.inputs import are_pictures, arriving, is_picture
from clearhead.cli.output import Progress, columns, dump, is_for_eyes, one_line
from clearhead.errors import InputError

COLOURS = {"positive": 32, "negative": 31}  # green and red; other labels are cyan
OTHER_LABELS, UNSURE = 36, 0.75  # below this probability the label is dimmed


@dataclass(frozen=True)
class Answer:
    """What the model says of one text, or of one picture by its file: every label's probability, likeliest first."""

    text: str
    probabilities: Mapping[str, float]
    windows: int = 1
    reads: str = "text"


def run(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    model: str | None,
    as_json: bool,
    top: int | None,
    dtype: Literal["fp32", "bf16"],
    threads: int | None,
    max_pixels: int | None,
) -> None:
    """Classify the texts, then the files; standard input where there is neither."""
    at_least_1(top=top, threads=threads, max_pixels=max_pixels)
    pictures = [text for text in texts if is_picture(text)]
    arrivals = arriving(texts, files, example='clearhead classify "attention is not too shabby"')
    first = next(arrivals)  # an input that is not there need not wait for PyTorch
    from clearhead.cli.labeller import Labeller, PictureLabeller, open_labeller

    name = model or ("pictures" if are_pictures(texts, first) else "sentiment")
    labeller = open_labeller(name, dtype=dtype, threads=threads)
    if max_pixels is not None and isinstance(labeller, PictureLabeller):
        labeller.processor = replace(labeller.processor, max_pixels=max_pixels)
    if isinstance(labeller, Labeller):
        if pictures:
            raise InputError(f"{pictures[0]} is a picture, and {name} labels texts: leave --model out, or name another")
    elif missing := [text for text in texts if not Path(text).exists()]:
        raise InputError(f"{missing[0]}: no such file, expected a picture or a folder of pictures")
    table = Table.of(labeller.labels)
    with Progress("text" if labeller.reads == "text" else "picture") as progress:
        for some in chain([first], arrivals):
            for text, probabilities, windows in labeller.read(some):
                ranked = sorted(zip(labeller.labels, probabilities), key=lambda pair: -pair[1])[:top]
                answer = Answer(text, dict(ranked), windows, labeller.reads)
                print(as_line_of_json(answer) if as_json else table.row(answer, top or 1))
                progress.advance()
            sys.stdout.flush()
    if not isinstance(labeller, Labeller):
        labeller.finish()


def as_line_of_json(answer: Answer) -> str:
    """Return `answer` as one JSON object; `windows` is there when the text was read in several."""
    probabilities = {label: round(p, 6) for label, p in answer.probabilities.items()}
    fields = {answer.reads: answer.text, "label": next(iter(probabilities)), "probabilities": probabilities}
    windows = {"windows": answer.windows} if answer.windows > 1 else {}
    return dump(fields | windows)


@dataclass(frozen=True)
class Table:
    """Answers for people, one a line, in columns."""

    label_width: int
    line_width: int | None  # None: never cut
    coloured: bool

    @classmethod
    def of(cls, labels: Sequence[str]) -> "Table":
        """Return the table that suits the labels and whoever reads standard output."""
        width = columns() if sys.stdout.isatty() else None
        return cls(max(len(one_line(label)) for label in labels), width, is_for_eyes(sys.stdout))

    def row(self, answer: Answer, top: int) -> str:
        """Return `positive 0.97  attention is not too shabby`, with the `top` likeliest labels."""
        cells, width = [], 0
        for label, probability in list(answer.probabilities.items())[:top]:
            shown = int(probability * 100 + 1e-9) / 100  # rounded down: 1.00 would claim what no model knows
            cell = f"{one_line(label):<{self.label_width}} {shown:.2f}  "
            cells.append(self.colour(cell, label, probability))
            width += len(cell)
        room = None if self.line_width is None else self.line_width - width
        return "".join(cells) + one_line(answer.text, room)

    def colour(self, cell: str, label: str, probability: float) -> str:
        """Return the cell in its label's colour, dimmed where the model is unsure."""
        dim = "2;" if probability < UNSURE else ""
        return f"\x1b[{dim}{COLOURS.get(label, OTHER_LABELS)}m{cell}\x1b[0m" if self.coloured else cell
