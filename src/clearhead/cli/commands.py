"""What a person can type: a function a command, its names, types, defaults and help read by tyro.

A new option is a decision; a test holds every page of help against `tests/cli_help.txt`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from clearhead.cli.usage import check

HARDEST = "(default: where WORD looks hardest at another word)"

# What a person sees of an argument: what to put there, and what happens without it.
Flag = Annotated[bool, arg(help_behavior_hint="")]
Text = Annotated[str, arg(metavar="TEXT")]
Texts = Annotated[tuple[str, ...], arg(metavar="TEXT ...", help_behavior_hint="(default: standard input)")]
Files = Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")]
Model = Annotated[str, arg(metavar="MODEL")]
Labels = Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: the likeliest; with --json all)")]
Threads = Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: as PyTorch decides)")]
Word = Annotated[str | None, arg(metavar="WORD", help_behavior_hint="(default: the last content word)")]
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


def dispatch(argv: Sequence[str]) -> None:
    """Let tyro find the command and call it; it leaves by SystemExit after `--help` and after what it cannot read."""
    verbs = {verb.__name__: verb for verb in (classify, derive, see, train, models)}
    check(argv, verbs)
    tyro.extras.subcommand_cli_from_dict(
        verbs,
        prog="clearhead",
        description="See what attention does, in any Transformer, while it runs at full speed.",
        args=argv,
        config=(FlagCreatePairsOff,),
    )
