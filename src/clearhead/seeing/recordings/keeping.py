"""What of a call is kept, and how: some rows, in some precision, somewhere; of keys only what is new.

A model that writes a text token by token shows all its keys again at every step. Those of one layer go into one buffer
that grows, and each call's keys are a view of its beginning. Keys that a call may not see yet, such as the empty places
of a static cache, are left to the calls to come.

Whether earlier keys are still what they were is not assumed from who made them: they are compared, all of them,
exactly. A cache that rotates, a beam that was exchanged or another text then simply starts a buffer of its own. The
comparison reads as much memory as the attention of that step does. Next: `rule.py`.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clearhead.errors import WatchError
from clearhead.seeing import arguments
from clearhead.seeing.call import Call
from clearhead.seeing.recordings.memory import ADVICE, NoRoom, Place, in_words
from clearhead.seeing.rule import Rule

PER_QUERY = ("q", "lse", "sinks", "out", "weights")  # fields of a call with a row for every query
PER_KEY = ("k", "v")  # and for every key
LOOK_AGAIN = 2**26  # bytes copied before the room that is left is measured again


@dataclass
class Growing:
    """The keys, or the values, of the latest calls of one layer: one buffer, of which each call sees the beginning."""

    name: str
    buffer: Tensor
    seen: int  # leading keys that some call of these may look at: they must not change
    calls: list[Call]

    def point(self, buffer: Tensor) -> None:
        """Let all calls look at another buffer that begins with the same keys."""
        self.buffer = buffer
        for call in self.calls:
            setattr(call, self.name, buffer[:, :, : call.n_keys])


class Keeper:
    """Turns calls that hold the model's own tensors into calls with copies."""

    def __init__(
        self,
        rows: slice | Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        place: Place | None = None,
        budget: int | None = None,
    ) -> None:
        if dtype not in (None, torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise WatchError(
                f"dtype= expects a floating dtype of 16 bits or more, such as torch.bfloat16, got {dtype!r}"
            )
        if budget is not None and arguments.whole(budget, "budget") < 0:
            raise WatchError(f"budget= expects how many bytes the copies may take, got {budget}")
        self.rows = None if rows is None else arguments.positions(rows, "rows")
        self.dtype, self.place, self.budget = dtype, place or Place(), budget
        self.spent = 0
        self.looked: dict[torch.device, tuple[int, int]] = {}  # the room there was, and what was spent by then
        self.growing: dict[tuple[int, str], Growing] = {}  # by layer and field
        self.rules: list[tuple[Rule, Sequence[int], Rule]] = []  # given, rows, as it is kept: the latest few

    @torch.inference_mode(False)  # a buffer that grows is written to by forwards of either kind
    @torch.no_grad()
    def keep(self, layer: int, call: Call, dtype: torch.dtype) -> Call | None:
        """Return the call with copies, in `dtype` where no other was asked for; None where none of its rows was.

        Raises NoRoom where the copies would not fit; what was copied of this call by then is let go of.
        """
        dtype = self.dtype or dtype
        asked = range(call.n_queries)
        kept = asked if self.rows is None else chosen(self.rows, call.n_queries)
        if asked and not kept:
            return None
        call.rule = self._rule(call.rule, kept, len(asked), call.q.device)
        call.n_asked = len(asked)
        if len(kept) < len(asked):
            for name, table in call.tensors.items():
                if name in PER_QUERY and table.shape[2] == len(asked):
                    setattr(call, name, _rows(table, kept))
        spent = self.spent
        try:
            for name in call.tensors:
                keep = self._grow if name in PER_KEY else self._copy
                setattr(call, name, keep(layer, name, call, dtype))
        except NoRoom:
            mine = [key for key, one in self.growing.items() if key[0] == layer and one.calls[-1] is call]
            if self.place.trims and all(len(self.growing[key].calls) == 1 for key in mine):
                self.spent = spent  # unless its keys went to a buffer of earlier calls, which stays
                for key in mine:
                    del self.growing[key]
            raise
        return call

    def finish(self) -> None:
        """Wait for copies on their way, and give back what no call came to need."""
        self.place.settle()
        for one in self.growing.values():
            needed = max(call.n_keys for call in one.calls)
            if self.place.trims and needed < one.buffer.shape[2]:
                one.point(one.buffer[:, :, :needed].clone(memory_format=torch.contiguous_format))
        self.growing.clear()
        self.rules.clear()

    @torch.no_grad()
    def later(self, call: Call, table: Tensor) -> Tensor:
        """Return a copy of something with a row for every query that came to be known after the call was kept."""
        if call.rule.rows is not None:
            table = table.index_select(2, call.rule.rows.to(table.device))
        return self.place.bring(table, call.q.dtype)

    def _copy(self, layer: int, name: str, call: Call, dtype: torch.dtype) -> Tensor:
        """Return what is kept of a tensor; the log-sum-exp was made for us and is nobody else's."""
        table = call.tensors[name].detach()
        if name == "lse" and type(self.place) is Place:
            return table
        kind = dtype if name == "q" else table.dtype
        if name == "weights" and self.dtype is not None:
            kind = self.dtype
        self._ask(table.numel() * kind.itemsize, table.device)
        return self.place.bring(table, kind)

    def _grow(self, layer: int, name: str, call: Call, dtype: torch.dtype) -> Tensor:
        """Return the call's keys or values: of a buffer that begins with the same ones, and to which new ones go."""
        x, n_asked = call.tensors[name].detach(), call.n_all
        seen, last = call.rule.visible(n_asked, call.n_keys), self.growing.get((layer, name))
        if last is None or not n_asked < seen or not self._begins(x, seen, last, dtype):
            self._ask(x.numel() * dtype.itemsize, x.device)
            last = self.growing[layer, name] = Growing(name, self.place.bring(x, dtype), seen, [call])
            return last.buffer
        if call.n_keys > last.buffer.shape[2]:
            roomy = (*x.shape[:2], max(call.n_keys, 3 * last.buffer.shape[2] // 2), x.shape[3])
            self._ask(math.prod(roomy) * dtype.itemsize, x.device)
            larger = self.place.empty(roomy, dtype, x.device)
            larger[:, :, : last.buffer.shape[2]] = last.buffer
            self.spent -= last.buffer.numel() * dtype.itemsize
            last.point(larger)
        last.buffer[:, :, last.seen : seen] = x[:, :, last.seen : seen]
        last.seen = seen
        last.calls.append(call)
        return last.buffer[:, :, : call.n_keys]

    def _begins(self, x: Tensor, seen: int, last: Growing, dtype: torch.dtype) -> bool:
        """Say whether `x` begins with the keys that earlier calls may look at, the same to the last bit."""
        if seen < last.seen or (*x.shape[:2], x.shape[3]) != (*last.buffer.shape[:2], last.buffer.shape[3]):
            return False
        self.place.settle()
        known = last.buffer[:, :, : last.seen]
        return _same_bits(x[:, :, : last.seen].to(known.device, dtype), known)

    def _rule(self, given: Rule, kept: Sequence[int], n_asked: int, device: torch.device) -> Rule:
        """Return the rule of the rows that are kept, where the copies go; the same object for layers that share it."""
        there = self.place.device(device)
        if len(kept) == n_asked and (there == device or not given.tables):
            return given
        for rule, rows, done in self.rules:
            if rule is given and rows == kept:
                return done
        done = given if len(kept) == n_asked else given.keep(torch.tensor(kept, dtype=torch.long, device=device))
        done = done if there == device else done.to(there)
        for _, _, known in self.rules:
            done = known if known.same(done) else done
        self.rules = [*self.rules[-3:], (given, kept, done)]
        return done

    def _ask(self, nbytes: int, device: torch.device) -> None:
        """Count in what will be copied; raises NoRoom where it does not fit."""
        if self.budget is not None:
            left = self.budget - self.spent
        else:
            room, then = self.looked.get(device, (0, -LOOK_AGAIN))
            if self.spent - then >= LOOK_AGAIN or nbytes > room - (self.spent - then):
                room, then = self.looked[device] = (self.place.room(device), self.spent)
            left = room - (self.spent - then)
        if nbytes > left:
            raise NoRoom(
                f"a copy of it takes {in_words(nbytes)}, beside {in_words(self.spent)} kept so far, and only "
                f"{in_words(max(left, 0))} more may be used: {ADVICE}"
            )
        self.spent += nbytes


def chosen(rows: slice | Sequence[int], n: int) -> Sequence[int]:
    """Return which of n queries are meant, ascending; negative ones count from the end, those beyond are not there."""
    if isinstance(rows, slice):
        found = range(n)[rows]
        return found if found.step > 0 else found[::-1]
    return tuple(sorted({row % n for row in rows if -n <= row < n})) if n else ()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors of one shape and dtype hold the same bits: eight bytes at a time is four times faster."""
    with contextlib.suppress(RuntimeError):  # of a head of an odd size, or not one number after the other
        one, other = one.view(torch.int64), other.view(torch.int64)
    return torch.equal(one, other)


def _rows(table: Tensor, kept: Sequence[int]) -> Tensor:
    """Return some rows of a table with a row for every query."""
    if isinstance(kept, range):
        return table[:, :, kept.start : kept.stop : kept.step]
    return table.index_select(2, torch.tensor(kept, dtype=torch.long, device=table.device))
