"""Facts about sound: the numbers Whisper was trained on, and files of every width."""

import json
import math
import wave
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clearhead.data.sound import SoundProcessor, resample
from clearhead.errors import CheckpointError, InputError


def tone(hertz: float, rate: int, seconds: float = 0.5, loud: float = 0.5) -> Tensor:
    return loud * torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds), dtype=torch.float64) / rate).float()


def write_wav(path: Path, samples: Tensor, rate: int, *, width: int = 2, channels: int = 1) -> Path:
    """Write samples as PCM, the same in every channel."""
    numbers = (samples.double() * (2.0 ** (8 * width - 1) - 1)).round().long().tolist()
    as_bytes = [n + 128 if width == 1 else n for n in numbers for _ in range(channels)]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels), file.setsampwidth(width), file.setframerate(rate)
        file.writeframes(b"".join(n.to_bytes(width, "little", signed=width > 1) for n in as_bytes))
    return path


@pytest.mark.parametrize("n_mels", [80, 128])
def test_spectrograms_equal_transformers(n_mels: int) -> None:
    from transformers import WhisperFeatureExtractor

    torch.manual_seed(0)
    sound = tone(440, 16_000, 2.0) + 0.1 * torch.randn(32_000) * torch.linspace(0, 1, 32_000)
    expected = WhisperFeatureExtractor(feature_size=n_mels)(sound.numpy(), sampling_rate=16_000, return_tensors="pt")
    ours = SoundProcessor(n_mels=n_mels).hear(sound)
    assert ours.shape == (n_mels, 3_000) and ours.std() > 0.1
    torch.testing.assert_close(ours, expected["input_features"][0], rtol=0, atol=1e-4)


def test_silence_is_one_number() -> None:
    heard = SoundProcessor().hear(torch.zeros(1_600))
    torch.testing.assert_close(heard, torch.full_like(heard, (-10 + 4) / 4))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_is_the_same_tone_at_another_rate(rate: int) -> None:
    found, expected = resample(tone(1_000, rate), rate, 16_000), tone(1_000, 16_000)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[200:-200], expected[200:-200], rtol=0, atol=2e-3)


def test_a_tone_too_high_for_the_new_rate_is_taken_out() -> None:
    assert resample(tone(10_000, 48_000), 48_000, 16_000)[200:-200].abs().max() < 5e-3
    assert resample(tone(10_000, 48_000), 48_000, 48_000).abs().max() > 0.4


def test_a_long_file_is_heard_in_pieces(tmp_path: Path) -> None:
    processor = SoundProcessor(seconds=1)
    pieces = processor.read(write_wav(tmp_path / "a.wav", tone(440, 8_000, 2.5), 8_000))
    assert [piece.shape for piece in pieces] == [(80, 100)] * 3
    silent = pieces[2][:, 60:]  # the half second that is not there
    assert silent.max() < pieces[2][:, :40].max()


def test_the_processor_goes_round_and_refuses_what_it_does_not_do(tmp_path: Path) -> None:
    from transformers import WhisperFeatureExtractor

    SoundProcessor(n_mels=128).save(tmp_path)
    assert WhisperFeatureExtractor.from_pretrained(tmp_path).feature_size == 128
    assert SoundProcessor.load(tmp_path) == SoundProcessor(n_mels=128)
    WhisperFeatureExtractor().save_pretrained(tmp_path)
    assert SoundProcessor.load(tmp_path) == SoundProcessor()
    words = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**words, "dither": 0.1}))
    with pytest.raises(CheckpointError, match="dither"):
        SoundProcessor.load(tmp_path)


@pytest.mark.parametrize(("extra", "n_pieces"), [(-1, 1), (0, 1), (1, 1), (159, 1), (160, 2), (161, 2)])
def test_less_than_a_frame_behind_the_last_piece_is_no_piece(extra: int, n_pieces: int, tmp_path: Path) -> None:
    sound = tone(440, 16_000, 1.1)[: 16_000 + extra]  # a frame is 160 samples, 10 ms
    assert len(SoundProcessor(seconds=1).read(write_wav(tmp_path / "a.wav", sound, 16_000))) == n_pieces


def test_a_sound_shorter_than_a_frame_is_one_piece(tmp_path: Path) -> None:
    assert len(SoundProcessor(seconds=1).read(write_wav(tmp_path / "a.wav", tone(440, 16_000)[:3], 16_000))) == 1


def test_a_sound_too_long_for_one_spectrogram_is_refused() -> None:
    with pytest.raises(InputError, match="cut the sound"):
        SoundProcessor(seconds=1).hear(torch.zeros(16_001))
