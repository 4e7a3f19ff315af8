"""transformers' own site: the interface through which its models ask for an attention kernel by name.

Beside the call itself, which is seen wherever it is made, the interface knows what the model meant: keys before they
were repeated for grouped heads, and queries before they were folded. transformers' sdpa entry, decoding one token with
a mask, lays the heads of a group out as if they were positions; told apart here, they are heads again.

transformers is not imported: a model of its comes with it imported. Next: `recorder.py`.
"""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clearhead.seeing.sites.layouts import Padded
from clearhead.seeing.sites.sighting import Report, Sighting


@dataclass(eq=False)
class Asked:
    """One call of an attention function of the interface, as the model made it."""

    function: Callable[..., Any]
    module: torch.nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seen: bool = False

    def __post_init__(self) -> None:
        while isinstance(self.function, functools.partial):  # handed out to another watcher before
            self.function = self.function.args[0]

    @property
    def name(self) -> str:
        """Return what the function is called."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def is_theirs(self) -> bool:
        """Say whether the function is of transformers, which is known to repeat and to fold heads."""
        return getattr(self.function, "__module__", "").startswith("transformers.")

    def of_flex(self) -> dict[str, Any] | None:
        """Return what transformers' flex entry was asked for; None if this is not it."""
        if not self.is_theirs or self.name != "flex_attention_forward":
            return None
        return {"attention_mask": self.args[0] if self.args else None, **self.kwargs}

    def of_flash(self) -> Padded | None:
        """Return what transformers' entries for flash_attn were asked for; None if this is not one of them."""
        if not self.is_theirs or self.name != "flash_attention_forward" or self.q.ndim != 4:
            return None
        mask = self.args[0] if self.args else self.kwargs.get("attention_mask")
        return Padded(self.q.shape[0], self.q.shape[2], self.k.shape[2], mask)

    def report(self, sighting: Sighting, report: Report) -> Tensor | None:
        """Report what was sighted inside as the model meant it; the answer is in the layout of what was sighted."""
        self.seen = True
        if not self.is_theirs or sighting.q.ndim != 4:
            return report(sighting)
        if self.folded(sighting):
            edited = report(self.unfolded(sighting))
            return None if edited is None or sighting.out is None else edited.reshape(sighting.out.shape)
        return report(self.ungrouped(sighting))

    def folded(self, sighting: Sighting) -> bool:
        """Say whether the heads of each group were laid out as positions."""
        (batch, n_heads, n_queries, d_head), n_kv_heads = self.q.shape, self.k.shape[1]
        shape = (batch, n_kv_heads, n_heads // n_kv_heads, d_head)
        return n_queries == 1 and n_kv_heads < n_heads and tuple(sighting.q.shape) == shape

    def unfolded(self, sighting: Sighting) -> Sighting:
        """Return the sighting with heads as heads."""
        batch, n_heads, group = self.q.shape[0], self.q.shape[1], sighting.q.shape[2]

        def unfold(x: Tensor) -> Tensor:
            return x.reshape(x.shape[0], n_heads, 1, x.shape[-1])

        mask, lse = sighting.mask, sighting.lse
        if mask is not None and mask.shape[1] > 1:
            mask = unfold(mask)
        if lse is not None:
            lse = lse.reshape(batch, n_heads // group, -1)[..., :group].reshape(batch, n_heads, 1)
        sighting = replace(sighting, q=self.q, k=self.k, v=self.v, mask=mask, lse=lse)
        if sighting.out is None:
            return sighting
        return replace(sighting, out=unfold(sighting.out), gave=sighting.gave or (sighting.out, unfold))

    def ungrouped(self, sighting: Sighting) -> Sighting:
        """Return the sighting with keys and values as they were before each was repeated for its group."""
        repeated, n_kv_heads = sighting.k, self.k.shape[1]
        group = repeated.shape[1] // n_kv_heads
        if group < 2 or repeated.shape != (self.k.shape[0], n_kv_heads * group, *self.k.shape[2:]):
            return sighting
        if sighting.by_hand and not torch.equal(repeated[:, :, 0], self.k[:, :, 0].repeat_interleave(group, 1)):
            return sighting
        return replace(sighting, k=self.k, v=self.v)


@contextlib.contextmanager
def asked_of_interface(through: Callable[..., Any]) -> Iterator[None]:
    """While the body runs, have every function that transformers' interface hands out called by `through`.

    All of them come by one method, those for `eager` too, which each model brings along.
    """
    interface, thread = _interface(), threading.get_ident()
    if interface is None:
        yield
        return
    before = interface.get_interface

    @functools.wraps(before)
    def get_interface(self: Any, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        function = before(self, *args, **kwargs)
        return function if threading.get_ident() != thread else functools.partial(through, function)

    get_interface.theirs = getattr(before, "theirs", before)  # type: ignore[attr-defined]
    interface.get_interface = get_interface
    try:
        yield
    finally:
        interface.get_interface = before


@contextlib.contextmanager
def asked_plainly() -> Iterator[None]:
    """While the body runs, the interface is what it was before anybody watched."""
    interface = _interface()
    if interface is None:
        yield
        return
    before = interface.get_interface
    interface.get_interface = getattr(before, "theirs", before)
    try:
        yield
    finally:
        interface.get_interface = before


def _interface() -> Any:
    """Return transformers' AttentionInterface, where it was imported and has one."""
    return getattr(sys.modules.get("transformers.modeling_utils"), "AttentionInterface", None)
