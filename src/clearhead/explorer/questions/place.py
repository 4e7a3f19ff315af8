"""Where in an exploration a question is about: a scene, a layer, one of its calls, a text of the batch, a head."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from clearhead.errors import InputError, counted
from clearhead.explorer.scene import Scene
from clearhead.explorer.table import Parameter
from clearhead.seeing.call import Call

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

MAX_POSITIONS = 2**31 - 1

SCENE = Parameter("string", "the id of a scene; the first where not given", low=1, high=40)
CALL = Parameter("integer", "which of the layer's calls; -1 is the last", -1, low=-MAX_POSITIONS, high=MAX_POSITIONS)
BATCH = Parameter("integer", "which text of the batch", 0, low=0, high=MAX_POSITIONS)
LAYER = Parameter("integer", "the number of the layer", required=True, low=0, high=MAX_POSITIONS)
HEAD = Parameter("integer", "the number of the head", required=True, low=0, high=MAX_POSITIONS)
QUERY = Parameter("integer", "the index of the query in its call", required=True, low=0, high=MAX_POSITIONS)
KEY = Parameter("integer", "the index of the key", required=True, low=0, high=MAX_POSITIONS)
MODE = Parameter("string", "what a block holds: the sum of its weights or the largest", "sum", choices=("sum", "max"))

OF_SCENE = {"scene": SCENE, "call": CALL, "batch": BATCH}
OF_LAYER = {**OF_SCENE, "layer": LAYER}
OF_HEAD = {**OF_LAYER, "head": HEAD}


@dataclass(frozen=True, eq=False)
class Place:
    """One call of one layer of a scene, and the rows of its `q` that hold the head asked for, or all heads.

    `counted` says which queries are no padding, None for all of them.
    """

    scene: Scene
    id: str
    layer: int
    number: int
    batch: int
    call: Call
    heads: list[int]
    counted: Tensor | None

    @property
    def key(self) -> tuple[str, int, int, int]:
        """Return what names the place among others, its heads aside."""
        return self.id, self.layer, self.number, self.batch

    def require_query(self, query: int, name: str = "query") -> int:
        """Return the row of `call.q` that holds a query; InputError where there is none."""
        if query >= self.call.n_all:
            raise InputError(f"{name}= expects a query from 0 to {self.call.n_all - 1}, got {query}")
        if self.call.rule.rows is None:
            return query
        found = (self.call.rows == query).nonzero()
        if not len(found):
            raise InputError(f"query {query} was not recorded: rows= kept {self.call.n_queries} of {self.call.n_all}")
        return int(found[0, 0])

    def require_key(self, key: int, name: str = "key") -> int:
        """Return a key; InputError where there is none."""
        if key >= self.call.n_keys:
            raise InputError(f"{name}= expects a key from 0 to {self.call.n_keys - 1}, got {key}")
        return key


def place(
    exploration: "Exploration", scene: str | None, layer: int, call: int, batch: int, head: int | None = None
) -> Place:
    """Return the place that the common parameters name; InputError or WatchError where there is no such place."""
    name, found = exploration.scene(scene)
    one = found.seen.call(layer, call)
    if batch >= one.batch:
        raise InputError(f"there is no text {batch}: layer {layer} saw {counted(one.batch, 'text')}, counted from 0")
    if head is None:
        heads = list(range(len(one.heads)))
    elif head in one.heads:
        heads = [one.heads.index(head)]
    else:
        raise InputError(f"there is no head {head} in layer {layer}: recorded are {', '.join(map(str, one.heads))}")
    number = range(len(found.seen.calls[found.seen.number(layer)]))[call]
    return Place(found, name, layer, number, batch, one, heads, found.seen.counted(one, batch, layer))
