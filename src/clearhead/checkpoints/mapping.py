"""One table says what a published tensor is called here; one engine reads the table in both directions.

    Rule("encoder.layer.{i}.attention.self.query.{p}", "blocks.{i}.attention.q_proj.{p}")

`{i}` stands for every layer, `{j}` for every layer of a second stack (a decoder's), `{p}` for weight and bias. Names
are only ever compared whole: replacing a part of a name, such as every "gamma", changes tensors nobody thought of.
Every tensor of a file is used exactly once or named in the table as ignored, and every tensor of the model is filled
by exactly one rule.

Next: `bert.py`, a table; `files.py`, where the tensors come from.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from clearhead.errors import CheckpointError

Depths = int | tuple[int, ...]  # how many layers {i} stands for, or {i} and {j}


@dataclass(frozen=True)
class Op:
    """Two inverse functions: one tensor of theirs to one or more of ours, and back. Also run on shapes, of integers."""

    read: Callable[[Tensor], tuple[Tensor, ...]]
    write: Callable[[tuple[Tensor, ...]], Tensor]


SAME = Op(lambda theirs: (theirs,), lambda ours: ours[0])
TRANSPOSED = Op(lambda theirs: (theirs.T,), lambda ours: ours[0].T)  # GPT-2 stores its linear layers (in, out)


def stacked(parts: int) -> Op:
    """Return the op for `parts` equal tensors that a file keeps as one, such as queries, keys and values."""
    return Op(lambda theirs: theirs.chunk(parts), lambda ours: torch.cat(ours))


@dataclass(frozen=True)
class Rule:
    """A tensor of theirs is this tensor of ours, or these, by `op`."""

    theirs: str
    ours: str | tuple[str, ...]
    op: Op = SAME


@dataclass(frozen=True)
class Alias:
    """Another name for a tensor of theirs: an old one, or a tied copy, which has to be equal where both are there.

    Where a rule asks for a tensor of that name, as of an output matrix that is not tied, it is no alias.
    """

    theirs: str
    same_as: str


@dataclass(frozen=True)
class Ignored:
    """A tensor of theirs that no model here needs, and why."""

    theirs: str
    reason: str


@dataclass(frozen=True)
class Table:
    """All that is known about the tensors of one published model."""

    rules: tuple[Rule, ...] = ()
    aliases: tuple[Alias, ...] = ()
    ignored: tuple[Ignored, ...] = ()

    def __add__(self, other: "Table") -> "Table":
        return Table(self.rules + other.rules, self.aliases + other.aliases, self.ignored + other.ignored)

    def under(self, theirs: str, ours: str) -> "Table":
        """Return the table with a prefix on every name."""
        return Table(
            tuple(Rule(theirs + r.theirs, tuple(ours + name for name in _names(r)), r.op) for r in self.rules),
            tuple(Alias(theirs + a.theirs, theirs + a.same_as) for a in self.aliases),
            tuple(Ignored(theirs + row.theirs, row.reason) for row in self.ignored),
        )


@runtime_checkable
class Source(Protocol):
    """Where tensors come from: shapes are known at once, numbers are read one tensor at a time."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""

    def read(self, name: str) -> Tensor:
        """Return the tensor called `name`."""

    def file(self, name: str) -> str:
        """Return the file that holds `name`, for messages."""


def read_tensors(
    table: Table, source: Source, like: Mapping[str, Tensor], n_layers: Depths
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of ours, by name, as a view of what `source` reads; `kept` is what a model keeps of it.

    `like` holds the model's own tensors; only their shapes are looked at. Raises CheckpointError for a missing,
    unexpected, misshapen or quantised tensor; names and shapes are checked before the first number is read.
    """
    rules = _rules_for(table, like, n_layers)
    found = _find(table, source, [rule.theirs for rule in rules], n_layers)
    for rule in rules:
        name, parts = found[rule.theirs], [_shape_of(like[ours]) for ours in _names(rule)]
        count, expected = sum(part.numel() for part in parts), ""
        if len(parts) > 1 and count != math.prod(source.shapes[name]):  # as many bytes as config.json dreams of
            expected = f"{count:,} numbers"
        elif (shape := tuple(rule.op.write(tuple(parts)).shape)) != source.shapes[name]:
            expected = str(shape)
        if expected:
            raise CheckpointError(
                f"{source.file(name)}: tensor {name!r} has shape {source.shapes[name]}, expected {expected} "
                f"by config.json: the two do not belong together, get both from the same place"
            )
    for rule in sorted(rules, key=lambda rule: source.file(found[rule.theirs])):  # one file after the other
        name = found[rule.theirs]
        tensor = source.read(name)
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{source.file(name)}: tensor {name!r} holds {tensor.dtype}, expected floating-point numbers: "
                f"quantised checkpoints are not read, look for the model it was made from"
            )
        yield from zip(_names(rule), rule.op.read(tensor), strict=True)


class Renamed:
    """The tensors of a file under the names that a table has for them, with the prefix of the trunk or without.

    A trunk is also published as a head's file has it, `bert.embeddings...` for `embeddings...`, and a head's file with
    no prefix. Where the trunk alone is wanted, the tensors of a head beside it are left out.
    """

    def __init__(self, source: Source, table: Table, prefix: str, n_layers: Depths) -> None:
        """Rename what `table` has no name for, where it has one with or without `prefix`."""
        theirs = [row.theirs for row in table.rules] + [row.theirs for row in table.aliases]
        theirs += [row.theirs for row in table.ignored]
        known = {name for each in theirs for (name,) in _written_out((each,), n_layers)}
        is_trunk = not any(name.startswith(prefix) for name in known)
        self.source, self.names, self.left_out = source, dict[str, str](), list[str]()
        has_prefix = any(name.startswith(prefix) for name in source.shapes)
        for name in source.shapes:
            other = name.removeprefix(prefix) if name.startswith(prefix) else prefix + name
            wanted = other if name not in known and other in known and other not in source.shapes else name
            if prefix and is_trunk and has_prefix and wanted not in known and not name.startswith(prefix):
                self.left_out.append(name)
            else:
                self.names[wanted] = name

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, by its name in the table."""
        shapes = self.source.shapes
        return {wanted: shapes[name] for wanted, name in self.names.items()}

    def read(self, name: str) -> Tensor:
        """Return the tensor called `name` in the table."""
        return self.source.read(self.names[name])

    def file(self, name: str) -> str:
        """Return the file that holds `name`, for messages."""
        return self.source.file(self.names.get(name, name))


def is_finite(tensor: Tensor) -> bool:
    """Return whether no number of `tensor` is NaN or infinite, which a sum tells in one pass over the memory."""
    if tensor.itemsize == 1:  # float8 can be converted, not added up
        tensor = tensor.float()
    total = tensor.sum(dtype=torch.float32 if tensor.itemsize == 2 else None)
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def name_in_file(table: Table, like: Mapping[str, Tensor], n_layers: Depths, ours: str) -> str:
    """Return what a tensor of ours is called in the table."""
    return next(rule.theirs for rule in _rules_for(table, like, n_layers) if ours in _names(rule))


def _shape_of(tensor: Tensor) -> Tensor:
    """Return what has the shape of `tensor` and takes no memory, until torch.cat makes a byte of each number.

    On "meta", where it would make none, torch.cat imports torch's compiler.
    """
    return torch.zeros((), dtype=torch.int8).expand(tensor.shape)


def kept(part: Tensor, *, as_stored: bool = False) -> Tensor:
    """Return `part` as a model keeps it: a large one stays in the file's map, a small one must not hold that open.

    What a file stores turned is turned, which costs once what an optimiser would pay at every step; and on a view of
    columns fused ones reckon silently wrong (LOG.md). `as_stored` leaves large ones as views: nobody trains these.
    """
    if part.numel() < 2**16:
        return part.clone(memory_format=torch.contiguous_format)
    return part if as_stored else part.contiguous()


def write_tensors(table: Table, tensors: Mapping[str, Tensor], n_layers: Depths) -> dict[str, Tensor]:
    """Return `tensors` of ours under the names and in the shapes of theirs: the same rules, read backwards."""
    rules = _rules_for(table, tensors, n_layers)
    return {rule.theirs: rule.op.write(tuple(tensors[name] for name in _names(rule))).contiguous() for rule in rules}


def _names(rule: Rule) -> tuple[str, ...]:
    return (rule.ours,) if isinstance(rule.ours, str) else rule.ours


def _written_out(names: tuple[str, ...], n_layers: Depths) -> Iterator[tuple[str, ...]]:
    """Yield `names` once for every layer and for weight and bias, where they leave these open."""
    depths = zip(("{i}", "{j}"), (n_layers,) if isinstance(n_layers, int) else n_layers)
    layer, count = next(((layer, count) for layer, count in depths if layer in names[0]), ("{i}", 1))
    for i in range(count):
        for p in ("weight", "bias") if "{p}" in names[0] else ("",):
            yield tuple(name.replace(layer, str(i)).replace("{p}", p) for name in names)


def _rules_for(table: Table, ours: Collection[str], n_layers: Depths) -> list[Rule]:
    """Return the rules, written out, whose tensors this model has: one may come without a pooler or a bias."""
    rules = [
        Rule(names[0], names[1:], rule.op)
        for rule in table.rules
        for names in _written_out((rule.theirs, *_names(rule)), n_layers)
        if names[1] in ours
    ]
    filled = [name for rule in rules for name in _names(rule)]
    assert len(set(filled)) == len(filled), "two rules fill the same tensor"
    if homeless := sorted(set(ours) - set(filled)):
        raise CheckpointError(f"this family has no place for {_some(homeless)}: choose another family to save it in")
    return rules


def _find(table: Table, source: Source, wanted: Collection[str], n_layers: Depths) -> dict[str, str]:
    """Return under which name of the file each wanted tensor is, after accounting for every tensor in it."""
    found = {name: name for name in wanted if name in source.shapes}
    used = set(found)
    for row in table.aliases:
        for name, same_as in _written_out((row.theirs, row.same_as), n_layers):
            if name not in source.shapes or same_as not in wanted or name in wanted:
                continue
            used.add(name)
            original = found.setdefault(same_as, name)
            if original != name and not torch.equal(source.read(original), source.read(name)):
                raise CheckpointError(
                    f"{source.file(name)}: tensor {name!r} should equal {original!r}, which it stands for, and does "
                    f"not: here they are one tensor, so this model cannot be computed"
                )
    used |= {name for row in table.ignored for (name,) in _written_out((row.theirs,), n_layers)}
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(source.shapes) - used)
    if missing or unexpected:
        lists = [f"missing {_some(missing)}"] if missing else []
        lists += [f"unexpected {_some(unexpected)}"] if unexpected else []
        raise CheckpointError(
            f"{source.file((unexpected or missing)[0])} holds other tensors than config.json describes: "
            f"{'; '.join(lists)}. Check model_type, architectures and the number of layers there"
        )
    return found


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:4]))
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
