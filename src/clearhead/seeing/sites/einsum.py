"""Products of queries and keys, and of weights and values, read off the letters of an einsum."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


def product_of(args: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """Return (q, k) as (*lead, time, d) if the einsum multiplied every query with every key."""
    read = _letters(args)
    if read is None:
        return None
    letters, (a, b), result = read
    for (q, q_letters), (k, k_letters) in (((a, letters[0]), (b, letters[1])), ((b, letters[1]), (a, letters[0]))):
        if len(result) < 2 or result[-1] in q_letters or result[-2] in k_letters:
            continue
        summed = [c for c in q_letters if c in k_letters and c not in result]
        lead = result[:-2]
        wanted = ([*lead, result[-2], *summed], [*lead, result[-1], *summed])
        if not summed or any(set(has) - set(want) for has, want in zip((q_letters, k_letters), wanted)):
            continue
        return _laid_out(q, q_letters, wanted[0], len(lead) + 1), _laid_out(k, k_letters, wanted[1], len(lead) + 1)
    return None


def values_of(
    args: Sequence[Any], is_weights: Callable[[Tensor], bool], turned: bool = False
) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None:
    """Return values as (*lead, time, d), how an output is laid out like that, and how it goes back into its layout.

    None where the einsum did not sum over the last axis of the weights alone; of `turned` weights, the last but one.
    """
    read = _letters(args)
    if read is None:
        return None
    letters, (a, b), result = read
    which = 0 if is_weights(a) else 1
    v, w_letters, v_letters = (b, a)[which], letters[which], letters[1 - which]
    own = [c for c in v_letters if c not in w_letters]
    lead, i, j = w_letters[:-2], w_letters[-2], w_letters[-1]
    i, j = (j, i) if turned else (i, j)
    if j not in v_letters or j in result or i in v_letters or len(own) != 1 or set(result) != {*lead, i, *own}:
        return None
    order = [result.index(c) for c in (*lead, i, *own)]
    back = [order.index(axis) for axis in range(len(order))]
    v = _laid_out(v, v_letters, [*lead, j, *own], len(lead) + 1)
    return v, lambda x: x.permute(order), lambda x: x.permute(back)


def mixes(args: Sequence[Any], is_weights: Callable[[Tensor], bool]) -> bool:
    """Say whether the einsum kept both of the last two axes of the weights, and so made other weights of them."""
    read = _letters(args)
    return read is not None and set(read[0][0 if is_weights(read[1][0]) else 1][-2:]) <= set(read[2])


def _letters(args: Sequence[Any]) -> tuple[tuple[str, str], tuple[Tensor, Tensor], str] | None:
    """Return the letters of both operands, the operands, and the letters of the result."""
    operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
    if len(operands) != 2 or not isinstance(args[0], str):
        return None
    sides, arrow, result = args[0].replace(" ", "").partition("->")
    if not arrow:  # what one side alone has, in the order of the alphabet
        once = sorted(c for c in sides if c.isalpha() and sides.count(c) == 1)
        result = "".join(["..." if "..." in sides else "", *once])
    letters = sides.split(",")
    if "..." in args[0]:  # the same axes on both sides, or this is nothing for us
        free = [c for c in "ABCDEFGHIJ" if c not in args[0]]
        hidden = {x.ndim - len(s) + 3 for s, x in zip(letters, operands) if "..." in s}
        if len(hidden) != 1:
            return None
        dots = "".join(free[: hidden.pop()])
        letters, result = [s.replace("...", dots) for s in letters], result.replace("...", dots)
    if len(letters) != 2 or any(len(set(s)) != len(s) for s in (*letters, result)):
        return None
    return (letters[0], letters[1]), (operands[0], operands[1]), result


def _laid_out(x: Tensor, letters: str, wanted: Sequence[str], keep: int) -> Tensor:
    """Return `x` with its axes as `wanted`, absent ones one long, those from `keep` on joined."""
    x = x.permute([letters.index(c) for c in wanted if c in letters])
    for axis, c in enumerate(wanted):
        if c not in letters:
            x = x.unsqueeze(axis)
    return x.flatten(keep)
