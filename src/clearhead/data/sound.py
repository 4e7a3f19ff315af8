"""Sound as a model hears it: how loud each of 80 pitches is, a hundred times a second (Radford et al. 2022, Whisper).

    samples, 16,000 a second -> 25 ms at a time, every 10 ms -> power of each frequency -> 80 bands of mels -> log10

A band of the mel scale is as wide as the ear hears it: narrow below 1 kHz, wider above (Slaney 1998, Auditory Toolbox).
The numbers are those of transformers' WhisperFeatureExtractor. Files are .wav, read by `wav.py`.

Next: `models/encoder_decoder.py` listens.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.data.preprocessing import PREPROCESSOR
from clearhead.data.wav import read_wav
from clearhead.errors import CheckpointError, InputError
from clearhead.json_files import read_json, shown, whole

# Keys of a WhisperFeatureExtractor that change nothing here: what follows from others, and what the caller is given.
HARMLESS = frozenset(
    """
    feature_extractor_type mel_filters n_samples nb_max_frames padding padding_side processor_class
    return_attention_mask return_tensors
    """.split()
)
SETTLED: dict[str, tuple[Any, ...]] = {"padding_value": (0, 0.0), "dither": (0, 0.0), "do_normalize": (False, None)}
N_ZEROS = 6  # of the sinc that resamples, on either side
READ = {
    "feature_size": "n_mels",
    "sampling_rate": "rate",
    "n_fft": "n_window",
    "hop_length": "hop",
    "chunk_length": "seconds",
}
# As many seconds as are read at once decide what a sound needs in memory; `require_fits` compares that with the model.
KINDS = {
    "feature_size": whole(1, 2**12),
    "sampling_rate": whole(1, 2**20),
    "n_fft": whole(2, 2**14),
    "hop_length": whole(1, 2**14),
    "chunk_length": whole(1, 2**12),
}


@dataclass(frozen=True, kw_only=True)
class SoundProcessor:
    """What becomes of a sound before a model hears it; the defaults are Whisper's.

    `n_mels` bands, from windows of `n_window` samples every `hop`, of exactly `seconds`: shorter ones end in silence.
    """

    n_mels: int = 80
    rate: int = 16_000  # samples a second
    n_window: int = 400
    hop: int = 160
    seconds: int = 30

    @classmethod
    def load(cls, folder: str | Path) -> "SoundProcessor":
        """Return the processor of a checkpoint folder; Whisper's where it holds no preprocessor_config.json."""
        path, config = Path(folder) / PREPROCESSOR, Path(folder) / "config.json"
        if not path.is_file():
            said = read_json(config, {"num_mel_bins": KINDS["feature_size"]}) if config.is_file() else {}
            return cls(n_mels=said.get("num_mel_bins") or 80)
        words = read_json(path, KINDS)
        for key, given in words.items():
            if key not in READ and key not in HARMLESS and given not in SETTLED.get(key, ()):
                raise CheckpointError(
                    f"{path}: {key} {shown(given)}, which may change what the model hears, is not done here"
                )
        numbers = {ours: words[theirs] for theirs, ours in READ.items() if words.get(theirs) is not None}
        return cls(**numbers)

    def require_fits(self, n_mels: int, n_frames: int) -> None:
        """Raise CheckpointError where a model of `n_mels` bands and `n_frames` frames cannot hear what this makes."""
        made = self.n_mels, self.rate * self.seconds // self.hop
        if made != (n_mels, n_frames):
            raise CheckpointError(
                f"{PREPROCESSOR}: chunk_length * sampling_rate / hop_length and feature_size make {made[1]:,} frames "
                f"of {made[0]:,} bands of a sound, but the model's weights expect {n_frames:,} of {n_mels:,}: the two "
                f"do not belong together, get both from the same place"
            )

    def save(self, folder: Path) -> None:
        """Write preprocessor_config.json into `folder`, as transformers reads it."""
        words: dict[str, Any] = {theirs: getattr(self, ours) for theirs, ours in READ.items()}
        words = {"feature_extractor_type": "WhisperFeatureExtractor", **words, "padding_value": 0.0}
        (folder / PREPROCESSOR).write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")

    def read(self, path: str | Path) -> list[Float[Tensor, "mels frames"]]:
        """Return what is heard in a .wav file, one spectrogram for each `seconds` of it.

        Samples at the end that make up less than one frame, `hop` of them, are no piece of their own, as in OpenAI's
        Whisper.
        """
        samples, rate = read_wav(path)
        samples, size = resample(samples, rate, self.rate), self.rate * self.seconds
        starts = range(0, max(len(samples) - self.hop + 1, 1), size)
        return [self.hear(samples[start : start + size]) for start in starts]

    def hear(self, samples: Float[Tensor, " samples"]) -> Float[Tensor, "mels frames"]:
        """Return the log-mel spectrogram of samples from -1 to 1, `rate` a second and at most `seconds` long.

        `log10` of the power, at most 8 below the loudest, over 4, plus 1: about -1 to 1, as Whisper was trained on.
        """
        size = self.rate * self.seconds
        if not 0 < len(samples) <= size:
            raise InputError(f"expected 1 to {size:,} samples, got {len(samples):,}: cut the sound into pieces")
        padded = torch.nn.functional.pad(samples.double(), (0, size - len(samples)))
        window = torch.hann_window(self.n_window, dtype=torch.float64, device=samples.device)
        waves = torch.stft(padded, self.n_window, self.hop, window=window, return_complex=True)
        power = waves[:, :-1].abs().square()  # the last frame stands behind the end
        bands = mel_bands(self.n_mels, self.n_window, self.rate).to(samples.device).T @ power
        loud = bands.clamp(min=1e-10).log10()
        return (torch.maximum(loud, loud.max() - 8.0) / 4 + 1).float()


def mel_bands(n_mels: int, n_window: int, rate: int) -> Float[Tensor, "frequencies mels"]:
    """Return how much each frequency of a window counts for each band: triangles of equal area, equally far in mels."""
    frequencies = torch.linspace(0, rate / 2, n_window // 2 + 1, dtype=torch.float64)
    top = float(_mels(torch.tensor(rate / 2, dtype=torch.float64)))
    corners = _hertz(torch.linspace(0, top, n_mels + 2, dtype=torch.float64))
    widths = corners.diff()
    away = corners - frequencies.unsqueeze(1)  # frequencies corners
    rising, falling = -away[:, :-2] / widths[:-1], away[:, 2:] / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (corners[2:] - corners[:-2]))


# Slaney's scale: linear below 1 kHz, 15 mels at it, then logarithmic, 27 mels for a factor of 6.4.
def _mels(hertz: Tensor) -> Tensor:
    above = 15 + (hertz.clamp(min=1e-9) / 1_000).log() * 27 / math.log(6.4)
    return torch.where(hertz < 1_000, hertz * 3 / 200, above)


def _hertz(mels: Tensor) -> Tensor:
    return torch.where(mels < 15, mels * 200 / 3, 1_000 * ((mels - 15) * math.log(6.4) / 27).exp())


def resample(samples: Float[Tensor, " samples"], rate: int, wanted: int) -> Float[Tensor, " new"]:
    """Return the same sound at `wanted` samples a second, what it cannot hold taken out.

    Each new sample is a sum of old ones around it, weighted by a sinc that ends after N_ZEROS zeros under a squared
    cosine (Smith 1984, Digital Audio Resampling); it lets 99 % of the lower rate's frequencies through.
    """
    if rate == wanted:
        return samples
    shared = math.gcd(rate, wanted)
    old, new = rate // shared, wanted // shared
    cut = min(old, new) * 0.99
    reach = math.ceil(N_ZEROS * old / cut)
    offsets = torch.arange(-reach, reach + old, dtype=torch.float64) / old
    times = (offsets - torch.arange(new, dtype=torch.float64).unsqueeze(1) / new) * cut  # new taps
    fade = (times.clamp(-N_ZEROS, N_ZEROS) * math.pi / N_ZEROS / 2).cos().square()
    taps = (torch.sinc(times) * fade * cut / old).to(samples.dtype)
    n_new = math.ceil(len(samples) * new / old)
    padded = torch.nn.functional.pad(samples, (reach, reach + old)).view(1, 1, -1)
    found = torch.nn.functional.conv1d(padded, taps.unsqueeze(1), stride=old)  # 1 new blocks
    return found[0].T.flatten()[:n_new]
