"""How things are described before they are built: frozen dataclasses, which refuse what cannot be meant.

A model's config stands above its class; `check_numbers` is what all of them begin their checks with, and what is
published of one is read by `checkpoints/family.py`. A training run's is a TOML recipe: `build_config` refuses a key it
does not know and names the nearest one, because a misspelt key that is ignored trains the wrong model for hours.
"""

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from clearhead.errors import ConfigError, nearest

T = TypeVar("T")


def check_numbers(config: object, positive: Iterable[str], shares: Iterable[str]) -> None:
    """Raise ConfigError unless fields named `positive` are above 0 and `shares` in [0, 1); None is left to defaults."""
    name = type(config).__name__
    given = {field: value for field in positive if (value := getattr(config, field)) is not None}
    if wrong := [f"{field} {value}" for field, value in given.items() if value <= 0]:
        raise ConfigError(f"{name}: expected positive numbers, got {', '.join(wrong)}")
    for field in shares:
        if not 0 <= (share := getattr(config, field) or 0.0) < 1:
            raise ConfigError(f"{name}: {field} must be in [0, 1), got {share}")


def build_config(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """Build the dataclass `cls` from `values`, recursing into fields that are dataclasses themselves.

    `where` names the source in messages, e.g. "recipes/sentiment.toml". Lists become tuples, ints become floats
    where a float is declared. Raises ConfigError on an unknown key, a missing one, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, list(fields))}")
    built = {key: _coerce(value, hints[key], where=f"{where}: {key}") for key, value in values.items()}
    missing = [
        name
        for name, field in fields.items()
        if name not in built and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(map(repr, missing))}, which {cls.__name__} needs")
    return cls(**built)


def _coerce(value: Any, hint: Any, *, where: str) -> Any:
    """Return `value` as the type `hint` asks for, or raise ConfigError."""
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return build_config(typing.cast(type, hint), value, where=where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kind = next(one for one in arguments if one is not type(None))  # of `X | None`
        return None if value is None else _coerce(value, kind, where=where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {value!r}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = arguments[0] if arguments[-1] is Ellipsis else None
        kinds = [inner] * len(value) if inner is not None else list(arguments)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(value)}: {value!r}")
        return tuple(_coerce(v, kind, where=f"{where}[{i}]") for i, (v, kind) in enumerate(zip(value, kinds)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {_name(hint)}, got {value!r} ({type(value).__name__})")


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
