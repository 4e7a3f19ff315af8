"""Figures for a paper, with matplotlib: one map, all heads, the links of a query, a shaded text.

Sizes are those of journals (89 mm is one column, 183 mm two), letters are at least 7 points, colors are the page's. No
pyplot: a figure belongs to who asked for it, and shows itself as the last line of a notebook's cell.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, ListedColormap, LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clearhead.derivation.words import bare
from clearhead.errors import InputError
from clearhead.explorer.figures.palette import STOPS, color_numbers, colors, usual_floor
from clearhead.seeing import Recording
from clearhead.seeing.maps.pyramid import edges

MM = 1 / 25.4  # inches
ONE_COLUMN, TWO_COLUMNS = 89.0, 183.0  # millimeters
POINTS = 7  # the smallest letters that journals print
MAX_LABELS = 48  # words along an axis: more would overlap, and positions are numbered instead
MAX_CELLS = 256  # positions a side that are drawn one by one; a larger map is drawn in as many blocks
ACCENT = {"light": "#b3400e", "dark": "#ff8a4c"}
INK = {"light": "#1a1c1f", "dark": "#e8e6e1"}
KINDS = ("map", "links", "text")


class Plot(Figure):
    """A figure that shows itself in a notebook."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=200)
        return file.getvalue()


def plot(
    seen: Recording,
    layer: int | str | None,
    head: int | None,
    words: Sequence[str] | None,
    *,
    kind: str = "map",
    query: int | None = None,
    width: float | int | None = None,
    theme: str = "light",
    ax: Axes | None = None,
    **part: Any,
) -> Figure:
    """Return a figure; see `Recording.plot`."""
    if kind not in KINDS:
        raise InputError(f"kind= is {' or '.join(map(repr, KINDS))}, got {kind!r}")
    if theme not in STOPS:
        raise InputError(f"theme= is 'light' or 'dark', got {theme!r}")
    one = layer is not None and head is not None
    if (kind != "map" or ax is not None) and not one:
        raise InputError(f"{'ax=' if kind == 'map' else f'kind={kind!r}'} is for one head: give layer= and head= too")
    if kind != "map" and query is None:
        raise InputError(f"kind={kind!r} shows what one query looks at: give query=, a position")
    words = seen.words if words is None else words
    if not one:
        return _all_heads(seen, layer, width or TWO_COLUMNS, theme, **part)
    assert layer is not None and head is not None
    figure, ax = _axes(ax, width or ONE_COLUMN, theme, 1.0 if kind == "map" else 0.4)
    if kind == "map":
        _one_map(ax, seen, layer, head, words, theme, **part)
    else:
        assert query is not None
        draw = _links if kind == "links" else _text
        draw(ax, seen.row(layer, head, query, **part).numpy(force=True), query, words, theme)
    return figure


def _axes(ax: Axes | None, width: float | int, theme: str, ratio: float) -> tuple[Figure, Axes]:
    """Return the axes to draw into, in a figure of their own where none are given."""
    if ax is not None:
        found = ax.get_figure(root=True)
        assert isinstance(found, Figure)
        return found, ax
    figure = Plot(figsize=(width * MM, width * MM * ratio), layout="constrained", facecolor=_page(theme))
    return figure, figure.add_subplot(facecolor=_page(theme))


def _page(theme: str) -> str:
    return STOPS[theme][0]


def _scale(n_keys: int, theme: str) -> tuple[Colormap, LogNorm]:
    page = _page(theme)  # also of a weight of 0, which has no logarithm
    return ListedColormap(colors(theme) / 255).with_extremes(bad=page, under=page), LogNorm(usual_floor(n_keys), 1.0)


def _one_map(
    ax: Axes,
    seen: Recording,
    layer: int | str,
    head: int,
    words: Sequence[str] | None,
    theme: str,
    *,
    rows: slice | None = None,
    cols: slice | None = None,
    batch: int = 0,
    call: int = -1,
) -> None:
    """Draw the map of one head, single weights where they are few enough, else means over the queries of blocks."""
    whole = seen.call(layer, call)
    queries, keys = range(whole.n_all)[rows or slice(None)], range(whole.n_keys)[cols or slice(None)]
    single = max(len(queries), len(keys)) <= MAX_CELLS
    if single:
        share = seen.map(layer, head, rows, cols, batch=batch, call=call).numpy(force=True)
    else:
        mass = seen.overview(layer, head, MAX_CELLS, rows=rows, cols=cols, batch=batch, call=call)
        share = mass.numpy(force=True) / np.diff(edges(len(queries), MAX_CELLS))[:, None]
    scale, norm = _scale(whole.n_keys, theme)
    extent = (keys.start - 0.5, keys.stop - 0.5, queries.stop - 0.5, queries.start - 0.5)
    image = ax.imshow(share, cmap=scale, norm=norm, interpolation="nearest", extent=extent, aspect="auto")
    ax.set_xlabel("key", fontsize=POINTS, color=INK[theme])
    ax.set_ylabel("query", fontsize=POINTS, color=INK[theme])
    for axis, places, first in ((ax.xaxis, keys, 0), (ax.yaxis, queries, whole.n_keys - whole.n_all)):
        named = words is not None and single and len(places) <= MAX_LABELS and first + places.stop <= len(words)
        if named:
            assert words is not None
            turned = 90 if axis is ax.xaxis else 0
            axis.set_ticks(list(places), [bare(words[first + place]) for place in places], rotation=turned)
    _dress(ax, theme)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.6, pad=0.02)
    bar.set_label("weight" if single else "mean weight of a block's queries", fontsize=POINTS, color=INK[theme])
    bar.ax.tick_params(labelsize=POINTS, colors=INK[theme])
    bar.outline.set_visible(False)


def _all_heads(
    seen: Recording,
    layer: int | str | None,
    width: float | int,
    theme: str,
    *,
    batch: int = 0,
    call: int = -1,
    rows: slice | None = None,
    cols: slice | None = None,
) -> Figure:
    """Return all heads of a layer, or of all layers, as small maps."""
    layers = [seen.number(layer)] if layer is not None else list(seen.numbers)
    n_heads = max(len(seen.call(each, call).heads) for each in layers)
    height = width * len(layers) / n_heads + 8
    figure = Plot(figsize=(width * MM, height * MM), layout="constrained", facecolor=_page(theme))
    grid = figure.subplots(len(layers), n_heads, squeeze=False)
    for line, number in zip(grid, layers, strict=True):
        one = seen.call(number, call)
        queries = range(one.n_all)[rows or slice(None)]
        mass = seen.overview(number, rows=rows, cols=cols, batch=batch, call=call).numpy(force=True)
        share = mass / np.diff(edges(len(queries), mass.shape[-2]))[:, None]
        scale, norm = _scale(one.n_keys, theme)
        for place, ax in enumerate(line):
            ax.set_axis_off()
            if place < len(one.heads):
                ax.imshow(share[place], cmap=scale, norm=norm, interpolation="nearest", aspect="auto")
                title = f"{number}.{one.heads[place]}"
                ax.set_title(title, fontsize=POINTS, pad=2, color=INK[theme])
    return figure


def _links(ax: Axes, row: NDArray[np.floating], query: int, words: Sequence[str] | None, theme: str) -> None:
    """Draw the words in a line and an arc from the query to each key, as wide as the weight."""
    places = np.arange(len(row))
    scale, norm = _scale(len(row), theme)
    stands = query % len(row)
    for place, weight in enumerate(row):
        if weight >= norm.vmin and place != stands:
            turn = np.linspace(0, np.pi, 40)
            middle, half = (place + stands) / 2, abs(place - stands) / 2
            ax.plot(middle + half * np.cos(turn), half * np.sin(turn), lw=4 * weight, color=ACCENT[theme])
    ax.scatter(places, np.zeros(len(row)), s=12, c=row, cmap=scale, norm=norm, edgecolors=INK[theme], linewidths=0.4)
    names = [bare(word) for word in words[: len(row)]] if words is not None else [str(place) for place in places]
    if len(row) <= MAX_LABELS:
        ax.set_xticks(places, names, rotation=90)
        ax.get_xticklabels()[stands].set_color(ACCENT[theme])
    ax.set_yticks([])
    ax.set_ylim(bottom=-0.4)
    _dress(ax, theme)
    if len(row) <= MAX_LABELS:
        ax.get_xticklabels()[stands].set_color(ACCENT[theme])


def _text(ax: Axes, row: NDArray[np.floating], query: int, words: Sequence[str] | None, theme: str) -> None:
    """Write the words in lines, each on the color of the weight that the query gives to it."""
    if words is None or len(words) < len(row):
        raise InputError("kind='text' writes the tokens: give words=, as many strings as there are keys")
    table, floor = colors(theme) / 255, usual_floor(len(row))
    ax.set_axis_off()
    ax.set_xlim(0, 1)
    ax.set_ylim(1, 0)
    to_axes = ax.transAxes.inverted()
    x, y, line = 0.0, 0.0, 0.0
    stands = query % len(row)
    for place, at in enumerate(color_numbers(row, floor)):
        dark = float(table[at] @ (0.2126, 0.7152, 0.0722)) < 0.5
        label = ax.text(
            x,
            y,
            bare(words[place]),
            fontsize=POINTS + 1,
            va="top",
            color="#ffffff" if dark else "#000000",
            bbox={
                "facecolor": table[at],
                "edgecolor": ACCENT[theme] if place == stands else "none",
                "pad": 1.5,
                "linewidth": 1,
            },
        )
        box = label.get_window_extent().transformed(to_axes)
        line = max(line, box.height)
        if x > 0 and x + box.width > 1:
            x, y = 0.0, y + 1.6 * line
            label.set_position((x, y))
        x += box.width + 0.012


def _dress(ax: Axes, theme: str) -> None:
    """Take away what says nothing: frames and tick marks; letters small, in the theme's ink."""
    ax.tick_params(labelsize=POINTS, length=0, colors=INK[theme])
    for side in ax.spines.values():
        side.set_visible(False)
