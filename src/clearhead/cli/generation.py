"""`clearhead generate`: a decoder goes on with a text. `clearhead translate`: an encoder-decoder writes its own.

A person watches one text being written after another; a file, a pipe and --json get several at a time, written
together, in order. What is drawn depends on the seed and on the text alone, not on the texts beside it.
"""

import secrets
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.cli.arguments import Choosing, at_least_1
from clearhead.cli.inputs import arriving
from clearhead.cli.output import Progress, dump, is_for_eyes, note, one_line
from clearhead.controls import without_controls

if TYPE_CHECKING:  # torch: an input that is not there need not wait for it
    from clearhead.cli.answers import Answer, Choices, Writer

TOGETHER = 16  # texts: eight times as many tokens a second as one, and the first answer is not far
SEEDS = 2**31
MOST_TRANSLATED = 256  # tokens of an answer, where neither a person nor the checkpoint says


def generate(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    max_new_tokens: int,
    choosing: Choosing,
    model: str,
    as_json: bool,
    dtype: str,
    threads: int | None,
) -> None:
    """Go on with every text."""
    at_least_1(max_new_tokens=max_new_tokens, threads=threads)
    choosing.check()
    arrivals = arriving(texts, files, example='clearhead generate "It was a dark"')
    first = next(arrivals)
    from clearhead.cli.answers import Writer, choices_of

    writer = Writer("generate", model, dtype=dtype, threads=threads, tokens=max_new_tokens)
    seed = secrets.randbelow(SEEDS) if choosing.seed is None else choosing.seed
    choices = choices_of(choosing, max_new_tokens, seed)
    if choosing.draws and choosing.seed is None and sys.stderr.isatty() and not as_json:
        note(f"--seed {seed} writes this again")
    alone = len(texts) == 1 and not files
    if not as_json and (alone or sys.stdout.isatty()):
        for row, text in enumerate(text for some in chain([first], arrivals) for text in some):
            if row:
                print()
            watch(writer, text, choices.of_row(row))
        return
    with Progress("text") as progress:
        for row, answer in enumerate(written(writer, chain([first], arrivals), choices)):
            if as_json:
                fields = {"text": answer.text, "written": answer.written, "tokens": answer.tokens, "end": answer.end}
                print(dump(fields | ({"seed": seed + row} if choosing.draws else {})), flush=True)
            else:
                print("\n" * bool(row) + without_controls(answer.text + answer.written, newlines=True), flush=True)
            progress.advance()


def translate(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    max_new_tokens: int | None,
    beams: int | None,
    model: str,
    as_json: bool,
    dtype: str,
    threads: int | None,
) -> None:
    """Write what the model makes of every text, one a line."""
    at_least_1(max_new_tokens=max_new_tokens, beams=beams, threads=threads)
    arrivals = arriving(texts, files, example="clearhead translate attention")
    first = next(arrivals)
    from clearhead.cli.answers import Choices, Writer
    from clearhead.cli.checkpoint_choices import beams_of, most_new

    writer = Writer("translate", model, dtype=dtype, threads=threads, tokens=max_new_tokens or MOST_TRANSLATED)
    n_new = max_new_tokens or most_new(writer.settings, len(writer.begin or ())) or MOST_TRANSLATED
    choices = Choices(n_new, beams_of(writer.settings, beams))
    with Progress("text") as progress:
        for answer in written(writer, chain([first], arrivals), choices):
            if as_json:
                fields = {"text": answer.text, "written": answer.written, "tokens": answer.tokens, "end": answer.end}
                print(dump(fields), flush=True)
            else:
                print(one_line(answer.written), flush=True)
            progress.advance()


def watch(writer: "Writer", text: str, choices: "Choices") -> None:
    """Print a text and what is written after it, as it comes."""
    text_shown = without_controls(text, newlines=True)
    print(f"\x1b[2m{text_shown}\x1b[0m" if is_for_eyes(sys.stdout) else text_shown, end="", flush=True)
    for piece in writer.stream(text, choices):
        print(without_controls(piece, newlines=True), end="", flush=True)
    print(flush=True)


def written(writer: "Writer", portions: Iterator[list[str]], choices: "Choices") -> Iterator["Answer"]:
    """Yield the answers to the texts, in order, several written at a time."""
    row = 0
    for portion in portions:
        for start in range(0, len(portion), TOGETHER):
            some = portion[start : start + TOGETHER]
            yield from writer.answers(some, choices.of_row(row))
            row += len(some)
