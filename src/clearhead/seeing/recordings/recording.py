"""What `watch` brings back: every attention call of the run in few numbers, and exact maps, computed when asked for.

A layer is a place in the model where attention happened, numbered in the order of first use; each forward adds one
call to it. Positions count from 0, heads as in the model. Next: `questions.py`, what can be asked of it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from clearhead.errors import InputError, WatchError, counted
from clearhead.seeing import arguments
from clearhead.seeing.call import Call, taken
from clearhead.seeing.recordings import forwards, peers
from clearhead.seeing.recordings.account import Account, Unseen
from clearhead.seeing.recordings.memory import in_words
from clearhead.seeing.recordings.pictures import Pictures
from clearhead.seeing.recordings.questions import LARGEST_MAP
from clearhead.seeing.recordings.summaries import Summaries

FEW = 3  # layers, or reasons, that an error message names


@dataclass(frozen=True)
class Layer:
    """One place in the model where attention happened; sizes are those of its last call."""

    index: int
    name: str
    calls: int
    batch: int
    n_heads: int
    n_kv_heads: int
    n_queries: int
    n_keys: int
    dtype: torch.dtype
    nbytes: int  # of all its calls
    weights_kept: bool  # the model's own, a number for every link, where queries and keys do not tell them
    n_rows: int  # queries of which something can be asked: all, where `watch` was not given rows=


@dataclass(frozen=True)
class Forward:
    """One run of the watched model; a generation is a long one for the prompt, then a short one for each token."""

    index: int
    first: int  # the position of its first query: how many tokens were read before
    n_queries: int
    calls: dict[int, int]  # for each layer that took part, the `call` to ask for


class Recording(Pictures, Summaries):
    """The attention of one or several forward passes; made by `watch`, which fills it while its body runs."""

    def __init__(self) -> None:
        self.names: list[str] = []  # of layers, by index
        self.calls: dict[int, list[Call]] = {}
        self.skipped: set[int] = set()  # layers that `layers=` left out
        self.account = Account()  # of what was not seen
        self.words: list[str] | None = None  # of the text, where somebody said them
        self.masks: list[tuple[tuple[int | str, ...] | None, Tensor]] = []  # which layers, what is no padding there
        self.n_forwards = 0  # of the outermost module that was watched
        self.settle: Callable[[], None] = _nothing  # waits for copies that are on their way
        self.notes: list[str] = []  # what watching changed or could not do, if anything

    def __repr__(self) -> str:
        if not self.calls:
            return "Recording of nothing" + (f": {self._why_empty()}" if self.n_forwards else " yet")
        layers = self.layers
        heads = sum(len(self.calls[layer.index][-1].heads) for layer in layers)
        shapes = {f"{one.batch} x {one.n_queries} x {one.n_keys}" for one in layers}
        sizes = f", texts x queries x keys {shapes.pop()}" if len(shapes) == 1 else ""
        unseen = f"; not seen: {len(self.unseen)}, in .unseen" if self.unseen else ""
        notes = f"; notes: {len(self.notes)}, in .notes" if self.notes else ""
        return (
            f"Recording of {counted(len(layers), 'layer')}, {counted(heads, 'head')}, "
            f"{counted(len(self.forwards), 'forward')}{sizes}, {in_words(self.nbytes)}{unseen}{notes}"
        )

    def index(self, name: str) -> int:
        """Return the number of the layer called `name`, a new one where it was not met before."""
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    def note(self, what: str) -> None:
        """Say once what watching changed or could not do."""
        if what not in self.notes:
            self.notes.append(what)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Return what was recorded, in order; raises WatchError, saying what was not seen, if that is nothing."""
        if not self.calls:
            raise WatchError(f"no attention was recorded: {self._why_empty()}")
        return tuple(self._layer(index) for index in sorted(self.calls))

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """Return the runs of the model that were recorded, in order, with their place in the text.

        Length and place are those of the first layer that took part.
        """
        made: dict[int, dict[int, int]] = {}
        for layer, calls in sorted(self.calls.items()):
            for number, call in enumerate(calls):
                made.setdefault(call.forward, {})[layer] = number
        found = []
        for index, numbers in sorted(made.items()):
            layer, number = next(iter(numbers.items()))
            call = self.calls[layer][number]
            found.append(Forward(index, call.positions.first, call.n_all, numbers))
        return tuple(found)

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """Return the attention that ran and is not in here, once for each module and reason, and in which forwards.

        That is every call that was met and refused, every module that is called attention and made no call that could
        be seen, and every module that attended in one forward and made no such call in another.
        """
        return self.account.unseen(self.n_forwards)

    @property
    def nbytes(self) -> int:
        """Return the memory the recording takes; keys that calls share, and masks, are counted once."""
        calls = [call for calls in self.calls.values() for call in calls]
        return taken(calls) + sum({id(call.rule): call.rule.nbytes for call in calls}.values())

    def set_mask(self, mask: Shaped[Tensor, "texts time"], *, layers: Sequence[int | str] | None = None) -> None:
        """Say which positions of the texts are tokens and which are padding, before or after the model ran.

        Statistics leave queries that are padding out. Without this they go by the mask that the model gave its kernel,
        which says nothing where a model reads padding like tokens.

        Args:
            mask: (texts, time) or (1, time), True or 1 for a token, as tokenizers give it (`attention_mask`). What the
                model writes after these positions counts as tokens.
            layers: numbers or names (`"encoder.*"`) of the layers whose queries are of this text; all if not given.

        Raises:
            InputError: for anything else than such a mask; when asked, for one of other texts than a layer read.
        """
        self.masks.insert(0, (None if layers is None else tuple(layers), arguments.mask(mask)))

    def mask_of(self, layer: int | str) -> Tensor | None:
        """Return which positions of the queries' texts are tokens, where `set_mask` said so of this layer."""
        number = self.number(layer)
        for layers, mask in self.masks:
            if layers is None or any(arguments.means(want, number, self.names[number]) for want in layers):
                longest = max(call.positions.first + call.n_all for call in self.calls[number])
                if mask.shape[1] > longest:
                    raise InputError(
                        f"set_mask: a mask of {mask.shape[1]} positions, but layer {number} {self.names[number]!r} "
                        f"read {longest}: give one of its text, or name the layers it is about, layers=[...]"
                    )
                return mask
        return None

    def save(self, path: str | os.PathLike[str], *, words: Sequence[str] | None = None) -> None:
        """Write the recording to one file, which `open_recording` opens; `words` of the text may go with it.

        The file appears whole or not at all, in the place of one that was there.
        """
        from clearhead.seeing.recordings.saving import save

        save(self, Path(path), words)

    def joined(self, *, beam_indices: Int[Tensor, "sequence step"] | None = None) -> "Recording":
        """Return the text that was read last, prompt and answer, as if one forward had read it: one call a layer.

        Each position has the row of the forward that read it, with that forward's exact weights, over one axis of keys.
        What can be asked of a recording can be asked of it. The last token of a generation is not in it: no forward
        read it.

        Args:
            beam_indices: of a beam search, in which row of the batch each returned sequence was at each step, -1 after
                its end: (sequences, steps), as `generate(return_dict_in_generate=True, output_scores=True)` of
                transformers returns it. The texts of the joined recording are then the returned sequences.

        Raises:
            WatchError: where the beginning of the text was not recorded, where nothing tells the positions of a call,
                or where a token's key changed from one forward to another, as in a beam search that is not followed.
        """
        from clearhead.seeing.recordings.joining import joined

        return joined(self, beam_indices)

    def to_dense(
        self,
        layer: int | str | None = None,
        *,
        batch: int | None = None,
        call: int = -1,
        limit: int | None = LARGEST_MAP,
    ) -> Tensor | tuple[Tensor, ...]:
        """Return weights as transformers does for `output_attentions`: batch x head x query x key, a tuple of layers.

        Of one `layer` the table alone; of one text (`batch`) tables of one. Heads and rows are those that were kept.
        Raises WatchError above `limit` weights, unless that is None. BertViz draws what this returns, for one text.
        """
        wanted = self.one_forward(None if layer is None else [layer], call, all_of_them=True)
        calls = [self.call(*one) for one in wanted.items()]
        if batch is not None:
            for number, nth in wanted.items():
                self._find(number, None, batch, nth)
        peers.refuse_too_many(calls, batch, limit)
        tables = tuple(peers.dense(one, batch) for one in calls)
        return tables if layer is None else tables[0]

    def cache(self, *, call: int = -1) -> peers.Patterns:
        """Return the weights by the names of TransformerLens: `cache["blocks.0.attn.hook_pattern"]`, computed then."""
        return peers.Patterns({layer: self.call(layer, nth) for layer, nth in self.one_forward(None, call).items()})

    def one_forward(
        self, layers: Sequence[int | str] | None, call: int = -1, *, all_of_them: bool = False
    ) -> dict[int, int]:
        """Return which call of each layer belongs to one forward, of those layers that ran in it.

        Args:
            layers: The layers that are asked about, by number or name; None for all.
            call: Which call of each; which forward, where some layers were left out of some forwards.
            all_of_them: Whether to raise WatchError where one of the layers did not run in that forward.
        """
        numbers = self.numbers if layers is None else [self.number(layer) for layer in layers]
        found = forwards.of_one_forward(self.calls, numbers, arguments.whole(call, "call"))
        if all_of_them and (absent := [number for number in numbers if number not in found]):
            others = ", ".join(map(str, found)) or "none"
            raise WatchError(
                f"layer {absent[0]} {self.names[absent[0]]!r} did not run in the forward of call={call}, which has "
                f"layers {others}: ask for these, or for another call; seen.forwards lists them"
            )
        return found

    def call(self, layer: int | str, call: int = -1) -> Call:
        """Return one call of a layer as it was recorded."""
        self.settle()
        calls = self.calls[self.number(layer)]
        if not -len(calls) <= arguments.whole(call, "call") < len(calls):
            raise WatchError(f"layer {layer!r} was called {counted(len(calls), 'time')}: there is no call {call}")
        return calls[call]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Return the numbers of the recorded layers, in order."""
        return tuple(layer.index for layer in self.layers)

    def name(self, layer: int | str) -> str:
        """Return the name of a layer."""
        return self.names[self.number(layer)]

    def number(self, layer: int | str) -> int:
        """Return the number of a layer given by number or name; raises WatchError, saying what there is."""
        if isinstance(layer, int) and layer in self.calls:
            return layer
        layers = {one.index: one.name for one in self.layers}
        for index, name in layers.items():
            if layer in (index, name):
                return index
        known = [f"{index} {name!r}" for index, name in layers.items()]
        first, last = min(layers), max(layers)
        if len(layers) <= FEW:
            which = ", ".join(known)
        elif isinstance(layer, str):
            which = f"{len(layers)} layers, {known[0]} to {known[-1]}"
        elif last - first == len(layers) - 1:
            which = f"{len(layers)} layers, {first} to {last}"
        else:
            which = f"{len(layers)} layers: {', '.join(map(str, layers))}"
        raise WatchError(f"layer {layer!r} is not in this recording, which has {which}")

    def _layer(self, index: int) -> Layer:
        calls = self.calls[index]
        last = calls[-1]
        return Layer(
            index=index,
            name=self.names[index],
            calls=len(calls),
            batch=last.batch,
            n_heads=last.n_heads,
            n_kv_heads=last.n_kv_heads,
            n_queries=last.n_all,
            n_keys=last.n_keys,
            dtype=last.q.dtype,
            nbytes=taken(calls),
            weights_kept=last.weights is not None,
            n_rows=last.n_queries,
        )

    def _why_empty(self) -> str:
        if self.unseen:
            first = list(map(str, self.unseen[:FEW]))
            more = f", and {len(self.unseen) - FEW} more in .unseen" if len(self.unseen) > FEW else ""
            return "; ".join(first) + more
        if self.skipped:
            return f"layers= or rows= left out all of {', '.join(self.names)}"
        return "; ".join(self.notes) or "no module that looks like attention ran; run the model inside the with block"


def _nothing() -> None:
    """Wait for nothing."""
