"""The command and the Python that make a scene again, to be copied from a page."""

import shlex

from clearhead.explorer.scene import Scene


def commands(scene: Scene) -> dict[str, str]:
    """Return the shell command and the Python lines that make a scene; empty where it cannot be made from them."""
    origin = scene.origin
    if not origin.kind:
        return {"command": "", "python": ""}
    words = ["clearhead", "explore"]
    if origin.model:
        words += ["--model", origin.model]
    if origin.target is not None:
        words += ["--target", origin.target]
    if origin.text.startswith("-"):
        words.append("--")
    return {"command": shlex.join([*words, origin.text]), "python": "\n".join(_python(scene))}


def _python(scene: Scene) -> list[str]:
    origin = scene.origin
    if origin.kind == "recording":
        return ["import clearhead", "", f"seen = clearhead.open_recording({origin.text!r})"]
    lines = [
        "from clearhead import watch",
        "from clearhead.checkpoints import find, load",
        "from clearhead.explorer.reading import reader_of",
        "",
        f"folder = find({origin.model!r})",
        "reader = reader_of(folder, load(folder, frozen=True))",
        f"prepared = reader.prepare({', '.join(map(repr, filter(None, (origin.text, origin.target))))})",
        "with watch(reader.model) as seen:",
        "    reader.run(prepared)",
    ]
    return lines
