"""`clearhead explore`: recordings in the browser; `clearhead see --html`: one recording as a page of its own.

Texts and pictures are read by a model, recordings opened; then a server on this machine answers the page's questions
until Ctrl-C. Standard output holds one line, the address.
"""

import re
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.cli.inputs import is_picture, is_recording, note_file_name, require_readable
from clearhead.cli.output import answer, note, refuse, require_text
from clearhead.errors import InputError

if TYPE_CHECKING:  # torch: an input that is not there need not wait for it
    from clearhead.explorer.exploration import Exploration
    from clearhead.explorer.runner import Runner
    from clearhead.explorer.scene import Scene

MAX_LETTERS = 2_000_000  # of one text: more than any model reads at once
VIEW = r"(v=1(&[a-z0-9]+=[\w.,~+*%-]*)*)?"  # names and values that need no encoding in an address
SHIPPED = ("sentiment", "novels", "pictures", "pronounce")


def run(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    target: str | None,
    model: str | None,
    view: str,
    port: int | None,
    opens: bool,
) -> None:
    """Make the scenes, print the address and serve."""
    if not texts and not files:
        refuse('nothing to explore: give a text, clearhead explore "attention is not too shabby", or --file FILE')
    if port is not None and not 0 <= port < 2**16:
        refuse(f"--port is a number from 0 to {2**16 - 1}, got {port}")
    view = view.removeprefix("#")
    if not re.fullmatch(VIEW, view):
        refuse(f"--view is what the page writes behind the #, such as 'v=1&page=head&l=2&h=0', got {view!r}")
    for text in texts:
        require_text(text)
        if not is_recording(text):
            note_file_name(text, f"--file {text}")
    given = [*texts, *map(whole, files)]

    from clearhead.explorer.server.serving import listen, serve

    listening = listen(port or 0)  # before a model is waited for
    with listening:
        from clearhead.explorer.exploration import Exploration

        runner = runner_of(model)
        scenes = [scene_of(text, runner, model, target) for text in given]

        def ready(address: str) -> None:
            answer(address)
            if opens and not webbrowser.open(address):
                note("no browser could be opened: open the address yourself")

        serve(Exploration(scenes, runner), listening, ready, view)


def write_page(
    texts: Sequence[str],
    files: Sequence[Path],
    path: Path,
    *,
    query: str | None,
    layer: int | None,
    head: int | None,
    target: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Write the explorer of one text, picture or recording into one HTML file, and say on stderr what it holds."""
    if as_json:
        refuse("--html writes a page and --json prints numbers: give one of the two")
    given = [*texts, *map(whole, files)]
    if len(given) != 1:
        refuse(f"--html writes the page of one text, picture or recording, got {len(given)}")
    require_text(given[0])
    if path.suffix.lower() not in (".html", ".htm"):
        refuse(f"--html is the name of the page to write, such as page.html, got {path}")

    from clearhead.explorer.exploration import Exploration
    from clearhead.explorer.export import export

    exploration = Exploration([scene_of(given[0], runner_of(model), model, target)])
    view = view_of(exploration, query, layer, head)
    note(f"{path}: {export(exploration, path, view=view)}")


def view_of(exploration: "Exploration", query: str | None, layer: int | None, head: int | None) -> str:
    """Return where a page begins, as the part of its address behind the #; InputError for a place that is not there."""
    from clearhead.derivation import find_word

    _, scene = exploration.scene()
    parts = {"l": layer, "h": head}
    if query is not None:
        parts["q"] = find_word(scene.axes[-1 if scene.crosses else 0].marked, query)
    if layer is not None:
        one = scene.seen.call(layer)
        if head is not None and head not in one.heads:
            raise InputError(f"layer {layer} has heads {one.heads[0]} to {one.heads[-1]}, got --head {head}")
    page = "head" if layer is not None and head is not None else "heads"
    given = "".join(f"&{name}={value}" for name, value in parts.items() if value is not None)
    return f"v=1&page={page}{given}"


def runner_of(model: str | None) -> "Runner":
    """Return what runs a model, and those that ship beside it."""
    from clearhead.checkpoints.files import CONFIG, DEFAULTS
    from clearhead.cli.opening import open_for
    from clearhead.explorer.runner import Runner

    shipped = [name for name in SHIPPED if (DEFAULTS / name / CONFIG).is_file()]
    return Runner([*filter(None, [model]), *shipped], lambda name: open_for("explore", name))


def whole(path: Path) -> str:
    """Return a file as one text; InputError where it holds none."""
    require_readable(path)
    if is_recording(str(path)) or is_picture(str(path)):
        raise InputError(f"{path} is no text, and --file reads text: give it as an argument, clearhead explore {path}")
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MAX_LETTERS + 1)  # of a large file no more than that is read
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}: expected a text file") from error
    require_text(text, str(path))
    if len(text) > MAX_LETTERS:
        note(f"{path}: the first {MAX_LETTERS:,} letters are read")
    return text[:MAX_LETTERS]


def scene_of(text: str, runner: "Runner", model: str | None, target: str | None) -> "Scene":
    """Return the scene of one argument."""
    if is_recording(text):
        from clearhead.explorer.scene import Origin, Scene
        from clearhead.seeing import open_recording

        return Scene.of(open_recording(text), origin=Origin(text=text, kind="recording"))
    picture = is_picture(text)
    usual = "pictures" if picture else "pronounce" if target is not None else "sentiment"
    scene = runner.read(model or usual, text, target=target)
    for remark in scene.notes:
        note(remark)
    return scene
