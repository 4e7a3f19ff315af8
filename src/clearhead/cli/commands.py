"""What a person can type: a function a command, its names, types, defaults and help read by tyro.

A new option is a decision; a test holds every page of help against `tests/cli_help.txt`.
"""

from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from clearhead.cli.arguments import (
    AS_USUAL,
    Choosing,
    Count,
    Data,
    Device,
    Files,
    Flag,
    Hearer,
    Labels,
    Language,
    Length,
    Model,
    Most,
    Out,
    Pixels,
    Recipe,
    Rounding,
    Sorter,
    Sounds,
    Start,
    Texts,
    Threads,
    Vectors,
    Weights,
)
from clearhead.cli.commands_for_heads import derive, effect, explore, profile, see
from clearhead.cli.usage import check


def classify(
    texts: Positional[Texts] = (),
    /,
    *,
    file: Files = (),
    model: Sorter = None,
    json: Flag = False,
    top: Labels = None,
    dtype: Rounding = "fp32",
    threads: Threads = None,
    max_pixels: Pixels = None,
) -> None:
    """Label every text or picture, with the probability of the label.

    Args:
        texts: One argument is one text, one picture, or one folder of pictures.
        file: Read these, one text a line, or one picture's name; - is standard input.
        model: A shipped default (clearhead models), a checkpoint folder or a hub name.
        json: Print {"text", "label", "probabilities"} for every text, one object a line; of a picture its "file".
        top: Show the K likeliest labels.
        dtype: Compute in this precision; bf16 is faster on processors that have it.
        threads: Use N threads.
        max_pixels: Read pictures of at most N pixels.
    """
    from clearhead.cli import classification

    classification.run(
        texts, file, model=model, as_json=json, top=top, dtype=dtype, threads=threads, max_pixels=max_pixels
    )


def embed(
    texts: Positional[Texts] = (),
    /,
    *,
    file: Files = (),
    model: Model = "sentiment",
    json: Flag = False,
    out: Vectors = None,
    dtype: Rounding = "fp32",
    threads: Threads = None,
) -> None:
    """Make a unit vector of every text, the mean over its tokens.

    Args:
        texts: One argument is one text.
        file: Read these, one text a line; - is standard input.
        model: An encoder: a shipped default, a checkpoint folder or a hub name.
        json: Print {"text", "vector"} for every text, one object a line.
        out: Write one matrix, a row a text, as .npy or .safetensors.
        dtype: Compute in this precision; bf16 is faster on processors that have it.
        threads: Use N threads.
    """
    from clearhead.cli import embedding

    embedding.run(texts, file, model=model, as_json=json, out=out, dtype=dtype, threads=threads)


def generate(
    texts: Positional[Texts] = (),
    /,
    *,
    file: Files = (),
    max_new_tokens: Length = 100,
    choosing: Annotated[Choosing, arg(name="")] = AS_USUAL,
    model: Model = "novels",
    json: Flag = False,
    dtype: Weights = "fp32",
    threads: Threads = None,
) -> None:
    """Go on with a text, as it comes to the model.

    Args:
        texts: One argument is one beginning.
        file: Read these, one beginning a line; - is standard input.
        max_new_tokens: Write at most N tokens.
        choosing: How the next token is chosen.
        model: A decoder: a shipped default (clearhead models), a checkpoint folder or a hub name.
        json: Print {"text", "written", "tokens", "end", "seed"} for every text, one object a line.
        dtype: Keep weights in this precision; fewer bits are faster and less exact.
        threads: Use N threads.
    """
    from clearhead.cli import generation

    generation.generate(
        texts,
        file,
        max_new_tokens=max_new_tokens,
        choosing=choosing,
        model=model,
        as_json=json,
        dtype=dtype,
        threads=threads,
    )


def translate(
    texts: Positional[Texts] = (),
    /,
    *,
    file: Files = (),
    max_new_tokens: Most = None,
    beams: Count = None,
    model: Model = "pronounce",
    json: Flag = False,
    dtype: Weights = "fp32",
    threads: Threads = None,
) -> None:
    """Write every text anew: in another language, or as it is pronounced.

    Args:
        texts: One argument is one text.
        file: Read these, one text a line; - is standard input.
        max_new_tokens: Write at most N tokens.
        beams: Follow the N likeliest answers, and give the best.
        model: An encoder-decoder: a shipped default (clearhead models), a checkpoint folder or a hub name.
        json: Print {"text", "written", "tokens", "end"} for every text, one object a line.
        dtype: Keep weights in this precision; fewer bits are faster and less exact.
        threads: Use N threads.
    """
    from clearhead.cli import generation

    generation.translate(
        texts,
        file,
        max_new_tokens=max_new_tokens,
        beams=beams,
        model=model,
        as_json=json,
        dtype=dtype,
        threads=threads,
    )


def transcribe(
    files: Positional[Sounds] = (),
    /,
    *,
    language: Language = None,
    beams: Count = None,
    model: Hearer = None,
    json: Flag = False,
    threads: Threads = None,
) -> None:
    """Write down what is said in a .wav file.

    Args:
        files: One argument is one sound.
        language: What is spoken: en, de, ...
        beams: Follow the N likeliest answers, and give the best.
        model: A Whisper: a checkpoint folder or a hub name. None ships.
        json: Print {"file", "written"} for every sound, one object a line.
        threads: Use N threads.
    """
    from clearhead.cli import transcription

    transcription.run(files, language=language, beams=beams, model=model, as_json=json, threads=threads)


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
    verbs = {
        verb.__name__: verb
        for verb in (
            classify,
            embed,
            generate,
            translate,
            transcribe,
            derive,
            see,
            explore,
            effect,
            profile,
            train,
            models,
        )
    }
    check(argv, verbs)
    tyro.extras.subcommand_cli_from_dict(
        verbs,
        prog="clearhead",
        description="See what attention does, in any Transformer, while it runs at full speed. --version says which "
        "clearhead this is; --debug, or CLEARHEAD_DEBUG=1, shows where in the source an error happened.",
        args=argv,
        config=(FlagCreatePairsOff, OmitArgPrefixes),
    )
