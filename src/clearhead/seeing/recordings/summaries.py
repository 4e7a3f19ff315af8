"""What one asks a recording about whole maps: statistics of rows, keys, heads, and of all layers one after another.

`Recording` inherits these methods too. The work is in `maps/statistics.py`, `maps/habits.py` and `maps/rollout.py`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.errors import InputError, WatchError, counted
from clearhead.seeing import arguments
from clearhead.seeing.call import Call
from clearhead.seeing.maps import habits, rollout, statistics
from clearhead.seeing.maps.habits import Habit
from clearhead.seeing.maps.rollout import By
from clearhead.seeing.maps.statistics import Link, Sink
from clearhead.seeing.recordings.questions import LARGEST_MAP, Questions, rows_of


class Summaries(Questions):
    """Numbers that stand for many weights, none of which is stored."""

    def entropy(self, layer: int | str, *, batch: int = 0, call: int = -1) -> Float[Tensor, "heads query"]:
        """Return how spread each row is, in nats: 0 for one key, log n for n keys alike."""
        one, heads = self._find(layer, None, batch, call)
        return statistics.entropy(one, batch, heads)

    def received(self, layer: int | str, *, batch: int = 0, call: int = -1) -> Float[Tensor, "heads key"]:
        """Return how much weight each key receives from all queries together, padding not counted."""
        one, heads = self._find(layer, None, batch, call)
        included = self.counted(one, batch, layer)
        return statistics.received(one, batch, heads, None if included is None else included[None].to(one.exact))

    def offset(self, layer: int | str, offset: int, *, batch: int = 0, call: int = -1) -> Float[Tensor, "heads query"]:
        """Return what each query gives to the token `offset` positions from its own: -1 is the token before.

        0 where that token is not among the keys. Raises WatchError where keys are not of the queries' text.
        """
        one, heads = self._find(layer, None, batch, call)
        if one.n_keys:
            self.require_one_text(layer, one, "offset()")
        return statistics.at_offset(one, batch, heads, arguments.whole(offset, "offset"))

    def repeats(
        self, layer: int | str, tokens: Int[Tensor, " time"], *, batch: int = 0, call: int = -1
    ) -> tuple[Float[Tensor, "heads query"], Float[Tensor, "heads query"]]:
        """Return what each query gives to earlier occurrences of its token, and to the tokens after those (induction).

        `tokens` are the text's numbers, as the model read them, up to the last that this call read.
        """
        one, heads = self._find(layer, None, batch, call)
        self.require_one_text(layer, one, "repeats()")
        if len(arguments.numbers_of(tokens)) != one.positions.end:
            raise WatchError(
                f"{counted(len(tokens), 'token')} for a layer that saw {one.positions.end}: give those of this text"
            )
        return habits.repeats(one, batch, heads, tokens)

    def strongest(
        self,
        count: int = 20,
        *,
        layer: int | str | None = None,
        head: int | None = None,
        apart: int = 0,
        without: Sequence[int] = (),
        batch: int = 0,
        call: int = -1,
    ) -> list[Link]:
        """Return the largest weights of all layers and heads, or of those named, largest first.

        `apart=2` leaves out links to the token itself and its neighbors, `without` keys such as sinks. Keys of another
        text are no neighbors. Raises WatchError where `apart` is asked for and nothing tells where queries stand.
        """
        count, apart = arguments.whole(count, "count"), arguments.whole(apart, "apart")
        found, without = [], arguments.several(without, "without")
        for number, nth in self.one_forward(None if layer is None else [layer], call).items():
            one, heads = self._find(number, head, batch, nth)
            if apart and one.positions.unknown:
                self.require_one_text(self.name(number), one, "apart=")
            included, keys = self.counted(one, batch, number), _among(without, one)
            links = statistics.strongest(one, batch, heads, count, apart=apart, without=keys, counted=included)
            rows = one.rows.tolist()
            found += [Link(rows[row], key, weight, number, one.heads[heads[h]]) for h, row, key, weight in links]
        return sorted(found, key=lambda link: -link.weight)[:count]

    def sinks(
        self, layer: int | str | None = None, *, share: float = 0.3, batch: int = 0, call: int = -1
    ) -> list[Sink]:
        """Return every key to which the queries that can see it give at least `share` of their weight, on average.

        0.3 is where Gu et al. 2025 call the first token a sink. Keys that few queries see are left out.
        """
        found, share = [], arguments.share(share, "share")
        for number, nth in self.one_forward(None if layer is None else [layer], call).items():
            one, heads = self._find(number, None, batch, nth)
            some = statistics.sinks(one, batch, heads, share, self.counted(one, batch, number))
            found += [Sink(number, one.heads[h], key, mean) for h, key, mean in some]
        return found

    def heads(
        self,
        *,
        separators: Sequence[int] = (),
        tokens: Int[Tensor, " time"] | None = None,
        batch: int = 0,
        call: int = -1,
    ) -> list[Habit]:
        """Return what every recorded head does, of the layers that ran in one forward.

        `separators` are the positions of [SEP] or of punctuation; `tokens`, the text's numbers, are needed to know a
        token that was said before (`duplicate`, `induction`): layers that saw as many keys are asked for that.
        """
        found, separators = [], arguments.several(separators, "separators")
        tokens = None if tokens is None else arguments.numbers_of(tokens)
        for number, nth in self.one_forward(None, call).items():
            one, heads = self._find(number, None, batch, nth)
            of_text = tokens is not None and one.positions.one_text and len(tokens) == one.positions.end
            text = tokens if of_text else None
            marks = _among(separators, one)
            included = self.counted(one, batch, number)
            found += habits.habits(one, batch, heads, number, marks, text, included)
        if tokens is not None and all(habit.induction is None for habit in found):
            raise WatchError(
                f"{counted(len(tokens), 'token')}, but no layer saw as many: give those of this text, uncut"
            )
        return found

    def rollout(
        self,
        queries: Sequence[int] | None = None,
        *,
        layers: Sequence[int | str] | None = None,
        by: By = "weights",
        batch: int = 0,
        call: int = -1,
    ) -> Float[Tensor, "query key"]:
        """Return how much of each token arrives at `queries` through all layers, or through `layers`, in their order.

        Attention rollout (Abnar & Zuidema 2020), or with `by="gradient"` the relevance of Chefer et al. 2021: see
        `maps/rollout.py`. Memory is that of the rows asked for; without `queries`, of the whole.
        """
        calls = self._square(layers, batch, call)
        n = calls[0].n_keys
        asked = rows_of(queries, n, calls[0].q.device, "queries")
        if len(asked) * n > LARGEST_MAP:
            raise WatchError(
                f"a rollout of {len(asked)} x {n} weights: at most {LARGEST_MAP} at a time; ask for some queries, or "
                f"for rollout_overview(size)"
            )
        start = torch.zeros(len(asked), n, dtype=calls[0].exact, device=asked.device).scatter_(1, asked[:, None], 1)
        return rollout.rows(calls, batch, start, by)

    def rollout_overview(
        self,
        size: int = 32,
        *,
        layers: Sequence[int | str] | None = None,
        by: By = "weights",
        batch: int = 0,
        call: int = -1,
    ) -> Float[Tensor, "row_blocks col_blocks"]:
        """Return the rollout's sum over each of at most size x size blocks, without the rollout itself."""
        return rollout.overview(self._square(layers, batch, call), batch, size, by)

    def _square(self, layers: Sequence[int | str] | None, batch: int, call: int) -> list[Call]:
        """Return calls that one can follow through: all heads and rows kept, tokens looking at the same tokens."""
        if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence) or not layers):
            raise InputError(f"layers= expects numbers or names in a list, at least one, got {layers!r}")
        numbers = self.numbers if layers is None else [self.number(layer) for layer in layers]
        ran = self.one_forward(layers, call, all_of_them=layers is not None)
        numbers = [number for number in numbers if number in ran]  # what was skipped mixed nothing
        calls = [self._find(number, None, batch, ran[number])[0] for number in numbers]
        for number, one in zip(numbers, calls):
            if not one.n_all == one.n_keys == calls[0].n_keys:
                raise WatchError(
                    f"rollout follows one text through its layers; layer {number} has {one.n_all} queries and "
                    f"{one.n_keys} keys, layer {numbers[0]} {calls[0].n_keys}: name those of one text, layers=[...]"
                )
            if len(one.heads) < one.n_heads or one.n_queries < one.n_all:
                raise WatchError(
                    "rollout averages over all heads and follows all rows: record without heads= and rows="
                )
        return calls


def _among(keys: Sequence[int], one: Call) -> list[int]:
    """Return those of `keys` that a call has, counted from its first; layers may have other numbers of them."""
    return [key % one.n_keys for key in keys if -one.n_keys <= key < one.n_keys]
