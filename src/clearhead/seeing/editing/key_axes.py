"""Which layers look at the same tokens: a model may read several texts, and a picture beside a text.

A token can be hidden only where it is a key. Layers are taken to have the same keys where they stand in one list of
modules, such as `encoder.layers`, and their keys end at the same position. The keys of cross-attention are those of
the other list that ends there and ran before, if one did. Next: `cases.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from clearhead.errors import WatchError
from clearhead.seeing.editing.kinds import Met

NUMBER = re.compile(r"(^|\.)\d+(\.|$)")  # a place in a list of modules
LAST_DIGITS = re.compile(r"\d+$")  # attn1, attn2: modules beside each other
MAX_NAMES = 2  # of layers, in a message


@dataclass(frozen=True)
class KeyAxis:
    """Tokens that some layers have as their keys.

    layers: the numbers of these layers; names: those of their modules.
    keys:   the positions of all their keys.
    tokens: the positions at which a query of this run stands, or all keys where the queries are another text's. Keys
            before them were not read in this run: they came from a cache, or are learned (a prefix).
    """

    layers: tuple[int, ...]
    names: tuple[str, ...]
    keys: range
    tokens: range

    def __str__(self) -> str:
        """Return it in words, for messages."""
        shown = ", ".join(f"{layer} {name!r}" for layer, name in list(zip(self.layers, self.names))[:MAX_NAMES])
        more = f" and {len(self.layers) - MAX_NAMES} more" if len(self.layers) > MAX_NAMES else ""
        return f"{len(self.keys)} keys of layer{'s' * (len(self.layers) > 1)} {shown}{more}"


def key_axes(met: Mapping[int, Met], layer: int | None = None) -> list[KeyAxis]:
    """Return the groups of layers that look at the same tokens, in the order in which the first of each ran.

    Args:
        met: The layers that ran, by number.
        layer: The one whose tokens are meant, or None. Layers of other lists of modules need not be known then.

    Raises:
        WatchError: For a layer of which nothing tells which tokens its keys are.
    """
    for one in met.values():
        apart = layer is not None and _list_of(one.name) != _list_of(met[layer].name)
        if one.positions.unknown and not apart:
            raise WatchError(f"{one.name!r}: which tokens its keys are is not known. {one.positions.unknown}")
    met = {number: one for number, one in met.items() if not one.positions.unknown}
    groups: dict[tuple[str, int, bool], list[int]] = {}
    for layer, one in sorted(met.items()):
        if one.positions.one_text:
            groups.setdefault((_list_of(one.name), one.positions.end, False), []).append(layer)
    for layer, one in sorted(met.items()):
        if not one.positions.one_text:
            mine, stop = _list_of(one.name), one.positions.end
            others = [
                key for key, ran in groups.items() if key[0] != mine and key[1:] == (stop, False) and ran[0] < layer
            ]
            groups.setdefault(others[0] if len(others) == 1 else (mine, stop, True), []).append(layer)
    return [_axis(met, sorted(layers)) for layers in sorted(groups.values())]


def _axis(met: Mapping[int, Met], layers: list[int]) -> KeyAxis:
    each = [met[layer] for layer in layers]
    stop = each[0].positions.end
    first = min((one.positions.keys[0].position for one in each if one.positions.keys), default=0)
    stands = min((one.positions.first for one in each if one.positions.one_text), default=first)
    return KeyAxis(tuple(layers), tuple(one.name for one in each), range(first, stop), range(stands, stop))


def _list_of(name: str) -> str:
    """Return the name of the list of modules that a layer is in, or of the layer without the number at its end."""
    name = name.partition("#")[0]
    found = NUMBER.search(name)
    return name[: found.start()] if found else LAST_DIGITS.sub("", name)
