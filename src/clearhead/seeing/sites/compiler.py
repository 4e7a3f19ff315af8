"""What torch's compiler says of itself: how a module was compiled, whether it compiles now, and why it could not.

Much of it is asked of names that torch does not promise. Where one of them is gone, the answer is that it is not known,
and the model runs uncompiled. Next: `graphs.py`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from clearhead.seeing.sites.fused import watching
from clearhead.seeing.sites.graphs import CannotRecord

UNKNOWN = "it was compiled in a way that is not known here"
STANCE = "a stance of torch.compiler.set_stance is in force"
LIMIT = "torch.compile's recompile_limit is reached"
OFF = "torch compiles nothing now: that is switched off, or a dispatch mode is open"


def how_compiled(entry: Any) -> tuple[Callable[..., Any], bool | None] | None:
    """Return the backend that a module was compiled with, by its entry, and `dynamic`; None where that is not known."""
    free = inspect.getclosurevars(entry).nonlocals if inspect.isfunction(entry) else {}
    context: Any = free.get("self")
    if not callable(getattr(context, "callback", None)) or getattr(context, "_shapes_spec", None) is not None:
        return None
    try:
        from torch._dynamo.eval_frame import innermost_backend
    except ImportError:
        return None
    return innermost_backend(context.callback), getattr(context, "_dynamic", None)


def switched_off() -> bool:
    """Say whether torch runs compiled code as it was written, which it does without a word."""
    from torch._dynamo import config

    return bool(config.disable) or torch._C._len_torch_dispatch_stack() > 0


def stance_taken() -> str | None:
    """Return a reason if somebody told torch's compiler what to do with compiled code, before anybody watched."""
    from torch._dynamo import eval_frame

    if (stance := getattr(eval_frame, "_stance", None)) is None:
        return UNKNOWN
    untouched = stance.stance == "default" and getattr(stance, "backend", None) is None
    return None if untouched or watching() else STANCE


def compiler_errors() -> tuple[type[Exception], ...]:
    """Return what torch raises while it traces and compiles, which is before anything runs."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return TorchDynamoException, FailOnRecompileLimitHit


def why(error: Exception) -> str:
    """Say why a module could not be traced into one graph that tells."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    error = getattr(error, "inner_exception", error)
    if isinstance(error, FailOnRecompileLimitHit):
        return LIMIT
    if isinstance(error, CannotRecord):
        return f"its graph holds {error}"
    return f"torch could not make one graph of it: {str(error).strip().partition(chr(10))[0]}"


def plain_name(name: str) -> str:
    """Return a module's name without the wrapper of torch.compile."""
    return name.replace("_orig_mod.", "").removesuffix("_orig_mod")
