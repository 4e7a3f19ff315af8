"""What was given, as what was expected: whole numbers, positions, shares, or an error that says what came instead.

Torch would cut 1.5 to 1, count True as 1 and read a mask as positions 0 and 1, and answer for something else than was
asked. Whether a position is there, the callers know.
"""

import operator
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import InputError


def whole(given: Any, what: str) -> int:
    """Return a whole number, numpy's and torch's among them; InputError for anything else."""
    if not isinstance(given, bool) and getattr(given, "dtype", None) != torch.bool and not getattr(given, "ndim", 0):
        try:
            return operator.index(given)
        except TypeError:
            pass
    raise InputError(f"{what}= expects a whole number, got {given!r}")


def several(given: Any, what: str) -> list[int]:
    """Return a list of whole numbers, or a tensor of them; InputError for anything else."""
    if isinstance(given, Tensor) and given.ndim == 1 and not given.is_floating_point() and given.dtype != torch.bool:
        found: list[int] = given.tolist()
        return found
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [whole(one, what) for one in given]
    raise InputError(f"{what}= expects whole numbers in a list, such as [0, 5], got {given!r}")


def positions(given: Any, what: str) -> slice | list[int]:
    """Return a slice, or a list of positions; None is all of them."""
    if given is None:
        return slice(None)
    if not isinstance(given, slice):
        return several(given, what)
    try:
        range(0)[given]
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}= expects a slice of whole numbers, such as slice(-1000, None): {error}") from error
    return given


def share(given: Any, what: str) -> float:
    """Return a part of a whole, from 0 to 1."""
    if not isinstance(given, int | float) or not 0 <= given <= 1:
        raise InputError(f"{what}= expects a number from 0 to 1, got {given!r}")
    return given


def numbers_of(tokens: Any) -> Tensor:
    """Return the numbers of one text's tokens."""
    if not isinstance(tokens, Tensor) or tokens.ndim != 1:
        what = f"a tensor {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else repr(tokens)
        raise InputError(f"tokens= expects the numbers of one text, a tensor of one axis such as tokens[0], got {what}")
    return tokens


def mask(given: Any) -> Tensor:
    """Return which positions of some texts are tokens, (texts, time), True for a token."""
    if not isinstance(given, Tensor) or given.ndim != 2 or bool(((given != 0) & (given != 1)).any()):
        got = f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
        raise InputError(f"mask= expects a tensor of texts x time, 1 for a token and 0 for padding, got {got}")
    return given.detach() != 0


def means(want: int | str, index: int, name: str) -> bool:
    """Return whether `want`, a number or a pattern of names, means the layer of that number and name."""
    return fnmatchcase(name, want) if isinstance(want, str) else want == index
