"""Labelled pictures in memory, as uint8: folders by label, idx files as MNIST's, arrays of numpy.

Next: `training/pictures.py` moves, mirrors and erases parts of them, and asks what they show.
"""

import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from clearhead.data.batches import moved
from clearhead.data.images import ImageProcessor, find_images
from clearhead.errors import InputError, nearest


@dataclass(frozen=True, kw_only=True)
class PictureBatch:
    """Pictures, what a model should say to them, and what chance decides to do to them while it learns."""

    pixels: UInt8[Tensor, "batch channels height width"]
    targets: Float[Tensor, "batch labels"]
    moved: Int[Tensor, "batch 2"] | None = None  # down and to the right, in pixels
    mirrored: Bool[Tensor, " batch"] | None = None
    erased: Int[Tensor, "batch 4"] | None = None  # top, left, bottom, right of a box, which may be empty
    unit: ClassVar[str] = "pictures"

    @property
    def n_items(self) -> int:
        """How many pictures there are."""
        return len(self.pixels)

    def to(self, device: torch.device | str) -> "PictureBatch":
        """Return the batch on `device`."""
        return moved(self, device)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """A data set in memory, all of one size; `batch` picks rows by number."""

    pixels: UInt8[Tensor, "rows channels height width"]
    targets: Float[Tensor, "rows labels"]

    @property
    def lengths(self) -> Sequence[int]:
        """How long each row is: no picture is longer than another."""
        return [1] * len(self.pixels)

    def batch(self, numbers: Sequence[int]) -> PictureBatch:
        """Return these rows as one batch."""
        chosen = torch.tensor(numbers)
        return PictureBatch(pixels=self.pixels[chosen], targets=self.targets[chosen])


def read_pictures(path: Path, processor: ImageProcessor, labels: Sequence[str]) -> Pictures:
    """Read labelled pictures of any form, framed as the model wants them.

    A folder has one subfolder a label, named like it. An idx file of images (MNIST's format, .gz or not) has its
    labels in the file of the same name with "labels-idx1" for "images-idx3". A .npz file has arrays `images`, of
    (rows, height, width) or (rows, height, width, channels), and either `labels` or `targets`, a probability for each
    label. InputError names the file and what was expected in it.
    """
    if path.is_dir():
        pixels, targets = _of_folders(path, processor, labels)
    elif path.suffix == ".npz":
        pixels, targets = _of_arrays(path, labels)
    elif "idx3" in path.name:
        other = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        pixels, targets = read_idx(path), _one_hot(other, read_idx(other), labels)
    else:
        raise InputError(f"{path}: expected a folder with one subfolder a label, an idx3 file or a .npz file")
    if len(pixels) != len(targets):
        raise InputError(f"{path}: {len(pixels)} pictures, but {len(targets)} labels")
    if not len(pixels):
        raise InputError(f"{path} holds no picture")
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels
    as_they_are = (processor.n_channels, *(processor.size or ()))
    if not path.is_dir() and (processor.crop is not None or tuple(pixels.shape[1:]) != as_they_are):
        pixels = _stacked(path, [processor.frame(picture) for picture in pixels])
    return Pictures(pixels=pixels, targets=targets)


def read_idx(path: Path) -> UInt8[Tensor, "..."]:
    """Return the bytes of an idx file (LeCun, Cortes & Burges 1998), gzipped or not: any number of dimensions."""
    import numpy as np

    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    n_axes = data[3] if len(data) > 3 and data[:3] == b"\0\0\x08" else 0
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, 4 + 4 * n_axes, 4)]
    if not n_axes or len(data) != 4 + 4 * n_axes + math.prod(shape):
        raise InputError(f"{path}: expected an idx file of bytes: 0, 0, 8, the number of axes, their sizes, the bytes")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * n_axes).reshape(shape).copy())


def _of_folders(path: Path, processor: ImageProcessor, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    if lost := [folder.name for folder in folders if folder.name not in labels]:
        raise InputError(f"{path / lost[0]}: no label has that name{nearest(lost[0], list(labels))}")
    if not folders:
        raise InputError(f"{path}: expected one subfolder for each of {', '.join(labels)}")
    files = [(file, labels.index(folder.name)) for folder in folders for file in find_images([folder])]
    pixels = _stacked(path, [processor.frame(file) for file, _ in files])
    return pixels, F.one_hot(torch.tensor([label for _, label in files]), len(labels)).float()


def _of_arrays(path: Path, labels: Sequence[str]) -> tuple[Tensor, Tensor]:
    import numpy as np

    try:
        if isinstance(opened := np.load(path, allow_pickle=False), np.ndarray):
            raise ValueError("a single array, as .npy files hold")
        with opened as file:
            arrays: dict[str, Any] = {name: file[name] for name in ("images", "labels", "targets") if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if "images" not in arrays or len(arrays) != 2:
        raise InputError(f"{path}: expected arrays images and one of labels and targets, got {', '.join(arrays)}")
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(f"{path}: images: expected bytes of (rows, height, width[, channels]), got {images.dtype}")
    pixels = torch.from_numpy(images if images.ndim == 3 else np.moveaxis(images, -1, 1).copy())
    numbers = arrays["labels" if "labels" in arrays else "targets"]
    if numbers.dtype.kind not in "iuf":
        raise InputError(f"{path}: labels and targets: expected numbers, got {numbers.dtype}")
    if "labels" in arrays:
        kind = np.float64 if numbers.dtype.kind == "f" else np.int64
        return pixels, _one_hot(path, torch.from_numpy(numbers.astype(kind)), labels)
    targets = torch.from_numpy(numbers.astype(np.float32))
    if targets.ndim != 2 or targets.shape[1] != len(labels):
        raise InputError(f"{path}: targets: expected {len(labels)} numbers a picture, got {tuple(targets.shape)}")
    if not ((targets >= 0).all() and torch.allclose(targets.sum(-1), torch.ones(len(targets)), atol=1e-3)):
        raise InputError(f"{path}: targets: expected probabilities that sum to 1")
    return pixels, targets


def _one_hot(path: Path, numbers: Tensor, labels: Sequence[str]) -> Tensor:
    fits = numbers.ndim == 1 and not numbers.is_floating_point() and len(numbers) > 0
    if not fits or numbers.min() < 0 or numbers.max() >= len(labels):
        raise InputError(f"{path}: expected labels, whole numbers from 0 to {len(labels) - 1}, one a picture")
    return F.one_hot(numbers.long(), len(labels)).float()


def _stacked(path: Path, pictures: list[Tensor]) -> Tensor:
    if len({picture.shape for picture in pictures}) > 1:
        raise InputError(f"{path}: pictures of different sizes, which the model's preprocessing leaves different")
    return torch.stack(pictures)
