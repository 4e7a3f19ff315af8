"""`clearhead transcribe`: sound in, what is said out, a line a file.

An encoder-decoder that hears reads so many seconds at once, Whisper 30; a longer sound is heard in pieces of that, and
what is written of them is put together. What an answer begins with (language, task, no times) and which tokens it never
holds are read from the checkpoint's generation_config.json (Radford et al. 2022, section 2.3).
"""

from collections.abc import Sequence
from pathlib import Path

from clearhead.cli.arguments import at_least_1
from clearhead.cli.inputs import require_readable
from clearhead.cli.output import Progress, dump, one_line, refuse


def run(
    files: Sequence[Path],
    *,
    language: str | None,
    beams: int | None,
    model: str | None,
    as_json: bool,
    threads: int | None,
) -> None:
    """Transcribe every file."""
    at_least_1(beams=beams, threads=threads)
    if not files:
        refuse("nothing to hear: give a sound, clearhead transcribe speech.wav --model MODEL")
    for path in files:
        require_readable(path)
    if model is None:
        refuse("no model that hears ships with clearhead: pass --model, such as openai/whisper-tiny")
    from clearhead.cli.hearing import Listener

    listener = Listener(model, threads=threads)
    with Progress("sound") as progress:
        for path in files:
            written = listener.write(path, language=language, beams=beams)
            print(dump({"file": str(path), "written": written}) if as_json else one_line(written), flush=True)
            progress.advance()
