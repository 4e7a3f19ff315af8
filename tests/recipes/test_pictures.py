"""Facts about the ViT that ships, and about the recipe that makes it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import clearhead
from clearhead.checkpoints import find
from clearhead.data.images import ImageProcessor
from clearhead.training.recipe import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "pictures"
SHIPPED = Path(clearhead.__file__).parent / "defaults" / "pictures"
CLOTHES = sorted((Path(__file__).parent / "clothes").glob("*.png"))  # one of each label, never trained on


def script(name: str) -> ModuleType:
    """Return a script of the recipe; those of other recipes have the same names."""
    spec = importlib.util.spec_from_file_location(f"pictures_{name}", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seen() -> torch.Tensor:
    processor = ImageProcessor.load(find("pictures"))
    return torch.stack([processor.read(path) for path in CLOTHES])


def test_clothes_it_never_saw_are_told_apart() -> None:
    model = clearhead.load("pictures")
    with torch.inference_mode():
        given = model(seen()).argmax(-1)
    assert len(CLOTHES) == len(model.config.labels) == 10
    assert (given == torch.arange(10)).sum() >= 9


def test_transformers_opens_it_and_agrees() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers absent")
    from PIL import Image

    folder = find("pictures")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor([Image.open(path) for path in CLOTHES], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(seen(), pixels, rtol=0, atol=1e-5)
    theirs, report = transformers.AutoModelForImageClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    ours = clearhead.load("pictures")
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), theirs.eval()(pixels).logits, rtol=1e-5, atol=1e-5)
    assert tuple(theirs.config.id2label.values()) == ours.config.labels


def test_accuracy_on_the_test_pictures_is_what_the_card_says() -> None:
    folder = os.environ.get("FASHION_MNIST")
    if not folder:
        pytest.skip("set FASHION_MNIST to the folder of its idx files (Debian: dataset-fashion-mnist)")
    accuracy = script("score").score("pictures", Path(folder))["accuracy"]
    assert f"{100 * accuracy:.2f} %" in (SHIPPED / "README.md").read_text(encoding="utf-8")


def test_it_is_small_and_its_card_names_licence_score_and_limits() -> None:
    assert (SHIPPED / "model.safetensors").stat().st_size <= 8e6
    card = (SHIPPED / "README.md").read_text(encoding="utf-8")
    for word in ("license: apache-2.0", "MIT", "Fashion-MNIST", "## Score", "## Limits"):
        assert word in card


def test_the_recipe_can_be_read_and_starts_from_no_weights() -> None:
    recipe = Recipe.load(FOLDER.with_suffix(".toml"))
    assert recipe.model.fresh and recipe.objective.name == "image_classification" and len(recipe.model.labels) == 10
    start = FOLDER.parents[1] / recipe.model.start
    assert ImageProcessor.load(start).n_channels == 1 and not list(start.glob("*.safetensors"))
    torch.manual_seed(0)
    assert clearhead.checkpoints.build(start).config.labels == recipe.model.labels


def test_the_teacher_never_learns_from_the_valid_pictures_and_its_opinion_is_written(tmp_path: Path) -> None:
    from gzip import compress

    def idx(array: np.ndarray) -> bytes:
        return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()

    n = 5_000 + 256
    pictures = np.zeros((n, 28, 28), np.uint8)
    pictures[np.arange(n), np.arange(n) % 28, np.arange(n) // 28 % 28] = 255  # which one it is
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(compress(idx(pictures), 1))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(compress(idx((np.arange(n) % 10).astype(np.uint8)), 1))
    command = [sys.executable, FOLDER / "teach.py", "--data", tmp_path, "--out", tmp_path / "out", "--epochs", "1"]
    subprocess.run([*map(str, command), "--width", "4"], check=True, capture_output=True)
    train, valid = (np.load(tmp_path / "out" / f"{name}.npz") for name in ("train", "valid"))
    assert len(train["images"]) == 256 and len(valid["images"]) == 5_000
    assert np.allclose(train["targets"].sum(-1), 1, atol=1e-3) and (train["targets"].max(-1) >= 0.5).all()
    both = np.concatenate([train["images"], valid["images"]]).reshape(n, -1).argmax(-1)
    assert sorted(both) == sorted(pictures.reshape(n, -1).argmax(-1)), "every picture once, in one of the two"
