"""What `Recording.show` and `Recording.plot` call; each imports its extra when it is asked for.

`seeing` may not import this room, so it names this module as a string (`seeing/recordings/pictures.py`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clearhead.errors import MissingExtra
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.scene import Scene
from clearhead.seeing import Recording

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clearhead.explorer.widget import ExplorerWidget


def show(seen: Recording, words: Sequence[str] | None = None, view: str = "") -> "ExplorerWidget":
    """Return the explorer of a recording as a widget; see `Recording.show`."""
    try:
        from clearhead.explorer.widget import ExplorerWidget
    except ModuleNotFoundError as missing:
        if missing.name not in ("anywidget", "traitlets"):
            raise
        raise MissingExtra("seen.show() needs anywidget: pip install 'clearhead[notebook]'") from missing
    return ExplorerWidget(Exploration([Scene.of(seen, words)]), view)


def plot(
    seen: Recording, layer: int | str | None, head: int | None, words: Sequence[str] | None, **how: Any
) -> "Figure":
    """Return a matplotlib figure of a recording; see `Recording.plot`."""
    try:
        from clearhead.explorer.figures import plots
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingExtra("seen.plot() needs matplotlib: pip install 'clearhead[plot]'") from missing
    return plots.plot(seen, layer, head, words, **how)
