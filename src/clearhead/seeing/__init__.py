"""See what attention does while it runs: `watch` any model, ask the `Recording` for exact maps and statistics.

And test what it means: `edit` changes heads and links while a model runs, `effect` ranks them by what that moves.

Reading order: recorder -> whereabouts -> sites -> normaliser -> found -> byhand -> vocabulary -> scores -> interface ->
flex -> flash -> layouts -> texts -> compiled -> graphs -> recording -> questions -> call -> products -> maps -> workers
-> tiles -> pyramid -> statistics -> habits -> rollout -> rule -> keeping -> saving -> editing -> edits -> effects.
"""

from clearhead.seeing.editing import Edits, edit
from clearhead.seeing.effects import Effect, Effects, effect
from clearhead.seeing.estimate import Estimate, estimate
from clearhead.seeing.habits import Habit
from clearhead.seeing.pyramid import Pyramid
from clearhead.seeing.recorder import watch
from clearhead.seeing.recording import Layer, Recording, Unseen
from clearhead.seeing.saving import open_recording
from clearhead.seeing.statistics import Link, Sink

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
