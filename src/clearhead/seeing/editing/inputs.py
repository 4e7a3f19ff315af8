"""The inputs of a model that is run many times: copied for each run, with every text as often as a batch needs it.

A run may change what it is given: a cache grows, a list is appended to. Each run of `effects.py` therefore gets a deep
copy of the inputs, and the caller's own stay as they were. Tensors inside caches, lists, dicts and other objects are
repeated along with the texts, too, wherever their first axis is as long as the number of texts.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clearhead.errors import InputError

Inputs = Tensor | Mapping[str, Any] | Sequence[Any]

PLAIN = (Tensor, str, int, float, bool, type(None), torch.dtype, torch.device)


def run(model: nn.Module, inputs: Inputs, texts: int = 0, copies: int = 1) -> Any:
    """Run the model on a copy of its inputs, and return its output.

    Args:
        model: The module to call.
        inputs: A tensor, a mapping of keyword arguments, or a sequence of positional arguments.
        texts: The number of texts in the inputs. Tensors whose first axis has this length are repeated.
        copies: How many times each text is in the batch: all texts, then all of them again, and so on.

    Raises:
        InputError: For inputs that cannot be copied, such as an open file.
    """
    known = {id(part): part for part in (*model.modules(), *model.parameters(), *model.buffers())}

    def copied(name: str | int, value: Any) -> Any:
        if isinstance(value, Tensor):  # also an nn.Parameter, which copies itself as one
            return repeated(value, texts, copies)
        try:
            with _CopiedTensors(lambda x: repeated(x, texts, copies)):
                return copy.deepcopy(value, dict(known))  # the model's own parts are passed on as they are
        except (TypeError, NotImplementedError) as error:
            raise InputError(
                f"inputs[{name!r}] holds something that cannot be copied for each run ({error}): expected tensors, "
                f"numbers, caches, or lists, dicts and objects of these"
            ) from error

    if isinstance(inputs, Tensor):
        return model(repeated(inputs, texts, copies))
    if isinstance(inputs, Mapping):
        return model(**{name: copied(name, value) for name, value in inputs.items()})
    return model(*[copied(i, value) for i, value in enumerate(inputs)])


def repeated(x: Tensor, texts: int, copies: int) -> Tensor:
    """Return a copy of a tensor, `copies` times along its first axis where that counts the texts."""
    x = x.detach()
    if copies == 1 or not x.ndim or len(x) != texts:
        return x.clone()
    return x.repeat(copies, *(1 for _ in x.shape[1:]))


def tensors(inputs: Inputs) -> list[Tensor]:
    """Return the tensors of the inputs, those inside lists and mappings too, in order, but for those without axes.

    Raises:
        InputError: Where there is none, or the first one is empty; for an iterator, which only one run could read.
    """
    found = [x for x in _flat(inputs) if isinstance(x, Tensor) and x.ndim]
    if not found or not found[0].numel():
        raise InputError(
            f"inputs hold {'nothing' if found else 'no tensor'}: expected what the model is called with, "
            "a tensor of (texts, time), a dict of keyword arguments or a list of arguments"
        )
    return found


def holds_state(inputs: Inputs) -> bool:
    """Return whether the inputs hold anything but tensors and settings: a cache, or states of an earlier run."""
    values: Iterable[Any] = inputs.values() if isinstance(inputs, Mapping) else inputs
    return not isinstance(inputs, Tensor) and any(not isinstance(x, PLAIN) for x in values)


def _flat(values: Any) -> list[Any]:
    """Return what lists and mappings hold, at any depth."""
    if isinstance(values, Iterator):
        raise InputError(f"inputs hold a {type(values).__name__}, which the first run would use up: give a list of it")
    if isinstance(values, Mapping):
        values = list(values.values())
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        return [values]
    return [x for value in values for x in _flat(value)]


class _CopiedTensors(TorchFunctionMode):
    """While it is open, `copy.deepcopy` copies every tensor by `how`; torch refuses to copy those with a history."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer for `Tensor.__deepcopy__`; everything else runs as it is."""
        if function is not Tensor.__deepcopy__:
            return function(*args, **(kwargs or {}))
        tensor, memo = args
        memo[id(tensor)] = self.how(tensor)
        return memo[id(tensor)]
