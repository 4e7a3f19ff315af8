"""Where copies go, and how much room there is: the memory of the model's device, the host's, or a file.

A recording of a long text can be larger than what is left beside the model. So room is asked for before anything is
copied, and where there is none the layer is refused by name; the model runs on. Next: `keeping.py`, what is copied.
"""

import math
import os
import re
from pathlib import Path

import torch
from torch import Tensor

from clearhead.errors import InputError

ADVICE = 'ask for fewer layers=, heads= or rows=, a smaller dtype=, or to="disk"'
SHARE = 0.8  # of the memory that is free: the model needs some to run on


class NoRoom(RuntimeError):
    """A copy would not fit: the message says what is needed, what there is and what to ask for instead."""


class Place:
    """Copies stay on the device of the model."""

    trims = True  # what was made too large is made again, smaller

    def device(self, device: torch.device) -> torch.device:
        """Return where copies of tensors on `device` will be: there."""
        return device

    def room(self, device: torch.device) -> int:
        """Return how many bytes there are left for copies of tensors on `device`."""
        return int(SHARE * available(device))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor of zeros: what is never looked at must still be numbers."""
        return torch.zeros(shape, dtype=dtype, device=device)

    def bring(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy of `x`."""
        return x.to(dtype, copy=True, memory_format=torch.contiguous_format)

    def settle(self) -> None:
        """Have nothing to wait for: a GPU does in order what it is told."""


class Host(Place):
    """Copies go to the memory of the CPU; from a GPU while it computes on.

    The model may overwrite what it gave as soon as the call is over, so it is copied twice: on the GPU at once, in the
    stream the model runs in, and from there to pinned memory in a stream of its own.
    """

    AHEAD = 2**29  # bytes of first copies that may wait on the GPU for their second

    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.waiting: list[tuple[torch.cuda.Event, int]] = []

    def device(self, device: torch.device) -> torch.device:
        """Return where copies will be: in the memory of the CPU."""
        return torch.device("cpu")

    def room(self, device: torch.device) -> int:
        """Return how many bytes there are left in the memory of the CPU."""
        return int(SHARE * available(torch.device("cpu")))

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor of zeros in the memory of the CPU."""
        return torch.zeros(shape, dtype=dtype)

    def bring(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy of `x`, which from a GPU is still on its way."""
        if x.device.type != "cuda":
            return x.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        near = x.to(dtype, copy=True, memory_format=torch.contiguous_format)
        far = torch.empty(near.shape, dtype=dtype, pin_memory=True)
        if x.device not in self.streams:
            self.streams[x.device] = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]  # torch's
        stream = self.streams[x.device]
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            far.copy_(near, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            done.record(stream)
        near.record_stream(stream)  # its memory is not given to anybody else before the stream has read it
        self.waiting.append((done, near.numel() * near.element_size()))
        while sum(size for _, size in self.waiting) > self.AHEAD:
            self.waiting.pop(0)[0].synchronize()
        return far

    def settle(self) -> None:
        """Wait until all that was brought is there."""
        while self.waiting:
            self.waiting.pop(0)[0].synchronize()


def place(to: str | os.PathLike[str] | None) -> Place:
    """Return where copies go, as `watch(to=...)` says it."""
    if to is None:
        return Place()
    if to == "cpu":
        return Host()
    if not isinstance(to, str | os.PathLike):
        raise InputError(f'to= expects "cpu", "disk" or the path of a file, got {to!r}')
    if isinstance(to, str) and re.fullmatch(r"(cuda|mps|xpu|hpu|meta|gpu)(:\d+)?|cpu:\d+", to):
        raise InputError(
            f'to= expects "cpu", "disk" or the path of a file, got {to!r}, a device: copies stay where '
            f'the model is without to=. For a file of that name write "./{to}"'
        )
    from clearhead.seeing.recordings.store import File

    return File() if to == "disk" else File(Path(to))


def available(device: torch.device) -> int:
    """Return how many bytes of memory can still be had on a device; what a container may use counts, where it says."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    found = [size for size in (_meminfo(), _cgroup()) if size is not None]
    if not found and "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return min(found, default=2**62)  # a system that does not say


def _meminfo() -> int | None:
    """Return what Linux calls available: free, or used for files that can be read again."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def _cgroup() -> int | None:
    """Return what a container's limit leaves; its file cache can be given back."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = ((folder / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        cache = [line for line in (folder / "memory.stat").read_text("ascii").splitlines() if line.startswith("file ")]
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used) + sum(int(line.split()[1]) for line in cache))


def in_words(nbytes: int) -> str:
    """Return a size as people say it: 36.6 KiB, 3.5 GiB."""
    if nbytes < 1024:
        return f"{nbytes:.0f} bytes"
    units = ("KiB", "MiB", "GiB", "TiB")
    step = min(int(math.log(nbytes, 1024)), len(units))
    return f"{nbytes / 1024**step:.1f} {units[step - 1]}"
