"""Edits as plain values, as a page sends them and an address holds them, applied to a model that runs.

{"off": {"layer": 2, "head": 0}}                              the head gives nothing; without head, the layer
{"cut": {"layer": 2, "head": 0, "query": 6, "key": 3}}        one link; head or layer null means all of them
{"hide": {"token": 3, "axis": 0}}                             hidden from all other positions, in all heads
    {"temperature": {"layer": 2, "head": 0, "factor": 0.5}}       scores are divided by the factor before the softmax
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from clearhead.errors import InputError
from clearhead.models.encoder_decoder import EncoderDecoder
from clearhead.seeing import edit
from clearhead.seeing.editing.editor import Edits

MAX_EDITS = 200
MAX_FACTOR = 1_000
MAX_POSITION = 2**31 - 1
FIELDS: dict[str, tuple[str, ...]] = {
    "off": ("layer", "head"),
    "cut": ("layer", "head", "query", "key"),
    "hide": ("token", "axis"),
    "temperature": ("layer", "head", "factor"),
}
NEEDED = {"off": ("layer",), "cut": ("query", "key"), "hide": ("token",), "temperature": ("factor",)}
NOTE = (
    "Maps show the weights that queries and keys make. An edit acts on what its layer gives, so it moves the maps of "
    "later layers, not of its own."
)


def checked(edits: Any) -> list[dict[str, dict[str, Any]]]:
    """Return edits with only the fields that they may have; InputError for anything else."""
    if not isinstance(edits, Sequence) or isinstance(edits, str) or len(edits) > MAX_EDITS:
        raise InputError(f"edits expects a list of at most {MAX_EDITS} edits")
    found = []
    for one in edits:
        if not isinstance(one, Mapping) or len(one) != 1:
            raise InputError(f"an edit is an object with one of {', '.join(FIELDS)}, got {repr(one)[:80]}")
        kind, given = next(iter(one.items()))
        if kind not in FIELDS or not isinstance(given, Mapping):
            raise InputError(f"an edit is an object with one of {', '.join(FIELDS)}, got {repr(one)[:80]}")
        found.append({str(kind): _fields(str(kind), given)})
    return found


def _fields(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of one edit; those that are null are left out."""
    if unknown := [name for name in given if name not in FIELDS[kind]]:
        raise InputError(f"{kind} has no {str(unknown[0])[:40]!r}, only {', '.join(FIELDS[kind])}")
    fields = {name: value for name, value in given.items() if value is not None}
    if missing := [name for name in NEEDED[kind] if name not in fields]:
        raise InputError(f"{kind} needs {missing[0]}")
    for name, value in fields.items():
        if name == "factor":
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_FACTOR:
                raise InputError(
                    f"factor of {kind} expects a number above 0 up to {MAX_FACTOR:,}, got {repr(value)[:40]}"
                )
        elif not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_POSITION:
            raise InputError(f"{name} of {kind} expects a whole number from 0, got {repr(value)[:40]}")
    return fields


@contextlib.contextmanager
def editing(model: nn.Module, edits: Sequence[Mapping[str, Mapping[str, Any]]]) -> Iterator[None]:
    """Run the body with edits in force; without any, the model is left alone.

    Raises:
        WatchError: A layer, a head or a position is not there, or cannot be edited.
    """
    if not edits:
        yield
        return
    with edit(model) as change:
        for one in edits:
            for kind, fields in one.items():
                _apply(change, kind, fields, model)
        yield


def _apply(change: Edits, kind: str, fields: Mapping[str, Any], model: nn.Module) -> None:
    """Ask for one edit."""
    if kind == "off":
        change.switch_off(fields["layer"], fields.get("head"))
    elif kind == "cut":
        change.cut(fields.get("layer"), fields.get("head"), fields["query"], fields["key"])
    elif kind == "temperature":
        change.temperature(fields.get("layer"), fields.get("head"), fields["factor"])
    else:
        _hide(change, fields["token"], fields.get("axis", 0), model)


def _hide(change: Edits, token: int, axis: int, model: nn.Module) -> None:
    """Cut the links to a token from all positions but its own, in all layers whose keys are of its text."""
    if not isinstance(model, EncoderDecoder):
        change.hide(None, token)
    elif axis == 0:
        change.hide("encoder.*", token)
        change.cut("*cross_attention", None, None, token)
    else:
        change.hide("decoder.blocks.*.attention", token)
