"""A recording as a file, and back: tensors by number, everything else as JSON in the header.

One file, so that it can be sent; safetensors, so that anybody can read it without us; mapped into memory, so that a
recording larger than memory opens at once and a tile reads what it needs. The format has a version, which goes up when
an older reader would misunderstand a file. Keys that calls share are written once.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import InputError, WatchError, counted
from clearhead.seeing.call import Call
from clearhead.seeing.positions import Positions, Stretch
from clearhead.seeing.recordings.account import Missed
from clearhead.seeing.recordings.memory import NoRoom
from clearhead.seeing.recordings.recording import Recording
from clearhead.seeing.recordings.store import SAFE_NAMES, File, opened
from clearhead.seeing.rule import Rule

FORMAT, VERSION = "clearhead recording", 2
NUMBERS = ("scale", "heads", "kv_of", "n_heads", "n_kv_heads", "dropout", "softcap", "n_asked", "forward")


def save(recording: Recording, path: Path, words: Sequence[str] | None) -> None:
    """Write a recording to `path`, through a file of another name: at no time there is half a recording there."""
    recording.settle()
    calls = [call for calls in recording.calls.values() for call in calls]
    if not calls:
        recording.layers  # noqa: B018 (raises, and says why there is nothing)
    if words is not None:
        _require_words(words, list(recording.calls.values()))
    n_tensors = sum(len(call.tensors) + len(call.rule.tables) for call in calls)
    finish(recording, File(path, header=4096 + 200 * n_tensors + 400 * len(calls)), words)


def _require_words(words: Sequence[str], layers: Sequence[Sequence[Call]]) -> None:
    """Raise WatchError where these cannot be the words of a text that was read: as many as some call had positions.

    Or as many as all calls of a layer together, which may have read one text step by step and forgotten its beginning.
    """
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise InputError(f"words= expects one string for each position of the text, in a list, got {words!r}")
    calls = [call for layer in layers for call in layer]
    read = {sum(call.n_all for call in layer) for layer in layers}
    read |= {n for call in calls for n in (call.n_all, call.n_keys, call.rule.visible(call.n_all, call.n_keys))}
    if len(words) not in read:
        longest = max(call.rule.visible(call.n_all, call.n_keys) for call in calls)
        raise WatchError(
            f"{counted(len(words), 'word')} for a recording of {longest} positions: give one for each, as the model "
            f"read them (of a text it wrote, all but the last)"
        )


def finish(recording: Recording, file: File, words: Sequence[str] | None = None) -> None:
    """Write to `file` what of a recording is not there yet, and close it; where that fails no file is left."""
    try:
        said = _say(recording, Writer(file), words)
        text = json.dumps(said)
        check = str(zlib.crc32(text.encode()))
        file.write({"format": FORMAT, "version": str(VERSION), "recording": text, "check": check})
    except NoRoom as error:
        file.drop()
        raise WatchError(f"the recording does not fit on the disk: {error}") from error
    except BaseException:
        file.drop()
        raise


def _say(recording: Recording, writer: "Writer", words: Sequence[str] | None) -> dict[str, Any]:
    """Return all of a recording but its tensors, which are written."""
    calls = [(layer, call) for layer, calls in sorted(recording.calls.items()) for call in calls]
    # Calls may share keys, each seeing a part of them: the largest first, of which the others are the beginning.
    every = [tensor for _, call in calls for tensor in call.tensors.values()]
    for tensor in sorted(every, key=Tensor.numel, reverse=True):
        writer.refer(tensor)
    rules: dict[int, int] = {}
    said_rules, said_calls = [], []
    for layer, call in calls:
        if id(call.rule) not in rules:
            rules[id(call.rule)] = len(rules)
            tables = {name: writer.refer(table) for name, table in call.rule.tables.items()}
            said_rules.append({"reach": call.rule.reach, "since": call.rule.since, "tables": tables})
        numbers = {name: getattr(call, name) for name in NUMBERS}
        tensors = {name: writer.refer(tensor) for name, tensor in call.tensors.items()}
        numbers["located"] = None if call.located is None else asdict(call.located)
        said_calls.append({"layer": layer, "rule": rules[id(call.rule)], "tensors": tensors, **numbers})
    return {
        "names": recording.names,
        "masks": [[layers, writer.refer(mask)] for layers, mask in recording.masks],
        "words": recording.words if words is None else list(words),
        "skipped": sorted(recording.skipped),
        "missed": [
            {"name": name, "reason": reason, **asdict(entry), "calls": sorted(entry.calls)}
            for (name, reason), entry in recording.account.missed.items()
        ],
        "ran": list(recording.account.ran),
        "outside": recording.account.outside,
        "notes": recording.notes,
        "n_forwards": recording.n_forwards,
        "rules": said_rules,
        "calls": said_calls,
    }


class Writer:
    """Puts tensors into a file once each, and says in JSON where they are."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.names: dict[tuple[Any, ...], str] = {}
        for address, entry in file.entries.items():
            strides = torch.empty(entry.shape, device="meta").stride()
            self.names["cpu", address, entry.dtype, strides] = entry.name
        self.kept: list[Tensor] = []  # an address means a tensor only while that lives

    def refer(self, tensor: Tensor) -> dict[str, Any]:
        """Return where a tensor is and its shape, which may be a part of what is there; see to it that it is there."""
        there, place = None, (str(tensor.device), tensor.data_ptr(), tensor.dtype, tensor.stride())
        if tensor.numel():
            if place not in self.names:
                copy = self.file.bring(tensor.detach(), tensor.dtype)
                self.names[place] = self.file.entries[copy.data_ptr()].name
                self.kept.append(tensor)
            there = self.names[place]
        return {"tensor": there, "shape": list(tensor.shape), "dtype": SAFE_NAMES[tensor.dtype]}


def open_recording(path: str | Path, *, verify: bool = False) -> Recording:
    """Open a recording that `Recording.save` or `watch(to=path)` wrote; numbers are read from the disk when needed.

    Raises WatchError with the reason where the file is no recording, was cut short or damaged, or is of a newer
    version. Damage within the numbers is looked for only with `verify`, which reads the whole file once.
    """
    path = Path(path)
    metadata, tensors = opened(path, verify)
    if metadata.get("format") != FORMAT:
        raise WatchError(f"{path} is a safetensors file but no recording: expected one that seen.save(path) wrote")
    version = metadata.get("version", "")
    if not version.isdigit() or int(version) > VERSION:
        raise WatchError(
            f"{path} has version {version or 'none'} of the format, this clearhead reads up to {VERSION}: update it, "
            f"or save the recording with an older one"
        )
    if int(version) < VERSION:
        raise WatchError(f"{path} has version {version} of the format, from before {VERSION}: record it again")
    text = metadata.get("recording", "")
    if str(zlib.crc32(text.encode())) != metadata.get("check"):
        raise WatchError(f"{path} is damaged: what its header says is not what was written. Get the file again")
    try:
        return _read(json.loads(text), tensors)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise WatchError(f"{path} is damaged: {type(error).__name__}: {error}. Get the file again") from error


def _read(said: dict[str, Any], tensors: dict[str, Tensor]) -> Recording:
    recording = Recording()
    recording.names, recording.words, recording.notes = said["names"], said["words"], said["notes"]
    recording.skipped = set(said["skipped"])
    recording.account.outside = said["outside"]
    recording.account.ran = {name: place for place, name in enumerate(said["ran"])}
    for one in said["missed"]:
        entry = Missed(one["kind"], one["times"], one["forwards"], set(one["calls"]))
        recording.account.missed[one["name"], one["reason"]] = entry
    recording.n_forwards = said["n_forwards"]
    for layers, about in said.get("masks", []):
        recording.masks.append((None if layers is None else tuple(layers), _table(about, tensors)))
    rules = [
        Rule(reach=one["reach"], since=one["since"], **_tables(one["tables"], tensors, Rule)) for one in said["rules"]
    ]
    for one in said["calls"]:
        numbers = {name: one[name] for name in NUMBERS}
        numbers |= {name: tuple(numbers[name]) for name in ("heads", "kv_of")}
        if (located := one.get("located")) is not None:
            keys = tuple(Stretch(**stretch) for stretch in located.pop("keys"))
            numbers["located"] = Positions(**located, keys=keys)
        call = Call(rule=rules[one["rule"]], **{"lse": None} | _tables(one["tensors"], tensors, Call), **numbers)
        _check(call)
        recording.calls.setdefault(range(len(recording.names))[one["layer"]], []).append(call)
    return recording


def _tables(said: dict[str, dict[str, Any]], tensors: dict[str, Tensor], owner: type) -> dict[str, Any]:
    """Return tensors by the name of their field."""
    unknown = said.keys() - {field.name for field in fields(owner)}
    if unknown:
        raise ValueError(f"it holds {', '.join(sorted(unknown))}, of which nothing is known here")
    return {name: _table(about, tensors) for name, about in said.items()}


def _table(about: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """Return one tensor, which may be the beginning of what is there."""
    shape = about["shape"]
    if about["tensor"] is None:
        kinds = {name: dtype for dtype, name in SAFE_NAMES.items()}
        return torch.zeros(shape, dtype=kinds[about["dtype"]])
    table = tensors[about["tensor"]]
    if table.ndim != len(shape) or any(have < want for have, want in zip(table.shape, shape)):
        raise ValueError(f"tensor {about['tensor']} has shape {list(table.shape)}, expected {shape}")
    return table[tuple(slice(0, size) for size in shape)]


def _check(call: Call) -> None:
    """Raise ValueError where the numbers of a call do not fit each other: every answer would be wrong, or none."""
    q, k = call.q.shape, call.k.shape
    fits = len(q) == len(k) == 4 and q[0] == k[0] and q[3] == k[3] and q[1] == len(call.heads) == len(call.kv_of)
    if not fits or (call.lse is not None and call.lse.shape != q[:3]):
        raise ValueError(f"queries {list(q)}, keys {list(k)} and {len(call.heads)} heads are not of one call")
    if any(not 0 <= row < k[1] for row in call.kv_of) or any(not 0 <= head < call.n_heads for head in call.heads):
        raise ValueError(f"heads {call.heads} of {call.n_heads} and keys {call.kv_of} of {k[1]} are not of one call")
    rule, capped = call.rule, 1.0 if call.softcap is None else call.softcap
    numbers = (call.scale, call.dropout, call.forward, call.n_all, rule.reach or 0, rule.since or 0, capped)
    if not all(isinstance(number, int | float) for number in numbers) or not capped > 0:
        raise ValueError(f"{numbers} are not all numbers, the last above 0")
    rows = call.n_all if rule.rows is None else len(rule.rows)
    tables = [t for t in (rule.spans, rule.allowed, rule.packed, rule.bias) if t is not None]
    if rows != q[2] or call.n_all < rows or any(table.ndim != 4 or table.shape[2] not in (1, rows) for table in tables):
        raise ValueError(f"{rows} rows are named or ruled, of {call.n_all}, and {q[2]} are there")
    if call.weights is not None and call.weights.shape != (*q[:3], k[2]):
        raise ValueError(f"weights {list(call.weights.shape)} are not those of {q[2]} queries and {k[2]} keys")
    if call.v is not None and (call.v.ndim != 4 or (call.v.shape[0], call.v.shape[2]) != (k[0], k[2])):
        raise ValueError(f"values {list(call.v.shape)} and keys {list(k)} are not of one call")
