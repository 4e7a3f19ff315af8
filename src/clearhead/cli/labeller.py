"""A classifier of texts: a tokenizer before the model, the windows of a long text put together behind it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clearhead.checkpoints import find, load
from clearhead.classification import classify, fastest
from clearhead.cli.output import note, one_line
from clearhead.data.tokenizer import Encoded, Tokenizer
from clearhead.errors import InputError
from clearhead.models.bert import BertForSequenceClassification
from clearhead.packed import PackedEncoder

DTYPES = {"fp32": None, "bf16": torch.bfloat16}


class Labeller:
    """A model that labels texts, opened by its name."""

    def __init__(self, name: str, *, dtype: str = "fp32", threads: int | None = None) -> None:
        """Open the checkpoint; InputError where its model labels no texts."""
        if threads is not None:
            torch.set_num_threads(threads)
        folder = find(name)
        model = load(folder)
        if not isinstance(model, BertForSequenceClassification):
            raise InputError(
                f"{name} is a {type(model).__name__}, which labels no texts: expected a sequence classifier; "
                f"`clearhead models` lists those that ship, `clearhead train` makes one"
            )
        self.model, self.tokenizer, self.labels = model, Tokenizer.load(folder), model.config.labels
        self.runner, what_runs = fastest(model, DTYPES[dtype])
        if dtype == "bf16" and isinstance(self.runner, PackedEncoder) and self.runner.dtype != torch.bfloat16:
            note(f"not in bf16: {what_runs}")
        self.met_long_text = False

    def read(self, texts: Sequence[str]) -> Iterator[tuple[list[float], int]]:
        """Yield for each text the probabilities of the labels, and in how many windows it was read."""
        windows = [self.windows(text, encoded) for text, encoded in zip(texts, self.tokenizer.encode_many(texts))]
        answers = classify(self.model, (window.ids for some in windows for window in some), runner=self.runner)
        for some in windows:
            yield average(some, [next(answers) for _ in some]), len(some)

    def windows(self, text: str, encoded: Encoded) -> list[Encoded]:
        """Return the text in pieces that the model can read, and say so where that is more than one."""
        if all(encoded.special):
            note(f"{one_line(text, 40)!r} holds nothing that this model's tokenizer knows: its answer means nothing")
        longest = self.model.config.max_len
        if len(encoded.ids) <= longest:
            return [encoded]
        windows = self.tokenizer.windows(text, longest)
        if not self.met_long_text:
            self.met_long_text = True
            note(
                f"the model reads {longest} pieces at once, a text has {encoded.special.count(False):,} "
                f"({one_line(text, 40)}): it is read in {len(windows)} windows and their probabilities are averaged. "
                f"So is every text that is too long"
            )
        return windows


def average(windows: Sequence[Encoded], probabilities: Sequence[Tensor]) -> list[float]:
    """Return the mean of the windows' probabilities, each counted by its pieces of text."""
    pieces = torch.tensor([max(1.0, float(window.special.count(False))) for window in windows])
    mean: list[float] = (pieces / pieces.sum() @ torch.stack(list(probabilities)).float()).tolist()
    return mean
