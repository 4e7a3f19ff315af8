"""Pictures from files, and the preprocessing that a checkpoint was trained with.

    resize -> crop the middle -> numbers from 0 to 1 -> minus the mean, over the deviation

A checkpoint says in preprocessor_config.json what it did to its pictures; done otherwise, its answers are worse without
a word. So a key that may change pixels is understood or refused. Pixels are those of transformers' image processors
(the PIL ones; the torchvision ones round otherwise while they resize, by a fifth of 1/255 in the mean).

Next: `models/vit.py` cuts them in patches.
"""

import json
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from clearhead.data.preprocessing import BILINEAR, PREPROCESSOR, read_timm, read_words, write_words
from clearhead.errors import CheckpointError, InputError
from clearhead.json_files import OBJECT, read_json

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000  # 8,000 x 8,000: more than most cameras take, and 200 MB in colour
MAX_TIMES_TRAINED = 16  # as long may the sides of a picture be as those that a model was trained at
OPENING = threading.Lock()  # Pillow's limit is one number for the whole process
SUFFIXES = frozenset(".avif .bmp .gif .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split())


def is_image(path: str | Path) -> bool:
    """Whether a path is named like a picture; nothing is opened."""
    return Path(path).suffix.lower() in SUFFIXES


def find_images(paths: Iterable[str | Path]) -> Iterator[Path]:
    """Yield every path that is a file, and the pictures in every one that is a folder, subfolders too, by name."""
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.rglob("*") if is_image(file) and file.is_file())
        if not found:
            raise InputError(f"{path} holds no picture: expected files that end in {', '.join(sorted(SUFFIXES))}")
        yield from found


def open_image(path: str | Path, *, max_pixels: int | None = MAX_PIXELS) -> "Image":
    """Return the picture in a file, upright, whole in memory.

    Args:
        path: The file.
        max_pixels: The largest picture that is decoded, in pixels, as its header says; None for any.

    Raises:
        InputError: The file is no picture, a damaged one or a larger one; it is named.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with header_of(path) as image:
            require_pixels(str(path), image.height, image.width, max_pixels)
            return ImageOps.exif_transpose(image)  # cameras store how they were held; loads the picture, too
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a picture") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is no picture that Pillow can read: convert it to PNG or JPEG") from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: a damaged or unreadable picture: {error}") from error


def header_of(file: "str | Path | BinaryIO", formats: tuple[str, ...] | None = None) -> "Image":
    """Return a picture of which nothing is decoded yet, without Pillow's own limit and its warning."""
    from PIL import Image

    with OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def require_pixels(name: str, height: int, width: int, max_pixels: int | None) -> None:
    """Raise InputError for a picture of more pixels than `max_pixels`; decoding it could take all memory."""
    if max_pixels is not None and height * width > max_pixels:
        raise InputError(
            f"{name}: {width:,} x {height:,} pixels, expected at most {max_pixels:,} in all: make it smaller, or allow "
            f"more by --max-pixels, ImageProcessor(max_pixels=...) in Python"
        )


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """What becomes of a picture before a model sees it. The defaults are those of ViT at 224 pixels.

    `resize` is (height, width), or one number: the shorter side, the other in proportion. `scale` is what 0 to 255 is
    multiplied by. `mean` and `std` are of the channels, `n_channels` of them: 1 is grey, 3 is red, green and blue.
    `max_pixels` is the largest picture that is read from a file, or resized to; None for any.
    """

    resize: tuple[int, int] | int | None = (224, 224)
    resample: int = BILINEAR
    crop: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    n_channels: int = 3
    rounds: bool = False  # where the middle is between two pixels: the one before, or (timm) the even one
    max_pixels: int | None = MAX_PIXELS

    @classmethod
    def load(cls, folder: str | Path) -> "ImageProcessor":
        """Return the processor of a checkpoint folder; CheckpointError where it does what is not done here.

        It is in preprocessor_config.json, or in timm's config.json.
        """
        path, config_path = Path(folder) / PREPROCESSOR, Path(folder) / "config.json"
        config = read_json(config_path) if config_path.is_file() else {}
        if not path.is_file() and "pretrained_cfg" not in config:
            raise CheckpointError(f"{folder} holds no {PREPROCESSOR}, which says how its model wants pictures")
        try:
            if not path.is_file():
                path = config_path
                return cls(**read_timm(OBJECT.check("pretrained_cfg", config["pretrained_cfg"])))
            return cls(**read_words(read_json(path), config.get("num_channels") or 3))
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error

    def require_fits(self, patch_size: int, image_size: tuple[int, int]) -> None:
        """Raise CheckpointError where a model of this patch size, trained at `image_size`, cannot see what this makes.

        A model sees pictures of other sizes than it was trained at, but not any: its memory grows with their square.
        """
        longest = MAX_TIMES_TRAINED * max(image_size)
        sides = [side for size in (self.resize, self.crop) for side in (size if isinstance(size, tuple) else [size])]
        if large := [side for side in sides if side is not None and side > longest]:
            raise CheckpointError(
                f"{PREPROCESSOR}: size and crop_size: expected at most {longest:,}, {MAX_TIMES_TRAINED} times the "
                f"image_size that the positions in the weights are for, got {large[0]:,}"
            )
        if self.size is not None and any(side % patch_size for side in self.size):
            raise CheckpointError(
                f"{PREPROCESSOR}: size and crop_size: expected multiples of patch_size {patch_size}, got {self.size}"
            )

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json into `folder`, as transformers reads it."""
        fields = {name: value for name, value in vars(self).items() if name != "max_pixels"}  # of whoever reads
        (folder / PREPROCESSOR).write_text(json.dumps(write_words(**fields), indent=2) + "\n", encoding="utf-8")

    def read(self, picture: "str | Path | Image | Tensor") -> Float[Tensor, "channels height width"]:
        """Return a picture as its model wants it: of a path, of Pillow, or a tensor.

        A tensor is (height, width) or (channels, height, width), uint8 from 0 to 255 or floats from 0 to 1, which are
        rounded to 256 steps. Grey becomes colour and colour grey, as the model asks; what is transparent is white.
        """
        return self.normalise(self.frame(picture))

    def frame(self, picture: "str | Path | Image | Tensor") -> UInt8[Tensor, "channels height width"]:
        """Return a picture of the size and the channels that the model wants, its pixels as they were."""
        from PIL import Image

        if isinstance(picture, Tensor):
            image = _from_tensor(picture)
        elif isinstance(picture, Image.Image):
            image = picture
        else:
            image = open_image(picture, max_pixels=self.max_pixels)
        image = _in_mode(image, "L" if self.n_channels == 1 else "RGB")
        if self.resize is not None:
            height, width = _sides(image.height, image.width, self.resize)
            resized = f"a picture of {image.width:,} x {image.height:,} pixels, resized in proportion"
            require_pixels(resized, height, width, self.max_pixels)
            image = image.resize((width, height), resample=Image.Resampling(self.resample))
        pixels = _to_tensor(image)
        return pixels if self.crop is None else _middle(pixels, self.crop, rounds=self.rounds)

    def normalise(
        self, pixels: UInt8[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch channels height width"]:
        """Return framed pixels as the numbers that the model was trained on."""
        mean, std = (torch.tensor(numbers, device=pixels.device).view(-1, 1, 1) for numbers in (self.mean, self.std))
        return (pixels.float() * self.scale - mean) / std

    def region(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return which part of a picture of this size the model sees: x, y, width and height, in its pixels.

        Larger than the picture where the crop adds a black border.
        """
        if self.crop is None:
            return 0.0, 0.0, float(width), float(height)
        resized = (height, width) if self.resize is None else _sides(height, width, self.resize)
        top, left = _corner(resized, self.crop, rounds=self.rounds)
        down, across = height / resized[0], width / resized[1]
        return left * across, top * down, self.crop[1] * across, self.crop[0] * down

    @property
    def size(self) -> tuple[int, int] | None:
        """The height and width of every picture that is read, or None where that depends on the picture."""
        return self.crop if self.crop is not None else self.resize if isinstance(self.resize, tuple) else None


# ---------------------------------------------------------------- pixels


def _in_mode(image: "Image", mode: str) -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16"):  # 16 bits a pixel, which Pillow would clip at 255
        return Image.fromarray((_array(image) >> 8).astype("uint8")).convert(mode)
    if image.mode in ("I", "F"):
        raise InputError(f"a picture of mode {image.mode} has no agreed white: save it with 8 or 16 bits a pixel")
    if image.mode == "LAB":  # one of whose bands is called A, and which has no way to grey
        image = image.convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert(mode)


def _from_tensor(pixels: Tensor) -> "Image":
    from PIL import Image

    shape = tuple(pixels.shape)
    pixels = pixels.unsqueeze(0) if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or len(pixels) not in (1, 3) or 0 in shape:
        raise InputError(f"expected a picture of (height, width) or (1 or 3 channels, height, width), got {shape}")
    if pixels.is_floating_point():
        low, high = pixels.aminmax()
        if not (low >= 0 and high <= 1):  # nor a number that is none
            raise InputError(f"expected floats from 0 to 1, got {low:.4g} to {high:.4g}: divide by 255, or give uint8")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise InputError(f"expected a picture of uint8 or of floats, got {pixels.dtype}")
    array = pixels.detach().cpu().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if len(pixels) == 1 else array)


def _array(image: "Image") -> Any:
    import numpy as np

    return np.array(image)  # a copy: torch may write to it


def _to_tensor(image: "Image") -> Tensor:
    pixels = torch.from_numpy(_array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _sides(height: int, width: int, size: tuple[int, int] | int) -> tuple[int, int]:
    """Return the new height and width; in proportion, the longer side is rounded down, as torchvision does."""
    if isinstance(size, tuple):
        return size
    return (size, int(size * width / height)) if height <= width else (int(size * height / width), size)


def _middle(pixels: Tensor, crop: tuple[int, int], *, rounds: bool) -> Tensor:
    """Return the middle of a picture, with black around where it is too small."""
    height, width = crop
    more_rows, more_columns = max(height - pixels.shape[-2], 0), max(width - pixels.shape[-1], 0)
    around = (more_columns // 2, math.ceil(more_columns / 2), more_rows // 2, math.ceil(more_rows / 2))
    pixels = torch.nn.functional.pad(pixels, around)
    top, left = _corner((pixels.shape[-2], pixels.shape[-1]), crop, rounds=rounds)
    return pixels[:, top : top + height, left : left + width]


def _corner(size: tuple[int, int], crop: tuple[int, int], *, rounds: bool) -> tuple[int, int]:
    """Return the top and left of the middle; negative where the picture is smaller than the crop."""
    whole = round if rounds else math.floor
    return whole((size[0] - crop[0]) / 2), whole((size[1] - crop[1]) / 2)
