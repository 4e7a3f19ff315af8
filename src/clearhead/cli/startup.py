"""Half the processor time from start to answer, in a process that answers and leaves.

Two habits of a long life cost a short one. The garbage collector walks through a million new objects again and again
while torch is imported, and once more at the end, to find that all are in use. And a sixth of `import torch` gets ready
to compile and export models: torch.export, and thousands of shape rules written in Python.

So collections are rarer, the last one has nothing to do, and three modules of torch are put off: stand-ins wait where
they would be. Whoever asks a stand-in for anything gets the real modules, and so does whoever imports one more module
of torch, as everything does that compiles, exports or traces. What can tell the difference in between is arithmetic on
the meta device, which lacks its rules for some operators and then raises NotImplementedError; no command does any, but
for building a model by shapes, which a test holds for every kind of model. Tensors that hold numbers never ask.

Only `main` calls this, and only in a process of its own, not for `train`. A torch that is not TESTED is left alone.
"""

import atexit
import gc
import importlib
import re
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

# In the order in which they can be imported when torch is there.
PUT_OFF = ("torch._meta_registrations", "torch.distributed._meta_registrations", "torch.export")
TESTED = ("2.11", "2.12", "2.13", "2.14", "2.15")
ASKS_FOR_NOTHING = "torch.utils._device"  # imported by `with torch.device(...)`, with which models are built
NEW_OBJECTS = 100_000  # between two collections; Python's own number is some hundreds


def hasten() -> None:
    """Make what this process imports from now on, and its end, faster."""
    gc.set_threshold(NEW_OBJECTS)
    atexit.register(gc.freeze)  # before Python collects one last time: what is frozen is not looked at
    if "torch" not in sys.modules and torch_version() in TESTED:
        sys.meta_path.insert(0, PuttingOff())


def torch_version() -> str | None:
    """Return "2.13" for torch 2.13.0+cpu, without importing it; None where that cannot be read."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    found = re.search(r"^__version__ = '(\d+\.\d+)\.", text, re.MULTILINE)
    return found[1] if found else None


class StandIn(ModuleType):
    """A module that fetches the real one when it is asked for anything."""

    keeper: "PuttingOff"

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":  # inspect asks every module there is, to find whose line it is looking at
            raise AttributeError(f"{self.__name__} is not imported yet")
        self.keeper.fetch((self.__name__,) if torch_is_importing() else PUT_OFF)
        return getattr(importlib.import_module(self.__name__), name)


class PuttingOff(MetaPathFinder, Loader):
    """Gives torch stand-ins while it is imported; fetches the real modules before one more of torch's is imported."""

    def __init__(self) -> None:
        self.still_to_put_off = set(PUT_OFF)

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where a stand-in comes from, or None: the module is to be looked for elsewhere."""
        if torch_is_importing():
            if name in self.still_to_put_off:
                self.still_to_put_off.discard(name)
                return ModuleSpec(name, self)
        elif name.startswith("torch.") and name != ASKS_FOR_NOTHING:
            self.fetch(PUT_OFF)
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run no code; what importlib made becomes the stand-in, as importlib.util.LazyLoader does it."""
        module.__dict__["keeper"] = self
        module.__class__ = StandIn

    def fetch(self, names: tuple[str, ...]) -> None:
        """Import the real modules where stand-ins are; those that torch did not import stay away."""
        if names == PUT_OFF and self in sys.meta_path:
            sys.meta_path.remove(self)
        waiting = [name for name in names if isinstance(sys.modules.get(name), StandIn)]
        for name in waiting:
            sys.modules.pop(name, None)
        for name in waiting:
            importlib.import_module(name)


def torch_is_importing() -> bool:
    """Return whether `import torch` has begun and not ended."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return getattr(spec, "_initializing", False)
