"""Pictures of a recording: the explorer in a notebook, figures for a paper.

What draws stands above this room and is named in one place, `DRAWN_BY`, as pandas names what it plots with; it is
imported when somebody asks for a picture. So recording and computing need none of it.
"""

import importlib
from collections.abc import Sequence
from typing import Any

DRAWN_BY = "clearhead.explorer.hosts"  # a module with the functions show, plot and static


class Pictures:
    """The questions whose answers are pictures; `Recording` inherits them."""

    def show(self, words: Sequence[str] | None = None, *, view: str = "") -> Any:
        """Return the explorer as a widget, for the last line of a notebook's cell.

        Works in JupyterLab, Jupyter Notebook, VS Code, Colab and marimo. All questions are answered by the kernel, so
        that any head can be looked at, exactly and at any length, while the kernel runs.

        Args:
            words: The tokens of the text as strings, in order; those that the recording holds where not given, else
                positions are numbered. `tokenizer.convert_ids_to_tokens(ids)` gives them for a transformers tokenizer.
            view: Where to begin: what stands behind the `#` of an explorer's address, e.g. "v=1&page=head&l=2&h=0".

        Returns:
            An `ExplorerWidget`.

        Raises:
            MissingExtra: anywidget is not installed; the message says how to install it.
            WatchError: Nothing was recorded.
        """
        return importlib.import_module(DRAWN_BY).show(self, words, view)

    def plot(
        self, layer: int | str | None = None, head: int | None = None, *, words: Sequence[str] | None = None, **how: Any
    ) -> Any:
        """Return a matplotlib figure: the map of one head, of all heads of a layer, or of all heads.

        Args:
            layer: The layer, by number or name; all layers where not given.
            head: The head; all heads of the layer where not given.
            words: The tokens as strings, in order; those that the recording holds where not given.
            how: `kind` ("map", "links" or "text"; "links" and "text" need `query`), `query` (a position), `rows` and
                `cols` (slices of positions), `batch`, `call`, `width` (in millimeters), `theme` ("light" or "dark") and
                `ax`, the axes to draw one map into.

        Returns:
            A `matplotlib.figure.Figure`, sized for a paper; `figure.savefig("map.pdf")` writes it.

        Raises:
            MissingExtra: matplotlib is not installed; the message says how to install it.
            WatchError: There is no such layer, head or position.
        """
        return importlib.import_module(DRAWN_BY).plot(self, layer, head, words, **how)
