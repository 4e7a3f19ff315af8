"""Texts come out of files whole and in order, and a bad file is named with its line."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clearhead.data.text import Columns, Example, read_examples, read_texts
from clearhead.errors import ConfigError, InputError

LABELS = ("negative", "positive")


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Return a function that writes a file and returns its path."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_texts_come_line_by_line_in_order(file: Any) -> None:
    first = file("a.txt", "\ufeffone\r\n\n two \n".encode())
    second = file("b.txt", "drei é\u2028😀".encode())
    assert list(read_texts([first, second])) == ["one", "two", "drei é\u2028😀"]


def test_standard_input_is_streamed() -> None:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:4] = b"abc\n"
            return 4

    texts = read_texts([], io.BufferedReader(Endless()))
    assert [next(texts) for _ in range(3)] == ["abc"] * 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"fine\nbad \xff\n", r"2: not UTF-8 \(byte 0xff at column 5\)"),
        (b"fine\n\x7fELF\x00\x01", "2: binary data"),
    ],
)
def test_a_bad_text_file_is_named_with_its_line(content: bytes, message: str, file: Any) -> None:
    path = file("bad.txt", content)
    with pytest.raises(InputError, match=rf"bad\.txt.*{message}"):
        list(read_texts([path]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: cannot be read: No such file"):
        list(read_texts([tmp_path / "nowhere.txt"]))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_every_format_says_the_same(suffix: str, file: Any) -> None:
    written = {
        "jsonl": b'{"sentence": "not \\"too\\" shabby, no", "label": "positive"}\n\n{"sentence": "bad", "label": 0}\n',
        "csv": b'sentence,label\n"not ""too"" shabby, no",positive\nbad,0\n',
        "tsv": b'sentence\tlabel\nnot "too" shabby, no\tpositive\nbad\t0\n',
    }
    examples = read_examples(file(f"x.{suffix}", written[suffix]), Columns(text="sentence", label="label"), LABELS)
    assert examples == [
        Example(text='not "too" shabby, no', target=(0.0, 1.0)),
        Example(text="bad", target=(1.0, 0.0)),
    ]


def test_a_text_in_a_csv_file_may_be_as_long_as_in_any_other(file: Any) -> None:
    limit = csv.field_size_limit()
    (example,) = read_examples(file("x.csv", b'text\n"' + b"x" * 200_000 + b'"\n'), Columns())
    assert len(example.text) == 200_000 and csv.field_size_limit() == limit


def test_soft_targets_and_weights_are_read(file: Any) -> None:
    path = file("x.jsonl", b'{"text": "so so", "p": 0.25, "all": {"positive": 0.4, "negative": 0.6}, "n": 2}\n')
    assert read_examples(path, Columns(positive="p", weight="n"), LABELS) == [
        Example(text="so so", target=(0.75, 0.25), weight=2.0)
    ]
    assert read_examples(path, Columns(probabilities="all"), LABELS)[0].target == (0.6, 0.4)
    assert read_examples(path, Columns())[0].target == ()


@pytest.mark.parametrize(
    ("record", "columns", "message"),
    [
        ({"txt": "a", "label": 1}, {"label": "label"}, "no column 'text'; did you mean 'txt'"),
        ({"text": " ", "label": 1}, {"label": "label"}, "expected a text, got ' '"),
        ({"text": "a", "label": "neutral"}, {"label": "label"}, "unknown label 'neutral'; known: negative, positive"),
        ({"text": "a", "label": 0.7}, {"label": "label"}, "unknown label 0.7"),
        ({"text": "a", "p": 1.5}, {"positive": "p"}, "expected a number from 0 to 1, got 1.5"),
        ({"text": "a", "p": float("nan")}, {"positive": "p"}, "expected a number from 0 to 1, got nan"),
        ({"text": "a", "p": 10**400}, {"positive": "p"}, "expected a number from 0 to 1"),
        ({"text": "a", "p": [0.5, 0.6]}, {"probabilities": "p"}, "sum to 1, got 1.1"),
        ({"text": "a", "p": [1]}, {"probabilities": "p"}, "a number for each of negative, positive"),
    ],
)
def test_a_bad_record_is_named_with_its_line(record: Any, columns: Any, message: str, file: Any) -> None:
    path = file("x.jsonl", b"\n" + json.dumps(record).encode())
    with pytest.raises(InputError, match=r"x\.jsonl:2: ") as error:
        read_examples(path, Columns(**columns), LABELS)
    assert message in str(error.value)


def test_a_number_or_a_truth_is_a_label_of_that_name_before_it_is_an_index(file: Any) -> None:
    for content, labels in ((b"1 3 2", "1 2 3"), (b"true false", "true false"), (b"0 1", "one two")):
        lines = b"".join(b'{"text": "a", "label": %s}\n' % value for value in content.split())
        examples = read_examples(file("x.jsonl", lines), Columns(label="label"), labels.split())
        told = [labels.split()[example.target.index(1.0)] for example in examples]
        assert told == {"1 2 3": ["1", "3", "2"], "true false": ["true", "false"], "one two": ["one", "two"]}[labels]


STARS = tuple("12345")


@pytest.mark.parametrize("values", ["0 1 2 3 4", "1 2", "4 0 5"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_numbers_that_are_names_and_indices_of_different_labels_are_refused(
    values: str, suffix: str, file: Any
) -> None:
    lines = {
        "csv": "text,label\n" + "".join(f"a,{value}\n" for value in values.split()),
        "tsv": "text\tlabel\n" + "".join(f"a\t{value}\n" for value in values.split()),
        "jsonl": "".join(f'{{"text": "a", "label": {value}}}\n' for value in values.split()),
    }
    first = next(value for value in values.split() if value in "1234")  # 0 is no name, 5 no index
    by_index = STARS[int(first)]
    with pytest.raises(InputError, match=f"called '{first}'.*or label number {first} .* called '{by_index}'"):
        read_examples(file(f"x.{suffix}", lines[suffix].encode()), Columns(label="label"), STARS)


def test_numbers_with_one_reading_are_read(file: Any) -> None:
    def told(content: str, labels: tuple[str, ...], name: str = "x.csv") -> list[str]:
        examples = read_examples(file(name, content.encode()), Columns(label="label"), labels)
        return [labels[example.target.index(1.0)] for example in examples]

    assert told("text,label\na,5\na,1\n", STARS) == ["5", "1"]  # 5 is no index, so all are names
    assert told("text,label\na,0\na,1\n", ("0", "1")) == ["0", "1"]  # both readings say the same
    assert told('{"text": "a", "label": "1"}\n', STARS, "x.jsonl") == ["1"]  # a string is a name
    assert told('{"text": "a", "label": 1}\n', ("one star", "two stars"), "x.jsonl") == ["two stars"]


def test_half_a_surrogate_pair_is_refused_with_its_line(file: Any) -> None:
    lines = b'{"text": "a", "answer": "b"}\n{"text": "a", "answer": "b \\ud83d"}\n'
    with pytest.raises(InputError, match=r"x\.jsonl:2: not valid Unicode: surrogates not allowed at character 2"):
        read_examples(file("x.jsonl", lines), Columns(target_text="answer"))
    with pytest.raises(InputError, match=r"x\.jsonl:1: not valid Unicode"):
        read_examples(file("x.jsonl", b'{"text": "\\udc00"}\n'), Columns())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"{oops\n", "x.jsonl:1: not JSON"),
        ("x.jsonl", b"[1]\n", "x.jsonl:1: expected a JSON object, got list"),
        ("x.jsonl", b"", "x.jsonl is empty"),
        ("x.tsv", b"text\tlabel\na\n", "x.tsv:2: expected 2 columns (text, label), got 1"),
        ("x.csv", b'text,label\n"a" b,1\n', "x.csv:2: not CSV"),
        ("x.csv", b'text,label\na,1\n"b,1\nc,0\nd,0\n', "x.csv:3: not CSV, in the row that begins here"),
        ("x.csv", b"text,text,label\na,b,1\n", "x.csv:1: two columns are called 'text'"),
        ("x.tsv", b"text\tlabel\tlabel\na\t1\t0\n", "x.tsv:1: two columns are called 'label'"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl:1: not JSON"),
        ("x.tsv", b"text\tlabel\na\t" + b"1" * 5_000 + b"\n", "x.tsv:2: unknown label"),
        ("x.parquet", b"", "expected a file that ends in .jsonl, .csv, .tsv"),
    ],
)
def test_a_bad_labelled_file_is_named(name: str, content: bytes, message: str, file: Any) -> None:
    with pytest.raises(InputError) as error:
        read_examples(file(name, content), Columns(label="label"), LABELS)
    assert message in str(error.value)


def test_two_targets_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected one target, got label and positive"):
        Columns(label="a", positive="b")
