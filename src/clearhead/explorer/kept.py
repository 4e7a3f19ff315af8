"""Exact blocks of long maps, kept once they were computed, so that a second look costs nothing.

A long map is gone through once, in bands of queries, and kept at a scale from which every coarser tile follows by
adding up (in mode "max" by taking the largest): four blocks of one scale are one of the next. Next:
`questions/exact.py`, which fills it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.explorer.blocks import Blocks, Mode


@dataclass(eq=False)
class Base:
    """One head's map at one scale, as far as it was computed.

    Attributes:
        scale: One block is 2**scale x 2**scale positions.
        total: The sum of the weights of each block, or the largest in mode "max".
        visible: Where somebody may look.
        n_rows: How many queries count in each row of blocks.
        done: How many rows of blocks are computed.
    """

    scale: int
    mode: Mode
    total: Tensor
    visible: Tensor
    n_rows: Tensor
    done: int = 0

    def tile(self, scale: int, rows: range, cols: range) -> Blocks | None:
        """Return the blocks of a tile of a coarser scale; None where not all of it was computed.

        Args:
            scale: The tile's scale, at least that of the base.
            rows, cols: Blocks of the base that the tile covers.
        """
        if scale < self.scale or rows.stop > self.done:
            return None
        here = slice(rows.start, rows.stop), slice(cols.start, cols.stop)
        side = 1 << (scale - self.scale)
        total, visible, n_rows = self.total[here], self.visible[here], self.n_rows[here[0]]
        largest = self.mode == "max"
        total, seen = _pooled(total, side, largest=largest), _pooled(visible.float(), side, largest=True) > 0
        count = _pooled(n_rows[:, None].float(), side, largest=False, columns=False)[:, 0].long()
        share = total if largest else total / count.clamp(min=1)[:, None]
        return Blocks(share[None], seen[None], count, mode=self.mode)


def _pooled(x: Tensor, side: int, *, largest: bool, columns: bool = True) -> Tensor:
    """Return sums or largest numbers of side x side cells; those at the ends may be smaller."""
    down, across = -len(x) % side, -x.shape[1] % side if columns else 0
    x = torch.nn.functional.pad(x, (0, across, 0, down))
    width = side if columns else 1
    x = x.reshape(len(x) // side, side, x.shape[1] // width, width)
    return x.amax((1, 3)) if largest else x.sum((1, 3))
