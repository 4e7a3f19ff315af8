"""What a command is given to work on: texts from arguments, files and standard input, as they arrive.

What one read of standard input brings comes together, so a slow pipe is answered line by line and a fast one in large
batches. A file that cannot be opened is refused before the first answer; one without any text is named and passed
over, unless nothing else was given.
"""

import re
import stat
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from clearhead.cli.output import note, refuse, require_text
from clearhead.data.text import read_lines
from clearhead.errors import ClearheadError, InputError

STDIN = Path("-")
RECORDING = ".seen"
# One word with the suffix of a file of texts, sounds or recordings.
FILE_NAME = re.compile(r"\S+\.(txt|csv|tsv|json|jsonl|md|wav|mp3|flac|seen|npy|safetensors|toml|gz|zip)", re.IGNORECASE)
MOST_AT_ONCE = 1024  # texts: enough to fill batches of similar length, few enough to wait for
MOST_LOOKED_AT = 10_000  # files of a folder, to find a picture among them


def arriving(texts: Sequence[str], files: Sequence[Path], *, example: str) -> Iterator[list[str]]:
    """Yield the texts of a command, those that came together in one list; there is at least one, or an error.

    `example` is a command that works, for a person who gave nothing. InputError as soon as the first list is asked
    for where an argument is no text or a file cannot be opened; later at a line that cannot be read.
    """
    for number, text in enumerate(texts, 1):
        require_text(text, f"text {number}" if len(texts) > 1 else "the text")
        note_file_name(text, f"--file {text}")
    if not files and not texts and (sys.stdin is None or sys.stdin.isatty()):
        refuse(f"nothing to read: give a text, {example}, or --file FILE")
    for path in files:
        require_readable(path)
        if is_picture(str(path)):
            raise InputError(
                f"{path} is a picture, and --file reads text: give it as an argument, clearhead see {path}"
            )
    if texts:
        yield list(texts)
    sources = files or ([] if texts else [STDIN])
    found = bool(texts)
    for path in sources:
        for portion in read(path, alone=len(sources) == 1):
            found = True
            yield portion
    if not found:
        raise InputError("none of the files holds a text: expected one text a line")


def require_readable(path: Path) -> None:
    """Raise InputError for a file that is not there, is a folder, or may not be read; a pipe is left to be read."""
    try:
        if path == STDIN:
            if sys.stdin is None:
                raise InputError("standard input is closed: there is nothing to read")
        elif not stat.S_ISFIFO(path.stat().st_mode):
            path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def read(path: Path, *, alone: bool) -> Iterator[list[str]]:
    """Yield the texts of a file, or of standard input for -, in portions; a file without any is an error if `alone`."""
    lines = Lines(sys.stdin.buffer) if path == STDIN else None
    found = False
    for portion in in_portions((text for _, line in read_lines(path, lines) if (text := line.strip())), lines):
        found = True
        yield portion
    if not found:
        empty = f"{'standard input' if path == STDIN else path} is empty"
        if alone:
            raise InputError(f"{empty}: expected one text a line")
        note(f"{empty}, and passed over")


def note_file_name(text: str, instead: str) -> None:
    """Say that an argument is read as it stands where it is the name of a file, which `instead` would read.

    Raises:
        InputError: It looks like the name of a file, and there is none: a name that was mistyped is no text.
    """
    try:
        path = Path(text)
        is_file, exists = path.is_file(), path.exists()
    except (OSError, ValueError):  # too long for a name, or with a character that none has
        return
    if is_file and not is_picture(text) and not is_recording(text):
        note(f"{text} is a file: its name is read as the text; {instead} reads what the file holds")
    if not exists and FILE_NAME.fullmatch(text):
        raise InputError(
            f"{text}: no such file. What looks like the name of a file is not read as a text; if it is one, send it "
            f"through standard input"
        )


def is_recording(text: str) -> bool:
    """Return whether an argument names a recording."""
    return text.endswith(RECORDING) and Path(text).is_file()


def is_picture(text: str) -> bool:
    """Return whether an argument is a picture rather than a text: a file named like one, or a folder that holds one."""
    try:
        exists = text != "" and Path(text).exists()  # an empty path is the folder one is in
    except (OSError, ValueError):  # too long for a name, or with a character that none has
        return False
    if not exists and not re.fullmatch(r"\S+\.\w{3,4}", text):
        return False
    from clearhead.data.images import is_image

    if Path(text).is_dir():
        return any(map(is_image, islice(Path(text).rglob("*"), MOST_LOOKED_AT)))
    return is_image(text)


def are_pictures(arguments: Sequence[str], first: Sequence[str]) -> bool:
    """Return whether a command that was told no model is given pictures: any argument, or all of what came first."""
    return any(map(is_picture, arguments)) or (not arguments and all(map(is_picture, first)))


class Lines:
    """The lines of a stream, and how many texts are among those that are here but were not asked for yet."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.waiting = stream, 0

    def __iter__(self) -> Iterator[bytes]:
        """Yield line by line what each read brings; the line that is not finished waits for the next."""
        unfinished: list[bytes] = []
        while arrived := self.stream.read1(1 << 18):
            *lines, rest = arrived.split(b"\n")
            if lines:
                lines[0] = b"".join([*unfinished, lines[0]])
                unfinished.clear()
            unfinished.append(rest)
            self.waiting = sum(1 for line in lines if line.strip())
            for line in lines:
                self.waiting -= bool(line.strip())
                yield line + b"\n"
        if last := b"".join(unfinished):
            yield last


def in_portions(texts: Iterator[str], lines: Lines | None = None) -> Iterator[list[str]]:
    """Yield the texts in lists: all that are here at once where `lines` knows, else 64, 128, ... up to MOST_AT_ONCE.

    What came before a text that cannot be read is yielded before the error is raised.
    """
    portion: list[str] = []
    most = 64
    try:
        for text in texts:
            portion.append(text)
            if len(portion) == (MOST_AT_ONCE if lines else most) or (lines and not lines.waiting):
                yield portion
                portion, most = [], min(2 * most, MOST_AT_ONCE)
    except ClearheadError:
        if portion:
            yield portion
        raise
    if portion:
        yield portion
