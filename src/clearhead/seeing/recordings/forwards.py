"""Which call of each layer belongs to one forward pass, for questions about several layers.

The calls of a layer are numbered for themselves. Where every layer ran in every forward, call 3 of all layers is one
forward. It is not where a layer was left out of some: by LayerDrop, by leaving a model early, by a picture that only
the prompt had, or because a budget did not hold its copy. Then `call` counts forwards. Parts of a model that never ran
in one forward, such as an encoder that `generate` ran before all steps of the decoder, are counted each for itself.
"""

from collections.abc import Mapping, Sequence

from clearhead.errors import WatchError, counted
from clearhead.seeing.call import Call


def of_one_forward(calls: Mapping[int, Sequence[Call]], layers: Sequence[int], call: int) -> dict[int, int]:
    """Return which call of each layer to ask for; layers that did not run in that forward are not in it.

    Args:
        calls: The calls of each layer, by its number.
        layers: The layers that are asked about.
        call: Which call, or forward where the layers did not run in the same ones; negative numbers count from the end.

    Raises:
        WatchError: For a forward that there is not.
    """
    ran = {layer: tuple(one.forward for one in calls[layer]) for layer in layers}
    parts = {frozenset(forwards) for forwards in ran.values()}
    forwards = sorted(set().union(*parts))
    if sum(map(len, parts)) == len(forwards):  # the parts have no forward in common
        return dict.fromkeys(layers, call)
    if not -len(forwards) <= call < len(forwards):
        raise WatchError(f"{counted(len(forwards), 'forward')} of these layers: there is no call {call}")
    return {layer: ran[layer].index(forwards[call]) for layer in layers if forwards[call] in ran[layer]}
