"""What a family of published checkpoints is: its config keys and its tensors, each readable in both directions.

A config key is read into ours, or has one value we can compute with, or is known to change nothing, or is refused:
`position_embedding_type: relative_key` ignored would give a model that runs and is wrong. `SETTLED` and `HARMLESS` are
what every family's config may hold; a family adds its own.

Next: `bert.py`, the first family; a new one is a module like it and a line in `FAMILIES`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from clearhead.checkpoints.mapping import Table
from clearhead.errors import CheckpointError, ConfigError, nearest
from clearhead.json_files import BOOLEAN, LIST, OBJECT, TEXT, Kind, number, shown, whole

Json = Mapping[str, Any]
C = TypeVar("C")  # the config of one of our models


@dataclass(frozen=True)
class Field:
    """A config key of theirs, its name here, and what its absence means to them; `names` translates the values.

    A value is of the default's type. With `optional` it is of that type or null, which is not the same as absent.
    """

    theirs: str
    ours: str
    default: Any
    names: Mapping[str, str] | None = None
    optional: type | None = None


def with_defaults(fields: tuple[Field, ...], **defaults: Any) -> tuple[Field, ...]:
    """Return `fields` with what the absence of some means to another family."""
    return tuple(replace(field, default=defaults.get(field.ours, field.default)) for field in fields)


def one_stack(config: Any) -> tuple[int, ...]:
    """Return how often `{i}` is written out in the tables of most models."""
    return (config.n_layers,)


def as_it_is(config: C) -> C:
    """Return the config."""
    return config


@dataclass(frozen=True, kw_only=True)
class Family(Generic[C]):
    """A `model_type`: which of our models its architectures are, their tensors, and its config, both ways.

    `read_config(config, architecture, names)` gets the tensor names too: a trunk may come without a pooler.
    A table that depends on the config is a function of it; rules for what a model has not are skipped anyway.
    `n_layers` counts the layers of each stack. `pooler` is how text classifiers bend what the first token says.
    `plain` is a config without what the family has no words for and no need of: two configs that are alike so far are
    one to it. `prefix` is what stands before the names of a trunk's tensors under a head. `respelled` are keys that
    `write_config` says in other words. `names_itself`: config.json says
    model_type, architectures and dtype, as transformers' do, and the weights' file its format.
    """

    model_type: str
    architectures: Mapping[str, type[nn.Module]]  # the first of a class is the one it is saved as
    tables: Mapping[type[nn.Module], Table | Callable[[C], Table]]
    read_config: Callable[[Json, str, Collection[str]], C]
    write_config: Callable[[C], dict[str, Any]]
    n_layers: Callable[[C], tuple[int, ...]] = one_stack
    plain: Callable[[C], C] = as_it_is
    respelled: Collection[str] = ()
    pooler: str | None = None
    prefix: str = ""
    names_itself: bool = True

    def table(self, head: type[nn.Module], config: C) -> Table:
        """Return the tensors of this model."""
        table = self.tables[head]
        return table if isinstance(table, Table) else table(config)


# transformers, activations.py: several names for one function
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
}

# Keys of which only this value is computed here. Anything else is another model.
SETTLED: dict[str, tuple[Any, ...]] = {
    "problem_type": ("single_label_classification",),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": ({},),
}

# Keys that change no output: bookkeeping, how to train or generate, what old exporters left behind. They are kept.
HARMLESS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _name_or_path _num_labels adapters architectures
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
    cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_range label2id language length_penalty max_length
    min_length model_type name no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_past output_scores prefix remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p use_bfloat16
    use_cache xla_device
    """.split()
)


# Names of keys that no model reads: of a checkpoint's own code, of tokens, of who wrote the file and with what. A note
# says so of those that are not in HARMLESS.
BOOKKEEPING = re.compile(
    r"auto_map|custom_pipelines|sentence_transformers|padding|padding_side|license|transformers\.js_config|"
    r"_commit_hash|_flash_attn_2_enabled|\w+_token(_id)?|unsloth_\w+|sbert_\w+|\w+_version"
)
# Second names of a key, written beside it; of another value they would be another model.
SECOND_NAMES = {"sliding_window_size": "sliding_window"}


def unread_keys(config: Json) -> list[str]:
    """Return the keys of a published config that nothing here reads and that are worth a note."""
    tokens = re.compile(r"\w+_token(_id)?")
    return sorted(k for k in config if BOOKKEEPING.fullmatch(k) and k not in HARMLESS and not tokens.fullmatch(k))


def read_fields(
    config: Json,
    fields: tuple[Field, ...],
    *,
    settled: Mapping[str, tuple[Any, ...]] = {},
    harmless: Collection[str] = (),
) -> dict[str, Any]:
    """Return the values of `config` under our names, after accounting for every one of its keys.

    `settled` and `harmless` are the family's own. A key read by a field is not looked up in either. `BOOKKEEPING` is
    harmless in every family.
    Raises CheckpointError for a key that is unknown or settled otherwise, and for a value of the wrong kind.
    """
    settled = {**SETTLED, **settled}
    known = {field.theirs for field in fields} | settled.keys()
    unread = {key for key in config if key not in known and BOOKKEEPING.fullmatch(key)}
    unread |= {key for key, first in SECOND_NAMES.items() if key in config and config[key] == config.get(first)}
    return _read(config, fields, settled, {*HARMLESS, *harmless, *unread})


def read_nested(
    part: Json, fields: tuple[Field, ...], *, where: str, settled: Mapping[str, tuple[Any, ...]] = {}
) -> dict[str, Any]:
    """Return the values of an object inside a config, such as rope_parameters; nothing in it is taken as harmless."""
    try:
        return _read(part, fields, settled, ())
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _read(
    config: Json, fields: tuple[Field, ...], settled: Mapping[str, tuple[Any, ...]], harmless: Collection[str]
) -> dict[str, Any]:
    known = {field.theirs for field in fields}
    for key, value in config.items():
        if key in known or key in harmless or value is None:
            continue
        if key not in settled:
            raise CheckpointError(
                f"unknown key {key!r} ({shown(value)}), which may change what the model computes"
                f"{nearest(key, sorted(known))}. If you know that it changes nothing, remove it in a copy of the folder"
            )
        if value not in settled[key]:
            raise CheckpointError(
                f"{key} is {shown(value)}, which is another model: clearhead computes {settled[key][0]!r}"
            )
    return {field.ours: _read_field(config, field) for field in fields}


# What a field's value has to be, by the type of its default.
KINDS = {int: whole(), float: number(0), bool: BOOLEAN, str: TEXT, list: LIST, dict: OBJECT}


def _read_field(config: Json, field: Field) -> Any:
    value = config.get(field.theirs)
    if value is None:
        return None if field.optional and field.theirs in config else field.default
    if field.names is not None:
        if not isinstance(value, str) or value not in field.names:
            raise CheckpointError(f"{field.theirs} {shown(value)} is unknown{nearest(str(value), list(field.names))}")
        return field.names[value]
    kind = field.optional or type(field.default)
    KINDS[kind].check(field.theirs, value)
    return float(value) if kind is float else value


def write_fields(config: Any, fields: tuple[Field, ...]) -> dict[str, Any]:
    """Return our values under their keys: `read_fields` backwards."""
    written = {field.theirs: getattr(config, field.ours) for field in fields}
    for field in fields:
        if field.names is not None:
            ours = written[field.theirs]
            written[field.theirs] = next((theirs for theirs, name in field.names.items() if name == ours), ours)
    if getattr(config, "labels", ()):
        written["id2label"] = {str(i): label for i, label in enumerate(config.labels)}
        written["label2id"] = {label: i for i, label in enumerate(config.labels)}
    return written


def _are_label_names(value: Any) -> bool:
    named = isinstance(value, dict) and set(value) == {str(i) for i in range(len(value))}
    return named and all(isinstance(name, str | int | float) for name in value.values())


MAX_LABELS = 2**20
LABEL_NAMES = Kind("an object with a name for each of 0, 1, 2, ...", _are_label_names)


def read_labels(config: Json, architecture: str) -> tuple[str, ...]:
    """Return the names of the classes, in the order of the classifier's rows."""
    names = config.get("id2label")
    if names is None:
        if not architecture.endswith("Classification"):
            return ()
        count = config.get("num_labels", config.get("_num_labels", 2))  # two is what transformers leaves unsaid
        return tuple(f"LABEL_{i}" for i in range(whole(1, MAX_LABELS).check("num_labels", count)))
    LABEL_NAMES.check("id2label", names)
    return tuple(str(names[str(i)]) for i in range(len(names)))


def require_tied_words(config: Json) -> None:
    """Refuse a masked language model whose output words are not its input words."""
    if config.get("tie_word_embeddings") is False:
        raise CheckpointError(
            "tie_word_embeddings is false: here the words guessed from are the words read, one matrix"
        )


def read_config(family: Family[C], published: Json, architecture: str, names: Collection[str], *, where: object) -> C:
    """Return the config that a published one describes; every CheckpointError begins with `where`."""
    try:
        return family.read_config(published, architecture, names)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{where}: {error}") from error


def write_config(
    family: Family[C], head: type[nn.Module], config: C, *, kept: Json, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return a config.json that reads back as `config`: the published one, `kept`, as it was if it still does.

    Raises CheckpointError when the family has no words for this model.
    """
    config = family.plain(config)
    architecture = next(name for name, known in family.architectures.items() if known is head)
    published = dict(kept)
    if family.names_itself:
        published |= {"architectures": [architecture], "model_type": family.model_type}
        dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
        stated = [key for key in ("dtype", "torch_dtype") if key in kept]  # transformers 5 and before
        if stated or dtype != "float32":  # which is what leaving it out means
            published |= dict.fromkeys(stated or ["dtype"], dtype)
    where = f"a {family.model_type} checkpoint cannot describe this model"
    if kept and family.plain(read_config(family, published, architecture, tensors, where=where)) == config:
        return published
    published = {k: v for k, v in published.items() if k not in ("num_labels", "_num_labels", *family.respelled)}
    written = family.write_config(config)
    if isinstance(was := published.get("pretrained_cfg"), dict) and "pretrained_cfg" in written:
        written["pretrained_cfg"] = {**was, **written["pretrained_cfg"]}  # timm: how its pictures were prepared
    published |= written
    read = family.plain(read_config(family, published, architecture, tensors, where=where))
    if read != config:
        lost = [
            f"{key} {value!r} would be read as {getattr(read, key)!r}"
            for key, value in vars(config).items()
            if value != getattr(read, key)
        ]
        raise CheckpointError(f"{where}: {'; '.join(lost)}. Save it as another family")
    return published
