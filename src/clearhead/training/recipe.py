"""A recipe: everything that decides how a run comes out, in one TOML file that is read strictly.

Each table of the file is one frozen dataclass here, each key one field; the defaults are Devlin et al. 2018, appendix
A.3, where they fine-tune. `recipes/` holds ours. Next: `objectives.py`.
"""

import math
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from clearhead.config import build_config
from clearhead.data.text import Columns
from clearhead.errors import ConfigError

# what only some objectives, or one optimizer, look at: asked of another it would change nothing, without a word
LOOKED_AT = {
    "label_smoothing": ("classification", "image_classification", "sequence_to_sequence"),
    "mask_rate": ("masked_words",),
    "shift": ("image_classification",),
    "mirror": ("image_classification",),
    "erase": ("image_classification",),
    "momentum": ("muon",),
}


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """Where the weights come from, and what is put on top of them or changed."""

    start: str  # a checkpoint: a folder, the name of a default, or org/model
    fresh: bool = False  # draw the weights from the seed: `start` then needs no weights, only what it is made of
    labels: tuple[str, ...] = ()
    dropout: float | None = None  # of everything, but for what the next two name; None: as the checkpoint has it
    attention_dropout: float | None = None  # of attention weights
    classifier_dropout: float | None = None  # of what the classifier reads

    def __post_init__(self) -> None:
        _check(self, "each label once", labels=len(set(self.labels)) == len(self.labels))
        _check(self, "two labels to choose from, or more", labels=len(self.labels) != 1)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """Which files, below the data folder, and how they are read."""

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns)
    max_len: int = 128  # ids a text, special tokens included; what is cut off is counted and said. Or a window

    def __post_init__(self) -> None:
        _check(self, "at least one file", train=len(self.train) > 0)
        _check(self, "at least 3", max_len=self.max_len >= 3)


@dataclass(frozen=True, kw_only=True)
class ObjectiveSection:
    """What the model learns to do."""

    name: Literal["classification", "masked_words", "next_token", "image_classification", "sequence_to_sequence"] = (
        "classification"
    )
    label_smoothing: float = 0.0  # classification, image_classification, sequence_to_sequence
    mask_rate: float = 0.15  # masked_words
    shift: int = 0  # image_classification: how many pixels a picture moves at most
    mirror: float = 0.0  # how likely it is mirrored
    erase: float = 0.0  # how likely a part of it is erased

    def __post_init__(self) -> None:
        _check(self, "at least 0 and below 1", label_smoothing=0 <= self.label_smoothing < 1)
        _check(self, "a number between 0 and 1", mask_rate=0 < self.mask_rate < 1)
        _check(self, "at least 0", shift=self.shift >= 0)
        _check(self, "a probability from 0 to 1", mirror=0 <= self.mirror <= 1, erase=0 <= self.erase <= 1)
        _require_looked_at(self, self.name)


@dataclass(frozen=True, kw_only=True)
class OptimizerSection:
    """AdamW (Loshchilov & Hutter 2019), or Muon (Jordan 2024) for the matrices inside the blocks and AdamW beside it.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, section 2.2), so one `lr` serves both.
    """

    lr: float
    name: Literal["adamw", "muon"] = "adamw"
    momentum: float = 0.95  # muon
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01  # of matrices that multiply; never of norms, biases and embeddings
    layer_decay: float = 1.0  # each layer further from the output learns this much slower
    clip: float | None = 1.0  # the largest norm a gradient may have

    def __post_init__(self) -> None:
        _check(self, "a finite number above 0", lr=0 < self.lr < math.inf, eps=0 < self.eps < math.inf)
        within = all(0 <= beta < 1 for beta in self.betas)
        _check(self, "at least 0 and below 1", momentum=0 <= self.momentum < 1, betas=within)
        _check(self, "a finite number from 0", weight_decay=0 <= self.weight_decay < math.inf)
        _check(self, "above 0 and at most 1", layer_decay=0 < self.layer_decay <= 1)
        _check(self, "above 0", clip=self.clip is None or self.clip > 0)
        _require_looked_at(self, self.name)


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """How the learning rate rises and falls, as fractions of the whole run and of `lr`."""

    warmup: float = 0.1
    decay: Literal["linear", "cosine", "none"] = "linear"
    end: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "a fraction from 0 to 1", warmup=0 <= self.warmup <= 1, end=0 <= self.end <= 1)


@dataclass(frozen=True, kw_only=True)
class TrainingSection:
    """How long, in what portions, and what is kept."""

    epochs: int | None = None  # or
    steps: int | None = None
    batch_size: int | None = None  # rows, or
    batch_tokens: int | None = None  # ids, padding counted
    accumulation: int = 1  # batches a step
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast, the weights stay fp32
    ema: float | None = None  # decay of the averaged weights, which are then what is evaluated and kept
    seed: int = 0
    evaluate_every: int | None = None  # steps; None: at the end
    save_every: int = 500  # steps
    keep: Literal["last", "best"] = "last"  # which weights the checkpoint holds; best: lowest loss on valid
    device: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for one, other in (("epochs", "steps"), ("batch_size", "batch_tokens")):
            if (getattr(self, one) is None) == (getattr(self, other) is None):
                raise ConfigError(f"[training]: expected exactly one of {one!r} and {other!r}")
        counts = ("epochs", "steps", "batch_size", "batch_tokens", "accumulation", "evaluate_every", "save_every")
        _check(self, "at least 1", **{name: getattr(self, name) is None or getattr(self, name) >= 1 for name in counts})
        _check(self, "at least 0 and below 1", ema=self.ema is None or 0 <= self.ema < 1)
        _check(self, "a whole number from 0 to 2**32 - 1, as numpy has it", seed=0 <= self.seed < 2**32)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run, described."""

    model: ModelSection
    data: DataSection
    optimizer: OptimizerSection
    training: TrainingSection
    objective: ObjectiveSection = field(default_factory=ObjectiveSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)

    def __post_init__(self) -> None:
        if self.objective.name == "classification" and not (self.model.labels and self.data.columns.targets):
            raise ConfigError(
                "classification needs [model] labels and a target in [data.columns]: label, positive or probabilities"
            )
        if self.objective.name != "classification" and self.data.columns.weight is not None:
            raise ConfigError("[data.columns] weight: only classification weighs its lines")
        if self.objective.name == "sequence_to_sequence" and self.data.columns.target_text is None:
            raise ConfigError("sequence_to_sequence needs target_text in [data.columns]: which column is the answer?")
        if self.training.keep == "best" and not self.data.valid:
            raise ConfigError("[training] keep = 'best' needs [data] valid: best on what?")

    @classmethod
    def load(cls, path: Path | str) -> "Recipe":
        """Read a recipe; ConfigError names the file, the key and the nearest known one."""
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # of TOML and of UTF-8
            raise ConfigError(f"{path}: not TOML: {error}") from error
        return build_config(cls, values, where=str(path))


def _require_looked_at(section: "ObjectiveSection | OptimizerSection", name: str) -> None:
    for each in fields(section):
        users = LOOKED_AT.get(each.name, (name,))
        if name not in users and getattr(section, each.name) != each.default:
            raise ConfigError(f"{each.name} is of {' and '.join(users)}: {name} has no use for it")


def _check(section: object, expected: str, **allowed: bool) -> None:
    if wrong := [f"{name} {getattr(section, name)!r}" for name, ok in allowed.items() if not ok]:
        table = type(section).__name__.removesuffix("Section").lower()
        raise ConfigError(f"[{table}] {', '.join(wrong)}: expected {expected}")
