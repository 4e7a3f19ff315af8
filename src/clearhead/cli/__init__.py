"""The command line: verbs, glued from the rooms of the house.

    clearhead classify | embed | generate | translate | transcribe | derive | see | explore | effect | profile | train
              | models

What a person can type is in `commands.py`, one typed function a verb. What a verb does is in the module named like the
room it opens, imported when it is needed, so that `--help` waits for no PyTorch. Here is what all have in common: how
it ends.

Exit codes: 0 it worked, 1 something could not be done (one sentence on stderr says what was expected, what came and
what to do), 2 the command was not understood, 130 Ctrl-C, 141 whoever read the output has left, 143 SIGTERM while
training.

Next: `commands.py`, then `classification.py`, the verb most people come for.
"""

import io
import os
import signal
import sys
from collections.abc import Sequence

from clearhead import __version__
from clearhead.controls import without_controls
from clearhead.errors import ClearheadError, Interrupted

SHORT_HELP = f"""\
clearhead {__version__}: see what attention does

  clearhead classify "attention is not too shabby"     positive or negative, and how surely
  clearhead derive   "attention is not too shabby"     attention in eight steps, with this sentence's numbers
  clearhead see      "attention is not too shabby"     every head, and what a word looks at

Also: embed, generate, translate, transcribe, explore, effect, profile, train, models, --version.
More: clearhead --help, clearhead classify --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is what follows `clearhead`, sys.argv's unless given."""
    if ours := argv is None:  # the process is the command's, not some program's that calls this function
        end_on_ctrl_c()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("CLEARHEAD_DEBUG", "") not in ("", "0")
    if "--debug" in (options := argv[: argv.index("--")] if "--" in argv else argv):
        argv.pop(options.index("--debug"))
        debug = True
    if sys.stdout is None:  # clearhead ... >&-
        return complain("standard output is closed: there is nowhere to put the answer")
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(errors="replace")  # ? for a letter that the terminal does not have
    try:
        if not argv:
            print(SHORT_HELP, end="")
        elif "--version" in options:
            print(f"clearhead {__version__}")
        else:
            if ours and argv[0] not in ("train", "profile", "explore"):  # which run for long
                from clearhead.cli.startup import hasten

                hasten()
            from clearhead.cli import commands  # tyro: 60 ms in which Ctrl-C should already be quiet

            commands.dispatch(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        forget_output()
        return 141
    except Interrupted as stopped:
        complain(str(stopped))
        return 128 + stopped.signal
    except (ClearheadError, OSError) as error:
        if debug:
            raise
        return complain(str(error))
    except KeyboardInterrupt:
        return 130
    except SystemExit as leaving:  # tyro: --help, or a command that was not understood
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def end_on_ctrl_c() -> None:
    """From now on let Ctrl-C end the process at once, with exit code 130, unless whoever started it turned that off.

    KeyboardInterrupt is an exception, and exceptions get lost: torch drops any that is raised while it imports numpy,
    and goes on without numpy, or aborts.
    """

    def end(number: int, frame: object) -> None:
        try:
            if os.isatty(2):
                os.write(2, b"\x1b[?25h")  # show the cursor: the progress bar of a training hides it
                output = sys.modules.get("clearhead.cli.output")
                if output and output.Progress.shown:
                    os.write(2, b"\r\x1b[K")  # a command's count
            sys.stdout.flush()  # answers that were found
        finally:
            os._exit(128 + number)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def complain(message: str) -> int:
    """Print one sentence on stderr, after the answers that were found, and return exit code 1."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # a full disk
        forget_output()
    print(f"clearhead: {without_controls(message)}", file=sys.stderr)
    return 1


def forget_output() -> None:
    """Throw away what cannot be written, or Python would try again when it exits, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
