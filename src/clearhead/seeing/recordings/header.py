"""What the header of a recording may say: every field has a type and limits, which are checked when it is opened.

A checksum shows that a header is the one that was written, not that whoever wrote it was right. So nothing is taken on
trust: `read_header` checks the types, `read_tensors` that a field's tensor has its dtype and its number of axes, and
`require_one_call` that the tensors and numbers of a call belong together. Every failure is a WatchError that names the
field, what was expected and what is there.

Next: `saving.py`, which writes the fields and builds the recording from them.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import WatchError, nearest
from clearhead.json_files import OBJECT, TEXT, Kind, list_of, mapping_to, number, shown, whole
from clearhead.seeing.recordings.store import SAFE_NAMES

MAX_SIZE = 2**40  # of an axis, of a position, of a count
MAX_FACTOR = 1e30  # of what multiplies scores: a float32 holds the product
COUNT = whole(0, MAX_SIZE)
POSITION = whole(-MAX_SIZE, MAX_SIZE)
DTYPES = {name: dtype for dtype, name in SAFE_NAMES.items()}
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


def or_null(kind: Kind) -> Kind:
    """Return the kind of what is null or of `kind`."""
    inside = None if kind.each is None else Kind(kind.expected, kind.each.fits)

    def fits(value: Any) -> bool:
        return value is None or (kind.fits(value) and (inside is None or all(map(inside.fits, value))))

    each = "" if kind.each is None else f", each {kind.each.expected}"
    return Kind(f"{kind.expected}{each}, or null", fits)


def _is_reference(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(key in value for key in ("tensor", "shape", "dtype"))
        and (value["tensor"] is None or isinstance(value["tensor"], str))
        and isinstance(value["shape"], list)
        and len(value["shape"]) <= 4
        and all(map(COUNT.fits, value["shape"]))
        and isinstance(value["dtype"], str)
        and value["dtype"] in DTYPES
    )


def _is_softcap(value: Any) -> bool:
    return number(0, MAX_FACTOR).fits(value) and value > 0


def _is_mask(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    layers = value[0] if isinstance(value[0], list) else [] if value[0] is None else [None]
    return all(isinstance(layer, str) or COUNT.fits(layer) for layer in layers) and _is_reference(value[1])


def _are_positions(value: Any) -> bool:
    """Return whether these are the fields of Positions, its stretches ascending in columns and in positions."""
    if not isinstance(value, dict) or value.keys() != {"first", "keys", "one_text", "unknown"}:
        return False
    keys, start = value["keys"], (0, 0)
    if not isinstance(keys, list) or not isinstance(value["one_text"], bool) or not isinstance(value["unknown"], str):
        return False
    for one in keys:
        if not isinstance(one, dict) or one.keys() != {"column", "position", "length"}:
            return False
        place = one["column"], one["position"]
        if not all(map(COUNT.fits, one.values())) or place[0] < start[0] or place[1] < start[1]:
            return False
        start = place[0] + one["length"], place[1] + one["length"]
    return POSITION.fits(value["first"])


REFERENCES = mapping_to(Kind("an object with the name of a tensor or null, its shape and its dtype", _is_reference))
RECORDING = {
    "names": list_of(TEXT),
    "masks": list_of(Kind("null or a list of layers, and a tensor, in a list", _is_mask)),
    "words": or_null(list_of(TEXT)),
    "skipped": list_of(COUNT),
    "missed": list_of(OBJECT),
    "ran": list_of(TEXT),
    "outside": COUNT,
    "notes": list_of(TEXT),
    "n_forwards": COUNT,
    "rules": list_of(OBJECT),
    "calls": list_of(OBJECT),
}
MISSED = {  # what ran and was not seen
    "name": TEXT,
    "reason": TEXT,
    "kind": TEXT,
    "times": COUNT,
    "forwards": list_of(COUNT),
    "calls": list_of(COUNT),
}
OFFSET = or_null(POSITION)
RULE = {"reach": OFFSET, "since": OFFSET, "tables": REFERENCES}
NUMBERS = {  # the fields of a Call that are no tensors
    "scale": number(-MAX_FACTOR, MAX_FACTOR),
    "heads": list_of(COUNT),
    "kv_of": list_of(COUNT),
    "n_heads": COUNT,
    "n_kv_heads": COUNT,
    "dropout": number(0, 1),
    "softcap": or_null(Kind(f"a number above 0 and up to {MAX_FACTOR:g}", _is_softcap)),
    "n_asked": or_null(COUNT),
    "forward": COUNT,
}
LOCATED = or_null(Kind("an object with the positions of a call's queries and keys, ascending", _are_positions))
CALL = {"layer": COUNT, "rule": COUNT, "tensors": REFERENCES, "located": LOCATED, **NUMBERS}

# The dtypes and the number of axes of each tensor.
RULE_TENSORS = {
    "allowed": ((torch.bool,), 4),
    "bias": (FLOATS, 4),
    "keys": (INTEGERS, 2),
    "spans": (INTEGERS, 4),
    "packed": ((torch.uint8,), 4),
    "rows": (INTEGERS, 1),
}
CALL_TENSORS = {
    **dict.fromkeys(("q", "k", "v", "out", "gradient", "weights"), (FLOATS, 4)),
    **dict.fromkeys(("lse", "sinks"), (FLOATS, 3)),
}
MASK_TENSORS = {"mask": ((torch.bool,), 2)}  # (batch, positions), True where a token is no padding
Axes = Mapping[str, tuple[tuple[torch.dtype, ...], int]]


def read_header(text: str) -> dict[str, Any]:
    """Return what a header says; WatchError where it is no JSON object or a field has another type than it is due."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WatchError(f"its header cannot be read: {error}") from error
    require(header, RECORDING, "")
    for part, kinds in (("missed", MISSED), ("rules", RULE), ("calls", CALL)):
        for i, item in enumerate(header[part]):
            require(item, kinds, f"{part}[{i}].")
    for i, call in enumerate(header["calls"]):
        for field, there in (("layer", len(header["names"])), ("rule", len(header["rules"]))):
            whole(0, there - 1).check(f"calls[{i}].{field}", call[field], WatchError)
    return header


def require(said: Any, kinds: Mapping[str, Kind], where: str) -> None:
    """Raise WatchError unless `said` is an object that holds each of these fields."""
    OBJECT.check(where.rstrip(".") or "the header", said, WatchError)
    for field, kind in kinds.items():
        if field not in said:
            raise WatchError(f"{where}{field}: expected {kind.expected}, and it is missing")
        kind.check(f"{where}{field}", said[field], WatchError)


def read_tensors(
    references: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor], axes: Axes, where: str
) -> dict[str, Tensor]:
    """Return the tensors that some fields refer to.

    Args:
        references: By field: the name of a tensor, of which the field is the beginning along every axis, and its shape.
        tensors: Those of the file.
        axes: The dtypes and the number of axes of every field that there may be.
        where: What messages begin with.
    """
    found = {}
    for field, about in references.items():
        if field not in axes:
            raise WatchError(f"{where}{field}: no such tensor is known here{nearest(field, list(axes))}")
        name, shape = about["tensor"], about["shape"]
        if name is None:
            if 0 not in shape:
                raise WatchError(f"{where}{field}: expected a tensor's name for shape {shape}, got null")
            table = torch.zeros(shape, dtype=DTYPES[about["dtype"]])
        elif name not in tensors:
            raise WatchError(f"{where}{field}: expected the name of a tensor of this file, got {shown(name)}")
        else:
            table = tensors[name]
            if table.ndim != len(shape) or any(have < want for have, want in zip(table.shape, shape)):
                raise WatchError(f"{where}{field}: expected shape {shape}, got tensor {name!r} of {list(table.shape)}")
            table = table[tuple(slice(0, size) for size in shape)]
        dtypes, n_axes = axes[field]
        if table.dtype not in dtypes or table.ndim != n_axes:
            kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            got = f"{str(table.dtype).removeprefix('torch.')} of {table.ndim}"
            raise WatchError(f"{where}{field}: expected {kinds} of {n_axes} axes, got {got}")
        found[field] = table
    return found


def require_one_call(
    call: Mapping[str, Any], tensors: Mapping[str, Tensor], rule: Mapping[str, Tensor], where: str
) -> None:
    """Raise WatchError where the numbers and tensors of a call contradict each other: some answer would be wrong.

    Args:
        call: The fields of the call that are no tensors.
        tensors: Those that are.
        rule: The tensors of its rule.
        where: What messages begin with.
    """
    for field in ("q", "k"):
        if field not in tensors:
            raise WatchError(f"{where}{field}: expected the tensor, and it is missing")
    batch, n_kept, n_rows, d_head = tensors["q"].shape
    n_kv, n_keys = tensors["k"].shape[1:3]
    heads, kv_of = call["heads"], call["kv_of"]
    if len(heads) != n_kept or len(kv_of) != n_kept or heads != sorted(set(heads)) or not n_kept:
        raise WatchError(f"{where}heads: expected {n_kept} ascending numbers and as many kv_of, got {heads}, {kv_of}")
    if heads[-1] >= call["n_heads"] or max(kv_of) >= n_kv or call["n_kv_heads"] < 1:
        of = f"n_heads {call['n_heads']}, n_kv_heads {call['n_kv_heads']}, {n_kv} rows of k"
        raise WatchError(f"{where}heads: expected heads and kv_of of {of}, got {shown(heads)} and {shown(kv_of)}")
    n_asked = n_rows if call["n_asked"] is None else call["n_asked"]
    _require_rows(rule.get("rows"), n_rows, n_asked, where)
    if (located := call["located"]) is not None and located["keys"]:
        last = located["keys"][-1]
        if last["column"] + last["length"] > n_keys:
            raise WatchError(f"{where}located: expected places of {n_keys} keys, got {shown(last)}")
    values = n_kept if "v" in tensors and tensors["v"].shape[1] == n_kept else n_kv
    shapes = {
        "k": (exactly(batch), exactly(n_kv), exactly(n_keys), exactly(d_head)),
        "lse": (exactly(batch), exactly(n_kept), exactly(n_rows)),
        "out": (exactly(batch), exactly(n_kept), exactly(n_rows), ANY),
        "gradient": (exactly(batch), exactly(n_kept), exactly(n_rows), ANY),
        "weights": (exactly(batch), exactly(n_kept), exactly(n_rows), exactly(n_keys)),
        "sinks": (one_or(batch), exactly(n_kept), one_or(n_rows)),
        "v": (exactly(batch), exactly(values), exactly(n_keys), ANY),
    }
    table = (one_or(batch), one_or(call["n_heads"]), one_or(n_rows))  # all heads of the call, not those that are kept
    of_rule = {
        "keys": (one_or(batch), exactly(2)),
        "spans": (*table, exactly(2)),
        "allowed": (*table, one_or(n_keys)),
        "bias": (*table, one_or(n_keys)),
        "packed": (*table, one_or(-(-n_keys // 8))),
    }
    for field, tensor in tensors.items():
        if field in shapes:
            _require_shape(f"{where}{field}", tensor, shapes[field])
    for field, tensor in rule.items():
        if field in of_rule:
            _require_shape(f"{where}rule.{field}", tensor, of_rule[field])


Axis = tuple[int, int, bool]  # how long it is at least and at most, and whether it may be 1 long and stand for all
ANY: Axis = (0, MAX_SIZE, False)


def exactly(size: int) -> Axis:
    """Return an axis of this length."""
    return size, size, False


def one_or(size: int) -> Axis:
    """Return an axis of this length, or of length 1."""
    return size, size, True


def _require_shape(field: str, tensor: Tensor, axes: tuple[Axis, ...]) -> None:
    """Raise WatchError for a tensor that has not these axes."""
    if all(low <= size <= high or (one and size == 1) for size, (low, high, one) in zip(tensor.shape, axes)):
        return
    sizes = (f"{low}" if low == high else "any" if not low else f"at least {low}" for low, high, _ in axes)
    ones = (" or 1" * one for _, _, one in axes)
    expected = ", ".join(size + one for size, one in zip(sizes, ones))
    raise WatchError(f"{field}: expected axes of {expected}, got {list(tensor.shape)}")


def _require_rows(rows: Tensor | None, n_rows: int, n_asked: int, where: str) -> None:
    """Raise WatchError unless `rows` names the `n_rows` queries that are kept of `n_asked`."""
    if rows is None:
        if n_rows != n_asked:
            raise WatchError(f"{where}n_asked: expected {n_rows}, the rows of q, as no rows are named, got {n_asked}")
        return
    ascending = len(rows) == n_rows and bool((rows.diff() > 0).all())
    if not ascending or (n_rows and not (int(rows[0]) >= 0 and int(rows[-1]) < n_asked)):
        raise WatchError(
            f"{where}rule.rows: expected {n_rows} ascending numbers below {n_asked}, got {len(rows)} others"
        )
