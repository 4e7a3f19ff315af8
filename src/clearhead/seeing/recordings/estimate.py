"""How much a long recording will take, from a short one.

Queries, keys and normalisers grow with the text, masks that no sentence says grow with its square, and all of that can
be read off a few tokens: watch those, then ask here before the long run. Next: `memory.py`, what there is room for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clearhead.errors import WatchError, counted
from clearhead.seeing import arguments
from clearhead.seeing.call import Call
from clearhead.seeing.recordings.keeping import PER_KEY, Keeper, chosen
from clearhead.seeing.recordings.memory import ADVICE, SHARE, available, in_words
from clearhead.seeing.recordings.recording import Recording
from clearhead.seeing.rule import Rule


@dataclass(frozen=True)
class Estimate:
    """What recording `batch` texts of `n_tokens` will take, in bytes, and what there is."""

    nbytes: int
    n_tokens: int
    batch: int
    layers: dict[str, int]  # each layer's part, masks not counted: layers share those
    dense: int  # what all its maps would take, were they kept in float32
    available: int  # on the device of the short recording

    @property
    def per_token(self) -> float:
        """Return the bytes a token of each text."""
        return self.nbytes / max(1, self.n_tokens * self.batch)

    @property
    def fits(self) -> bool:
        """Say whether `watch` would keep all of it there: some of the memory is left to the model."""
        return self.nbytes <= SHARE * self.available

    def __str__(self) -> str:
        """Say it in a sentence, with what to ask for instead where it does not fit."""
        said = (
            f"{in_words(self.nbytes)} for {self.batch} x {self.n_tokens:,} tokens in "
            f"{counted(len(self.layers), 'layer')}, {in_words(round(self.per_token))} a token; "
            f"{in_words(self.available)} can be had. "
            f"The maps themselves would take {in_words(self.dense)}"
        )
        return said if self.fits else f"{said}. It does not fit: {ADVICE}"


def estimate(
    seen: Recording,
    n_tokens: int,
    batch: int = 1,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    rows: slice | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Estimate:
    """Return what watching one forward over `n_tokens` would take, by the first forward of a short recording.

    Options are those of `watch`, on top of those that `seen` was made with; so one short recording answers for all.
    What is of fixed length in the model, as the memory of a cross-attention may be, is counted as if it grew too.
    """
    if arguments.whole(n_tokens, "n_tokens") < 1 or arguments.whole(batch, "batch") < 1:
        raise WatchError(f"expected at least one token and one text, got {n_tokens} and {batch}")
    Keeper(rows, dtype)  # which refuses what `watch` would
    heads = None if heads is None else arguments.several(heads, "heads")
    numbers = None if layers is None else {seen.number(layer) for layer in arguments.several(layers, "layers")}
    wanted = [layer for layer in seen.layers if numbers is None or layer.index in numbers]
    calls = {layer.name: seen.call(layer.index, 0) for layer in wanted}
    short = max((max(call.n_all, call.n_keys) for call in calls.values()), default=1)
    parts, dense, rules = {}, 0, {}
    for name, call in calls.items():
        n_queries, n_keys = (max(1, round(n * n_tokens / short)) for n in (call.n_all, call.n_keys))
        n_rows = n_queries if rows is None else len(chosen(rows, n_queries))
        kept = [kv for head, kv in zip(call.heads, call.kv_of) if heads is None or head in heads]
        parts[name] = _of_call(call, kept, batch, n_rows, n_keys, dtype)
        rules[id(call.rule)] = _of_rule(call.rule, batch, n_rows / max(1, call.n_queries), n_keys / max(1, call.n_keys))
        dense += batch * call.n_heads * n_queries * n_keys * 4
    device = next(iter(calls.values())).q.device if calls else torch.device("cpu")
    return Estimate(sum(parts.values()) + sum(rules.values()), n_tokens, batch, parts, dense, available(device))


def _of_call(call: Call, kept: list[int], batch: int, n_rows: int, n_keys: int, dtype: torch.dtype | None) -> int:
    """Return the bytes of one call's tensors; `kept` has the row of keys of every head that is kept."""
    found = 0
    for name, tensor in call.tensors.items():
        size = dtype.itemsize if dtype is not None and name in ("q", "weights", *PER_KEY) else tensor.element_size()
        if name in PER_KEY:
            n_heads = len(set(kept)) if tensor.shape[1] == call.k.shape[1] else len(kept)
            found += batch * n_heads * n_keys * tensor.shape[3] * size
        elif name == "weights":
            found += batch * len(kept) * n_rows * n_keys * size
        else:
            found += batch * len(kept) * n_rows * (tensor.shape[3] if tensor.ndim == 4 else 1) * size
    return found


def _of_rule(rule: Rule, batch: int, longer: float, wider: float) -> int:
    """Return the bytes of a rule's tables for a text with so many times the rows and the keys."""
    found = 0.0
    for name, table in rule.tables.items():
        size = float(table.numel() * table.element_size())
        if name != "rows" and len(table) > 1:
            size *= batch / len(table)
        if table.ndim == 4 and table.shape[2] > 1:
            size *= longer
        if name in ("allowed", "packed", "bias") and table.shape[3] > 1:
            size *= wider
        found += size
    return round(found)
