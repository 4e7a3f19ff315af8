"""From a mask as a model made it to the sentence that says the same.

Nearly every mask in use lets a query see one stretch of keys: all so far (causal), the last w (a window), those of its
own document, those that are not padding; perhaps with some keys that nobody sees. So a mask is read once, a few rows at
a time, for three numbers a row: where its stretch begins, where it ends, and how many keys in it are seen. If these
numbers agree with each other, the stretches say everything, whatever the mask was meant to be; if all stretches move
with the query, two numbers say it. What disagrees is kept as bits.

Nothing is guessed: a rule is returned only where it gives back the mask, link by link. The largest thing made on the
way is a piece of `PIECE` links.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clearhead.seeing.rule import Rule

PIECE = 2**22  # links read at once


def recognise(mask: Tensor | None, is_causal: bool, shape: tuple[int, int, int, int]) -> Rule:
    """Return the rule of one fused call; `shape` is (batch, heads, query, key), the mask broadcasts to it. Copies.

    Of a mask of numbers, 0 means may look; -inf, or the lowest number, which many models add, means may not. Other
    numbers are a bias and kept as they came, and so is a mask in which a row has the lowest number everywhere: such a
    row looks everywhere alike.
    """
    if is_causal:
        return Rule(reach=0)  # torch aligns its flag to the first key
    if mask is None:
        return Rule()
    mask = _squeeze(mask.detach())
    if mask.dtype != torch.bool and not _only_hides(mask):
        return Rule(bias=mask.clone(memory_format=torch.contiguous_format))
    if mask.shape[3] != shape[3]:
        mask = mask.expand(-1, -1, -1, shape[3])
    read = _read(mask)
    return _say(read, mask.shape[2] == shape[2]) if read.whole() else Rule(packed=_pack(mask))


class Masks:
    """The rules of the masks of the running forward pass: layers that share a mask share its rule, and it is read once.

    Every forward reads its masks again, since a mask can be changed in ways that torch does not count (`.data`, numpy).
    """

    MAX_MASKS = 4  # known at the same time: a model with two kinds of layers uses two in turn

    def __init__(self) -> None:
        self.known: list[Known] = []
        self.latest: list[Rule] = []
        self.forward = 0

    def clear(self) -> None:
        """Let go of the masks."""
        self.known.clear()
        self.latest.clear()

    def during(self, forward: int) -> None:
        """Forget the masks of earlier forward passes; their rules stay, to be shared with masks that say the same."""
        if forward != self.forward:
            self.forward = forward
            self.known.clear()

    def rule(self, given: Tensor, lead: tuple[int, ...], shape: tuple[int, int, int, int], dtype: torch.dtype) -> Rule:
        """Return the rule of a mask that broadcasts to `lead` x query x key; a bias is kept in `dtype`."""
        given = given.as_subclass(Tensor)  # only subclasses that hold plain numbers come here
        version = -1 if given.is_inference() else given._version
        for known in self.known:
            if known.version == version != -1 and known.shape == shape and _same_view(known.mask, given):
                return known.rule
        mask = given.expand(*lead, *given.shape[-2:]).flatten(0, -4) if given.ndim > 4 else given
        rule = self.shared(recognise(mask if mask.dtype == torch.bool else mask.to(dtype), False, shape))
        self.known = [*self.known[1 - self.MAX_MASKS :], Known(given, version, shape, rule)]
        return rule

    def shared(self, rule: Rule) -> Rule:
        """Return a rule of late that says the same, or else `rule` itself."""
        for known in self.latest:
            if known.same(rule):
                return known
        self.latest = [*self.latest[1 - self.MAX_MASKS :], rule]
        return rule


@dataclass
class Known:
    """A mask that was read in this forward pass, and its rule.

    A mask may be a new view of the same numbers at every layer. While one is held here its memory is nobody else's, and
    writing to it changes its version, which inference mode does not count.
    """

    mask: Tensor
    version: int
    shape: tuple[int, int, int, int]
    rule: Rule


def _same_view(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors show the same memory in the same way."""
    same = one.dtype == other.dtype and one.device == other.device and one.data_ptr() == other.data_ptr()
    return same and one.shape == other.shape and one.stride() == other.stride()


def _squeeze(mask: Tensor) -> Tensor:
    """Return `mask` with four axes, each one long where nothing changes along it."""
    mask = mask[(None,) * (4 - mask.ndim)]
    for axis in range(4):
        if mask.shape[axis] > 1 and mask.stride(axis) == 0:
            mask = mask.narrow(axis, 0, 1)
    return mask


def _pieces(mask: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows of every text and head at a time, as the model has them."""
    height = max(1, PIECE // max(1, mask.shape[0] * mask.shape[1] * mask.shape[3]))
    for top in range(0, mask.shape[2], height):
        rows = slice(top, top + height)
        yield rows, mask[:, :, rows]


def _may(piece: Tensor) -> Tensor:
    """Return a piece as True and False."""
    return piece if piece.dtype == torch.bool else piece > torch.finfo(piece.dtype).min / 2


def _only_hides(mask: Tensor) -> bool:
    """Say whether a mask of numbers says nothing but who may look where."""
    for _, piece in _pieces(mask):
        hidden = piece <= torch.finfo(piece.dtype).min / 2
        if not torch.equal(hidden, piece != 0):  # so "not a number" is a bias: it spoils a row and hides nothing
            return False
        blind = hidden.all(-1)
        if blind.any() and (piece[blind] != -torch.inf).any():
            return False
    return True


@dataclass
class Read:
    """What is known of a mask after one look. All but `some` are texts x heads x queries.

    first, stop: the stretch from the first to after the last key that the query sees; 0 and 0 where it sees none.
    count:       how many it sees.
    some:        texts x heads x keys: whether anybody sees the key.
    """

    first: Tensor
    stop: Tensor
    count: Tensor
    some: Tensor

    def __post_init__(self) -> None:
        # before[j]: how many keys that anybody sees come before j
        self.before = torch.nn.functional.pad(self.some.cumsum(-1), (1, 0))

    def between(self, first: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
        """Return stretches with the keys that nobody sees left out: equal where the same keys are seen."""
        last = self.some.shape[-1]
        low, high = (self.before.gather(-1, end.clamp(0, last).expand_as(self.first)) for end in (first, stop))
        empty = high <= low
        return low.masked_fill(empty, 0), high.masked_fill(empty, 0)

    def whole(self) -> bool:
        """Say whether every query sees all of its stretch that anybody sees; no query can see more than that."""
        low, high = self.between(self.first, self.stop)
        return torch.equal(high - low, self.count)

    def gives(self, first: Tensor, stop: Tensor) -> bool:
        """Say whether these stretches, which broadcast to texts x heads x queries, would be the same mask."""
        mine, theirs = self.between(self.first, self.stop), self.between(first, stop)
        return torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])


def _read(mask: Tensor) -> Read:
    n_keys = mask.shape[3]
    first = torch.zeros(mask.shape[:3], dtype=torch.long, device=mask.device)
    stop, count = torch.zeros_like(first), torch.zeros_like(first)
    some = torch.zeros(*mask.shape[:2], n_keys, dtype=torch.bool, device=mask.device)
    for rows, piece in _pieces(mask):
        may = _may(piece).contiguous().view(torch.uint8)
        sees = may.amax(-1).long() if n_keys else first[:, :, rows]
        if n_keys:
            first[:, :, rows] = may.argmax(-1)
            stop[:, :, rows] = (n_keys - may.flip(-1).argmax(-1)) * sees
            count[:, :, rows] = _count(may)
            some |= may.amax(2).bool()
    return Read(first, stop, count, some)


def _count(may: Tensor) -> Tensor:
    """Return the sum along the last axis of zeros and ones in bytes, eight at a time: 255 of them fit a byte."""
    eights = may.shape[-1] // 8 * 8
    total = may[..., eights:].sum(-1)
    if not eights:
        return total
    words = may[..., :eights].clone(memory_format=torch.contiguous_format).view(torch.int64)
    for start in range(0, words.shape[-1], 255):
        total += words[..., start : start + 255].sum(-1, keepdim=True).view(torch.uint8).sum(-1)
    return total


def _say(read: Read, each_query: bool) -> Rule:
    """Return the shortest rule of stretches; `each_query` where the mask had a row for every query."""
    n_queries, n_keys = read.first.shape[2], read.some.shape[2]
    allowed, keys = _for_all(read.some)
    start, stop = read.first.new_zeros(1), read.first.new_full((1,), n_keys)
    if read.gives(start, stop):
        return Rule(allowed=allowed, keys=keys)
    if each_query:
        at = torch.arange(n_queries, device=start.device)
        looks = read.count > 0
        # the closest bounds that move with the query and leave everything in that is seen
        reach = int((read.stop - 1 - at)[looks].max())
        since = int((read.first - at)[looks].min())
        alone = replace(read, some=torch.ones_like(read.some))  # first without a word on keys that nobody sees
        for known in (alone, read) if alone.whole() else (read,):
            table, ends = (None, None) if known is alone else (allowed, keys)
            for low, high in ((None, reach), (since, None), (since, reach)):
                if known.gives(start if low is None else at + low, stop if high is None else at + high + 1):
                    return Rule(reach=high, since=low, allowed=table, keys=ends)
    spans = _fold(torch.stack([read.first, read.stop], -1).int())
    return Rule(spans=spans, allowed=None if keys is not None else allowed)


def _for_all(some: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return which keys anybody sees, as a table or as the stretch of each text; both None where that is all keys."""
    if some.all():
        return None, None
    some = _fold(some)
    first, stop = some.int().argmax(-1), (some.shape[-1] - some.flip(-1).int().argmax(-1)) * some.any(-1)
    if some.shape[1] == 1 and torch.equal(stop - first, some.sum(-1)):
        return None, torch.cat([first, stop], -1).int()
    return some[:, :, None], None


def _fold(table: Tensor) -> Tensor:
    """Return a table with one text, or one head, where all have the same."""
    for axis in (0, 1):
        if torch.equal(table, table.narrow(axis, 0, 1).expand_as(table)):
            table = table.narrow(axis, 0, 1)
    return table.contiguous()


def _pack(mask: Tensor) -> Tensor:
    """Return who may look where as bits, eight keys a byte, the lowest first."""
    n_bytes = -(-mask.shape[3] // 8)
    packed = torch.empty(*mask.shape[:3], n_bytes, dtype=torch.uint8, device=mask.device)
    for rows, piece in _pieces(mask):
        may = torch.nn.functional.pad(_may(piece).view(torch.uint8), (0, 8 * n_bytes - mask.shape[3]))
        eights = may.clone(memory_format=torch.contiguous_format).view(torch.int64)
        # one product moves bit 0 of the eight bytes side by side into the highest byte
        packed[:, :, rows] = ((eights * 0x0102040810204080) >> 56).to(torch.uint8)
    return packed
