"""What torch's functions do to scores, as far as anybody is known to do it to scores. Next: `byhand.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = {
    "product": "matmul bmm mm __matmul__ baddbmm einsum tensordot",
    "layer": "linear addmm addmm_",  # products, where no matrix is a parameter
    "chosen": "topk gather take_along_dim index_select to_sparse to_sparse_coo to_sparse_csr sparse_mask",
    "times": "mul mul_ multiply __mul__ __rmul__ __imul__",
    "over": "div div_ divide true_divide __truediv__ __itruediv__",
    "plus": "add add_ __add__ __radd__ __iadd__",
    "minus": "sub sub_ subtract __sub__ __isub__",
    "neg": "neg neg_ negative __neg__",
    "cap": "tanh tanh_",
    "floor": "maximum max clamp clamp_ clamp_min clamp_min_",
    "hide": "masked_fill masked_fill_ where __setitem__",
    "join": "cat concat concatenate",
    "shape": "view reshape unsqueeze squeeze flatten unflatten view_as reshape_as expand expand_as __getitem__",
    "like": "zeros_like ones_like full_like empty_like rand_like randn_like new_zeros new_ones new_full new_empty",
    "cast": "to float double half bfloat16 type type_as contiguous clone detach",
    "softmax": "softmax softmax_",
    "log": "log_softmax",  # the scores, less one number a row
    "exp": "exp exp_",
    "sum": "sum",
    "drawn": "gumbel_softmax softmin",
    "dropout": "dropout dropout_ feature_dropout",
}
PLACES = (torch, torch.Tensor, F, torch.special)
WHAT: dict[Callable[..., Any], str] = {
    getattr(place, name): what
    for what, names in NAMES.items()
    for name in names.split()
    for place in PLACES
    if hasattr(place, name)
}
SPARSE = {torch.sparse.mm: "product", torch.sparse.addmm: "product", torch.sparse.softmax: "softmax"}
WHAT |= SPARSE
TURNS = {
    getattr(place, name)
    for name in "transpose swapaxes swapdims permute movedim moveaxis t adjoint".split()
    for place in PLACES
    if hasattr(place, name)
} | {Tensor.mT.__get__, Tensor.T.__get__}  # type: ignore[attr-defined]

INSIDE = {"_softmax": "softmax", "_log_softmax": "log_softmax", "_unsafe_view": "view", "_to_copy": "to"}


def as_written(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that a model calls where torch.export wrote one of its operators; else `func`."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return func
    name = func._schema.name.removeprefix("aten::")
    name = INSIDE.get(name, name)
    for place in PLACES:
        if hasattr(place, name):
            return getattr(place, name)
    return func


def mixes_no_axes(func: Callable[..., Any], what: str | None) -> bool:
    """Say whether a function leaves every number with its query, its key and its head, as far as is known."""
    return what not in (None, "product", "chosen") or func in TURNS


def turns(func: Callable[..., Any], args: Sequence[Any], out: Tensor) -> bool:
    """Say whether a function that gave `out` changed the last two axes for each other, and nothing else."""
    if func not in TURNS or not args or not isinstance(args[0], Tensor) or args[0].ndim < 2:
        return False
    x = args[0].mT
    return out.shape == x.shape and out.stride() == x.stride() and out.data_ptr() == x.data_ptr()
