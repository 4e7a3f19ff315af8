"""A picture as a page shows it: small enough to send, and where on it the patches of a model lie."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.data.images import ImageProcessor, open_image
from clearhead.errors import InputError
from clearhead.explorer.axes import PictureArea

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_SIDE = 1280  # pixels of a picture that is sent
FORMATS = ("PNG", "JPEG", "WEBP")  # of pictures that are sent to us
MAX_PIXELS = 25_000_000  # of pictures that are sent to us
MAX_LOSSLESS_PIXELS = 2**18  # pictures up to this size are sent as PNG, larger ones as JPEG


@dataclass(frozen=True)
class Picture:
    """An encoded picture and its media type."""

    data: bytes
    media_type: str
    width: int
    height: int


def encode(image: "Image") -> Picture:
    """Return a picture encoded anew, no side longer than `LONGEST_SIDE`: nothing of the original file is passed on."""
    small = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    lossless = small.width * small.height <= MAX_LOSSLESS_PIXELS or small.mode == "RGBA"
    buffer = io.BytesIO()
    if lossless:
        small.save(buffer, "PNG")
    else:
        small.save(buffer, "JPEG", quality=90)
    return Picture(buffer.getvalue(), "image/png" if lossless else "image/jpeg", small.width, small.height)


def decode(data: bytes) -> "Image":
    """Return the picture in the bytes of a PNG, JPEG or WebP file, upright; InputError where there is none.

    Its size is read and limited before its pixels: a small file may claim to be a very large picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"a picture of {image.width} x {image.height} pixels: at most {MAX_PIXELS:,} are read")
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise InputError(f"that is no picture in one of {', '.join(FORMATS)}") from None
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError) as error:
        raise InputError(f"a damaged or unreadable picture: {error}") from error


def opened(picture: "str | Path | Image", processor: ImageProcessor) -> "Image":
    """Return a picture that is open, or open the file if it has no more pixels than the processor takes."""
    return open_image(picture, max_pixels=processor.max_pixels) if isinstance(picture, str | Path) else picture


def area(
    processor: ImageProcessor, image: "Image", shown: Picture, name: str, grid: tuple[int, int], first: int
) -> PictureArea:
    """Return where on a shown picture the patches lie that a model cuts it into.

    Args:
        processor: What resizes and crops the picture for the model.
        image: The picture that the processor is given.
        shown: The picture as it is sent.
        name: The name under which it is fetched.
        grid: Rows and columns of patches.
        first: The index of the first patch among the model's tokens.
    """
    x, y, w, h = processor.region(image.height, image.width)
    across, down = shown.width / image.width, shown.height / image.height
    return PictureArea(name, shown.width, shown.height, *grid, first, x * across, y * down, w * across, h * down)
