"""Recordings in the shapes and under the names that other libraries use, so that what was written for those goes on.

transformers returns attention as a tuple of tables, batch x head x query x key, one a layer, and BertViz draws that.
TransformerLens keeps a cache of named activations. Here both are computed when asked for, from what `watch` kept.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula
from clearhead.seeing.recordings.memory import in_words
from clearhead.seeing.recordings.questions import LARGEST_MAP

FUNCTIONS = {"pattern": formula.weights, "attn_scores": formula.scores}


def dense(call: Call, batch: int | None, what: str = "pattern") -> Float[Tensor, "batch heads query key"]:
    """Return all weights of a call, or all masked scores; of one text or of all."""
    texts = range(call.batch) if batch is None else [batch]
    heads = torch.arange(len(call.heads), device=call.q.device)
    rows, cols = (torch.arange(n, device=call.q.device) for n in (call.n_queries, call.n_keys))
    found = torch.empty(len(texts), len(heads), len(rows), len(cols), dtype=call.exact, device=call.q.device)
    for i, text in enumerate(texts):
        for head in heads:
            found[i, head] = FUNCTIONS[what](call, text, head[None], rows, cols)[0]
    return found


def refuse_too_many(calls: list[Call], batch: int | None, limit: int | None) -> None:
    """Raise WatchError where the tables of `calls` would be larger than `limit` weights."""
    texts = [call.batch if batch is None else 1 for call in calls]
    many = sum(n * len(call.heads) * call.n_queries * call.n_keys for n, call in zip(texts, calls))
    if limit is not None and many > limit:
        raise WatchError(
            f"the tables would hold {many:,} weights, {in_words(4 * many)}, more than {limit:,}: ask for one layer, "
            f"for overview(layer, head) or for map(layer, head, rows, cols); limit=None does it all the same"
        )


class Patterns(Mapping[str, Tensor]):
    """What TransformerLens would have cached of attention, by its names; computed when asked for, kept nowhere.

    `blocks.{layer}.attn.hook_pattern` are weights and `hook_attn_scores` masked scores, batch x head x query x key;
    `hook_z`, where outputs were kept, is what each head gave, batch x query x head x d_head. `cache["pattern", 3]` is
    short for the first of these. Queries and keys are those that the kernel read, after rotary positions, which have
    other names there; they are in `Recording.call(layer)`.
    """

    def __init__(self, calls: dict[int, Call], limit: int | None = LARGEST_MAP) -> None:
        self.calls, self.limit = calls, limit

    def __getitem__(self, name: str | tuple[str, int]) -> Tensor:
        """Return one activation; raises KeyError for a name that is not among `keys()`."""
        if isinstance(name, tuple):
            name = _name(name[1], {"attn": "pattern"}.get(name[0], name[0]))
        for layer, call in self.calls.items():
            for what in self._of(call):
                if name == _name(layer, what):
                    if what == "z" and call.out is not None:
                        return call.out.transpose(1, 2)
                    refuse_too_many([call], None, self.limit)
                    return dense(call, None, what)
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        """Say whether there is an activation of this name, without computing it."""
        return name in list(self)

    def __iter__(self) -> Iterator[str]:
        """Yield the names, layer by layer."""
        for layer, call in self.calls.items():
            yield from (_name(layer, what) for what in self._of(call))

    def __len__(self) -> int:
        """Return how many there are."""
        return sum(len(self._of(call)) for call in self.calls.values())

    def _of(self, call: Call) -> list[str]:
        return [*FUNCTIONS, *(["z"] if call.out is not None else [])]


def _name(layer: int, what: str) -> str:
    return f"blocks.{layer}.attn.hook_{what}"
