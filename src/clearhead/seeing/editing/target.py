"""What goes into a model and what is read off it, for `effects.py`: texts repeated, and one number for each of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clearhead.errors import InputError, nearest
from clearhead.seeing import arguments

Target = Callable[[Any], Tensor] | int | str | None
Inputs = Tensor | Mapping[str, Any] | Sequence[Any]


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Return what the model gives."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def _tensors(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    if not isinstance(inputs, Mapping | Sequence):
        return []
    return [x for x in (inputs.values() if isinstance(inputs, Mapping) else inputs) if isinstance(x, Tensor)]


def n_texts(inputs: Inputs) -> int:
    """Return how many texts the inputs hold: the length of the first tensor."""
    tensors = [x for x in _tensors(inputs) if x.ndim]
    if not tensors or not tensors[0].numel():
        raise InputError(
            f"inputs hold {'nothing' if tensors else 'no tensor'}: expected what the model is called with, "
            "a tensor of (texts, time), a dict of keyword arguments or a list of arguments"
        )
    return len(tensors[0])


def repeated(inputs: Inputs, texts: int, copies: int) -> Inputs:
    """Return the inputs with every text `copies` times: all of them, then all of them again."""

    def again(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.ndim or len(x) != texts:
            return x
        return x.repeat(copies, *(1 for _ in x.shape[1:]))

    if isinstance(inputs, Tensor):
        return again(inputs)
    if isinstance(inputs, Mapping):
        return {name: again(x) for name, x in inputs.items()}
    return [again(x) for x in inputs]


def reader(model: nn.Module, inputs: Inputs, outputs: Any, target: Target) -> tuple[Callable[[Any, int], Tensor], str]:
    """Return what gives one number a row, of outputs that hold so many copies of the texts; and what to call it."""
    if callable(target):
        return (lambda outputs, copies: target(outputs)), "target"
    labels = _labels(model)
    if isinstance(target, str):
        if target not in labels:
            raise InputError(f"target={target!r} is no class of this model{nearest(target, labels)}")
        if labels.count(target) > 1:
            indices = [str(i) for i, name in enumerate(labels) if name == target]
            raise InputError(
                f"target={target!r} is the name of classes {' and '.join(indices)}: give the number of one"
            )
        target = labels.index(target)
    logits = _at_last(_logits(outputs), inputs)
    if target is not None and not 0 <= arguments.whole(target, "target") < logits.shape[1]:
        raise InputError(f"target={target}: the model gives {logits.shape[1]} logits, counted from 0")
    wanted = logits.argmax(1) if target is None else torch.full_like(logits.argmax(1), target)
    numbers = sorted(set(wanted.tolist()))
    names = [repr(labels[i]) if i < len(labels) == logits.shape[1] else str(i) for i in numbers[:3]]

    def pick(outputs: Any, copies: int) -> Tensor:
        found = _at_last(_logits(outputs), repeated(inputs, len(wanted), copies))
        return found.gather(1, wanted.repeat(copies)[:, None])[:, 0]

    return pick, f"logit of {', '.join(names)}{', ...' if len(numbers) > len(names) else ''}"


def _labels(model: nn.Module) -> list[str]:
    """Return the names of a model's classes, ours or transformers', or none."""
    config = getattr(model, "config", None)
    theirs = getattr(config, "id2label", None)
    return list(theirs.values()) if theirs else list(getattr(config, "labels", None) or ())


def _logits(outputs: Any) -> Tensor:
    """Return the logits of an output: the tensor, its .logits, or its first."""
    found = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if found is None and isinstance(outputs, Sequence | Mapping):
        found = outputs.get("logits") if isinstance(outputs, Mapping) else outputs[0]
    if not isinstance(found, Tensor) or found.ndim not in (2, 3):
        what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(outputs).__name__}"
        raise InputError(
            f"the model gives {what}: expected logits (texts, classes) or (texts, time, tokens); for anything else "
            f"give target= a function of the output that returns one number a text"
        )
    return found


def _at_last(logits: Tensor, inputs: Inputs) -> Tensor:
    """Return (rows, classes): of logits at every position, those at the last that is no padding."""
    if logits.ndim == 2:
        return logits
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.shape != logits.shape[:2]:
        return logits[:, -1]
    last = (mask != 0).long().cumsum(1).argmax(1)  # the first place at which all that is real has been counted
    return logits[torch.arange(len(logits), device=logits.device), last]


def values(values: Tensor, texts: int, copies: int) -> list[float]:
    """Return the target of each copy, the mean over its texts."""
    if not isinstance(values, Tensor) or values.numel() != texts * copies:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"target= should give one number a row, {texts * copies} here: it gave {got}")
    found: list[float] = values.reshape(copies, texts).double().mean(1).tolist()
    return found
