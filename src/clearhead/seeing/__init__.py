"""See what attention does while it runs: `watch` any model, ask the `Recording` for exact maps and statistics.

And test what it means: `edit` changes heads and links while a model runs, `effect` ranks them by what that moves.

Reading order: recorder -> sites -> recording -> questions -> call -> maps -> statistics -> rule -> keeping -> saving ->
editing -> edits -> effects.
"""

from clearhead.seeing.editing import Edits, edit
from clearhead.seeing.effects import Effect, Effects, effect
from clearhead.seeing.recorder import watch
from clearhead.seeing.recording import Layer, Recording, Unseen
from clearhead.seeing.saving import open_recording
from clearhead.seeing.statistics import Habit, Link

__all__ = [
    "Edits",
    "Effect",
    "Effects",
    "Habit",
    "Layer",
    "Link",
    "Recording",
    "Unseen",
    "edit",
    "effect",
    "open_recording",
    "watch",
]
