"""Facts about learning from pictures: chance changes them in training only, and a run's folder opens elsewhere."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import clearhead
from clearhead.checkpoints import load, save
from clearhead.data.images import ImageProcessor
from clearhead.data.pictures import PictureBatch
from clearhead.errors import TrainingError
from clearhead.models.vit import ViT, ViTConfig, ViTForImageClassification
from clearhead.training.pictures import ImageClassification
from clearhead.training.run import default, differences, run_recipe

LABELS = ("left", "right")
GREY = ImageProcessor(resize=(8, 8), mean=(0.0,), std=(1.0,), n_channels=1)
CONFIG = ViTConfig(
    image_size=(8, 8), patch_size=4, n_channels=1, d_model=16, n_heads=2, n_layers=2, d_ff=32, labels=LABELS
)


def batch(n: int = 64, side: int = 8) -> PictureBatch:
    pixels = torch.randint(1, 256, (n, 1, side, side), dtype=torch.uint8)
    return PictureBatch(pixels=pixels, targets=F.one_hot(torch.arange(n) % 2, 2).float())


def test_without_chance_pictures_are_shown_as_they_are() -> None:
    objective = ImageClassification(processor=GREY)
    prepared = objective.prepare(batch())
    assert torch.equal(objective.changed(prepared), GREY.normalise(prepared.pixels))


def test_pictures_are_moved_mirrored_and_erased_as_drawn() -> None:
    objective = ImageClassification(processor=GREY, shift=2, mirror=0.5, erase=0.5)
    prepared = objective.prepare(batch(400))
    shown = objective.changed(prepared)
    for picture, seen, (down, right), mirrored, (top, left, bottom, edge) in zip(
        prepared.pixels, shown, prepared.moved.tolist(), prepared.mirrored, prepared.erased.tolist()
    ):
        expected = torch.zeros(1, 8, 8, dtype=torch.uint8)
        for row in range(8):
            for column in range(8):
                if 0 <= row - down < 8 and 0 <= column - right < 8:
                    expected[0, row, column] = picture[0, row - down, column - right]
        expected = GREY.normalise(expected.flip(-1) if mirrored else expected)
        expected[:, top:bottom, left:edge] = 0
        assert torch.equal(seen, expected)
    boxes = (prepared.erased[:, 2] - prepared.erased[:, 0]) * (prepared.erased[:, 3] - prepared.erased[:, 1])
    assert 0.4 < (boxes > 0).float().mean() < 0.6 and boxes.max() <= 0.33 * 64 + 8  # whole pixels: half one more a side
    assert prepared.moved.unique().tolist() == [-2, -1, 0, 1, 2] and 0.4 < prepared.mirrored.float().mean() < 0.6


def test_evaluation_sees_pictures_as_they_are_and_training_does_not() -> None:
    class Watched(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.seen = pixels
            return pixels.flatten(1)[:, :2]

    model, drawn = Watched(), ImageClassification(processor=GREY, shift=2, mirror=0.5, erase=0.5).prepare(batch())
    objective = ImageClassification(processor=GREY, shift=2, mirror=0.5, erase=0.5)
    measures = objective.evaluate(model, [drawn, drawn])
    assert torch.equal(model.seen, GREY.normalise(drawn.pixels))
    scores = model(GREY.normalise(drawn.pixels))
    assert measures["loss"] == pytest.approx(F.cross_entropy(scores, drawn.targets).item(), rel=1e-5)
    assert measures["accuracy"] == (scores.argmax(-1) == drawn.targets.argmax(-1)).float().mean()
    objective.loss(model, drawn)
    assert not torch.equal(model.seen, GREY.normalise(drawn.pixels))


def test_chance_comes_from_the_generator_that_is_given() -> None:
    objective = ImageClassification(processor=GREY, shift=2, mirror=0.5, erase=0.5)
    first, same, other = (objective.prepare(batch(), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.erased, same.erased) and torch.equal(first.moved, same.moved)
    assert not torch.equal(first.moved, other.moved)


def test_smoothing_is_cross_entropy_against_softer_targets() -> None:
    class Scores(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.flatten(1)[:, :2]

    drawn = ImageClassification(processor=GREY).prepare(batch())
    smoothed = ImageClassification(processor=GREY, label_smoothing=0.2).loss(Scores(), drawn)
    softer = replace(drawn, targets=0.8 * drawn.targets + 0.1)
    assert smoothed.item() == pytest.approx(ImageClassification(processor=GREY).loss(Scores(), softer).item())


# ---------------------------------------------------------------- a whole run


def recipe(folder: Path, *, start: Path, fresh: bool = True, steps: int = 60) -> Path:
    """Write a data set (which half is bright?), and a recipe for it."""
    numbers = np.arange(128) % 2
    images = np.random.randint(0, 100, (128, 8, 8))
    images[numbers == 0, :, :4] += 120
    images[numbers == 1, :, 4:] += 120
    np.savez(folder / "train.npz", images=images[:96].astype(np.uint8), targets=np.eye(2)[numbers[:96]] * 0.9 + 0.05)
    np.savez(folder / "valid.npz", images=images[96:].astype(np.uint8), labels=numbers[96:])
    path = folder / "recipe.toml"
    path.write_text(
        f"""
[model]
start = {json.dumps(str(start))}
fresh = {json.dumps(fresh)}
labels = {json.dumps(LABELS)}
[data]
train = ["train.npz"]
valid = ["valid.npz"]
[objective]
name = "image_classification"
shift = 1
erase = 0.2
[optimizer]
name = "muon"
lr = 5e-3
[training]
steps = {steps}
batch_size = 32
"""
    )
    return path


def start_folder(folder: Path, config: ViTConfig = CONFIG, processor: ImageProcessor = GREY) -> Path:
    head = ViTForImageClassification if config.labels else ViT
    save(head(config), folder, tokenizer=processor, family="vit")
    return folder


def test_a_vit_learns_from_the_seed_and_transformers_opens_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers absent")
    start = start_folder(tmp_path / "start")
    (start / "model.safetensors").unlink()  # the seed says what the weights are
    run_recipe(recipe(tmp_path, start=start), out=tmp_path / "run")
    measures = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert measures[-1]["valid_accuracy"] > 0.9 and measures[0]["unit"] == "pictures"
    model, processor = load(tmp_path / "run"), ImageProcessor.load(tmp_path / "run")
    assert model.config.labels == LABELS and processor == GREY
    pixels = processor.read(torch.randint(0, 256, (8, 8), dtype=torch.uint8)).unsqueeze(0)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), theirs(pixels).logits, rtol=1e-4, atol=1e-5)


def test_a_trunk_gets_a_head_and_a_second_stage_keeps_it(tmp_path: Path) -> None:
    start = start_folder(tmp_path / "start", replace(CONFIG, labels=(), pooler=True))
    run_recipe(recipe(tmp_path, start=start, fresh=False, steps=2), out=tmp_path / "one")
    one = load(tmp_path / "one")
    run_recipe(recipe(tmp_path, start=tmp_path / "one", fresh=False, steps=1), out=tmp_path / "two")
    two = load(tmp_path / "two")
    assert isinstance(two, ViTForImageClassification) and two.config == one.config
    change = (two.classifier.weight - one.classifier.weight).abs().max()
    assert 0 < change < 0.02, "the head went on where it was"


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    start = start_folder(tmp_path / "start", processor=replace(GREY, resize=(16, 16)))
    with pytest.raises(TrainingError, match=r"made for \(8, 8\) pixels in 1 channels, and its preprocessing gives"):
        run_recipe(recipe(tmp_path, start=start), out=tmp_path / "run")
    bert = clearhead.BertForSequenceClassification(
        clearhead.BertConfig(vocab_size=9, max_len=9, d_model=8, n_heads=2, n_layers=1, d_ff=8, labels=LABELS)
    )
    save(bert, tmp_path / "bert", tokenizer=GREY)
    with pytest.raises(TrainingError, match="seen by a ViT, and the checkpoint holds a BertForSequenceClassification"):
        run_recipe(recipe(tmp_path, start=tmp_path / "bert", fresh=False), out=tmp_path / "run")


def test_a_run_begun_before_a_field_was_there_goes_on_only_if_it_says_nothing_new() -> None:
    before = {"recipe": {"objective": {"name": "image_classification"}}}
    assert default(["objective", "shift"]) == 0
    assert differences(before, {"recipe": {"objective": {"name": "image_classification", "shift": 0}}}) == []
    changes = differences(before, {"recipe": {"objective": {"name": "image_classification", "shift": 2}}})
    assert changes == ["objective.shift was None, is 2"]
