"""What was typed wrongly, in one sentence: an unknown command or option, a value that is none, one word too many.

tyro reads the command line and writes its help from the functions in `commands.py`. It also explains mistakes, in a
frame and with all that it tried; so the common ones are found here first, from the same functions. What passes here
and fails there is explained by tyro.
"""

import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from clearhead.cli.output import refuse
from clearhead.errors import nearest

HELP = ("-h", "--help")
OF_ALL = ("--help", "--version", "--debug")
KINDS = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Option:
    """What may follow an option: how many values, of which type, out of which choices."""

    type: Any
    many: bool

    @classmethod
    def of(cls, hint: Any) -> "Option":
        """Read it from a type hint: bool, tuple[X, ...], X or X | None."""
        if get_origin(hint) is tuple:
            return cls(get_args(hint)[0], many=True)
        if get_origin(hint) in (Union, types.UnionType):
            hint = next(one for one in get_args(hint) if one is not type(None))
        return cls(hint, many=False)

    def check(self, name: str, value: str) -> str | None:
        """Return what is wrong with a value, or None."""
        if get_origin(self.type) is Literal and value not in get_args(self.type):
            return f"{name} is {' or '.join(get_args(self.type))}, got {value!r}"
        if self.type in KINDS:
            try:
                self.type(value)
            except ValueError:
                return f"{name} takes {KINDS[self.type]}, got {value!r}"
        return None


def check(argv: Sequence[str], verbs: Mapping[str, Callable[..., None]]) -> None:
    """Leave with exit code 2 and one sentence where `argv` holds a mistake that can be named."""
    verb = argv[0]
    if verb in HELP:
        return
    if verb.startswith("-"):
        refuse(f"clearhead has no option {verb}{nearest(verb, OF_ALL)} (see clearhead --help)")
    if verb not in verbs:
        refuse(f"there is no command {verb!r}{nearest(verb, list(verbs))} (see clearhead --help)")
    before = list(argv[1 : argv.index("--")] if "--" in argv else argv[1:])
    if any(token in HELP for token in before):
        return
    wrong = mistake(verb, list(argv[1:]), verbs[verb])
    if wrong is not None:
        refuse(f"{wrong} (see clearhead {verb} --help)")


def mistake(verb: str, tokens: list[str], function: Callable[..., None]) -> str | None:
    """Return what is wrong with what follows a verb, or None."""
    options = dict(options_of(function))
    given: list[str] = []
    while tokens:
        token = tokens.pop(0)
        if token == "--":
            given += tokens
            break
        if not is_option(token):
            given.append(token)
            continue
        name, equals, value = token.partition("=")
        option = options.get(name.replace("_", "-"))
        if option is None:
            hint = nearest(name, list(options)) if name.startswith("--") else "; a text may begin with a dash after --"
            return f"{verb} has no option {name}{hint}"
        if option.type is bool:
            continue
        values = [value] if equals else []
        while tokens and not is_option(tokens[0]) and tokens[0] != "--" and (option.many or not values):
            values.append(tokens.pop(0))
        if not values:
            return f"{name} needs a value"
        if found := next(filter(None, (option.check(name, value) for value in values)), None):
            return found
    return too_few_or_many(verb, given, function)


def too_few_or_many(verb: str, given: Sequence[str], function: Callable[..., None]) -> str | None:
    """Return what is wrong with the number of arguments that are no options, or None."""
    hints = get_type_hints(function)
    places = [one for one in inspect.signature(function).parameters.values() if one.kind is one.POSITIONAL_ONLY]
    single = [one.name.upper() for one in places if not Option.of(hints[one.name]).many]
    if len(given) < len(single):
        return f"{verb} needs a {single[len(given)]}"
    if len(given) > len(single) == len(places):
        takes = f"one {' and one '.join(single)}" if single else "options alone"
        return f"{verb} takes {takes}, and {given[len(single)]!r} is one too many"
    return None


def options_of(function: Callable[..., None]) -> Iterator[tuple[str, Option]]:
    """Yield the options of a command by name; those that a dataclass holds together are listed one by one."""
    hints = get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint):
            inside = get_type_hints(hint)
            yield from ((dashed(one.name), Option.of(inside[one.name])) for one in fields(hint))
        elif parameter.kind is not parameter.POSITIONAL_ONLY:
            yield dashed(parameter.name), Option.of(hint)


def dashed(name: str) -> str:
    """Return the option for a parameter: --top-k for top_k."""
    return "--" + name.replace("_", "-")


def is_option(token: str) -> bool:
    """Return whether a token asks for an option; - is standard input, and -1 a number."""
    return token.startswith("-") and token != "-" and not token[1:2].isdigit() and token[1:2] != "."
