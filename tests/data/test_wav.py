"""Facts about .wav files: every kind of PCM comes back as the samples that were written, the rest is refused."""

import struct
import wave
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clearhead.data.wav import EXTENSIBLE, FLOATS, INTEGERS, SUBFORMAT_END, read_wav
from clearhead.errors import InputError

RAMP = torch.linspace(-0.9, 0.9, 41)


def riff(
    path: Path, data: bytes, *, kind: int, bits: int, channels: int = 1, rate: int = 8_000, extensible: bool = False
) -> Path:
    """Write a RIFF file, a chunk of an odd size before the samples as some programs leave there."""
    width = (bits + 7) // 8
    tag = EXTENSIBLE if extensible else kind
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * width, channels * width, bits)
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, kind) + SUBFORMAT_END
    chunks = b"".join(
        name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
        for name, body in ((b"fmt ", form), (b"LIST", b"odd"), (b"data", data))
    )
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)
    return path


def integers(samples: Tensor, bits: int) -> bytes:
    width = bits // 8
    numbers = (samples.double() * (2.0 ** (bits - 1) - 1)).round().long() + 128 * (bits == 8)
    return b"".join(n.to_bytes(width, "little", signed=bits > 8) for n in numbers.tolist())


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits, bound", [(8, 1e-2), (16, 1e-4), (24, 1e-6), (32, 1e-6)])
def test_integers_of_every_width_come_back(bits: int, bound: float, extensible: bool, tmp_path: Path) -> None:
    path = riff(tmp_path / "a.wav", integers(RAMP, bits), kind=INTEGERS, bits=bits, extensible=extensible)
    samples, rate = read_wav(path)
    assert rate == 8_000
    torch.testing.assert_close(samples, RAMP, rtol=0, atol=bound)


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits", [32, 64])
def test_floating_point_samples_come_back_exactly(bits: int, extensible: bool, tmp_path: Path) -> None:
    data = struct.pack(f"<{len(RAMP)}{'f' if bits == 32 else 'd'}", *RAMP.tolist())
    samples, _ = read_wav(riff(tmp_path / "a.wav", data, kind=FLOATS, bits=bits, extensible=extensible))
    assert torch.equal(samples, RAMP)


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = torch.stack((RAMP, torch.zeros_like(RAMP)), 1).flatten()
    samples, _ = read_wav(riff(tmp_path / "a.wav", integers(both, 16), kind=INTEGERS, bits=16, channels=2))
    torch.testing.assert_close(samples, RAMP / 2, rtol=0, atol=1e-4)


def test_a_file_of_pythons_own_writer_comes_back(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(3), file.setframerate(44_100)
        file.writeframes(integers(RAMP, 24))
    samples, rate = read_wav(tmp_path / "a.wav")
    assert rate == 44_100
    torch.testing.assert_close(samples, RAMP, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"])
def test_a_stream_that_did_not_know_its_length_is_read_to_its_end(size: bytes, tmp_path: Path) -> None:
    path = riff(tmp_path / "a.wav", integers(RAMP, 16), kind=INTEGERS, bits=16)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"data") + 4
    raw[at : at + 4] = size
    path.write_bytes(raw[:-1])  # and was cut off within a sample
    samples, _ = read_wav(path)
    torch.testing.assert_close(samples, RAMP[:-1], rtol=0, atol=1e-4)


def test_what_is_no_sound_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_wav(tmp_path / "absent.wav")
    (tmp_path / "text.wav").write_text("not a sound at all")
    with pytest.raises(InputError, match=r"is no \.wav that can be read.*ffmpeg"):
        read_wav(tmp_path / "text.wav")
    with pytest.raises(InputError, match=r"format 17 with 8 bits a sample\): expected PCM"):  # ADPCM
        read_wav(riff(tmp_path / "adpcm.wav", b"\0" * 4, kind=17, bits=4))
    with pytest.raises(InputError, match="no samples"):
        read_wav(riff(tmp_path / "empty.wav", b"", kind=INTEGERS, bits=16))
    with pytest.raises(InputError, match="0 samples a second"):
        read_wav(riff(tmp_path / "still.wav", b"\0" * 4, kind=INTEGERS, bits=16, rate=0))
    with pytest.raises(InputError, match="sample 1 is no finite number"):
        read_wav(riff(tmp_path / "nan.wav", struct.pack("<2f", 0, float("nan")), kind=FLOATS, bits=32))


def test_every_beginning_of_a_file_is_read_or_refused(tmp_path: Path) -> None:
    whole = riff(tmp_path / "a.wav", integers(RAMP, 16), kind=INTEGERS, bits=16, extensible=True).read_bytes()
    read = 0
    for length in range(len(whole)):
        (tmp_path / "cut.wav").write_bytes(whole[:length])
        try:
            read += len(read_wav(tmp_path / "cut.wav")[0]) <= len(RAMP)
        except InputError:
            continue
    assert read == 2 * len(RAMP) - 2
