"""See what attention does while it runs: `watch` any model, ask the `Recording` for exact maps and statistics.

And test what it means: `edit` changes heads and links while a model runs, `effect` ranks them by what that moves.

Reading order: recorder, then `sites/` where attention is met; recognition -> rule -> call, what is known of one call;
`maps/`, what follows from it; `recordings/`, where calls are kept and asked; `editing/`, what they are changed by.
"""

from clearhead.seeing.editing.editor import Edits, edit
from clearhead.seeing.editing.effects import Effect, Effects, effect
from clearhead.seeing.maps.habits import Habit
from clearhead.seeing.maps.pyramid import Pyramid
from clearhead.seeing.maps.statistics import Link, Sink
from clearhead.seeing.recorder import watch
from clearhead.seeing.recordings.account import Unseen
from clearhead.seeing.recordings.estimate import Estimate, estimate
from clearhead.seeing.recordings.recording import Layer, Recording
from clearhead.seeing.recordings.saving import open_recording

__all__ = [
    "Edits",
    "Effect",
    "Effects",
    "Estimate",
    "Habit",
    "Layer",
    "Link",
    "Pyramid",
    "Recording",
    "Sink",
    "Unseen",
    "edit",
    "effect",
    "estimate",
    "open_recording",
    "watch",
]
