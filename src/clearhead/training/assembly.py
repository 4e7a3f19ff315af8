"""What a recipe asks for, made: every task by its name, the model as the recipe changes it, the device.

Next: `run.py` puts them together.
"""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clearhead.checkpoints import build, descend, load
from clearhead.errors import TrainingError
from clearhead.training.language import NEXT_TOKEN
from clearhead.training.pairs import ANSWERS
from clearhead.training.pictures import PICTURES
from clearhead.training.recipe import Recipe
from clearhead.training.task import Task
from clearhead.training.texts import HIDDEN_WORDS, LABELS

TASKS: dict[str, Task] = {
    "classification": LABELS,
    "masked_words": HIDDEN_WORDS,
    "next_token": NEXT_TOKEN,
    "image_classification": PICTURES,
    "sequence_to_sequence": ANSWERS,
}
DROPOUTS = ("dropout", "attention_dropout", "classifier_dropout")


def build_model(folder: Path, recipe: Recipe, reader: Any) -> tuple[nn.Module, str | None]:
    """Return the checkpoint's model under the head that the objective needs, and the family to save it in.

    The checkpoint's own head is kept when it is of that kind and has the same labels, so that a second stage goes on
    where the first ended; otherwise the head starts at random. With `fresh` all of it does.
    """
    section = recipe.model
    source = build(folder) if section.fresh else load(folder)
    model: Any = TASKS[recipe.objective.name].model(source, recipe, reader)
    known = {field.name for field in fields(model.config)}
    changes = {name: getattr(section, name) for name in DROPOUTS if getattr(section, name) is not None}
    if section.dropout is not None:  # `dropout` is the rate of every kind that the recipe does not name itself
        changes = {name: section.dropout for name in DROPOUTS if name in known} | changes
    if lost := sorted(changes.keys() - known):
        raise TrainingError(f"[model] {', '.join(lost)}: a {type(model).__name__} has no such thing")
    changed = type(model)(replace(model.config, **changes))
    changed.load_state_dict(model.state_dict())
    came_from = descend(changed, source)
    return changed, came_from.family if came_from else None


def device_named(name: str) -> torch.device:
    """Return the device a recipe names; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"[training] device {name!r} is not here ({str(error).splitlines()[0]}); try 'auto'"
        ) from error
