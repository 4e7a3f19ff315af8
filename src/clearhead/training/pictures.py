"""Pictures and what they show; while a model learns, they are moved, mirrored and partly erased.

What is on a picture does not depend on a step to the left: showing that, again and again, is worth more than any trick
of the optimizer where pictures are few. Random crops and mirrors are as old as AlexNet (Krizhevsky et al. 2012,
section 4.1); erasing a box (Zhong et al. 2020) keeps a model from betting on one corner.

Next: `assembly.py`, all tasks by name.
"""

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.checkpoints import origin
from clearhead.data.images import ImageProcessor
from clearhead.data.pictures import PictureBatch, Pictures, read_pictures
from clearhead.errors import InputError, TrainingError
from clearhead.models.vit import ViT, ViTConfig, ViTForImageClassification
from clearhead.training.recipe import Recipe
from clearhead.training.task import DataSet, Task


@dataclass(frozen=True, kw_only=True)
class ImageClassification:
    """Cross-entropy against a row of probabilities: hard labels, shared opinions, another model's predictions.

    `prepare` draws what happens to each picture, `loss` does it, `evaluate` looks at the pictures as they are.
    `shift` is how many pixels a picture moves at most, what comes in being black; `mirror` and `erase` are
    probabilities. An erased box has 2 to 33 % of the area, 0.3 to 3.3 times as high as wide (Zhong et al. 2020), and
    shows the mean of the training pictures.
    """

    processor: ImageProcessor
    label_smoothing: float = 0.0
    shift: int = 0
    mirror: float = 0.0
    erase: float = 0.0

    def prepare(self, batch: PictureBatch, generator: torch.Generator | None = None) -> PictureBatch:
        """Draw what happens to each picture."""
        n, (height, width) = len(batch.pixels), batch.pixels.shape[-2:]
        moved = torch.randint(-self.shift, self.shift + 1, (n, 2), generator=generator)
        chance = torch.rand(6, n, generator=generator)
        area = (0.02 + 0.31 * chance[0]) * height * width
        ratio = torch.exp((2 * chance[1] - 1) * math.log(1 / 0.3))
        rows, columns = (area * ratio).sqrt().clamp(max=height).round(), (area / ratio).sqrt().clamp(max=width).round()
        rows = rows * (chance[2] < self.erase)
        top, left = (chance[3] * (height - rows + 1)).floor(), (chance[4] * (width - columns + 1)).floor()
        erased = torch.stack((top, left, top + rows, left + columns), dim=-1).long()
        return replace(batch, moved=moved, mirrored=chance[5] < self.mirror, erased=erased)

    def count(self, batch: PictureBatch) -> float:
        """Return how many pictures there are."""
        return float(len(batch.pixels))

    def loss(self, model: nn.Module, batch: PictureBatch) -> Float[Tensor, ""]:
        """Return `-sum(target * log softmax(scores))`, the mean over pictures that chance has changed."""
        scores = model(self.changed(batch)).float()
        return F.cross_entropy(scores, batch.targets, label_smoothing=self.label_smoothing)

    def changed(self, batch: PictureBatch) -> Float[Tensor, "batch channels height width"]:
        """Return the pictures moved, mirrored and with a box erased, as `prepare` drew it."""
        pixels = batch.pixels
        assert batch.moved is not None and batch.mirrored is not None and batch.erased is not None
        rows, columns = (torch.arange(side, device=pixels.device) for side in pixels.shape[-2:])
        if self.shift:
            wide = F.pad(pixels, (self.shift,) * 4)
            down, right = (self.shift - batch.moved).unbind(-1)
            every = torch.arange(len(pixels), device=pixels.device)[:, None, None]
            picked = wide[every, :, (down[:, None] + rows)[:, :, None], (right[:, None] + columns)[:, None, :]]
            pixels = picked.permute(0, 3, 1, 2)
        pixels = torch.where(batch.mirrored[:, None, None, None], pixels.flip(-1), pixels)
        shown = self.processor.normalise(pixels)
        top, left, bottom, right = batch.erased.unsqueeze(-1).unbind(1)
        inside = ((top <= rows) & (rows < bottom)).unsqueeze(2) & ((left <= columns) & (columns < right)).unsqueeze(1)
        return shown.masked_fill(inside.unsqueeze(1), 0.0)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: Iterable[PictureBatch]) -> dict[str, float]:
        """Return the mean loss, and how often the likeliest label is the target's likeliest; nothing is changed."""
        total, right, n_pictures = 0.0, 0, 0
        for batch in batches:
            scores = model(self.processor.normalise(batch.pixels)).float()
            total += F.cross_entropy(scores, batch.targets, reduction="sum").item()
            right += int((scores.argmax(-1) == batch.targets.argmax(-1)).sum())
            n_pictures += len(scores)
        return {"loss": total / n_pictures, "accuracy": right / n_pictures}


def build_pictures(files: tuple[str, ...], folder: Path, recipe: Recipe, processor: ImageProcessor) -> DataSet:
    """Read labelled pictures below `folder`; no files give no pictures."""
    labels = recipe.model.labels
    if not labels:
        raise TrainingError("[model] labels: pictures are told apart by labels, so name them, in the data's order")
    sets = [read_pictures(folder / name, processor, labels) for name in files]
    if len({read.pixels.shape[1:] for read in sets}) > 1:
        raise InputError(f"{', '.join(files)}: pictures of different sizes")
    if not sets:
        nothing = torch.zeros((0, processor.n_channels, 1, 1), dtype=torch.uint8)
        sets = [Pictures(pixels=nothing, targets=torch.zeros(0, len(labels)))]
    pixels = torch.cat([read.pixels for read in sets])
    targets = torch.cat([read.targets for read in sets])
    digest = hashlib.sha256(pixels.numpy().tobytes() + targets.numpy().tobytes()).hexdigest()
    size = " x ".join(map(str, pixels.shape[1:]))
    return DataSet(rows=Pictures(pixels=pixels, targets=targets), digest=digest, note=f"{len(pixels):,} of {size}")


def _seer(source: nn.Module, recipe: Recipe, processor: ImageProcessor) -> nn.Module:
    """Return the trunk under a head for the labels: its own if it has the same, so that a second stage goes on."""
    if isinstance(source, ViTForImageClassification) and source.config.labels == recipe.model.labels:
        model = source
    elif isinstance(source, ViT | ViTForImageClassification):
        trunk = source if isinstance(source, ViT) else source.vit
        model = ViTForImageClassification(_with_labels(trunk.config, recipe.model.labels, trunk))
        model.vit.load_state_dict({k: v for k, v in trunk.state_dict().items() if not k.startswith("pooler.")})
    else:
        raise TrainingError(f"pictures are seen by a ViT, and the checkpoint holds a {type(source).__name__}")
    config = model.config
    if processor.size != config.image_size or processor.n_channels != config.n_channels:
        raise TrainingError(
            f"the model was made for {config.image_size} pixels in {config.n_channels} channels, and its preprocessing "
            f"gives {processor.size} in {processor.n_channels}"
        )
    return model


def _with_labels(config: ViTConfig, labels: tuple[str, ...], trunk: ViT) -> ViTConfig:
    came_from = origin(trunk)
    dino = came_from is not None and came_from.family.startswith("dinov2")  # whose classifiers read both
    return replace(config, labels=labels, pooler=False, pool="class_and_mean" if dino else config.pool)


def _objective(recipe: Recipe, processor: ImageProcessor) -> ImageClassification:
    section = recipe.objective
    return ImageClassification(
        processor=processor,
        label_smoothing=section.label_smoothing,
        shift=section.shift,
        mirror=section.mirror,
        erase=section.erase,
    )


PICTURES = Task(reader=ImageProcessor.load, rows=build_pictures, objective=_objective, model=_seer)
