"""`clearhead explore`: recordings in the browser.

Texts and pictures are read by a model, recordings opened; then a server on this machine answers the page's questions
until Ctrl-C. Standard output holds one line, the address.
"""

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.cli.inputs import is_picture, note_file_name, require_readable
from clearhead.cli.output import answer, note, refuse, require_text
from clearhead.errors import InputError

if TYPE_CHECKING:  # torch: an input that is not there need not wait for it
    from clearhead.explorer.runner import Runner
    from clearhead.explorer.scene import Scene

RECORDING = ".seen"
MAX_LETTERS = 2_000_000  # of one text: more than any model reads at once
SHIPPED = ("sentiment", "novels", "pictures", "pronounce")


def run(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    target: str | None,
    model: str | None,
    port: int | None,
    opens: bool,
) -> None:
    """Make the scenes, print the address and serve."""
    if not texts and not files:
        refuse('nothing to explore: give a text, clearhead explore "attention is not too shabby", or --file FILE')
    if port is not None and not 0 <= port < 2**16:
        refuse(f"--port is a number from 0 to {2**16 - 1}, got {port}")
    for text in texts:
        require_text(text)
        if not is_recording(text):
            note_file_name(text, f"--file {text}")
    given = [*texts, *map(whole, files)]

    from clearhead.explorer.server.serving import listen, serve

    listening = listen(port or 0)  # before a model is waited for
    with listening:
        from clearhead.checkpoints.files import CONFIG, DEFAULTS
        from clearhead.cli.opening import open_for
        from clearhead.explorer.exploration import Exploration
        from clearhead.explorer.runner import Runner

        shipped = [name for name in SHIPPED if (DEFAULTS / name / CONFIG).is_file()]
        runner = Runner([*filter(None, [model]), *shipped], lambda name: open_for("explore", name))
        scenes = [scene_of(text, runner, model, target) for text in given]

        def ready(address: str) -> None:
            answer(address)
            if opens and not webbrowser.open(address):
                note("no browser could be opened: open the address yourself")

        serve(Exploration(scenes, runner), listening, ready)


def is_recording(text: str) -> bool:
    """Return whether an argument names a recording."""
    return text.endswith(RECORDING) and Path(text).is_file()


def whole(path: Path) -> str:
    """Return a file as one text; InputError where it holds none."""
    require_readable(path)
    if is_recording(str(path)) or is_picture(str(path)):
        raise InputError(f"{path} is no text, and --file reads text: give it as an argument, clearhead explore {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
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
