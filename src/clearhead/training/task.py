"""What a task is: the four things that differ between learning to label, to guess words and to see.

`assembly.py` has the list of them by the name a recipe gives; each is written out in a module of its own: `texts.py`
(texts as rows), `language.py` (long texts in windows). Everything after is the same for all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from clearhead.checkpoints import CanSave
from clearhead.data.batches import Source
from clearhead.training.objectives import Objective
from clearhead.training.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Rows, a digest that changes with any of them, and what a person should know of how they were made."""

    rows: Source
    digest: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """How an objective's parts are made.

    reader:    what turns files into numbers, out of the checkpoint folder; it is saved beside the weights.
    rows:      the files below a folder, read.
    objective: what the model is asked to do.
    model:     the checkpoint's model under the head that the objective needs; TrainingError if it does not fit.
    """

    reader: Callable[[Path], CanSave]
    rows: Callable[[tuple[str, ...], Path, Recipe, Any], DataSet]
    objective: Callable[[Recipe, Any], Objective[Any]]
    model: Callable[[nn.Module, Recipe, Any], nn.Module]
