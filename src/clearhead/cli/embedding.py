"""`clearhead embed`: texts in, one vector each out: the mean over its tokens, made a unit vector.

As sentence-transformers does it with mean pooling, for the whole of a text: one that is longer than the model reads is
read in windows, and their vectors are averaged by how much of the text they hold, and made a unit vector again.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from clearhead.cli.arguments import at_least_1
from clearhead.cli.inputs import arriving
from clearhead.cli.output import Progress, answer, columns, dump, one_line, refuse
from clearhead.errors import InputError

if TYPE_CHECKING:  # torch: an input that is not there need not wait for it
    from torch import Tensor

FORMATS = (".npy", ".safetensors")
SHOWN = 4  # numbers of a vector that a person sees


def run(
    texts: Sequence[str],
    files: Sequence[Path],
    *,
    model: str,
    as_json: bool,
    out: Path | None,
    dtype: str,
    threads: int | None,
) -> None:
    """Embed the texts, then the files; standard input where there is neither."""
    at_least_1(threads=threads)
    if out is not None and out.suffix not in FORMATS:
        refuse(f"--out is a file that ends in {' or '.join(FORMATS)}, got {out}")
    if out is not None and as_json:
        refuse("--json prints vectors, --out writes them: give one of the two")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent} to write it in")
    arrivals = arriving(texts, files, example='clearhead embed "attention is not too shabby"')
    first = next(arrivals)
    from clearhead.cli.labeller import Embedder

    embedder = Embedder(model, dtype=dtype, threads=threads)
    width = columns() if sys.stdout.isatty() else None
    found = []
    with Progress("text") as progress:
        for some in chain([first], arrivals):
            for text, vector in zip(some, embedder.read(some)):
                if out is not None:
                    found.append(vector)
                elif as_json:
                    print(dump({"text": text, "vector": [float(f"{x:.7g}") for x in vector.tolist()]}))
                elif width is None:
                    print(*(f"{x:.7g}" for x in vector.tolist()))
                else:
                    print(short(text, vector, width))
                progress.advance()
            sys.stdout.flush()
    if out is not None:
        write(out, found)
        answer(str(out))


def short(text: str, vector: "Tensor", width: int) -> str:
    """Return the beginning of a vector, and the text, in one line."""
    numbers = " ".join(f"{x: .3f}" for x in vector[:SHOWN].tolist())
    shown = f"{numbers} ... ({len(vector)} numbers)  "
    return shown + one_line(text, max(0, width - len(shown)))


def write(out: Path, vectors: Sequence["Tensor"]) -> None:
    """Write the vectors as one float32 matrix, a row a text; the whole file or, on any error, none."""
    import torch

    matrix = torch.stack(list(vectors))
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.suffix == ".npy":
            import numpy

            with partial.open("wb") as file:
                numpy.save(file, matrix.numpy())
        else:
            from safetensors.torch import save_file

            save_file({"embeddings": matrix}, partial)
        partial.replace(out)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
