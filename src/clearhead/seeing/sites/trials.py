"""Whether a module that is named like attention could have attended at all.

To attend is to multiply values by weights, both of them made of what the module was given. A module whose every output
was made of its inputs by functions that multiply them by fixed numbers alone (linear layers, convolutions, norms,
activations, sums, other views) has not done that: MobileBERT's `bottleneck.attention` is a linear layer, SqueezeBERT's
`post_attention` a convolution. Nothing is guessed: one output that came by any other way, and the module is named.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.seeing.sites.vocabulary import TURNS, WHAT

NAMES = {
    # of their tensors the first may depend on the input, the others are parameters
    "fixed": "linear conv1d conv2d layer_norm rms_norm mul multiply __mul__ __rmul__ div __truediv__",
    "sum": "add __add__ __radd__ sub __sub__",
    "alone": "dropout relu gelu silu tanh sigmoid view reshape contiguous flatten unflatten squeeze "
    "unsqueeze to float half bfloat16 clone",
}
HOW: dict[Callable[..., Any], str] = {
    getattr(place, name): how
    for how, names in NAMES.items()
    for name in names.split()
    for place in (torch, Tensor, F)
    if hasattr(place, name)
} | dict.fromkeys(TURNS, "alone")

PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})


class Trial:
    """One run of a module: which tensors were made of its inputs with fixed numbers alone."""

    def __init__(self, *given: Any) -> None:
        self.plain: dict[int, weakref.ref[Tensor]] = {}
        for x in tensors(given):
            self.add(x)

    def add(self, x: Tensor) -> None:
        """Know a tensor for as long as it lives."""
        self.plain[id(x)] = weakref.ref(x)

    def has(self, x: Tensor) -> bool:
        """Say whether a tensor is one of these."""
        known = self.plain.get(id(x))
        return known is not None and known() is x

    def goes_on(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> bool:
        """Look at a function that ran; return False if it may be part of attention: that ends the trial."""
        if WHAT.get(func) in ("product", "softmax"):
            return False
        how = HOW.get(func)
        if how is None:  # False where it wrote into what it was given
            return out is not None and (not isinstance(out, Tensor) or all(x is not out for x in tensors(args, kwargs)))
        if not isinstance(out, Tensor):
            return True
        made_of = [x for x in tensors(args, kwargs) if not isinstance(x, nn.Parameter)]
        if all(map(self.has, made_of)) and (how == "sum" or len(made_of) == 1):
            self.add(out)
        return True

    def cleared(self, output: Any) -> bool:
        """Say whether all that the module gave was made so."""
        found = tensors(output)
        return bool(found) and all(map(self.has, found))


def tensors(*nested: Any) -> list[Tensor]:
    """Return the tensors in values that may be nested in mappings, tuples and lists, in order."""
    found: list[Tensor] = []
    for x in nested:
        if isinstance(x, Tensor):
            found.append(x)
        elif x and type(x) not in PLAIN:  # asked of every function that runs: most arguments are numbers or names
            if isinstance(x, tuple | list):
                found += tensors(*x)
            elif isinstance(x, Mapping):
                found += tensors(*x.values())
    return found


def is_leaf_of_torch(module: nn.Module) -> bool:
    """Say whether `module` is one of torch's own that cannot hold attention: Linear, LayerNorm, Dropout, ..."""
    return type(module).__module__.startswith("torch.nn.modules") and next(module.children(), None) is None
