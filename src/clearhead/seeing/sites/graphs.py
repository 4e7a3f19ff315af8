"""Attention in a graph that torch's compiler traced, and the operator that tells of it while the graph runs.

The traced graph calls torch's functions by name, one node a call, and every node knows which modules it was called in.
Each fused call becomes `beside`, a function that the backend traces through: it makes the same call with an eye on the
kernel, as `fused.py` does, and hands what it saw to `saw`, an operator that the compiled graph calls in its turn.

A graph cannot be asked for what it computes without running, so attention that is only recognised by its numbers
(written by hand, flex_attention), or whose calls lie in a graph inside the graph, is refused, by an exception that says
why. Next: `compiled.py`, which makes, runs and keeps such graphs.
"""

import functools
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.attention import attend_with_sinks
from clearhead.seeing.sites.aten import KERNELS
from clearhead.seeing.sites.dispatch import FUSED, FUSED_CALLS
from clearhead.seeing.sites.flash import op_name
from clearhead.seeing.sites.flex import is_flex
from clearhead.seeing.sites.frames import looks_like_attention
from clearhead.seeing.sites.normaliser import LogSumExp
from clearhead.seeing.sites.sighting import Sighting, dtype_in_kernel
from clearhead.seeing.sites.trials import HOW
from clearhead.seeing.sites.vocabulary import TURNS, WHAT

TORCHS_OWN = F.multi_head_attention_forward
ATTENDS = {*FUSED_CALLS, TORCHS_OWN}
NEED_WEIGHTS = 15  # its place among the arguments of that function
ENDS = ("softmax", "exp", "log", "sum", "drawn")  # behind these, numbers are no weights any more
REFUSED_INSIDE = "attention in a graph inside it: activation checkpointing, a condition"
BY_HAND = "attention written by hand, which is recognised only where it runs as Python"


class CannotRecord(Exception):
    """A graph whose attention cannot all be told; the message says what is in it."""


@dataclass(frozen=True)
class Site:
    """A fused call in a graph.

    module: the name of the module it was made in, from the one that was compiled.
    mask:   a number, the same for calls that are given the same mask, unless something was written to it in between.
    group:  how often each key and value had been repeated, for grouped heads.
    """

    module: str
    mask: int
    group: int


@dataclass(eq=False)
class Graph:
    """What is known of a traced graph: its calls of attention, and what kinds of modules run in it, by name.

    It holds no module: graphs are kept for as long as the module that they belong to lives. `dynamic` is whether it
    was traced for sizes that vary.
    """

    sites: list[Site] = field(default_factory=list)
    modules: dict[str, type[nn.Module]] = field(default_factory=dict)
    dynamic: bool = False
    lost: dict[str, dict[str, str]] = field(default_factory=dict)

    def unseen(self, region: str) -> dict[str, str]:
        """Return names and classes of the modules that are called attention and attend in no call of this graph.

        `region` is the name of the compiled module; names are from the whole model. As in `frames.py`: not a module
        that holds another such module, or one that made a call, nor one held by such a module that made a call.
        """
        if region not in self.lost:
            kinds = {".".join(filter(None, (region, name))): kind for name, kind in self.modules.items()}
            attended = {".".join(filter(None, (region, site.module))) for site in self.sites}
            looks = {name for name, kind in kinds.items() if looks_like_attention(name, kind)}
            accounted = {name for one in attended | looks for name in above(one)} | attended
            helped = looks & attended
            lost = [name for name in kinds if name in looks - accounted and not helped.intersection(above(name))]
            self.lost[region] = {name: kinds[name].__name__ for name in lost}
        return self.lost[region]


class Told(threading.local):
    """Who is told, in this thread, of what the running graph attends to: a site's number and a sighting."""

    to: Callable[[int, Sighting], None] | None = None


TOLD = Told()


@functools.cache
def operator_of_ours() -> Callable[..., None]:
    """Return the operator, which is made when the first graph wants it: torch imports much of its compiler for it."""

    from torch._library.effects import EffectType

    def saw(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor | None,
        mask: Tensor | None,
        scale: float | None,
        dropout: float,
        is_causal: bool,
        site: int,
    ) -> None:
        if TOLD.to is not None:
            with torch.no_grad(), torch.autocast(query.device.type, enabled=False):  # casts are in the graph
                TOLD.to(site, Sighting(query, key, mask, dropout, is_causal, scale, lse, v=value, out=out))

    # It reads its inputs in whatever layout they have, so the graph lays nothing out for it; and it cannot be part of
    # what a GPU replays without Python.
    tags = (torch.Tag.flexible_layout, torch.Tag.cudagraph_unsafe)
    made = torch.library.custom_op("clearhead::saw", saw, mutates_args=(), tags=tags)
    made.register_fake(lambda *_: None)
    made.register_effect(EffectType.ORDERED)
    return torch.ops.clearhead.saw.default


def beside(
    site: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **rest: Any,
) -> Tensor:
    """Make the fused call, and tell of it under the number of its site."""
    look = LogSumExp()  # type: ignore[no-untyped-call]
    with look:
        out = FUSED(query, key, value, attn_mask, dropout_p, is_causal, **rest)
    q, k, v = (x.detach().to(dtype_in_kernel(x)) for x in (query, key, value))
    mask = None if attn_mask is None else attn_mask.detach()
    operator_of_ours()(q, k, v, out.detach(), look.found, mask, rest.get("scale"), dropout_p, is_causal, site)
    return out


def beside_torchs_own(site: int, *args: Any, **kwargs: Any) -> Any:
    """Call the function behind nn.MultiheadAttention, and stand beside the fused call that it makes."""
    functional: Any = F
    before = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = functools.partial(beside, site)
    try:
        return TORCHS_OWN(*args, **kwargs)
    finally:
        functional.scaled_dot_product_attention = before


def rewritten(traced: torch.fx.GraphModule, names: Mapping[int, tuple[str, type[nn.Module]]]) -> Graph:
    """Let the traced graph tell of its attention, in place; `names` gives name and kind of modules by their identity.

    Raises CannotRecord, having changed nothing, where it attends in a way that could not be told of.
    """
    for node in traced.graph.nodes:
        if (reason := untold(node)) is not None:
            raise CannotRecord(reason)
    inner = (one for one in traced.modules() if isinstance(one, torch.fx.GraphModule) and one is not traced)
    if any(node.target in ATTENDS or untold(node) for one in inner for node in one.graph.nodes):
        raise CannotRecord(REFUSED_INSIDE)
    graph, masks, written = Graph(), dict[Any, int](), Counter[int]()
    for node in traced.graph.nodes:
        if writes(node):
            written.update(map(memory, node.all_input_nodes))
        running = [names[number] for number in modules_of(node) if number in names]
        if not plain(node):
            graph.modules.update(running)
        if node.op != "call_function" or node.target not in ATTENDS:
            continue
        name, group = running[-1][0] if running else "", 1
        if node.target in FUSED_CALLS:
            given = node.kwargs.get("attn_mask", node.args[3] if len(node.args) > 3 else None)
            mask = masks.setdefault((given, written[memory(given)]), len(masks))
            key, value = (
                node.kwargs.get(by, node.args[at] if len(node.args) > at else None)
                for at, by in ((1, "key"), (2, "value"))
            )
            group = repeats(key) if repeats(key) == repeats(value) else 1
        else:
            mask = masks.setdefault((node, 0), len(masks))  # put together inside
        node.target = beside if node.target in FUSED_CALLS else beside_torchs_own
        node.args = (len(graph.sites), *node.args)
        graph.sites.append(Site(name, mask, group))
    if graph.sites:
        operator_of_ours()
        traced.recompile()
    return graph


def above(name: str) -> list[str]:
    """Return the names of the modules that hold a module, the outermost, which has none, first."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]


def writes(node: torch.fx.Node) -> bool:
    """Say whether a node may write to what it is given."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    schema = getattr(node.target, "_schema", None)  # of torch.ops
    in_place = (name.endswith("_") and not name.endswith("__")) or (name in dir(operator) and name.startswith("i"))
    return in_place or name == "setitem" or "out" in node.kwargs or (schema is not None and schema.is_mutable)


def memory(node: Any) -> int:
    """Return the identity of the memory that a node's tensor shows, which its views share."""
    shown = node.meta.get("example_value") if isinstance(node, torch.fx.Node) else None
    return int(shown.untyped_storage()._cdata) if isinstance(shown, Tensor) and shown.layout == torch.strided else 0


def plain(node: torch.fx.Node) -> bool:
    """Say whether a node is no more than its inputs and fixed numbers make of them (`trials.py`)."""
    how = HOW.get(function_of(node)) if node.op in ("call_function", "call_method") else "alone"  # type: ignore[arg-type]
    if how == "fixed":
        shown = (x.meta.get("example_value") for x in node.all_input_nodes)
        return sum(isinstance(x, Tensor) and not isinstance(x, nn.Parameter) for x in shown) <= 1
    return how is not None


def modules_of(node: torch.fx.Node) -> list[int]:
    """Return the identities of the modules whose forward was running when a call was traced, outermost first."""
    return [int(key.partition("@")[0]) for key in node.meta.get("nn_module_stack", {})]


def repeats(node: Any) -> int:
    """Return how often each head of `node` was repeated: it is x[:, :, None].expand(b, heads, n, t, d).reshape(b, -1,
    t, d), as transformers does it, or repeat_interleave; 1 for all else."""
    steps: list[torch.fx.Node] = []
    while isinstance(node, torch.fx.Node) and len(steps) < 3:
        steps.append(node)
        node = node.args[0] if node.args else None
    if [step.target for step in steps] != ["reshape", "expand", operator.getitem]:
        return 1
    flat, wide, opened = (tuple(step.meta["example_value"].shape) for step in steps)
    index = steps[2].args[1]
    everything = slice(None, None, None)
    inserted = isinstance(index, tuple) and index[:3] == (everything, everything, None)
    rest_whole = isinstance(index, tuple) and all(part == everything for part in index[3:])
    if not (inserted and rest_whole and len(opened) == len(wide) == 5 and len(flat) == 4):
        return 1
    sizes = (wide[1], wide[2], flat[1], opened[1])
    if not all(isinstance(size, int) for size in sizes) or opened[1] != wide[1] or flat[1] != wide[1] * wide[2]:
        return 1
    return int(wide[2])


def untold(node: torch.fx.Node) -> str | None:
    """Say why the attention that a node is cannot be told of from inside a graph; None of all other nodes."""
    if is_flex(node.target):
        return "flex_attention"
    if op_name(node.target) is not None:
        return "flash_attn or varlen_attn"
    if (kernel := KERNELS.get(node.target)) is not None:  # type: ignore[arg-type]  # a name is no key of it
        inference = kernel in ("_native_multi_head_attention", "_transformer_encoder_layer_fwd")
        return "nn.MultiheadAttention's inference kernel" if inference else f"torch.ops.aten.{kernel}"
    if node.target is FUSED and f"in {attend_with_sinks.__name__}" in (node.stack_trace or ""):
        return "attention with sinks of our own, which the fused call takes for keys"
    if node.target is TORCHS_OWN:
        asked = node.kwargs.get("need_weights", node.args[NEED_WEIGHTS] if len(node.args) > NEED_WEIGHTS else True)
        return "nn.MultiheadAttention that is asked for its weights" if asked else None
    made = what(node)
    weighs = made == "softmax" or (made == "exp" and product_near(node, lambda one: one.all_input_nodes))
    return BY_HAND if weighs and product_near(node, lambda one: one.users) else None


def product_near(node: torch.fx.Node, along: Callable[[torch.fx.Node], Iterable[torch.fx.Node]]) -> bool:
    """Say whether `along` leads from a node to a product by nothing but what is done to scores and weights."""
    ahead, known = [node], {node}
    while ahead:
        for one in along(ahead.pop()):
            kind = what(one)
            if kind == "product":
                return True
            if (kind == "log" or (kind is not None and kind not in ENDS)) and one not in known:
                known.add(one)
                ahead.append(one)
    return False


def what(node: torch.fx.Node) -> str | None:
    """Return what is done by a node, in the words of `vocabulary.py`; `turn` where axes change places."""
    if node.target is getattr:  # x.mT
        return "turn"
    function = function_of(node)
    made = "turn" if function in TURNS else WHAT.get(function)  # type: ignore[arg-type]
    if made == "layer":
        shown = (one.meta.get("example_value") for one in node.all_input_nodes)
        made = None if any(isinstance(x, nn.Parameter) and x.ndim == 2 for x in shown) else "product"
    return made


def function_of(node: torch.fx.Node) -> Callable[..., Any] | None:
    """Return the function of torch's that a node calls."""
    if node.op == "call_method":
        return getattr(Tensor, str(node.target), None)
    if getattr(node.target, "__module__", None) == "_operator":  # a @ b, a * b, ...
        return getattr(Tensor, f"__{getattr(node.target, '__name__', '').strip('_')}__", None)
    return node.target if node.op == "call_function" else None  # type: ignore[return-value]
