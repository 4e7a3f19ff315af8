"""Texts from files: plain ones, one a line, and labelled ones.

`read_texts` streams; `read_examples` reads .jsonl, .csv and .tsv. A target is always a row of probabilities, one a
label: a hard label is the row with a single 1, a rating by twenty people or another model's opinion is any other.

Next: `batches.py` puts rows of similar length side by side.
"""

import csv
import json
import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.errors import ConfigError, InputError, nearest

# ---------------------------------------------------------------- plain texts


def read_texts(paths: Sequence[Path | str] = (), stdin: Iterable[bytes] | None = None) -> Iterator[str]:
    """Yield the texts of `paths`, one a line, as they are read; without paths, or for "-", those of standard input.

    Lines that are blank are no texts. InputError names the file and the line: no such file, an empty one, bytes that
    are not UTF-8.
    """
    for path in paths or ["-"]:
        found = False
        for _, line in read_lines(path, stdin):
            if text := line.strip():
                found = True
                yield text
        if not found:
            raise InputError(f"{_name(path)} is empty: expected one text a line")


def read_lines(path: Path | str, stdin: Iterable[bytes] | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number, line with its end) of a UTF-8 file, or of `stdin` for "-"."""
    name, number = _name(path), 0
    try:
        with _open(path, stdin) as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1 and raw.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
                    raise InputError(f"{name}: UTF-16, expected UTF-8; convert it: iconv -f utf-16 -t utf-8")
                if b"\0" in raw:
                    raise InputError(f"{name}:{number}: binary data, expected UTF-8 text, one a line")
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")  # -sig: without a byte order mark
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at column {error.start + 1}"
        hint = "convert it, from Latin-1 by iconv -f latin1 -t utf-8"
        raise InputError(f"{name}:{number}: not UTF-8 ({byte}); {hint}") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from error


def read_document(path: Path) -> str:
    """Return a file as one text, its lines joined as they are. InputError as for `read_texts`."""
    text = "".join(line for _, line in read_lines(path))
    if not text.strip():
        raise InputError(f"{path} is empty: expected a text")
    return text


def _open(path: Path | str, stdin: Iterable[bytes] | None) -> AbstractContextManager[Iterable[bytes]]:
    if str(path) == "-":
        return nullcontext(stdin or sys.stdin.buffer)  # not ours to close
    return Path(path).open("rb")


def _name(path: Path | str) -> str:
    return "standard input" if str(path) == "-" else str(path)


# ---------------------------------------------------------------- labelled examples

LONGEST = 2**31 - 1  # characters of a text in a .csv file: what a C long holds everywhere


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column holds what. At most one of `label`, `positive` and `probabilities` is the target; none: no target.

    label:         a label's name, or its index, counted from 0; a file that can be read both ways is refused
    positive:      the probability of the second of two labels
    probabilities: one number a label, as a list in the labels' order or as {label: number}; .jsonl only
    weight:        how much the example counts, 1 if the column is not named
    target_text:   the text that answers `text`, for a model that writes; beside it there is no other target
    """

    text: str = "text"
    label: str | None = None
    positive: str | None = None
    probabilities: str | None = None
    weight: str | None = None
    target_text: str | None = None

    def __post_init__(self) -> None:
        targets = self.targets + ["target_text"] * (self.target_text is not None)
        if len(targets) > 1:
            raise ConfigError(f"columns: expected one target, got {' and '.join(targets)}")

    @property
    def targets(self) -> list[str]:
        """The names of the fields that are targets here, of labels."""
        return [name for name in ("label", "positive", "probabilities") if getattr(self, name) is not None]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text, the probability of every label (none: unlabelled), how much it counts, and the text that answers it."""

    text: str
    target: tuple[float, ...] = ()
    weight: float = 1.0
    target_text: str = ""


def read_examples(path: Path | str, columns: Columns, labels: Sequence[str] = ()) -> list[Example]:
    """Read a .jsonl file, or a .csv or .tsv file with a header line.

    A `label` column holds names out of `labels` or indices into them. InputError says file:line, what was expected
    there and which columns there are. Where labels are numbers, `"1"` to `"5"`, and the file holds numbers too, it is
    read as the one of the two that fits all its lines, and refused if both fit or each fits some lines. In .jsonl a
    string is always a name.
    """
    readers = {".jsonl": _jsonl_records, ".csv": _csv_records, ".tsv": _tsv_records}
    path = Path(path)
    column = _LabelColumn(labels, has_types=path.suffix == ".jsonl")
    if path.suffix not in readers:
        raise InputError(f"{path}: expected a file that ends in {', '.join(readers)}")
    examples = []
    for number, record in readers[path.suffix](path):
        try:
            examples.append(_example(record, columns, labels, column))
            _require_unicode(examples[-1])
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from None
    if not examples:
        raise InputError(f"{path} is empty: expected one example a line")
    if column.ambiguity:
        raise InputError(f"{path}: {column.ambiguity}")
    return examples


def _jsonl_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
        yield number, record


def _csv_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    table = csv.reader((line for _, line in read_lines(path)), strict=True)
    limit = csv.field_size_limit(LONGEST)  # Python's own is 131,072 characters
    began = 1
    try:
        header = _header(path, next(table, []))
        began = table.line_num + 1
        for row in table:
            if row:
                yield table.line_num, _record(path, table.line_num, header, row)
            began = table.line_num + 1
    except csv.Error as error:  # the line where the row began: a quote left open swallows all that follows
        raise InputError(f"{path}:{began}: not CSV, in the row that begins here: {error}") from None
    finally:
        csv.field_size_limit(limit)


def _tsv_records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    header: list[str] = []
    for number, line in read_lines(path):
        row = line.rstrip("\r\n").split("\t")  # no quoting: GLUE's files have stray quotes
        if number == 1:
            header = _header(path, row)
        elif row != [""]:
            yield number, _record(path, number, header, row)


def _header(path: Path, names: list[str]) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}:1: two columns are called {twice[0]!r}: rename one")
    return names


def _record(path: Path, number: int, header: list[str], row: list[str]) -> Mapping[str, Any]:
    if len(row) != len(header):
        raise InputError(f"{path}:{number}: expected {len(header)} columns ({', '.join(header)}), got {len(row)}")
    return dict(zip(header, row))


def _example(
    record: Mapping[str, Any], columns: Columns, labels: Sequence[str], label_column: "_LabelColumn"
) -> Example:
    """Make an Example of one record, or say what is wrong with it."""

    def cell(column: str) -> Any:
        if column not in record:
            raise InputError(f"no column {column!r}{nearest(column, list(record))}")
        return record[column]

    text = cell(columns.text)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"column {columns.text!r}: expected a text, got {text!r}")
    target: tuple[float, ...] = ()
    if columns.label is not None:
        index = label_column.read(cell(columns.label))
        target = tuple(float(i == index) for i in range(len(labels)))
    elif columns.positive is not None:
        if len(labels) != 2:
            raise InputError(f"column {columns.positive!r} needs two labels, got {len(labels)}: use `probabilities`")
        positive = _number(cell(columns.positive), columns.positive, high=1.0)
        target = (1 - positive, positive)
    elif columns.probabilities is not None:
        target = _probabilities(cell(columns.probabilities), columns.probabilities, labels)
    weight = 1.0 if columns.weight is None else _number(cell(columns.weight), columns.weight)
    answer = "" if columns.target_text is None else cell(columns.target_text)
    if columns.target_text is not None and (not isinstance(answer, str) or not answer.strip()):
        raise InputError(f"column {columns.target_text!r}: expected a text, got {answer!r}")
    return Example(text=text, target=target, weight=weight, target_text=answer)


class _LabelColumn:
    """Reads the labels of a file, given by name or by index, and notices where the two readings disagree."""

    def __init__(self, labels: Sequence[str], *, has_types: bool) -> None:
        """Read names out of `labels`; `has_types`: the file tells the string "1" from the number 1."""
        self.labels, self.has_types = list(labels), has_types
        self.two_readings: tuple[Any, int, int] | None = None  # the first such value, its label by name and by index
        self.only_names = self.only_indices = False  # whether some value is a name and no index, or the reverse

    def read(self, value: Any) -> int:
        """Return the index of the label that `value` stands for; its name counts before its index."""
        name, names = value, self.labels
        if isinstance(value, int):  # of the labels "1" to "5" the number 1 is a name too; of "True" and "False" true
            name, names = json.dumps(value), [label.casefold() for label in self.labels]
        by_name = names.index(name) if name in names else None
        is_number = isinstance(value, int) or (isinstance(value, str) and value.isdecimal() and len(value) < 10)
        index = int(value) if is_number else -1
        by_index = index if 0 <= index < len(self.labels) else None
        if by_name is not None and (isinstance(value, bool) or (self.has_types and isinstance(value, str))):
            by_index = None  # a truth value or a quoted number: certainly the name
        if by_name is None and by_index is None:
            numbers = f", or 0 to {len(self.labels) - 1}"
            all_known = f"{', '.join(self.labels)}{numbers}" if self.labels else "none, since no labels are named"
            raise InputError(f"unknown label {value!r}; known: {all_known}")
        self.only_names |= by_index is None
        self.only_indices |= by_name is None
        if by_name is None:
            assert by_index is not None
            return by_index
        if by_index is not None and by_index != by_name:
            self.two_readings = self.two_readings or (value, by_name, by_index)
        return by_name

    @property
    def ambiguity(self) -> str:
        """What is wrong with the column as a whole, with both readings; empty where all of it has one reading."""
        if self.two_readings is None or (self.only_names and not self.only_indices):
            return ""
        value, by_name, by_index = self.two_readings
        return (
            f"label {value!r} has two readings: the label called {self.labels[by_name]!r}, which is number {by_name}, "
            f"or label number {by_index} counted from 0, which is called {self.labels[by_index]!r}. For names, write "
            f"them in quotes in a .jsonl file; for indices, give the labels names that are not numbers"
        )


def _require_unicode(example: Example) -> None:
    for text in (example.text, example.target_text):
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise InputError(f"not valid Unicode: {error.reason} at character {error.start} of {text!r:.60}") from None


def _probabilities(value: Any, column: str, labels: Sequence[str]) -> tuple[float, ...]:
    if isinstance(value, dict) and set(value) == set(labels):
        value = [value[label] for label in labels]
    if not isinstance(value, list) or len(value) != len(labels):
        raise InputError(f"column {column!r}: expected a number for each of {', '.join(labels)}, got {value!r}")
    numbers = tuple(_number(x, column, high=1.0) for x in value)
    if abs(sum(numbers) - 1) > 1e-3:
        raise InputError(f"column {column!r}: expected probabilities that sum to 1, got {sum(numbers):.4g}")
    return numbers


def _number(value: Any, column: str, *, high: float = float("inf")) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0 <= number <= high or number == float("inf"):
        bounds = "at least 0" if high == float("inf") else f"from 0 to {high:g}"
        raise InputError(f"column {column!r}: expected a number {bounds}, got {value!r}")
    return number
