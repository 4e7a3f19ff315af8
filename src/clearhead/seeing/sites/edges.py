"""Attention over the edges of a graph: a softmax over the edges that arrive at each node, then a sum over them.

Graph networks write it with scatter operators (torch_geometric.utils.softmax and its kin):

    exp(scores)  ->  summed by node  ->  exp(scores) / sums  ->  times values  ->  summed by node

Only the edges are there, not a row of keys for every query, so it is not recorded; it is followed as far as the
product with the values, to be named. `look` has to be asked only of an exponential, and while one is known. Next:
`fused.py`.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from clearhead.seeing.sites.steps import fixed
from clearhead.seeing.sites.vocabulary import PLACES, WHAT

SUMS = "scatter_add scatter_add_ index_add index_add_ scatter_reduce scatter_reduce_ segment_reduce _segment_reduce"
PICKS = "index_select gather take_along_dim repeat_interleave"
HOW: dict[Callable[..., Any], str] = {
    getattr(place, name): how
    for how, names in (("by node", SUMS), ("pick", PICKS))
    for name in names.split()
    for place in PLACES
    if hasattr(place, name)
} | {function: what for function, what in WHAT.items() if what in ("exp", "over", "times")}
HOW |= {function: "pick" for function, what in WHAT.items() if what in ("shape", "cast", "dropout", "plus", "floor")}
EXPONENTIALS = {function for function, how in HOW.items() if how == "exp"}
REASON = "attention over the edges of a graph, by a softmax over the edges of each node: its weights are not recorded"


class Edges:
    """Follows exponentials to sums by node and to weights, and tells `found` where these meet values."""

    def __init__(self, found: Callable[[str], None]) -> None:
        self.found = found
        self.known: dict[int, tuple[weakref.ref[Tensor], str]] = {}  # "exp", "sums" or "weights", by identity

    def look(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """Look at a function that ran."""
        how = HOW.get(func)
        if how is None or not isinstance(out, Tensor):
            return
        stages = [stage for x in (*args, *kwargs.values()) if (stage := self.stage(x)) is not None]
        if how == "exp":
            self.keep(out, "exp")
        elif how == "by node" and "exp" in stages:
            self.keep(out, "sums")
        elif how == "over" and stages[:1] == ["exp"] and "sums" in stages:
            self.keep(out, "weights")
        elif how == "times" and stages == ["weights"]:
            if all(isinstance(x, Tensor) and not fixed(x) for x in args):
                self.found(REASON)
            else:
                self.keep(out, "weights")
        elif how == "pick" and stages:
            self.keep(out, stages[0])

    def stage(self, x: Any) -> str | None:
        """Return what is known of `x`."""
        entry = self.known.get(id(x))
        return entry[1] if entry is not None and entry[0]() is x else None

    def keep(self, x: Tensor, stage: str) -> None:
        """Know `x` for as long as the model holds it."""
        key, known = id(x), self.known

        def forget(gone: "weakref.ref[Tensor]") -> None:
            if key in known and known[key][0] is gone:
                del known[key]

        known[key] = (weakref.ref(x, forget), stage)
