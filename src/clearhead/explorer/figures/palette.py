"""The colors of weights, as the page has them: `web/scale.js` holds the same stops, and a test compares the two.

One sequential map, after cividis (Nuñez, Anderton & Renslow 2018): lightness changes evenly, blue against yellow, so
that it reads nearly alike with and without red-green vision. It begins at the color of the page.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

STOPS: dict[str, tuple[str, ...]] = {
    "light": ("#ffffff", "#f2ecd9", "#d9d0ae", "#b3ae98", "#868a8e", "#566683", "#294674", "#00224e"),
    "dark": ("#121417", "#142744", "#2b4066", "#505c76", "#7c7d7b", "#aa9f73", "#d9c35b", "#ffe945"),
}
N_COLORS = 256
# OKLab (Ottosson 2020, "A perceptual color space for image processing"): linear sRGB to cone responses, and their cube
# roots to lightness and two opponent axes.
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@cache
def colors(theme: str) -> NDArray[np.uint8]:
    """Return the colors of a theme at 256 even steps from no weight to all of it, as (256, 3) red, green and blue."""
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in STOPS[theme]])
    points = _to_lab(stops / 255)
    at = np.linspace(0, len(points) - 1, N_COLORS)
    between = np.stack([np.interp(at, np.arange(len(points)), points[:, axis]) for axis in range(3)], axis=1)
    return np.round(255 * _from_lab(between)).astype(np.uint8)


def usual_floor(n_keys: int) -> float:
    """Return the share from which colors begin: a power of ten near a tenth of what looking everywhere alike gives."""
    return 10.0 ** min(-2, max(-6, -math.floor(math.log10(10 * max(1, n_keys)) + 0.5)))


def color_numbers(share: NDArray[np.floating], floor: float) -> NDArray[np.uint8]:
    """Return the number of each share's color in `colors`, on a logarithmic scale from `floor` to 1."""
    with np.errstate(divide="ignore"):
        positions = np.clip(1 - np.log(share) / math.log(floor), 0, 1)
    return np.round((N_COLORS - 1) * positions).astype(np.uint8)


def _to_lab(srgb: NDArray[np.floating]) -> NDArray[np.floating]:
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ TO_CONES.T) @ TO_LAB.T


def _from_lab(lab: NDArray[np.floating]) -> NDArray[np.floating]:
    linear = np.clip((lab @ np.linalg.inv(TO_LAB).T) ** 3 @ np.linalg.inv(TO_CONES).T, 0, 1)
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
