"""Text of others on its way to a terminal: labels, tokens, file names and model output must not control it.

An escape sequence in a label could clear the screen, set the window's title or write over what stands above. Controls
of the writing direction could make an answer read as another one. Everything that the commands print goes through
`without_controls`, and JSON through `escape_controls`, which keeps the text as it is.
"""

import re

# C0 and C1 control characters, the line and paragraph separators, what changes the writing direction (Unicode 16,
# annex 9, table 3), and halves of surrogate pairs, which are the bytes of a file name that is not UTF-8.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_controls(text: str, *, newlines: bool = False) -> str:
    """Return `text` with a space in place of each control character; the ends of lines stay with `newlines`."""
    return CONTROLS.sub(lambda found: "\n" if newlines and found[0] == "\n" else " ", text)


def escape_controls(json_text: str) -> str:
    """Return JSON on one line, in which every control character of a text is written as \\uXXXX: the same value."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)
