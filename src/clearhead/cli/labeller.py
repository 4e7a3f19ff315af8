"""What classifies and embeds, opened by its name: a tokenizer before the model, the windows of a long text put together
behind it; for pictures the preprocessing that the checkpoint names.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from clearhead.classification import Encoder, Runner, classify, embed, fastest
from clearhead.cli.opening import LABELS_PICTURES, open_for
from clearhead.cli.output import note, one_line
from clearhead.cli.sentence_transformers import Before
from clearhead.data.images import ImageProcessor, find_images
from clearhead.data.tokenizer import Encoded, Tokenizer
from clearhead.errors import InputError
from clearhead.models.bert import Bert, BertForSequenceClassification
from clearhead.models.modernbert import ModernBert, ModernBertForSequenceClassification
from clearhead.packed import PackedEncoder

AT_ONCE = 32  # pictures in a batch
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


class Windows:
    """Cuts texts in pieces for a model, and what is too long in windows."""

    def __init__(self, tokenizer: Tokenizer, longest: int, combined: str) -> None:
        self.tokenizer, self.longest, self.combined = tokenizer, longest, combined
        self.met_long_text = False

    def of(self, texts: Sequence[str]) -> list[list[Encoded]]:
        """Return each text in as many pieces as the model needs to read it whole."""
        return [self.cut(text, encoded) for text, encoded in zip(texts, self.tokenizer.encode_many(texts))]

    def cut(self, text: str, encoded: Encoded) -> list[Encoded]:
        """Return the text in pieces that the model can read, and say so where that is more than one."""
        if all(encoded.special):
            note(f"{one_line(text, 40)!r} holds nothing that this model's tokenizer knows: its answer means nothing")
        if len(encoded.ids) <= self.longest:
            return [encoded]
        windows = self.tokenizer.windows(text, self.longest)
        if not self.met_long_text:
            self.met_long_text = True
            note(
                f"the model reads {self.longest} pieces at once, a text has {encoded.special.count(False):,} "
                f"({one_line(text, 40)}): it is read in {len(windows)} windows and their {self.combined} are averaged. "
                f"So is every text that is too long"
            )
        return windows


def distinct_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes, each different: where several have one name, with their index behind it.

    ImageNet has two classes called crane, a bird and a machine. Answers list probabilities by name.
    """
    count = Counter(labels)
    distinct = tuple(f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(labels))
    if len(set(distinct)) == len(labels):
        return distinct
    return tuple(f"{name} ({i})" for i, name in enumerate(labels))  # one is called like another with its index


class Labeller:
    """A model that labels texts, opened by its name."""

    reads = "text"

    def __init__(self, folder: Path, model: nn.Module, *, dtype: str = "fp32", threads: int | None = None) -> None:
        assert isinstance(model, BertForSequenceClassification | ModernBertForSequenceClassification)
        self.model, self.labels = model, distinct_labels(model.config.labels)
        self.windows = Windows(Tokenizer.load(folder), model.config.max_len, "probabilities")
        self.runner = runner_of(model, dtype, threads)

    def read(self, texts: Sequence[str]) -> Iterator[tuple[str, list[float], int]]:
        """Yield for each text itself, the probabilities of the labels, and in how many windows it was read."""
        windows = self.windows.of(texts)
        answers = classify(self.model, (window.ids for some in windows for window in some), runner=self.runner)
        for text, some in zip(texts, windows):
            yield text, average(some, [next(answers) for _ in some]).tolist(), len(some)


class PictureLabeller:
    """A model that labels pictures, given by the names of their files or folders."""

    reads = "file"

    def __init__(self, folder: Path, model: nn.Module, *, dtype: str = "fp32", threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        assert isinstance(model, LABELS_PICTURES)
        self.model, self.labels = model, distinct_labels(model.config.labels)
        self.processor = ImageProcessor.load(folder)
        self.processor.require_fits(model.config.patch_size, model.config.image_size)
        self.dtype, self.n_read, self.n_unread = DTYPES[dtype], 0, 0

    def read(self, paths: Sequence[str]) -> Iterator[tuple[str, list[float], int]]:
        """Yield for each picture its path and the probabilities of the labels; one that is none is named and left."""
        names: list[str] = []
        pictures: list[Tensor] = []
        for path in list(find_images(paths)):  # a folder without any is refused before the first answer
            try:
                picture = self.processor.read(path)
            except InputError as error:
                self.n_unread += 1
                note(str(error))
                continue
            if pictures and (len(pictures) == AT_ONCE or picture.shape != pictures[0].shape):
                yield from self.label(names, pictures)
                names, pictures = [], []
            names.append(str(path))
            pictures.append(picture)
        if pictures:
            yield from self.label(names, pictures)

    @torch.no_grad()
    def label(self, names: Sequence[str], pictures: Sequence[Tensor]) -> list[tuple[str, list[float], int]]:
        """Return what `read` yields of pictures of one size."""
        self.n_read += len(pictures)
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            probabilities = self.model(torch.stack(list(pictures))).float().softmax(-1)
        return [(name, row, 1) for name, row in zip(names, probabilities.tolist())]

    def finish(self) -> None:
        """Raise InputError where a picture could not be read."""
        if self.n_unread:
            n = self.n_read + self.n_unread
            raise InputError(f"{self.n_unread} of {n} pictures could not be read: they are named above")


def open_labeller(name: str, *, dtype: str, threads: int | None) -> Labeller | PictureLabeller:
    """Return what labels texts, or pictures, as the model called `name` does; InputError where it labels neither."""
    folder, model = open_for("classify", name)
    kind = PictureLabeller if isinstance(model, LABELS_PICTURES) else Labeller
    return kind(folder, model, dtype=dtype, threads=threads)


class Embedder:
    """A model that makes a vector of a text, opened by its name."""

    def __init__(self, name: str, *, dtype: str = "fp32", threads: int | None = None) -> None:
        """Open the checkpoint; InputError where its model reads no texts, or writes."""
        folder, model = open_for("embed", name)
        trunk = model if isinstance(model, Bert | ModernBert) else model.bert
        assert isinstance(trunk, Bert | ModernBert)
        self.before = Before.of(folder)
        self.trunk = trunk
        self.windows = Windows(Tokenizer.load(folder), self.trunk.config.max_len, "vectors")
        self.runner = runner_of(self.trunk, dtype, threads)

    def read(self, texts: Sequence[str]) -> Iterator[Tensor]:
        """Yield a unit vector for each text."""
        windows = self.windows.of([self.before.put(text) for text in texts])
        vectors = embed(self.trunk, (window.ids for some in windows for window in some), runner=self.runner)
        for some in windows:
            mean = average(some, [next(vectors) for _ in some])
            yield nn.functional.normalize(mean, dim=-1) if len(some) > 1 else mean


def runner_of(model: Encoder, dtype: str, threads: int | None) -> Runner:
    """Return what runs the model fastest, and say so where it does not run in the `dtype` asked for."""
    if threads is not None:
        torch.set_num_threads(threads)
    runner, what_runs = fastest(model, DTYPES[dtype])
    if dtype == "bf16" and isinstance(runner, PackedEncoder) and runner.dtype != torch.bfloat16:
        note(f"not in bf16: {what_runs}")
    return runner


def average(windows: Sequence[Encoded], numbers: Sequence[Tensor]) -> Tensor:
    """Return the mean of the windows' probabilities or vectors, each counted by its pieces of text."""
    pieces = torch.tensor([max(1.0, float(window.special.count(False))) for window in windows])
    return pieces / pieces.sum() @ torch.stack(list(numbers)).float()
