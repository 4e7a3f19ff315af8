"""Draw docs/see.svg, the picture in the README: what `clearhead see` prints, as an image.

    python docs/picture.py

Fonts and styles are the reader's own; nothing is fetched when the picture is shown.
"""

import io
import re
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from clearhead.cli.reading import Asked, open_watched
from clearhead.explorer.terminal import show

TEXT = "attention is not too shabby"


def main() -> None:
    """Draw it."""
    reading = open_watched("see", "sentiment").read(TEXT, Asked(query="shabby"))
    console = Console(
        record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor", width=96, legacy_windows=False
    )
    console._environ = {}  # the picture has colours wherever it is drawn
    show(reading.view, console)
    svg = console.export_svg(title=f'clearhead see "{TEXT}"', theme=DIMMED_MONOKAI, unique_id="see")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace")
    Path(__file__).with_name("see.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
