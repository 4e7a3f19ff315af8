"""How things are described before they are built: frozen dataclasses, read strictly.

A model's config is one `@dataclass(frozen=True, kw_only=True)` above its class; a training run's is a TOML recipe.
Both come through `build_config`, which refuses a key it does not know and names the nearest one, because a
misspelt key that is ignored trains the wrong model for hours.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from clearhead.errors import ConfigError, nearest

T = TypeVar("T")


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
        return _coerce_union(value, hint, arguments, where=where)
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
    if origin is dict and isinstance(value, Mapping):
        return {k: _coerce(v, arguments[1], where=f"{where}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and value in (True, False) and isinstance(value, bool))
    ):
        return value
    raise ConfigError(f"{where}: expected {_name(hint)}, got {value!r} ({type(value).__name__})")


def _coerce_union(value: Any, hint: Any, members: tuple[Any, ...], *, where: str) -> Any:
    """Try each member of a union in the order it is written; the first that fits wins."""
    if value is None and type(None) in members:
        return None
    kinds = [member for member in members if member is not type(None)]
    if len(kinds) == 1:  # `X | None`: let X's own, more precise message through
        return _coerce(value, kinds[0], where=where)
    for kind in kinds:
        try:
            return _coerce(value, kind, where=where)
        except ConfigError:
            continue
    raise ConfigError(f"{where}: expected {_name(hint)}, got {value!r} ({type(value).__name__})")


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
