"""Small JSON files that somebody else wrote: `read_json` checks all of them in the same way, when a checkpoint opens.

A checkpoint folder holds several: config.json, tokenizer_config.json, preprocessor_config.json, the index of a sharded
model and more. Whoever needs a key says with a `Kind` which values it may have. So a value of the wrong type is
reported with its file and its key before the first text is read, and the code that uses it needs no check of its own.

Next: `checkpoints/files.py`, which reads the tensors beside them.
"""

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearhead.errors import CheckpointError, ClearheadError

MAX_BYTES = 2**26  # of a file: vocabularies of a million pieces are smaller
MAX_DEPTH = 64  # of objects and lists within each other, far below Python's recursion limit
MAX_SHOWN = 80  # characters of a wrong value in a message
HALF_A_PAIR = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")  # what may be a lone surrogate in JSON


@dataclass(frozen=True)
class Kind:
    """Which values a key may have: `expected` says it in words, `fits` decides.

    The values inside a list or an object of the right type are of the kind `each`.
    """

    expected: str
    fits: Callable[[Any], bool]
    each: "Kind | None" = None

    def check(self, key: str, value: Any, error: type[ClearheadError] = CheckpointError) -> Any:
        """Return `value`, or raise `error` with the key, what was expected and what is there."""
        if not self.fits(value):
            raise error(f"{key}: expected {self.expected}, got {shown(value)}")
        if self.each is not None:
            for place, inner in value.items() if isinstance(value, dict) else enumerate(value):
                self.each.check(f"{key}[{shown(place)}]", inner, error)
        return value


def whole(low: int = 0, high: int = 2**31 - 1, what: str = "a whole number") -> Kind:
    """Return the kind of whole numbers from `low` to `high`, both included; true and false are none."""
    return Kind(f"{what} from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high)


def number(low: int | float = -math.inf, high: int | float = math.inf) -> Kind:
    """Return the kind of finite numbers from `low` to `high`, both included."""

    def fits(value: Any) -> bool:
        largest = sys.float_info.max  # a whole number beyond it is no float, and NaN is not below it
        return type(value) in (int, float) and low <= value <= high and -largest <= value <= largest

    limits = f" from {low:g}" * math.isfinite(low) + f" to {high:g}" * math.isfinite(high)
    return Kind("a number" + limits, fits)


def list_of(kind: Kind) -> Kind:
    """Return the kind of lists in which every value is of `kind`."""
    return Kind(LIST.expected, LIST.fits, kind)


def mapping_to(kind: Kind) -> Kind:
    """Return the kind of objects in which the value of every key is of `kind`."""
    return Kind(OBJECT.expected, OBJECT.fits, kind)


def one_or_several(kind: Kind) -> Kind:
    """Return the kind of a value of `kind`, or of a list of them."""

    def fits(value: Any) -> bool:
        return all(map(kind.fits, value)) if isinstance(value, list) else kind.fits(value)

    return Kind(f"{kind.expected}, or a list of such", fits)


def one_of(values: Iterable[str]) -> Kind:
    """Return the kind of these texts."""
    known = sorted(values)
    return Kind(f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known)


BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
POSITIVE = Kind("a number above 0", lambda value: number().fits(value) and value > 0)


def read_json(path: Path, kinds: Mapping[str, Kind] = {}) -> dict[str, Any]:
    """Return the object in a JSON file of a checkpoint.

    Args:
        path: The file.
        kinds: What the values of some keys have to be. A key may be absent, and null counts as absent.

    Raises:
        CheckpointError: where the file is missing, larger than MAX_BYTES, no JSON object, nested deeper than MAX_DEPTH,
            holds a number that is not finite, half of a surrogate pair, or a value that is not of its kind.
    """
    text = _text(path)
    try:
        found = json.loads(text, parse_constant=_refuse, parse_float=_float, parse_int=_int)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{path} cannot be read: {reason}. Get the file again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(found).__name__}")
    may_be_broken = HALF_A_PAIR.search(text) is not None
    for key, value in found.items():
        if (wrong := _fault((key, value), may_be_broken)) is not None:
            raise CheckpointError(f"{path}: {key!r:.{MAX_SHOWN}}: {wrong}. Get the file again")
    try:
        check(found, kinds)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return found


def check(found: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Raise CheckpointError for a value that is not of its kind; null counts as absent."""
    for key, kind in kinds.items():
        if found.get(key) is not None:
            kind.check(key, found[key])


def shown(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _text(path: Path) -> str:
    try:
        if not path.exists():
            raise CheckpointError(f"{path.parent} holds no {path.name}: a checkpoint folder has one")
        if not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path} is not a file: expected a JSON file")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise CheckpointError(f"{path}: expected a small JSON file, at most {MAX_BYTES:,} bytes, got {size:,}")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Get the file again") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}, which is not a number JSON or a model allows")


def _float(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse(digits[:MAX_SHOWN])


def _int(digits: str) -> int:
    if len(digits) > 300:  # digits of the largest float: no calculation could use it
        raise ValueError(f"it holds a number of {len(digits):,} digits, which no model allows")
    return int(digits)


def _fault(value: Any, may_be_broken: bool) -> str | None:
    """Return what is wrong with a value, however deep inside it."""
    waiting: list[tuple[Any, int]] = [(value, 0)]  # no recursion, which has a limit of its own
    while waiting:
        inner, depth = waiting.pop()
        if isinstance(inner, str):
            if may_be_broken and not _is_unicode(inner):
                return f"{inner!r:.{MAX_SHOWN}} holds half of a surrogate pair, which is no letter"
            continue
        if depth > MAX_DEPTH:
            return f"objects and lists within each other more than {MAX_DEPTH} deep"
        parts: Iterable[Any] = (*inner, *inner.values()) if isinstance(inner, dict) else inner
        waiting += [(part, depth + 1) for part in parts if isinstance(part, str | dict | list)]
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
