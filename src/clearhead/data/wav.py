"""Samples of a .wav file: RIFF chunks (Microsoft & IBM 1991), read here as Python's `wave` reads integer PCM alone.

What is read: integer PCM of 8, 16, 24 and 32 bits and floating-point PCM of 32 and 64, plain or under
WAVE_FORMAT_EXTENSIBLE, the header that programs write for 24 bits and for more than two channels.

Next: `sound.py`, which makes spectrograms of the samples.
"""

import struct
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import InputError

INTEGERS, FLOATS, EXTENSIBLE = 1, 3, 0xFFFE  # WAVE_FORMAT_PCM, WAVE_FORMAT_IEEE_FLOAT, WAVE_FORMAT_EXTENSIBLE
SUBFORMAT_END = bytes.fromhex("000000001000800000aa00389b71")  # of KSDATAFORMAT_SUBTYPE_PCM and _IEEE_FLOAT
DTYPES = {
    (INTEGERS, 1): torch.uint8,  # the only one without a sign
    (INTEGERS, 2): torch.int16,
    (INTEGERS, 3): torch.uint8,  # three bytes, put together below
    (INTEGERS, 4): torch.int32,
    (FLOATS, 4): torch.float32,
    (FLOATS, 8): torch.float64,
}


def read_wav(path: str | Path) -> tuple[Float[Tensor, " samples"], int]:
    """Read a .wav file, the mean of its channels.

    Args:
        path: The file.

    Returns:
        The samples, from -1 to 1 (those of floating-point files as they are), and how many there are a second.

    Raises:
        InputError: The file is absent, damaged, empty, or holds something other than PCM.
    """
    try:
        kind, channels, rate, width, raw = _chunks(Path(path).read_bytes())
        if (kind, width) not in DTYPES:
            raise ValueError(f"format {kind} with {8 * width} bits a sample")
        if channels < 1 or rate < 1:
            raise ValueError(f"{channels} channels and {rate} samples a second")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a .wav") from None
    except (ValueError, struct.error, OSError) as error:
        raise InputError(
            f"{path} is no .wav that can be read ({error}): expected PCM, 8 to 32 bits or floating-point, made for "
            f"example by ffmpeg -i IN -ac 1 -ar 16000 -c:a pcm_s16le OUT.wav"
        ) from error
    raw = raw[: len(raw) // (width * channels) * width * channels]  # a file that was cut off
    if not raw:
        raise InputError(f"{path}: no samples, expected PCM of at least one")
    numbers = torch.frombuffer(raw, dtype=DTYPES[kind, width])
    if kind == INTEGERS:
        numbers = numbers.double()
        if width == 3:
            low, middle, high = numbers.view(-1, 3).unbind(1)
            numbers = low + 256 * middle + 65_536 * (high - 256 * (high > 127))
        numbers = (numbers - 128 * (width == 1)) / 2.0 ** (8 * width - 1)
    samples = numbers.view(-1, channels).double().mean(1).float()
    if not samples.isfinite().all():
        raise InputError(f"{path}: sample {int((~samples.isfinite()).nonzero()[0])} is no finite number")
    return samples, rate


def _chunks(data: bytes) -> tuple[int, int, int, int, bytearray]:
    """Return format tag, channels, samples a second, bytes a sample and the raw samples of a file."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("it does not begin with RIFF and WAVE")
    at, header = 12, b""
    while len(data) - at >= 8:
        name, (size,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        body = data[at + 8 : at + 8 + size]  # a size that a stream did not know yet reaches beyond the end
        if name == b"fmt ":
            header = body
        elif name == b"data":
            if not header:
                raise ValueError("its samples come before their format")
            return *_format(header), bytearray(body)
        at += 8 + size + size % 2  # chunks begin at even places
    raise ValueError("it ends before its samples")


def _format(header: bytes) -> tuple[int, int, int, int]:
    """Return format tag, channels, samples a second and bytes a sample, as a `fmt ` chunk describes them."""
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", header)
    if kind == EXTENSIBLE:  # the tag is the beginning of a GUID, behind 8 bytes of valid bits and loudspeakers
        kind = struct.unpack_from("<H", header, 24)[0]
        if header[26:40] != SUBFORMAT_END:
            raise ValueError("a WAVE_FORMAT_EXTENSIBLE that is no PCM")
    return kind, channels, rate, (bits + 7) // 8
