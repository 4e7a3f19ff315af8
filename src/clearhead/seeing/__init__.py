"""See what attention does while it runs: `watch` any model, ask the `Recording` for exact maps and statistics.

Reading order: recorder -> sites -> recording -> questions -> call -> maps -> statistics -> rule.
"""

from clearhead.seeing.recorder import watch
from clearhead.seeing.recording import Layer, Recording, Unseen
from clearhead.seeing.statistics import Habit, Link

__all__ = ["Habit", "Layer", "Link", "Recording", "Unseen", "watch"]
