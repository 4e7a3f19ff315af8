"""What can be asked of an attention call: the kinds of edits, and the call that they act on.

Nothing is changed here. Next: `edits.py`, which does it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.positions import Positions
from clearhead.seeing.recordings.recording import Recording

Places = int | slice | Sequence[int] | None


@dataclass(eq=False, kw_only=True)
class Edit:
    """Something to be done to some heads of some layers, in some texts of the batch; None means all of them.

    said:     as it was asked for, for messages.
    waiting:  the layers that it was not applied to yet; `why` is the reason, where one is known.
    since:    the first forward that it is about: the one after it was asked for.
    """

    said: str
    layers: tuple[int | str, ...] | None
    heads: tuple[int, ...] | None
    texts: tuple[int, ...] | None
    waiting: set[int | str | None] = field(init=False)
    why: str = ""
    since: int = 0
    looked: bool = False  # for padding that its positions count

    def __post_init__(self) -> None:
        self.waiting = {None} if self.layers is None else set(self.layers)


@dataclass(eq=False, kw_only=True)
class SwitchOff(Edit):
    """The heads give nothing; with `others`, all but these heads."""

    others: bool = False


@dataclass(eq=False, kw_only=True)
class Cut(Edit):
    """These queries give nothing to these keys; what they gave goes to their other keys if `renormalise`.

    With `spares_own`, a query that stands at one of the keys still looks at that one, which is its own token. With
    `of_map`, queries and keys are counted as rows and columns of the call, not as positions of the text.
    """

    query: Places
    key: Places
    renormalise: bool
    spares_own: bool = False
    of_map: bool = False


@dataclass(eq=False, kw_only=True)
class Replace(Edit):
    """The heads mix their values by `pattern`."""

    pattern: Float[Tensor, "query key"]


@dataclass(eq=False, kw_only=True)
class Temperature(Edit):
    """The heads' scores, biases included, are divided by `factor` before the softmax."""

    factor: float


@dataclass(eq=False, kw_only=True)
class Patch(Edit):
    """The heads give what `source` holds: (query, d_value), or the same layer and head of a recording."""

    source: Tensor | Recording
    query: Places = None


@dataclass(frozen=True)
class Met:
    """A layer that ran: the sizes of its last call, and which tokens its queries and keys were."""

    name: str
    batch: int
    n_heads: int
    n_queries: int
    n_keys: int
    positions: Positions


@dataclass(frozen=True, eq=False)
class Site:
    """One call to be edited: `out` is what its kernel gave, `v` its values; `call.positions` says where they stand."""

    call: Call
    v: Float[Tensor, "batch kv_heads key d_value"]
    out: Float[Tensor, "batch heads query d_value"]
    name: str
    index: int

    def values(self, text: int, heads: Tensor) -> Float[Tensor, "heads key d_value"]:
        """Return the values that `heads` of one text mix, in the dtype that weights are computed in."""
        group = self.call.n_heads // self.v.shape[1]
        text = text if self.v.shape[0] > 1 else 0
        return self.v[text].index_select(0, heads // group).to(self.call.exact)

    @property
    def own(self) -> Int[Tensor, " query"] | None:
        """Return the column of each query's own token, -1 where it is not there; None where keys are another text's."""
        call = self.call
        return call.positions.columns(call.places) if call.positions.one_text else None

    def named_rows(self, cut: Cut) -> list[int]:
        """Return the rows of this call that a cut names, in order."""
        return positions(cut.query, self.call.n_queries) if cut.of_map else self.rows(cut.query)

    def cut_rows(self, cut: Cut) -> list[int]:
        """Return the rows of this call that lose a link by a cut, as far as its positions tell, in order."""
        rows, cols = self.named_rows(cut), self.cut_cols(cut)
        if not cut.spares_own or len(cols) != 1 or self.own is None:
            return rows
        own = self.own.tolist()
        return [row for row in rows if own[row] != cols[0]]

    def cut_cols(self, cut: Cut) -> list[int]:
        """Return the columns of this call to which a cut names links, in order."""
        return positions(cut.key, self.call.n_keys) if cut.of_map else self.cols(cut.key)

    def require_positions(self, edit: Edit, *asked: Places) -> None:
        """Raise WatchError where an edit names positions, and which rows and columns these are is not known."""
        if (why := self.call.positions.unknown) and any(places is not None for places in asked):
            raise WatchError(
                f"{edit.said}: layer {self.index} {self.name!r}: where it stands in the text is not known. {why}"
            )

    def rows(self, query: Places) -> list[int]:
        """Return the rows of this call at the positions `query`, in order."""
        first = self.call.positions.first
        return [i - first for i in positions(query, first + self.call.n_queries) if i >= first]

    def cols(self, key: Places) -> list[int]:
        """Return the columns of this call at the positions `key`, in order; for None all, tokens or not."""
        if key is None:
            return list(range(self.call.n_keys))
        stands = self.call.positions
        found = stands.columns(torch.tensor(positions(key, stands.end), dtype=torch.long))
        return [j for j in found.tolist() if j >= 0]

    @property
    def wants_gradient(self) -> bool:
        """Return whether a gradient will flow through the output."""
        return torch.is_grad_enabled() and self.out.requires_grad


def positions(which: Places, n: int) -> list[int]:
    """Return those of n positions that `which` names, in order; what is not there yet is left out."""
    if which is None or isinstance(which, slice):
        return list(range(n)[which or slice(None)])
    which = [which] if isinstance(which, int) else which
    return sorted({i % n for i in which if -n <= i < n})
