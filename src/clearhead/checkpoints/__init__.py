"""Open the checkpoints that others publish, and save ones that others open: `load(name)`, `save(model, folder)`.

A checkpoint is a folder with `config.json`, `model.safetensors` and the tokenizer's files, in the words of its
family. There is no format of our own. What was loaded is saved in the same words again, bit for bit.

Reading order: `mapping.py` (one engine, both ways), `bert.py` (a table), `family.py` (config keys), `files.py`.
"""

import gc
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clearhead.block import initialise
from clearhead.checkpoints.bart import BART, MARIAN
from clearhead.checkpoints.bert import BERT
from clearhead.checkpoints.dinov2 import DINOV2, DINOV2_WITH_REGISTERS
from clearhead.checkpoints.distilbert import DISTILBERT
from clearhead.checkpoints.family import Family, read_config, unread_keys, write_config
from clearhead.checkpoints.files import CONFIG, WEIGHTS, Weights, find, replacing, save_tensors
from clearhead.checkpoints.gemma import GEMMA2, GEMMA3
from clearhead.checkpoints.gpt2 import GPT2
from clearhead.checkpoints.llama import LLAMA, MISTRAL
from clearhead.checkpoints.mapping import Renamed, is_finite, kept, name_in_file, read_tensors, write_tensors
from clearhead.checkpoints.modernbert import MODERNBERT
from clearhead.checkpoints.qwen import QWEN2, QWEN3
from clearhead.checkpoints.roberta import ROBERTA, XLM_ROBERTA
from clearhead.checkpoints.t5 import T5
from clearhead.checkpoints.timm import TIMM, kind
from clearhead.checkpoints.vit import DEIT, VIT
from clearhead.checkpoints.whisper import WHISPER
from clearhead.errors import CheckpointError, ConfigError, nearest
from clearhead.json_files import read_json
from clearhead.models.bert import Bert, BertForSequenceClassification
from clearhead.models.modernbert import ModernBert, ModernBertForSequenceClassification, PredictionHead

__all__ = ["FAMILIES", "Origin", "build", "descend", "find", "load", "origin", "save", "with_head"]

ENCODERS = (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, MODERNBERT)
DECODERS = (GPT2, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3)
PICTURES = (VIT, DEIT, DINOV2, DINOV2_WITH_REGISTERS, TIMM)
ENCODER_DECODERS = (MARIAN, BART, T5, WHISPER)
FAMILIES: dict[str, Family[Any]] = {
    family.model_type: family for family in (*ENCODERS, *DECODERS, *PICTURES, *ENCODER_DECODERS)
}


@dataclass(frozen=True)
class Origin:
    """Where a model was loaded from: its family, the published config with the keys that we only keep, and remarks."""

    family: str
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # what of the folder was not needed for this model


@runtime_checkable
class CanSave(Protocol):
    """A tokenizer, as far as this room knows one."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files into `folder`."""


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Keep Python's garbage collector away where all that is made stays.

    It would look at everything that importing torch left: 80 ms, in which 500 MB are opened four times.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@nothing_collected()
def load(
    name: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    frozen: bool = False,
) -> nn.Module:
    """Return the model that config.json in `find(name)` asks for, in eval mode.

    `dtype` None keeps the file's. Weights already of that dtype are mapped from the file on the CPU, not copied, but
    for matrices that a file stores turned (GPT-2's). A `frozen` model maps these too: its parameters ask for no
    gradients and need not be contiguous. A mapped file has to stay as it is: `save` replaces it, which is safe, but
    written over in place it changes the model. Raises CheckpointError, with nothing loaded, when anything in the folder
    is not as it should be.
    """
    folder = find(name)
    published = read_json(folder / CONFIG)
    family, architecture = _family_of(published, folder)
    weights = Weights(folder)
    names = {other for name in weights.shapes for other in (name, name.removeprefix(family.prefix))}
    config = read_config(family, published, architecture, names, where=folder / CONFIG)
    n_layers = family.n_layers(config)
    if sum(n_layers) > (came := len(weights.shapes)):  # before a billion layers are built
        raise CheckpointError(f"{folder / CONFIG}: {sum(n_layers)} layers, but there are only {came} tensors")
    head = family.architectures[architecture]
    try:
        with torch.device("meta"), ShapesOnly():
            model = head(config)
    except (ConfigError, RuntimeError) as error:  # no labels; more numbers than can be counted
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    table, like = family.table(head, config), model.state_dict()
    source = Renamed(weights, table, family.prefix, n_layers)

    def read(pair: tuple[str, Tensor]) -> tuple[str, Tensor]:
        name, part = pair
        if not is_finite(part):
            theirs = name_in_file(table, like, n_layers, name)
            raise CheckpointError(
                f"{source.file(theirs)}: tensor {theirs!r} holds numbers that are NaN or infinite, "
                f"{int((~part.isfinite()).sum()):,} of {part.numel():,}: a training that diverged, or a damaged file"
            )
        return name, kept(part, as_stored=frozen).to(device=device, dtype=dtype)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # what is copied is copied by all processors
        ours = pool.map(read, read_tensors(table, source, like, n_layers))
        model.load_state_dict(dict(ours), assign=True)
    _trunk(model).__dict__["origin"] = Origin(family.model_type, published, _notes(published, source, folder))
    return model.eval().requires_grad_(not frozen)


def _notes(published: Mapping[str, Any], source: Renamed, folder: Path) -> tuple[str, ...]:
    """Return what is to be said of a folder beside its model."""
    notes = []
    if keys := unread_keys(published):
        notes.append(f"{folder / CONFIG}: {', '.join(keys)} {'is' if len(keys) == 1 else 'are'} not read here")
    if source.left_out:
        notes.append(f"{folder}: {', '.join(source.left_out)}: tensors of a head, which this model has not, left out")
    return tuple(notes)


def build(name: str | Path) -> nn.Module:
    """Return the model that config.json in `find(name)` asks for, its weights drawn from torch's random numbers.

    Where `load` reads weights, this starts anew: the folder needs none. Saved, it is of that config's family. Raises
    CheckpointError for a config that `load` would refuse too.
    """
    folder = find(name)
    published = read_json(folder / CONFIG)
    family, architecture = _family_of(published, folder)
    config = read_config(family, published, architecture, (), where=folder / CONFIG)
    try:
        model = family.architectures[architecture](config)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    _trunk(model).__dict__["origin"] = Origin(family.model_type, published)
    return model


def save(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: CanSave | None = None,
    family: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write `model` as a folder that `load` and `transformers` open: the whole folder or, on any error, nothing.

    What was loaded is saved in its own family with its config's keys kept; a model built by hand in the `family`
    given, or else in the first one that has words for it. `dtype` None keeps the model's. Raises CheckpointError when
    the family cannot describe the model.
    """
    from safetensors import SafetensorError

    ours = {name: tensor.detach().to("cpu", dtype) for name, tensor in model.state_dict().items()}
    theirs, published = _in_some_words(model, ours, family)
    try:
        with replacing(Path(folder)) as partial:
            (partial / CONFIG).write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
            save_tensors(theirs, partial / WEIGHTS, _metadata(published))
            if tokenizer is not None:
                tokenizer.save(partial)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error


def _metadata(published: Mapping[str, Any]) -> dict[str, str] | None:
    """Return what the weights' file says of itself: transformers insists on the format, timm writes nothing."""
    return {"format": "pt"} if "model_type" in published else None


def _in_some_words(
    model: nn.Module, ours: Mapping[str, Tensor], name: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the config of `model` in the words of a family, found as `save` says."""
    head, came_from = type(model), origin(model)
    name = name or (came_from.family if came_from else None)
    if name is not None and name not in FAMILIES:
        raise CheckpointError(f"unknown family {name!r}{nearest(name, list(FAMILIES))}")
    refusals = []
    for family in FAMILIES.values() if name is None else [FAMILIES[name]]:
        if head not in family.tables:
            continue
        kept = came_from.config if came_from and came_from.family == family.model_type else {}
        try:
            theirs = write_tensors(family.table(head, model.config), ours, family.n_layers(model.config))
            return theirs, write_config(family, head, model.config, kept=kept, tensors=theirs)
        except CheckpointError as error:
            refusals.append(error)
    if len(refusals) == 1:
        raise refusals[0]
    if refusals:
        raise CheckpointError(f"no family has words for this model. {'. '.join(map(str, refusals))}")
    heads = FAMILIES[name].tables if name else {head for family in FAMILIES.values() for head in family.tables}
    known = ", ".join(sorted(known.__name__ for known in heads))
    raise CheckpointError(f"a {f'{name} ' if name else ''}checkpoint holds one of {known}, got {head.__name__}")


def with_head(
    model: nn.Module, labels: tuple[str, ...] | list[str]
) -> BertForSequenceClassification | ModernBertForSequenceClassification:
    """Return a text classifier with a fresh last layer on the trunk of `model`, for fine-tuning.

    The trunk is taken over, not copied, its pooler with it; where its family has none before fine-tuning
    (DistilBERT), it gets a fresh one. Saved again, it is its family's sequence classifier.
    """
    trunk, came_from = _trunk(model), origin(model)
    if isinstance(trunk, ModernBert):
        trunk.config = replace(trunk.config, labels=tuple(labels))
        modern = ModernBertForSequenceClassification(trunk.config, bert=trunk)
        if isinstance(head := getattr(model, "head", None), PredictionHead):
            modern.head = head  # all heads begin with it
        return modern.to(trunk.words.weight).train(trunk.training)
    if not isinstance(trunk, Bert):
        raise CheckpointError(f"expected a Bert or a ModernBert, or one with a head, got {type(model).__name__}")
    pooler = (FAMILIES[came_from.family].pooler if came_from else trunk.config.pooler) or BERT.pooler
    config = replace(trunk.config, labels=tuple(labels), pooler=pooler)
    words = trunk.embeddings.words.weight
    if trunk.pooler is None or trunk.config.pooler != pooler:
        fresh = nn.Linear(config.d_model, config.d_model)
        initialise(fresh)
        trunk.pooler = fresh.to(words)
    trunk.config = config
    return BertForSequenceClassification(config, bert=trunk).to(words).train(trunk.training)


def origin(model: nn.Module) -> Origin | None:
    """Return where the trunk of `model` was loaded from, or None if it was built by hand."""
    return _trunk(model).__dict__.get("origin")


def descend(model: nn.Module, source: nn.Module) -> Origin | None:
    """Let `model`, built from what `source` is made of, be saved as what that was loaded from; return its origin."""
    if (came_from := origin(source)) is not None:
        _trunk(model).__dict__["origin"] = came_from
    return came_from


class ShapesOnly(TorchFunctionMode):
    """Build a model without drawing the random numbers that a file replaces: 20 ms for a small BERT.

    Drawing them takes 0.2 s; drawing them as shapes alone makes torch import its decompositions, 1.4 s.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skip torch.nn.init, run the rest."""
        kwargs = kwargs or {}
        drawing = getattr(func, "__module__", None) == "torch.nn.init"
        return kwargs["tensor"] if drawing else func(*args, **kwargs)


def _trunk(model: nn.Module) -> nn.Module:
    """Return what a head stands on: the part that has a config of its own, or the model itself."""
    return next((part for part in model.children() if hasattr(part, "config")), model)


def _family_of(published: Mapping[str, Any], folder: Path) -> tuple[Family[Any], str]:
    """Return the family and the architecture that a config.json names; nothing is guessed from tensors."""
    if "architecture" in published and "model_type" not in published:
        try:
            return TIMM, kind(published)
        except CheckpointError as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    model_type, architectures = published.get("model_type"), published.get("architectures")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(
            f"{folder / CONFIG}: no family here for model_type {model_type!r}"
            f"{nearest(str(model_type), list(FAMILIES))}. checkpoints/family.py says how to add one"
        )
    known = list(FAMILIES[model_type].architectures)
    if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in known:
        raise CheckpointError(
            f"{folder / CONFIG}: architectures {architectures!r}, expected one of {', '.join(known)} in a list"
        )
    return FAMILIES[model_type], architectures[0]
