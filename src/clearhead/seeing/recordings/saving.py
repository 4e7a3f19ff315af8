"""A recording as a file, and back: tensors by number, everything else as JSON in the header.

One file, so that it can be sent; safetensors, so that anybody can read it without us; mapped into memory, so that a
recording larger than memory opens at once and a tile reads what it needs. The format has a version, which goes up when
an older reader would misunderstand a file. Keys that calls share are written once.
"""

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import InputError, WatchError, counted
from clearhead.seeing.call import Call
from clearhead.seeing.positions import Positions, Stretch
from clearhead.seeing.recordings.account import Missed
from clearhead.seeing.recordings.header import (
    CALL_TENSORS,
    MASK_TENSORS,
    NUMBERS,
    RULE_TENSORS,
    read_header,
    read_tensors,
    require_one_call,
)
from clearhead.seeing.recordings.memory import NoRoom
from clearhead.seeing.recordings.recording import Recording
from clearhead.seeing.recordings.store import SAFE_NAMES, File, opened
from clearhead.seeing.rule import Rule

FORMAT, VERSION = "clearhead recording", 2


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
    if not re.fullmatch("[0-9]{1,9}", version) or int(version) > VERSION:
        raise WatchError(
            f"{path} has version {version[:20] or 'none'} of the format, this clearhead reads up to "
            f"{VERSION}: update it, or save the recording with an older one"
        )
    if int(version) < VERSION:
        raise WatchError(f"{path} has version {version} of the format, from before {VERSION}: record it again")
    text = metadata.get("recording", "")
    if str(zlib.crc32(text.encode())) != metadata.get("check"):
        raise WatchError(f"{path} is damaged: what its header says is not what was written. Get the file again")
    try:
        return _read(read_header(text), tensors)
    except WatchError as error:
        raise WatchError(f"{path} is damaged: {error}. Get the file again") from error


def _read(said: dict[str, Any], tensors: dict[str, Tensor]) -> Recording:
    """Return the recording that a checked header describes."""
    recording = Recording()
    recording.names, recording.words, recording.notes = said["names"], said["words"], said["notes"]
    recording.skipped = set(said["skipped"])
    recording.account.outside = said["outside"]
    recording.account.ran = {name: place for place, name in enumerate(said["ran"])}
    for one in said["missed"]:
        entry = Missed(one["kind"], one["times"], one["forwards"], set(one["calls"]))
        recording.account.missed[one["name"], one["reason"]] = entry
    recording.n_forwards = said["n_forwards"]
    for i, (layers, about) in enumerate(said["masks"]):
        mask = read_tensors({"mask": about}, tensors, MASK_TENSORS, f"masks[{i}].")["mask"]
        recording.masks.append((None if layers is None else tuple(layers), mask))
    tables = [
        read_tensors(one["tables"], tensors, RULE_TENSORS, f"rules[{i}].tables.") for i, one in enumerate(said["rules"])
    ]
    rules: dict[int, Rule] = {}  # made once a call has shown that its tables fit
    for i, one in enumerate(said["calls"]):
        found = read_tensors(one["tensors"], tensors, CALL_TENSORS, f"calls[{i}].tensors.")
        require_one_call(one, found, tables[one["rule"]], f"calls[{i}].")
        numbers: dict[str, Any] = {name: one[name] for name in NUMBERS}
        numbers |= {name: tuple(numbers[name]) for name in ("heads", "kv_of")}
        numbers |= {name: float(one[name]) for name in ("scale", "dropout", "softcap") if one[name] is not None}
        if (located := one["located"]) is not None:
            keys = tuple(Stretch(**stretch) for stretch in located["keys"])
            numbers["located"] = Positions(located["first"], keys, located["one_text"], located["unknown"])
        if (number := one["rule"]) not in rules:
            rule = said["rules"][number]
            rules[number] = Rule(reach=rule["reach"], since=rule["since"], **tables[number])
        call = Call(rule=rules[number], **{"lse": None, **found, **numbers})
        recording.calls.setdefault(one["layer"], []).append(call)
    return recording
