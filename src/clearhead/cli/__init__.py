"""The command line: five verbs, one function each, glued from the rooms of the house.

    clearhead classify | derive | see | train | models

This file is what a person can type: names, types, defaults and help, read by tyro. What a verb does is in the module
beside it that is named like the room it opens, imported when it is needed, so that `--help` waits for no PyTorch.

Exit codes: 0 it worked, 1 something could not be done (one sentence on stderr says what was expected, what came and
what to do), 2 the command was not understood, 130 Ctrl-C, 141 the reader of a pipe left.

Next: `classification.py`, the verb most people come for.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from clearhead import __version__
from clearhead.errors import ClearheadError

SHORT_HELP = f"""\
clearhead {__version__}: see what attention does

  clearhead classify "attention is not too shabby"     positive or negative, and how surely
  clearhead derive   "attention is not too shabby"     attention in eight steps, with this sentence's numbers
  clearhead see      "attention is not too shabby"     every head, and what a word looks at

Also: train, models, --version. More: clearhead --help, clearhead classify --help
"""

HARDEST = "(default: where WORD looks hardest at another word)"

# What a person sees of an argument: what to put there, and what happens without it.
Flag = Annotated[bool, arg(help_behavior_hint="")]
Text = Annotated[str, arg(metavar="TEXT")]
Texts = Annotated[tuple[str, ...], arg(metavar="TEXT ...", help_behavior_hint="(default: standard input)")]
Files = Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")]
Model = Annotated[str, arg(metavar="MODEL")]
Labels = Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: the likeliest; with --json all)")]
Threads = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as PyTorch decides)")]
Word = Annotated[str | None, arg(metavar="WORD", help_behavior_hint="(default: the last with a meaning of its own)")]
Place = Annotated[int | None, arg(metavar="N", help_behavior_hint=HARDEST)]
Recipe = Annotated[Path, arg(metavar="RECIPE")]
Data = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: the recipe's own)")]
Start = Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: as the recipe says)")]
Out = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/NAME-OF-RECIPE)")]
Device = Annotated[str | None, arg(metavar="DEVICE", help_behavior_hint="(default: as the recipe says)")]


def classify(
    texts: Positional[Texts] = (),
    /,
    *,
    file: Files = (),
    model: Model = "sentiment",
    json: Flag = False,
    top: Labels = None,
    dtype: Literal["fp32", "bf16"] = "fp32",
    threads: Threads = None,
) -> None:
    """Label every text, with the probability of the label.

    Args:
        texts: One argument is one text.
        file: Read these, one text a line; - is standard input.
        model: A shipped default (clearhead models), a checkpoint folder or a hub name.
        json: Print {"text", "label", "probabilities"} for every text, one object a line.
        top: Show the K likeliest labels.
        dtype: Compute in this precision; bf16 is faster on processors that have it.
        threads: Use N threads.
    """
    from clearhead.cli import classification

    classification.run(texts, file, model=model, as_json=json, top=top, dtype=dtype, threads=threads)


def derive(
    text: Positional[Text],
    /,
    *,
    query: Word = None,
    layer: Place = None,
    head: Place = None,
    model: Model = "sentiment",
    json: Flag = False,
    source: Flag = False,
) -> None:
    """Derive attention in eight steps, with the numbers of this text.

    Args:
        text: The text to read.
        query: The word that looks around.
        layer: The layer, counted from 0.
        head: The head, counted from 0.
        model: A shipped default (clearhead models), a checkpoint folder or a hub name.
        json: Print one object: {"text", "tokens", "layer", "head", "query", "steps"}.
        source: Show the lines of clearhead that computed each step.
    """
    from clearhead.cli import derivation

    derivation.run(text, query=query, layer=layer, head=head, model=model, as_json=json, source=source)


def see(
    text: Positional[Text],
    /,
    *,
    query: Word = None,
    layer: Place = None,
    head: Place = None,
    model: Model = "sentiment",
    json: Flag = False,
) -> None:
    """Show every head as a small map, and what a word looks at.

    Args:
        text: The text to read.
        query: The word that looks around.
        layer: The layer to look at closely, counted from 0.
        head: The head to look at closely, counted from 0.
        model: A shipped default (clearhead models), a checkpoint folder or a hub name.
        json: Print one object instead.
    """
    from clearhead.cli import seeing

    seeing.run(text, query=query, layer=layer, head=head, model=model, as_json=json)


def train(
    recipe: Positional[Recipe],
    /,
    *,
    data: Data = None,
    start: Start = None,
    out: Out = None,
    resume: Flag = False,
    device: Device = None,
) -> None:
    """Train a model by a recipe; Ctrl-C saves, --resume goes on.

    Args:
        recipe: A TOML file, e.g. recipes/sentiment.toml.
        data: Where the recipe's files are.
        start: The checkpoint to start from.
        out: Where the run is written: a checkpoint folder that classify and transformers open.
        resume: Go on where the run in --out stopped.
        device: cpu, cuda, cuda:1 or mps.
    """
    from clearhead.cli import training

    training.run(recipe, data=data, start=start, out=out, resume=resume, device=device)


def models(*, json: Flag = False) -> None:
    """List the models that ship and the families of checkpoints that open.

    Args:
        json: Print one object instead.
    """
    from clearhead.cli import catalogue

    catalogue.run(as_json=json)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `argv` is what follows `clearhead`, sys.argv's unless given."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("CLEARHEAD_DEBUG", "") not in ("", "0")
    if "--debug" in (options := argv[: argv.index("--")] if "--" in argv else argv):
        argv.pop(options.index("--debug"))
        debug = True
    if sys.stdout is None:  # clearhead ... >&-
        return complain("standard output is closed: there is nowhere to put the answer")
    try:
        dispatch(argv)
        sys.stdout.flush()
    except BrokenPipeError:
        forget_output()
        return 141
    except (ClearheadError, OSError) as error:
        if debug:
            raise
        return complain(str(error))
    except KeyboardInterrupt:
        return 130
    except SystemExit as leaving:  # tyro: --help, or a command that was not understood
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


def dispatch(argv: list[str]) -> None:
    """Print the short help or the version, or let tyro find the command and call it."""
    if not argv:
        print(SHORT_HELP, end="")
    elif argv == ["--version"]:
        print(f"clearhead {__version__}")
    else:
        tyro.extras.subcommand_cli_from_dict(
            {verb.__name__: verb for verb in (classify, derive, see, train, models)},
            prog="clearhead",
            description="See what attention does, in any Transformer, while it runs at full speed.",
            args=argv,
            config=(FlagCreatePairsOff,),
        )


def complain(message: str) -> int:
    """Print one sentence on stderr, after the answers that were found, and return exit code 1."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:  # a full disk
        forget_output()
    print(f"clearhead: {message}", file=sys.stderr)
    return 1


def forget_output() -> None:
    """Throw away what cannot be written, or Python would try again when it exits, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
