"""What a question is: its name, its parameters with their ranges, and the function that answers it.

One list of these (`questions/__init__.py`) drives everything that checks a question: `Exploration.ask`, the server's
routes and its OpenAPI description, and any other host of the page. Next: `exploration.py`.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from clearhead.errors import InputError, nearest

Kind = Literal["integer", "number", "string", "boolean", "array", "object"]
PYTHON: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
}
WORDS = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a question.

    Attributes:
        kind: Its JSON type.
        says: What it is, for people and for OpenAPI.
        default: What it is where it is not given; `required` where there is no such value.
        low, high: The range of a number, or of the length of a string or an array, both included.
        choices: The strings that it may be, where these are few.
        pattern: A regular expression that the whole of a string matches, as OpenAPI says it.
        nullable: Whether it may be null.
    """

    kind: Kind
    says: str
    default: Any = None
    required: bool = False
    low: int | float | None = None
    high: int | float | None = None
    choices: tuple[str, ...] = ()
    pattern: str = ""
    nullable: bool = False

    def read(self, name: str, text: str) -> Any:
        """Return the value that a text of a query string stands for; InputError where it stands for none."""
        if self.kind == "string":
            return text
        try:
            if self.kind == "integer" and text.lstrip("-").isdecimal() and text.isascii() and len(text) < 20:
                return int(text)
            if self.kind == "number" and len(text) < 40 and not text.startswith("+"):
                return float(text)
            if self.kind == "boolean":
                return WORDS[text]
        except (ValueError, KeyError):
            pass
        raise InputError(f"{name}= expects {self.expected}, got {text[:80]!r}")

    @property
    def expected(self) -> str:
        """Return what is expected, in words."""
        if self.choices:
            return " or ".join(self.choices)
        if self.pattern:
            return f"{self.says}, as {self.pattern} says"
        what = {"integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false"}
        found = what.get(self.kind, f"a JSON {self.kind}")
        measured = self.kind in ("integer", "number")
        if self.low is not None or self.high is not None:
            ends = f"from {self.low:,}" if self.low is not None else ""
            ends += f" up to {self.high:,}" if self.high is not None else ""
            found += f" {ends.strip()}" if measured else f" of length {ends.strip()}"
        return found

    def check(self, name: str, value: Any) -> Any:
        """Return the value; InputError where it is not what is expected."""
        if value is None and (self.nullable or not self.required):
            return None
        kinds = PYTHON[self.kind]
        right = isinstance(value, kinds) and (self.kind == "boolean" or not isinstance(value, bool))
        if right and self.kind == "number":
            right = math.isfinite(value)
        if right and self.kind == "string":
            right = not any("\ud800" <= letter <= "\udfff" for letter in value)
        if right and self.pattern:
            right = re.fullmatch(self.pattern, value) is not None
        if right and self.choices:
            right = value in self.choices
        size = value if self.kind in ("integer", "number") else len(value) if right and self.kind != "boolean" else 0
        if right and self.kind != "boolean":
            right = (self.low is None or size >= self.low) and (self.high is None or size <= self.high)
        if not right:
            raise InputError(f"{name}= expects {self.expected}, got {repr(value)[:80]}")
        return value

    def schema(self) -> dict[str, Any]:
        """Return the parameter as a JSON schema."""
        found: dict[str, Any] = {"type": [self.kind, "null"] if self.nullable else self.kind}
        ends = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}
        low, high = ends.get(self.kind, ("minimum", "maximum"))
        if self.low is not None:
            found[low] = self.low
        if self.high is not None:
            found[high] = self.high
        if self.choices:
            found["enum"] = list(self.choices)
        if self.pattern:
            found["pattern"] = self.pattern
        if self.kind == "array":
            found["items"] = {}
        return found | {"description": self.says}


@dataclass(frozen=True)
class Answer:
    """What a question is answered with: plain values for JSON, and bytes where the answer is numbers."""

    meta: dict[str, Any]
    body: bytes | None = None
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        name: How it is asked.
        says: A sentence: what it asks.
        function: What answers it, given the exploration and the parameters by name.
        parameters: By name.
        method: GET for what is answered at once, POST for what is streamed, PUT for bytes that are given.
        gives: "json", or "bytes" with a small JSON beside them.
        slow: Whether it computes for long, and so takes its turn.
    """

    name: str
    says: str
    function: Callable[..., Any]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    method: Literal["GET", "POST", "PUT"] = "GET"
    gives: Literal["json", "bytes"] = "json"
    slow: bool = False

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, those not given at their defaults; InputError names the first that is wrong."""
        if unknown := [name for name in given if name not in self.parameters]:
            known = list(self.parameters)
            raise InputError(f"{self.name} has no parameter {unknown[0][:80]!r}{nearest(unknown[0], known)}")
        found = {}
        for name, parameter in self.parameters.items():
            if name not in given:
                if parameter.required:
                    raise InputError(f"{self.name} needs {name}=: {parameter.says}")
                found[name] = parameter.default
            else:
                found[name] = parameter.check(name, given[name])
        return found

    def read(self, query: list[tuple[str, str]]) -> dict[str, Any]:
        """Return the parameters that a query string gives, typed but not checked."""
        found: dict[str, Any] = {}
        for name, text in query:
            if name in found:
                raise InputError(f"{name[:80]}= is given twice")
            parameter = self.parameters.get(name)
            found[name] = text if parameter is None else parameter.read(name, text)
        return found
