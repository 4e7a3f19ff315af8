"""PyTorch in half the time, for a process that answers and leaves.

A third of `import torch` gets ready to compile and export models: torch.export, and thousands of meta kernels written
in Python. An answer needs neither. Meanwhile the garbage collector walks through a million new objects again and
again, and once more when the process ends, to find that all are in use.

`quickly` puts stand-ins where those modules would be. Whoever asks one of them for anything, or imports the compiler,
gets the real modules, all of them. `train`, which may compile, does without this.
"""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

# In the order in which they can be imported after the rest of torch.
LATER = ("torch._meta_registrations", "torch.distributed._meta_registrations", "torch.export")


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """Import torch and what needs it in the body, without what only compiling needs; no change if torch is there."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules.update((name, StandIn(name)) for name in LATER)
    sys.meta_path.insert(0, BeforeTheCompiler())
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # modules stay until the end: no need to look at them again
        gc.enable()


class StandIn(ModuleType):
    """A module that imports the real ones when it is asked for anything."""

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":  # inspect asks every module there is, to find whose line it is looking at
            raise AttributeError(f"{self.__name__} is not imported yet")
        still_importing = getattr(sys.modules["torch"].__spec__, "_initializing", False)
        import_real([self.__name__] if still_importing else LATER)
        return getattr(sys.modules[self.__name__], name)


class BeforeTheCompiler(MetaPathFinder):
    """Finds nothing; imports the rest just before somebody imports torch._dynamo, which counts on it."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> None:
        """Say that the module is to be looked for elsewhere."""
        if name == "torch._dynamo":
            import_real(LATER)


def import_real(names: Sequence[str]) -> None:
    """Put the real modules where stand-ins are."""
    names = [name for name in names if isinstance(sys.modules.get(name), StandIn)]
    for name in names:
        del sys.modules[name]
    for name in names:
        importlib.import_module(name)
