"""See what attention does while it runs: `watch` any model, ask the `Recording` for exact maps and statistics.

And test what it means: `edit` changes heads and links while a model runs.

Reading order: recorder -> sites -> recording -> questions -> call -> maps -> statistics -> rule -> editing -> edits.
"""

from clearhead.seeing.editing import Edits, edit
from clearhead.seeing.recorder import watch
from clearhead.seeing.recording import Layer, Recording, Unseen
from clearhead.seeing.statistics import Habit, Link

__all__ = ["Edits", "Habit", "Layer", "Link", "Recording", "Unseen", "edit", "watch"]
