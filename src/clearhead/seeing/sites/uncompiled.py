"""What was compiled runs as it was written while somebody watches; `compiled.py` lets go of this where it has a graph
that tells. Of compiled modules it says itself why one has none; compiled functions are named here.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from clearhead.seeing.sites.compiler import stance_taken
from clearhead.seeing.sites.flex import HOME as FLEX

ENTRIES = ("_wrapped_call_impl", "_call_impl", "forward")  # of a module: all that torch.compile(module) compiles


@contextlib.contextmanager
def uncompiled(model: nn.Module, note: Callable[[str], None]) -> Iterator[None]:
    """Run what was compiled as it was written, and tell `note` which functions that met."""
    if not sys.modules.keys() & {"torch._dynamo", FLEX}:  # the latter imports the former when it is called first
        yield
        return
    from torch._dynamo import eval_frame

    frames: Any = eval_frame
    modules, before = set(model.modules()), getattr(frames, "_callback_from_stance", None)
    watched = stance_taken() is None and before is not None

    def of_stance(callback: Any) -> Any:
        caller: Any = sys._getframe(1)
        while caller.f_code is of_stance.__code__:  # another watcher's
            caller = caller.f_back
        if callback not in (None, False) and frames._stance.stance == "force_eager":
            name = _function(caller.f_locals.get("fn"), modules)
            if name is not None and caller.f_code.co_name == "compile_wrapper":
                note(f"the compiled function {name} ran uncompiled while it was watched: only modules stay compiled")
        return before(callback)  # type: ignore[misc]  # watched only where there is one

    if watched:
        frames._callback_from_stance = of_stance
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if watched:
            frames._callback_from_stance = before


def _function(compiled: Any, modules: set[nn.Module]) -> str | None:
    """Return the name of what was compiled, None if that is one of the watched modules, or within torch.

    flex_attention that nobody compiled compiles a local function of its own, for no more than to trace it.
    """
    own = inspect.unwrap(compiled) if callable(compiled) else None
    if getattr(own, "__module__", "").startswith("torch.") and "<locals>" in getattr(own, "__qualname__", ""):
        return None
    module = own if isinstance(own, nn.Module) else getattr(own, "__self__", None)
    name = getattr(own, "__name__", type(own).__name__)
    if isinstance(module, nn.Module) and module in modules and (own is module or name in ENTRIES):
        return None
    return name
