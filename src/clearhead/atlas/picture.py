"""The table of a profile as one picture: a panel a statistic, a row a layer, a column a head. SVG, nothing fetched.

Every panel has the one colour map of the house (`explorer/colours.py`): shares from 0 to 1, nats and tokens from 0 to
the most that any head has. Its title says the most. The first panel has a letter for what a head most often is, no
colour. Text and ground follow the reader's light or dark scheme. Each cell says its number when pointed at.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from clearhead.explorer.colours import COLOURS, colour

CELL, GAP, MARGIN, PER_ROW = 14, 28, 16, 4
NARROWEST = 12 * CELL  # a panel's title fits
LETTER = 7.5  # the width of one in the picture's title, on average
NOT_DRAWN = ("layer", "head", "module", "kind", "kind_share", "near_by_chance", "heaviest_share")
# Shares of a row's weight; what is none is measured in nats or in tokens.
UNITS = {"entropy": "nats", "distance": "tokens"}
STYLE = """
svg { color-scheme: light dark; font: 11px system-ui, sans-serif; }
.ground { fill: #ffffff; } text { fill: #1a1a1a; } .dim { fill: #595959; }
.letter { font: 10px ui-monospace, monospace; }
.cell { fill: none; stroke: #b0b0b0; stroke-width: 0.5; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #16181c; } text { fill: #e8e8e8; } .dim { fill: #a8a8a8; } .cell { stroke: #5a5e66; }
}
""".strip()


def draw(table: Sequence[Mapping[str, Any]], name: str, about: str) -> str:
    """Return the picture of a table of `Tally.table`, as SVG; `name` is the model's, `about` the corpus in numbers."""
    names = [name for name in table[0] if name not in NOT_DRAWN and not name.endswith("_sd")]
    n_layers, n_heads = (max(row[what] for row in table) + 1 for what in ("layer", "head"))
    width, height = max(n_heads * CELL, NARROWEST), n_layers * CELL
    numbers = "".join(
        f'<text class="dim" x="-4" y="{layer * CELL + 11}" text-anchor="end">{layer}</text>'
        for layer in range(0, n_layers, max(1, n_layers // 6))
    ) + "".join(
        f'<text class="dim" x="{head * CELL + CELL / 2}" y="{height + 12}" text-anchor="middle">{head}</text>'
        for head in range(0, n_heads, max(1, n_heads // 6))
    )
    panels = [_kinds(table), *(_panel(table, name) for name in names)]
    body = []
    for i, panel in enumerate(panels):
        x = MARGIN + 16 + (i % PER_ROW) * (width + GAP)
        y = 58 + (i // PER_ROW) * (height + 44)
        body.append(f'<g transform="translate({x} {y})">{numbers}{panel}</g>')
    rows = -(-len(panels) // PER_ROW)
    full = 2 * MARGIN + 16 + min(PER_ROW, len(panels)) * (width + GAP) - GAP, 58 + rows * (height + 44) + 50
    legend = _legend(table, full[1] - 42)
    fits = int((full[0] - 2 * MARGIN) / LETTER) - len(about) - 2
    short = name if len(name) <= fits else "…" + name[1 - fits :]  # of a path, the end says which
    title = f"{name}, {about}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full[0]} {full[1]}" width="{full[0]}" '
        f'height="{full[1]}" role="img" aria-label="{escape(title, quote=True)}">\n<style>{STYLE}</style>\n'
        f'<rect class="ground" width="100%" height="100%"/>\n'
        f'<text x="{MARGIN}" y="24" font-size="14">{escape(f"{short}, {about}")}</text>\n'
        + "\n".join(body)
        + f"\n{legend}\n</svg>\n"
    )


def _panel(table: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return one statistic of every head."""
    most = max(row.get(name, 0.0) for row in table)
    top = 1.0 if name not in UNITS else most or 1.0
    unit = f"up to {most:.2f}" + (f" {UNITS[name]}" if name in UNITS else "")
    cells = "".join(
        f'<rect x="{row["head"] * CELL}" y="{row["layer"] * CELL}" width="{CELL}" height="{CELL}" '
        f'fill="{colour(row[name] / top)}"><title>layer {row["layer"]}, head {row["head"]}: {name} {row[name]:.3f} '
        f"± {row[name + '_sd']:.3f}</title></rect>"
        for row in table
        if name in row
    )
    return f'<text y="-6">{escape(name)} <tspan class="dim">{unit}</tspan></text>{cells}'


def _kinds(table: Sequence[Mapping[str, Any]]) -> str:
    """Return what every head most often is, as a letter."""
    cells = "".join(
        f'<rect class="cell" x="{row["head"] * CELL}" y="{row["layer"] * CELL}" width="{CELL}" height="{CELL}"/>'
        f'<text class="letter" x="{row["head"] * CELL + CELL / 2}" y="{row["layer"] * CELL + 10.5}" '
        f'text-anchor="middle">{_letter(row["kind"])}<title>layer {row["layer"]}, head {row["head"]}: {row["kind"]} in '
        f"{row['kind_share']:.0%} of the texts</title></text>"
        for row in table
    )
    return f'<text y="-6">what it is</text>{cells}'


def _letter(kind: str) -> str:
    """Return one letter for a kind: capital for "separator", which would be "self"'s."""
    return {"separator": "S", "self": "s", "diffuse": "~", "mixed": ".", "sink": "|"}.get(kind, kind[0])


def _legend(table: Sequence[Mapping[str, Any]], y: int) -> str:
    """Return the colours from nothing to the most, and the letters that occur."""
    steps = "".join(
        f'<rect x="{MARGIN + 16 + i * 12}" y="{y}" width="12" height="10" fill="{COLOURS[i]}"/>' for i in range(10)
    )
    letters = ", ".join(f"{_letter(kind)} {kind}" for kind in sorted({row["kind"] for row in table}))
    said = (
        "used from 0, 0.01, 0.04, 0.09, ... 0.81 on; nats and tokens are divided by their largest",
        f"rows are layers, columns heads; {letters}",
    )
    first, second = (
        f'<text class="dim" x="{x}" y="{y + below}">{escape(line)}</text>'
        for line, x, below in zip(said, (MARGIN + 142, MARGIN + 16), (9, 27))
    )
    return f"<g>{steps}{first}{second}</g>"
