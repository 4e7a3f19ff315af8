"""All heads of a recording as one SVG: layers from top to bottom, heads from left to right, each a map in small.

The maps are one PNG inside the SVG, enlarged by a whole number so that no program smooths it; words are text.
"""

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clearhead.explorer.blocks import FLOOR, N_STEPS
from clearhead.explorer.figures.palette import color_numbers, colors, usual_floor

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

CELL = 64  # pixels a side that a small map is enlarged to
GAP = 8  # pixels between two maps
LEFT, TOP, BOTTOM = 64, 44, 40  # pixels around the maps, for words
MAX_LAYERS, MAX_HEADS = 32, 32  # that are drawn; how many are left out is said
INK: dict[str, str] = {"light": "#1a1c1f", "dark": "#e8e6e1"}
FRAME: dict[str, str] = {"light": "#d8dade", "dark": "#3a3e44"}


def heads_svg(exploration: "Exploration", *, scene: str | None = None, theme: str = "light") -> str:
    """Return all heads of a scene as an SVG.

    Args:
        exploration: What is explored.
        scene: Which scene, by its id; the first where not given.
        theme: "light" or "dark".

    Returns:
        The SVG. Its title and description say in words what it shows; its metadata, the command that shows it again.
    """
    meta = exploration.ask("meta", scene=scene).meta
    layers = [layer for layer in meta["layers"] if layer["empty"] is None]
    drawn = layers[:MAX_LAYERS]
    maps = [_maps(exploration, scene, layer) for layer in drawn]
    n_heads = max((len(row) for row in maps), default=0)
    width = LEFT + n_heads * (CELL + GAP)
    height = TOP + len(maps) * (CELL + GAP) + BOTTOM
    canvas = np.zeros((height, width), dtype=np.uint8)  # numbers of colors; 0 is the page's
    frames, words = [], []
    for row, (layer, pictures) in enumerate(zip(drawn, maps, strict=True)):
        top = TOP + row * (CELL + GAP)
        words.append((LEFT - GAP, top + CELL // 2 + 4, "end", layer["title"]))
        for column, picture in enumerate(pictures):
            left = LEFT + column * (CELL + GAP)
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            frames.append((left, top, picture.shape[1], picture.shape[0]))
    words += [(LEFT + i * (CELL + GAP) + CELL // 2, TOP - GAP, "middle", str(i)) for i in range(n_heads)]
    words.append((LEFT, 16, "start", _title(meta)))
    words.append((LEFT, height - 14, "start", _legend(layers, drawn, maps)))
    return _svg(canvas, frames, words, _title(meta), meta["commands"].get("command", ""), theme)


def _maps(exploration: "Exploration", scene: str | None, layer: dict[str, object]) -> list[NDArray[np.uint8]]:
    """Return the maps of a layer's heads as pixels, each the number of a color."""
    found = exploration.ask("overview", scene=scene, layer=layer["index"])
    meta = found.meta
    levels = np.frombuffer(found.body or b"", dtype=np.uint8).reshape(-1, meta["rows"], meta["cols"])
    shares = np.where(levels < 2, 0.0, FLOOR ** (1 - (levels.astype(float) - 2) / N_STEPS))
    pixels = color_numbers(shares, usual_floor(int(meta["col_cuts"][-1])))
    larger = max(1, CELL // max(meta["rows"], meta["cols"]))
    return [one.repeat(larger, axis=0).repeat(larger, axis=1) for one in pixels[:MAX_HEADS]]


def _title(meta: dict[str, object]) -> str:
    return " · ".join(str(part) for part in (meta["title"], meta["model"]) if part)[:120]


def _legend(layers: list[object], drawn: list[object], maps: list[list[NDArray[np.uint8]]]) -> str:
    said = "Rows are queries, columns are keys. The darker, the more attention, on a logarithmic scale."
    if len(layers) > len(drawn):
        said += f" {len(layers) - len(drawn)} layers are not drawn."
    return said


def _svg(
    canvas: NDArray[np.uint8],
    frames: list[tuple[int, int, int, int]],
    words: list[tuple[int, int, str, str]],
    title: str,
    command: str,
    theme: str,
) -> str:
    """Return the SVG: pixels are numbers of colors, frames (x, y, width, height), words (x, y, anchor, text)."""
    from PIL import Image

    picture = Image.fromarray(canvas)
    picture.putpalette(colors(theme).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    png = base64.b64encode(file.getvalue()).decode()
    height, width = canvas.shape
    boxes = "".join(f'<rect x="{x - 0.5}" y="{y - 0.5}" width="{w + 1}" height="{h + 1}"/>' for x, y, w, h in frames)
    texts = "".join(
        f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>' for x, y, anchor, text in words
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" style="max-width: 100%; height: auto"><title>{escape(title)}</title>'
        f"<desc>Every attention head as a small map, one row a layer.</desc>"
        f"<metadata>{escape(command)}</metadata>"
        f'<image href="data:image/png;base64,{png}" width="{width}" height="{height}" '
        f'style="image-rendering: pixelated"/>'
        f'<g fill="none" stroke="{FRAME[theme]}">{boxes}</g>'
        f'<g font-family="system-ui, sans-serif" font-size="12" fill="{INK[theme]}">{texts}</g></svg>'
    )
