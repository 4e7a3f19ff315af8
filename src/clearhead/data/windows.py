"""One long text after the other, cut into windows of equal length: what a language model is trained on.

Nothing is padding and nothing is left out. The last window of a text too short to fill it reaches back into the
window before, and asks only about what that one did not. Where one document ends and the next begins within a window,
what is read of the first is seen from the second, with the token between them that says so, as GPT-2 and 3 were trained
(Brown et al. 2020, appendix B).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from clearhead.data.batches import NOT_ASKED, Batch
from clearhead.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Windows:
    """All windows of `size` tokens over `ids`; the target of each token is the one after it."""

    ids: Int[Tensor, " total"]
    size: int

    def __post_init__(self) -> None:
        if len(self.ids) < 2:
            raise InputError(f"expected at least two tokens to guess one from the other, got {len(self.ids)}")

    @property
    def lengths(self) -> Sequence[int]:
        """How many tokens each window has: all the same."""
        n_targets = len(self.ids) - 1
        return [min(self.size, n_targets)] * -(-n_targets // self.size)

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return these windows as one batch."""
        size = min(self.size, len(self.ids) - 1)
        wanted = torch.tensor(numbers) * size
        starts = wanted.clamp(max=len(self.ids) - 1 - size)
        places = starts[:, None] + torch.arange(size + 1)
        read = self.ids[places].long()
        targets = read[:, 1:].masked_fill(places[:, :-1] < wanted[:, None], NOT_ASKED)
        return Batch(tokens=read[:, :-1], lengths=torch.full((len(numbers),), size), targets=targets)
