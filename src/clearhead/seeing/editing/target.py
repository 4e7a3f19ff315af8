"""What `effects.py` measures: one number for each text, read off a model's output."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clearhead.errors import InputError, a, nearest
from clearhead.seeing import arguments
from clearhead.seeing.editing.inputs import Inputs

Target = Callable[[Any], Tensor] | int | str | None
Reader = Callable[[Any, int], Any]  # from a model's output that holds each text so many times

EXAMPLE = "lambda logits: logits[:, -1, 7]"


def answer(outputs: Any) -> Any:
    """Return the logits of a model's output, or the output itself where it has none.

    The logits are the output itself if it is a tensor, else its field or key `logits`, else the first tensor with two
    or more axes of a tuple or list (a loss has none), else the only such tensor of a dict.
    """
    if isinstance(outputs, Tensor):
        return outputs
    named = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(named, Tensor):
        return named
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, Sequence) else ()
    found = [x for x in values if isinstance(x, Tensor) and x.ndim > 1]
    return found[0] if len(found) == 1 or (found and not isinstance(outputs, Mapping)) else outputs


def reader(
    model: nn.Module, inputs: Inputs, outputs: Any, target: Target, batches: Collection[int]
) -> tuple[Reader, str]:
    """Return the function that reads the target off an output, and what the target is called.

    Args:
        model: The model, which may know names for its classes.
        inputs: What it was called with. The mask among them says where right-padded texts end.
        outputs: What it gave with nothing removed.
        target: As in `effect`.
        batches: The batch sizes of the layers that ran.

    Raises:
        InputError: For a target that this output does not have.
    """
    if callable(target):
        function = target
        return (lambda outputs, copies: _called(function, answer(outputs))), "target"
    logits = _logits(outputs)
    if logits.ndim == 3 and set(batches) == {logits.shape[1]} != {logits.shape[0]}:
        raise InputError(
            f"the model gives {_told(logits)} for a batch of {logits.shape[1]}: texts are not along its first axis. "
            f"Give target= a function that returns one number a text, such as lambda logits: logits[-1, :, 7]"
        )
    last = _last(model, inputs, logits)
    wanted = _wanted(model, _at(logits, last), target)
    numbers, labels = sorted(set(wanted.tolist())), _labels(model)
    n_classes = logits.shape[-1]
    names = [repr(labels[i]) if i < len(labels) == n_classes else str(i) for i in numbers[:3]]

    def pick(outputs: Any, copies: int) -> Tensor:
        found = _at(_logits(outputs), None if last is None else last.repeat(copies))
        if len(found) != len(wanted) * copies:
            raise InputError(f"the model gives logits of {len(found)} texts for {len(wanted) * copies}")
        return found.gather(1, wanted.repeat(copies)[:, None])[:, 0]

    return pick, f"logit of {', '.join(names)}{', ...' if len(numbers) > len(names) else ''}"


def n_texts(found: Any, counts: Sequence[int]) -> int:
    """Return how many texts a target was read off: one of `counts`, of which the first is what is expected."""
    n = found.numel() if isinstance(found, Tensor) else 0
    return n if n in counts else counts[0]


def values(found: Any, texts: int, copies: int) -> list[float]:
    """Return the target of each copy, the mean over its texts."""
    n = texts * copies
    fits = isinstance(found, Tensor) and found.numel() == n and tuple(found.shape) in ((n,), (n, 1), ())
    if not fits:
        raise InputError(f"target= should give one number a text, {n} here, as {EXAMPLE} does: it gave {_told(found)}")
    means: list[float] = found.reshape(copies, texts).double().mean(1).tolist()
    return means


def _called(function: Callable[[Any], Tensor], logits: Any) -> Any:
    try:
        return function(logits)
    except Exception as error:
        raise InputError(
            f"target= was called with {_told(logits)} and raised {type(error).__name__}: {error}. Expected a function "
            f"of the logits, or of the output where it has none, that gives one number a text, such as {EXAMPLE}"
        ) from error


def _wanted(
    model: nn.Module, logits: Float[Tensor, "texts classes"], target: int | str | None
) -> Int[Tensor, " texts"]:
    """Return the number of the class or token that is asked for, for each text."""
    best = logits.argmax(1)
    if target is None:
        return best
    labels, n = _labels(model), logits.shape[1]
    if isinstance(target, str):
        if len(labels) != n:  # transformers names two classes in the config of a decoder, too
            raise InputError(
                f"target={target!r} is the name of a class, and the {n:,} logits of this model have no names: give "
                f"the number of a class or token, 0 to {n - 1}, or a function of the logits, such as {EXAMPLE}"
            )
        if target not in labels:
            raise InputError(f"target={target!r} is no class of this model{nearest(target, labels)}")
        if labels.count(target) > 1:
            indices = [str(i) for i, name in enumerate(labels) if name == target]
            raise InputError(
                f"target={target!r} is the name of classes {' and '.join(indices)}: give the number of one"
            )
        target = labels.index(target)
    try:
        number = arguments.whole(target, "target")
    except InputError as error:
        raise InputError(
            f"target= expects the number or name of a class, the number of a token, or a function of the logits that "
            f"gives one number a text, such as {EXAMPLE}; got {target!r}"
        ) from error
    if not 0 <= number < n:
        raise InputError(f"target={target}: the model gives {n} logits, counted from 0")
    return torch.full_like(best, number)


def _labels(model: nn.Module) -> list[str]:
    """Return the names of a model's classes, ours or transformers', or none."""
    config = getattr(model, "config", None)
    theirs = getattr(config, "id2label", None)
    return list(theirs.values()) if theirs else list(getattr(config, "labels", None) or ())


def _logits(outputs: Any) -> Tensor:
    found = answer(outputs)
    if not isinstance(found, Tensor) or found.ndim not in (2, 3):
        raise InputError(
            f"the model gives {_told(found)}: expected logits (texts, classes) or (texts, time, tokens); for anything "
            f"else give target= a function of the output that returns one number a text"
        )
    return found


def _last(model: nn.Module, inputs: Inputs, logits: Tensor) -> Int[Tensor, " texts"] | None:
    """Return the last position of each text that is no padding; None where that is the last of all, or unknown.

    The mask of an encoder-decoder's source says nothing about its target. A mask that is longer than the logits, as
    with a cache, ends where they end.
    """
    if logits.ndim == 2 or not isinstance(inputs, Mapping):
        return None
    pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    pair = pair or any(name.startswith("decoder_") for name in inputs)
    mask = inputs.get("decoder_attention_mask" if pair else "attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2 or len(mask) != len(logits) or mask.shape[1] < logits.shape[1]:
        return None
    mask = mask[:, -logits.shape[1] :]
    return (mask != 0).long().cumsum(1).argmax(1)  # the first position at which all that is real has been counted


def _at(logits: Tensor, last: Tensor | None) -> Float[Tensor, "texts classes"]:
    """Return the logits of each text: of those at every position, the ones at `last`, or at the end."""
    if logits.ndim == 2:
        return logits
    return logits[:, -1] if last is None else logits[torch.arange(len(logits), device=logits.device), last]


def _told(given: Any) -> str:
    """Return what something is, in a message."""
    return f"a tensor {tuple(given.shape)}" if isinstance(given, Tensor) else a(type(given).__name__)
