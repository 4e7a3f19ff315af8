"""What a person sees of an argument: what to put there, and what happens without it. tyro reads it, and `usage.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from clearhead.cli.output import refuse

HARDEST = "(default: where WORD looks hardest at another word)"

Flag = Annotated[bool, arg(help_behavior_hint="")]
Text = Annotated[str, arg(metavar="TEXT")]
Texts = Annotated[tuple[str, ...], arg(metavar="TEXT ...", help_behavior_hint="(default: standard input)")]
Sounds = Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")]
Hearer = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")]
Language = Annotated[str | None, arg(metavar="CODE", help_behavior_hint="(default: what the model takes it for)")]
Files = Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")]
Model = Annotated[str, arg(metavar="MODEL")]
Sorter = Annotated[
    str | None, arg(metavar="MODEL", help_behavior_hint="(default: sentiment for texts, pictures for pictures)")
]
Watched = Annotated[
    str | None,
    arg(
        metavar="MODEL",
        help_behavior_hint="(default: sentiment; for pictures: pictures; with --target: pronounce)",
    ),
]
Target = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="(default: what it writes itself)")]
Labels = Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: the likeliest; with --json all)")]
Threads = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as PyTorch decides)")]
Word = Annotated[
    str | None, arg(metavar="WORD", help_behavior_hint="(default: the last content word; the picture as a whole)")
]
Place = Annotated[int | None, arg(metavar="N", help_behavior_hint=HARDEST)]
Recipe = Annotated[Path, arg(metavar="RECIPE")]
Data = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the recipe's own)")]
Start = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: as the recipe says)")]
Out = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/NAME-OF-RECIPE)")]
Device = Annotated[str | None, arg(metavar="DEVICE", help_behavior_hint="(default: as the recipe says)")]
Corpus = Annotated[tuple[Path, ...], arg(metavar="CORPUS ...", help_behavior_hint="(default: standard input)")]
Atlas = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: profiles/NAME-OF-MODEL)")]
Vectors = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: standard output)")]
Page = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: the terminal)")]
Taken = Literal["heads", "layers", "links", "tokens"]
Rounding = Literal["fp32", "bf16"]
Weights = Literal["fp32", "fp16", "bf16", "int8"]
Length = Annotated[int, arg(metavar="N")]
Most = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as the checkpoint says, or 256)")]
Pixels = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: 64 million)")]
View = Annotated[str, arg(metavar="VIEW", help_behavior_hint="(default: all heads)")]
Port = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: any that is free)")]
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Number = Annotated[float | None, arg(metavar="P", help_behavior_hint="")]
Stops = Annotated[tuple[str, ...], arg(metavar="TEXT ...", help_behavior_hint="")]


@dataclass(frozen=True)
class Choosing:
    """How the next token is chosen.

    Attributes:
        temperature: Below 1 the likely becomes likelier; 0 always takes the likeliest.
        top_k: Draw from the K likeliest tokens.
        top_p: Draw from the fewest tokens that together have probability P.
        min_p: Draw from tokens at least P times as likely as the likeliest.
        repetition_penalty: Make what occurred unlikelier; 1 changes nothing.
        beams: Draw nothing: follow the N likeliest texts, and give the best.
        seed: Draw again what was drawn with this number.
        stop: End before any of these.
    """

    temperature: Annotated[float | None, arg(metavar="T", help_behavior_hint="(default: 0.8)")] = None
    top_k: Annotated[int | None, arg(metavar="K", help_behavior_hint="")] = None
    top_p: Number = None
    min_p: Number = None
    repetition_penalty: Number = None
    beams: Count = None
    seed: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: another every time)")] = None
    stop: Stops = ()

    @property
    def warmth(self) -> float:
        """Return the temperature, given or not."""
        return 0.8 if self.temperature is None else self.temperature

    @property
    def draws(self) -> bool:
        """Return whether chance decides."""
        return self.beams is None and self.warmth > 0

    def check(self) -> None:
        """Leave with exit code 2 where the options cannot be meant, alone or together."""
        for name in ("top_k", "beams"):
            require(name, getattr(self, name), "at least 1", lambda number: number >= 1)
        for name in ("top_p", "min_p"):
            require(name, getattr(self, name), "above 0 and up to 1", lambda number: 0 < number <= 1)
        require("temperature", self.temperature, "0 or more", lambda number: 0 <= number < float("inf"))
        require("repetition_penalty", self.repetition_penalty, "above 0", lambda number: 0 < number < float("inf"))
        drawing = ("temperature", "top_k", "top_p", "min_p", "seed")
        given = [f"--{name.replace('_', '-')}" for name in drawing if getattr(self, name) is not None]
        if self.beams is not None and given:
            refuse(f"--beams draws nothing, {given[0]} says how to draw: give one of the two")
        if "" in self.stop:
            refuse("--stop needs a text to end before, got ''")


AS_USUAL = Choosing()


def require(name: str, number: int | float | None, what: str, holds: Callable[[float], bool]) -> None:
    """Leave with exit code 2 for an option whose number cannot be meant."""
    if number is not None and not holds(number):
        refuse(f"--{name.replace('_', '-')} must be {what}, got {number}")


def at_least_1(**numbers: int | None) -> None:
    """Leave with exit code 2 for an option that counts and is not a count."""
    for name, number in numbers.items():
        require(name, number, "at least 1", lambda number: number >= 1)
