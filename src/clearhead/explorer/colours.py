"""One colour map for every weight: from dark to light, so that it reads the same in grey and to colour-blind eyes.

Ten steps of cividis (Nuñez, Anderton & Renslow 2018), which looks nearly alike with and without red-green vision;
without colour, ten characters from thin to thick. The steps are squares, 0, 0.01, 0.04, ... 0.81, because most weights
are small: the legend prints them.
"""

from bisect import bisect_right

STEPS = tuple((i / 10) ** 2 for i in range(10))  # the weight from which each colour is used
COLOURS = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip
INK = " .:-=+*#%@"


def step(weight: float) -> int:
    """Return which of the ten steps a weight in [0, 1] falls on."""
    return max(0, bisect_right(STEPS, weight + 1e-6) - 1)


def colour(weight: float) -> str:
    """Return the colour of a weight, as #rrggbb."""
    return COLOURS[step(weight)]


def letters(weight: float) -> str:
    """Return black or white, whichever is read better on the colour of `weight` (WCAG contrast above 4.5)."""
    return "#000000" if step(weight) >= 5 else "#ffffff"
