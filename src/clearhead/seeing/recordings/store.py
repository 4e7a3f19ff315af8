"""A file of tensors that can be written while it grows and read without being read: safetensors, mapped into memory.

A safetensors file begins with a header of names, shapes and places, and numbers follow. To write numbers first, room is
left for a header, which safetensors allows to end in blanks. What is written is mapped: pages go to the file and out of
memory as the system sees fit, and tensors in use are views of it. The file has another name until it is whole.

Nothing in such a file runs when it is opened. Next: `saving.py`, what a recording writes there.
"""

import json
import mmap
import os
import shutil
import tempfile
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.json_files import OBJECT
from clearhead.seeing.recordings.memory import SHARE, NoRoom, Place

HEADER = 2**20  # left free for the header: 8 bytes that say how long it is, then JSON; enough for 8,000 tensors
EXTENT = 2**24  # mapped at once for small tensors, or a 16th of the file: every map keeps a file open, of which a
# process may often have no more than a thousand
LARGE = 2**20  # bytes from which memory is given back as soon as they are written
SAFE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """Where in the file the numbers of one tensor are."""

    name: str
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        """Return the offset after its last byte."""
        return self.offset + self.dtype.itemsize * torch.Size(self.shape).numel()


class File(Place):
    """Copies go to a file: at `path` once `close` was called, or where there is no path, to one without a name."""

    trims = False  # what was made too large stays

    def __init__(self, path: Path | None = None, header: int = HEADER) -> None:
        self.path, self.partial = path, None
        if path is None:
            self.file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as its tensors)
            self.folder = Path(tempfile.gettempdir())
        else:
            if path.is_dir():
                raise WatchError(f"{path} is a folder: expected the name of a file for the recording")
            self.folder = path.absolute().parent
            self.partial = self.folder / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = self.partial.open("w+b")
            except OSError as error:
                raise WatchError(f"nothing can be written to {self.folder}: {error}") from error
        self.header = -(-header // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self.end = self.header
        self.entries: dict[int, Entry] = {}  # by address
        self.extent: tuple[mmap.mmap, int, int] | None = None  # for small tensors: the map, its offset, what is used
        self.latest: mmap.mmap | None = None  # the map of the tensor made last
        self.closed = False

    def device(self, device: torch.device) -> torch.device:
        """Return where copies will be: within reach of the CPU."""
        return torch.device("cpu")

    def room(self, device: torch.device) -> int:
        """Return how many bytes the disk has left."""
        return int(SHARE * shutil.disk_usage(self.folder).free)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a tensor of zeros in the file."""
        nbytes = dtype.itemsize * torch.Size(shape).numel()
        if self.closed or not nbytes:
            return torch.zeros(shape, dtype=dtype)
        try:
            self.latest, start, within = self._claim(nbytes)
        except OSError as error:
            raise NoRoom(f"the disk of {self.folder} did not take {nbytes} bytes: {error}") from error
        tensor = torch.frombuffer(self.latest, dtype=dtype, count=torch.Size(shape).numel(), offset=within).view(shape)
        self.entries[tensor.data_ptr()] = Entry(str(len(self.entries)), start + within, tuple(shape), dtype)
        return tensor

    def bring(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a copy of `x` in the file, and let go of the memory it went through."""
        copy = self.empty(tuple(x.shape), dtype, x.device)
        copy.copy_(x)
        large = copy.numel() * copy.element_size() >= LARGE
        if large and self.latest is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.latest.madvise(mmap.MADV_DONTNEED)
        return copy

    def settle(self) -> None:
        """Have nothing to wait for."""

    def _claim(self, nbytes: int) -> tuple[mmap.mmap, int, int]:
        """Return a map, where in the file it begins, and where in it are `nbytes` that nobody else has."""
        extent = max(EXTENT, self.end // 16)
        if nbytes > extent // 4:
            return self._map(nbytes), self.end - nbytes, 0
        if self.extent is None or self.extent[2] + nbytes > len(self.extent[0]):
            self.extent = (self._map(extent), self.end - extent, 0)
        mapped, start, within = self.extent
        self.extent = (mapped, start, -(-(within + nbytes) // 16) * 16)
        return mapped, start, within

    def _map(self, nbytes: int) -> mmap.mmap:
        """Return a map of `nbytes` more of the file, which the disk has promised: a full one must not be met later."""
        start = -(-self.end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file.fileno(), start, nbytes)
        else:
            self.file.truncate(start + nbytes)
        self.end = start + nbytes
        return mmap.mmap(self.file.fileno(), nbytes, offset=start)

    def write(self, metadata: dict[str, str]) -> None:
        """Write the header and give the file its name: whole, or not at all."""
        self.closed = True
        if self.partial is None or self.path is None:
            self.file.close()
            return
        try:
            entries = sorted(self.entries.values(), key=lambda entry: entry.offset)
            stop = entries[-1].stop if entries else self.header
            checks = {entry.name: _checksum(self.file, entry) for entry in entries}
            header = _header(entries, self.header, {**metadata, "checksums": json.dumps(checks)})
            self.file.truncate(stop)
            if 8 + len(header) > self.header:
                self._move(len(header))
            else:
                header = header.ljust(self.header - 8)
            self.file.seek(0)
            self.file.write(len(header).to_bytes(8, "little") + header)
            self.file.flush()
            os.fsync(self.file.fileno())
            self.partial.replace(self.path)
            self.file.close()  # maps have handles of their own
        except OSError as error:
            self.drop()
            raise WatchError(f"the recording could not be written to {self.path}: {error}") from error

    def drop(self) -> None:
        """Leave no file; tensors that are in use stay until they are not."""
        self.closed = True
        self.file.close()
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)

    def _move(self, n_header: int) -> None:
        """Copy the numbers to a file that has room for a longer header."""
        assert self.partial is not None
        with self.file as before:
            self.partial.unlink()
            self.file = self.partial.open("w+b")
            before.seek(self.header)
            self.file.seek(8 + n_header)
            shutil.copyfileobj(before, self.file, 2**24)


def _header(entries: list[Entry], start: int, metadata: dict[str, str]) -> bytes:
    """Return the JSON of a header; every byte of a safetensors file belongs to a tensor, so gaps are tensors too."""
    found: dict[str, Any] = {"__metadata__": metadata}
    at = start
    for entry in entries:
        if entry.offset > at:
            gap = [at - start, entry.offset - start]
            found[f"gap {at}"] = {"dtype": "U8", "shape": [entry.offset - at], "data_offsets": gap}
        offsets = [entry.offset - start, entry.stop - start]
        found[entry.name] = {"dtype": SAFE_NAMES[entry.dtype], "shape": list(entry.shape), "data_offsets": offsets}
        at = entry.stop
    return json.dumps(found).encode()


def _checksum(file: BinaryIO, entry: Entry) -> int:
    """Return the CRC-32 of a tensor's numbers as they are in the file."""
    file.seek(entry.offset)
    left, found = entry.stop - entry.offset, 0
    while left and (piece := file.read(min(left, 2**24))):
        found, left = zlib.crc32(piece, found), left - len(piece)
    return found


def opened(path: Path, verify: bool) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a file, mapped; `verify` reads all numbers and compares checksums.

    Raises WatchError that says why the file cannot be used.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WatchError(f"{path} is {'a folder' if path.is_dir() else 'not there'}: expected a recording's file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("gap ")}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WatchError(
            f"{path} is no recording, or was cut short or damaged ({error}): get it again, or save it again with "
            f"seen.save(path)"
        ) from error
    if verify:
        _verify(path, metadata)
    return metadata, tensors


def _verify(path: Path, metadata: dict[str, str]) -> None:
    """Raise WatchError that names the first tensor whose numbers are not those that were written."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        kinds = {name: dtype for dtype, name in SAFE_NAMES.items()}
        try:
            checks = OBJECT.check("checksums", json.loads(metadata.get("checksums", "{}")), WatchError)
            entries = [
                Entry(name, start + about["data_offsets"][0], tuple(about["shape"]), kinds[about["dtype"]])
                for name, about in ((name, header[name]) for name in checks)
            ]
        except (WatchError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise WatchError(f"{path} is damaged: its checksums are not those that were written") from error
        for entry in entries:
            if _checksum(file, entry) != checks[entry.name]:
                name = entry.name
                raise WatchError(f"{path} is damaged: the numbers of tensor {name} are not those that were written")
