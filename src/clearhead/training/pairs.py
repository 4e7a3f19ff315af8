"""Pairs of texts as rows: for a model that answers one with the other. Next: `assembly.py`, all tasks by name."""

import hashlib
from pathlib import Path

from torch import nn

from clearhead.data.pairs import Pairs
from clearhead.data.text import read_examples
from clearhead.data.tokenizer import Tokenizer
from clearhead.errors import TrainingError
from clearhead.models.encoder_decoder import EncoderDecoder
from clearhead.training.objectives import SequenceToSequence
from clearhead.training.recipe import Recipe
from clearhead.training.task import DataSet, Task
from clearhead.training.texts import require_fit, tokenized


def build_pairs(files: tuple[str, ...], folder: Path, recipe: Recipe, tokenizer: Tokenizer) -> DataSet:
    """Read and tokenize the pairs of files below `folder`; one tokenizer is for both sides."""
    examples = [example for name in files for example in read_examples(folder / name, recipe.data.columns)]
    sources, cut = tokenized([example.text for example in examples], recipe, tokenizer)
    answers, cut_too = tokenized([example.target_text for example in examples], recipe, tokenizer)
    digest = hashlib.sha256(repr((sources, answers)).encode()).hexdigest()
    rows = Pairs(sources=sources, answers=answers, pad_id=tokenizer.pad_id)
    n_truncated = cut + cut_too
    note = f"{n_truncated:,} of {2 * len(examples):,} texts cut at max_len" if n_truncated else ""
    return DataSet(rows=rows, digest=digest, note=note)


def _answerer(source: nn.Module, recipe: Recipe, tokenizer: Tokenizer) -> nn.Module:
    if not isinstance(source, EncoderDecoder) or source.front is not None:
        kind = "one that hears" if isinstance(source, EncoderDecoder) else f"a {type(source).__name__}"
        raise TrainingError(f"texts are answered by an EncoderDecoder that reads tokens, and the checkpoint is {kind}")
    config = source.config
    require_fit(recipe, tokenizer, min(config.max_source_len, config.max_target_len), config.vocab_size)
    if config.end_id not in tokenizer.encode("a").ids:
        raise TrainingError(
            f"this tokenizer does not end a text with id {config.end_id}, by which the model stops: it would learn to "
            f"answer and never to end. Give its tokenizer.json a post-processor that puts the end there"
        )
    return source


ANSWERS = Task(
    reader=Tokenizer.load,
    rows=build_pairs,
    objective=lambda recipe, _: SequenceToSequence(label_smoothing=recipe.objective.label_smoothing),
    model=_answerer,
)
