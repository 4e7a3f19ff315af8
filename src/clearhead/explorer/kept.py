"""Exact blocks of long maps, kept once they were computed, so that a second look costs nothing.

A long map is gone through once, in bands of queries, and kept at a scale from which every coarser tile follows by
adding up (in mode "max" by taking the largest): four blocks of one scale are one of the next. Next:
`questions/exact.py`, which fills it.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clearhead.checkpoints.files import save_tensors
from clearhead.explorer.blocks import Blocks, Mode

SUFFIX = ".overviews"  # of the file beside a recording that holds its exact overviews
N_CHECKED = 2**20  # bytes of a recording by which it is told from another


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


def fingerprint(recording: Path) -> str:
    """Return what tells the file of a recording from another: its size, and a checksum of its beginning."""
    with recording.open("rb") as file:
        return f"{recording.stat().st_size}-{zlib.crc32(file.read(N_CHECKED))}"


def save_overviews(recording: Path, kept: Mapping[tuple[Any, ...], Any]) -> None:
    """Write the exact overviews among answers that were kept to a file beside the recording.

    Args:
        recording: The path of the recording.
        kept: Blocks by (scene, layer, call, text, "overview", mode); other answers are passed over.

    Raises:
        OSError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for key, found in kept.items():
        if len(key) == 6 and key[4] == "overview":
            name = ".".join(map(str, (*key[1:4], key[5])))
            tensors |= {f"{name}.share": found.share.contiguous(), f"{name}.n_rows": found.n_rows.contiguous()}
            tensors[f"{name}.visible"] = found.visible.expand_as(found.share).contiguous()
    path = recording.with_name(recording.name + SUFFIX)
    partial = path.with_name(path.name + ".part")
    save_tensors(tensors, partial, {"of": fingerprint(recording)})
    partial.replace(path)


def open_overviews(recording: Path, scene: str) -> dict[tuple[Any, ...], Blocks]:
    """Return the overviews in the file beside a recording, by the keys of `scene`; none where they are of another."""
    path, found = recording.with_name(recording.name + SUFFIX), dict[tuple[Any, ...], Blocks]()
    if not path.is_file():
        return found
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("of") != fingerprint(recording):
                return found
            for name in {key.rpartition(".")[0] for key in file.keys()}:  # noqa: SIM118 (not a dict)
                layer, call, batch, mode = name.split(".")
                share, visible, n_rows = (file.get_tensor(f"{name}.{part}") for part in ("share", "visible", "n_rows"))
                key = (scene, int(layer), int(call), int(batch), "overview", mode)
                found[key] = Blocks(share, visible, n_rows, mode="max" if mode == "max" else "sum")
    except (SafetensorError, ValueError, OSError):
        return {}  # what is damaged is made again
    return found
