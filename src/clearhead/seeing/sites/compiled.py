"""Models under torch.compile: they are watched while their compiled graphs run.

Nobody can stand beside a compiled graph, and the one that is there must stay as it is. So the model is traced a second
time, for watching alone, and handed to the backend that it was compiled with. In that second graph every fused call is
followed by a call of an operator of our own, which hands queries, keys and the log-sum-exp to the recorder. torch is
told that the operator has an effect, so it is neither dropped nor moved across another. All else is as it was.

The second graph is made at the first watched call and is there at the next. The first one stays in torch's cache,
untouched, and runs again when the body of `watch` has ended.

What cannot be told from inside one graph is refused while it is traced, before anything has run. The model then runs
uncompiled, and a note says why. Next: `compiler.py`, what torch's compiler says of itself; `graphs.py` finds attention
in what torch traced.
"""

import contextlib
import functools
import itertools
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clearhead.seeing.sites.compiler import (
    LIMIT,
    OFF,
    UNKNOWN,
    compiler_errors,
    how_compiled,
    plain_name,
    stance_taken,
    switched_off,
    why,
)
from clearhead.seeing.sites.frames import Frame, looks_like_attention
from clearhead.seeing.sites.fused import unwatched, watching
from clearhead.seeing.sites.graphs import TOLD, Graph, rewritten
from clearhead.seeing.sites.interface import asked_plainly
from clearhead.seeing.sites.sighting import Report, Sighting
from clearhead.seeing.sites.trials import is_leaf_of_torch

if TYPE_CHECKING:
    from clearhead.seeing.sites.whereabouts import Whereabouts

NUMBERS = itertools.count()
ANOTHER = "something else is watched or edited at the same time"
ALONE = "its forward was compiled, not the module"


@dataclass(eq=False)
class Run:
    """One run of a compiled module, and who watches it."""

    module: nn.Module
    regions: "list[Region]"
    graph: Graph = field(default_factory=Graph)
    masks: dict[int, Tensor] = field(default_factory=dict)

    def start(self, graph: Graph) -> None:
        """Know which graph runs, and so which modules do."""
        self.graph = graph
        for region in self.regions:
            region.beside.frames.ran_in_graph(graph.unseen(region.name))
            if graph.dynamic:
                region.beside.recording.note(any_size(region.name))

    def saw(self, site: int, sighting: Sighting) -> None:
        """Report a call to everybody, under the name that its module has for each.

        A graph writes over what it no longer needs without a word: what is more than copied on the spot is copied here.
        """
        place = self.graph.sites[site]
        told: dict[str, Any] = {"mask": sighting.mask, "lse": sighting.lse}
        if sighting.mask is not None:
            if place.mask not in self.masks:
                self.masks[place.mask] = copy(sighting.mask)
            told["mask"] = self.masks[place.mask]
        if sighting.lse is not None:
            told["lse"] = sighting.lse.clone()
        if place.group > 1:
            told |= {"k": sighting.k[:, :: place.group], "v": sighting.v[:, :: place.group]}  # type: ignore[index]
        for region in self.regions:
            region.tell(place.module, replace(sighting, **told))


class Runs(threading.local):
    """The run that this thread is in."""

    now: Run | None = None


RUNS = Runs()


class Watched:
    """The second graphs of a compiled module, one for each kind of input, kept by torch as the first ones are."""

    def __init__(self, backend: Callable[..., Any], dynamic: bool | None) -> None:
        self.backend, self.dynamic = backend, dynamic
        self.refused: str | None = None
        # torch keeps graphs by the code that was traced, and by its name, which sizes vary: nobody else has these.
        code = _forward.__code__.replace(co_name=f"watched_{next(NUMBERS)}")
        compile_it = functools.partial(_compile, backend)
        self.run = torch.compile(
            types.FunctionType(code, globals()), backend=compile_it, fullgraph=True, dynamic=dynamic
        )

    def serves(self, backend: Callable[..., Any], dynamic: bool | None) -> bool:
        """Say whether it is for modules that were compiled like this."""
        return bool(self.backend == backend) and self.dynamic == dynamic


GRAPHS: "weakref.WeakKeyDictionary[nn.Module, Watched]" = weakref.WeakKeyDictionary()


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def _compile(backend: Callable[..., Any], traced: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """Make of a graph that was traced for watching what the module's own backend makes of it."""
    assert RUNS.now is not None
    named = RUNS.now.module.named_modules()
    names = {id(one): (plain_name(name), type(one)) for name, one in named if not is_leaf_of_torch(one)}
    graph = rewritten(traced, names)
    graph.dynamic = any(isinstance(one, torch.SymInt) for one in inputs)
    made = backend(traced, inputs)

    def run(*args: Any) -> Any:
        if RUNS.now is not None:
            RUNS.now.start(graph)
        return made(*args)

    return run


class Region:
    """Stands in the place of a compiled module's entry while somebody watches."""

    def __init__(self, beside: "Whereabouts", report: Report, name: str, module: nn.Module, before: Any) -> None:
        self.beside, self.report, self.name, self.module, self.before = beside, report, name, module, before
        self.original = getattr(module, "_orig_mod", module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graphs that tell; where there are none, what was there before, which then runs uncompiled."""
        if torch.compiler.is_compiling() or threading.get_ident() != self.beside.thread:
            return self.before(*args, **kwargs)
        regions = list(self.chain())
        with contextlib.ExitStack() as stack:
            for region in regions:
                stack.enter_context(region.running(args, kwargs))
            watched = GRAPHS[self.module]
            reason = watched.refused or (OFF if switched_off() else ANOTHER if len(regions) < watching() else None)
            if reason is None:
                try:
                    return self.run(watched, regions, args, kwargs)
                except compiler_errors() as error:
                    reason = why(error)
            for region in regions:
                region.beside.recording.note(note(region.name, reason))
            result = regions[-1].before(*args, **kwargs)
            if reason not in (OFF, ANOTHER, LIMIT):
                watched.refused = reason  # from now on: had it been the model's own error, we would not be here
            return result

    def run(self, watched: Watched, regions: "list[Region]", args: Any, kwargs: Any) -> Any:
        """Run the graphs that tell, as if nobody watched but they."""
        outer = RUNS.now, TOLD.to
        with contextlib.ExitStack() as stack:
            for region in regions:
                stack.enter_context(region.beside.unhooked(self.original))
            for bare in (unwatched(), asked_plainly(), torch.compiler.set_stance("default")):
                stack.enter_context(bare)
            RUNS.now = Run(self.original, regions)
            TOLD.to = RUNS.now.saw
            try:
                return watched.run(self.original, *args, **kwargs)
            finally:
                RUNS.now, TOLD.to = outer

    def chain(self) -> "Iterator[Region]":
        """Yield the regions of all who watch this module, the latest first."""
        region: Any = self
        while isinstance(region, Region):
            yield region
            region = region.before

    @contextlib.contextmanager
    def running(self, args: Any, kwargs: Any) -> Iterator[None]:
        """Let the watcher know that the module runs."""
        looks = looks_like_attention(self.name, type(self.original))
        self.beside.begins(self.name, looks, self.module, args, kwargs)
        try:
            yield
        finally:
            self.beside.ends(self.name, self.module, args, None)

    def leave(self, entry: str) -> None:
        """Put back what was there, unless the module was compiled again in the meantime."""
        if vars(self.module).get(entry) is self:
            vars(self.module)[entry] = self.before

    def within(self, name: str) -> str:
        """Return what the watcher calls a module inside."""
        return ".".join(part for part in (self.name, name) if part)

    def tell(self, name: str, sighting: Sighting) -> None:
        """Report a call of a module inside."""
        running = self.beside.frames.running
        running.append(Frame(self.within(name), None))
        try:
            self.report(sighting)
        finally:
            running.pop()


@contextlib.contextmanager
def compiled(model: nn.Module, beside: "Whereabouts", report: Report) -> Iterator[set[nn.Module]]:
    """Let the compiled modules of `model` tell `report` of their attention; yield those that need no other hooks."""
    with contextlib.ExitStack() as stack:
        entered, made = set[nn.Module](), list[tuple[type[nn.Module], Watched]]()
        for name, module in model.named_modules() if "torch._dynamo" in sys.modules else ():
            wrapper = type(module).__name__ == "OptimizedModule"
            entry = "forward" if wrapper else "_compiled_call_impl"
            before = vars(module).get(entry)
            if before is None and hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable"):
                beside.recording.note(note(plain_name(name), ALONE))
            if before is None or is_leaf_of_torch(module):
                continue
            if not isinstance(before, Region) and not ready(module, before, made):
                reason: str | None = UNKNOWN
            else:
                reason = beside.not_in_graphs or stance_taken()
            name = plain_name(name)
            if reason is not None:
                beside.recording.note(note(name, reason))
                continue
            vars(module)[entry] = region = Region(beside, report, name, module, before)
            stack.callback(region.leave, entry)
            if not wrapper:
                entered.add(module)
        yield entered


def ready(module: nn.Module, entry: Any, made: list[tuple[type[nn.Module], Watched]]) -> bool:
    """See that a compiled module has second graphs, and say whether it can; modules of one kind in a model share them.

    `made` are those of this model. Says False where torch no longer keeps how a module was compiled as it does today.
    """
    if (known := how_compiled(entry)) is None:
        return False
    kind: Any = type(getattr(module, "_orig_mod", module))
    if module not in GRAPHS or not GRAPHS[module].serves(*known):
        alike = (graphs for other, graphs in made if other is kind and graphs.serves(*known))
        GRAPHS[module] = next(alike, None) or Watched(*known)
    made.append((kind, GRAPHS[module]))
    return True


def note(name: str, reason: str) -> str:
    """Say that a module ran uncompiled."""
    return f"the compiled {name or 'model'} ran uncompiled while it was watched: {reason}"


def any_size(name: str) -> str:
    """Say that a graph for any size was compiled once more."""
    return (
        f"the compiled {name or 'model'} was compiled once more for watching, for sizes that vary: outputs may move in "
        "the last digits"
    )


def copy(mask: Tensor) -> Tensor:
    """Return a copy, of which what is the same along an axis is the same memory, as it was."""
    once = tuple(slice(0, 1) if step == 0 else slice(None) for step in mask.stride())
    return mask[once].clone().expand(mask.shape)
