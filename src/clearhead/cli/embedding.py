"""`clearhead embed`: texts in, one vector each out: the mean over its tokens, made a unit vector.

As sentence-transformers does it with mean pooling, for the whole of a text: one that is longer than the model reads is
read in windows, and their vectors are averaged by how much of the text they hold, and made a unit vector again.
"""

import io
import json
import shutil
import sys
import tempfile
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
COPIED = 2**24  # bytes at a time
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
    matrix = None if out is None else Matrix(out)
    with Progress("text") as progress:
        for some in chain([first], arrivals):
            for text, vector in zip(some, embedder.read(some)):
                if matrix is not None:
                    matrix.add(vector)
                elif as_json:
                    print(dump({"text": text, "vector": [float(f"{x:.7g}") for x in vector.tolist()]}))
                elif width is None:
                    print(*(f"{x:.7g}" for x in vector.tolist()))
                else:
                    print(short(text, vector, width))
                progress.advance()
            sys.stdout.flush()
    if matrix is not None:
        matrix.finish()
        answer(str(out))


def short(text: str, vector: "Tensor", width: int) -> str:
    """Return the beginning of a vector, and the text, in one line."""
    numbers = " ".join(f"{x: .3f}" for x in vector[:SHOWN].tolist())
    shown = f"{numbers} ... ({len(vector)} numbers)  "
    return shown + one_line(text, max(0, width - len(shown)))


class Matrix:
    """A float32 matrix on its way into a file, a row a text: rows wait on the disk, so that memory stays as it is."""

    def __init__(self, out: Path) -> None:
        self.out, self.shape = out, (0, 0)
        self.rows = tempfile.TemporaryFile(dir=out.parent)  # noqa: SIM115 (without a name: nothing is left of it)

    def add(self, vector: "Tensor") -> None:
        """Add a row."""
        self.shape = self.shape[0] + 1, len(vector)
        self.rows.write(vector.numpy().astype("<f4").tobytes())

    def finish(self) -> None:
        """Write the file: whole or, on any error, not at all."""
        partial = self.out.with_name(f".{self.out.name}.partial")
        try:
            with self.rows, partial.open("wb") as file:
                file.write(self.header())
                self.rows.seek(0)
                shutil.copyfileobj(self.rows, file, COPIED)
            partial.replace(self.out)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def header(self) -> bytes:
        """Return what stands before the numbers in the format that the file's suffix names."""
        if self.out.suffix == ".npy":
            import numpy

            file = io.BytesIO()
            said = {"descr": "<f4", "fortran_order": False, "shape": self.shape}
            numpy.lib.format.write_array_header_1_0(file, said)
            return file.getvalue()
        size = 4 * self.shape[0] * self.shape[1]
        text = json.dumps({"embeddings": {"dtype": "F32", "shape": self.shape, "data_offsets": (0, size)}}).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        return len(text).to_bytes(8, "little") + text
