"""Who could look at whom in a call, counted without a query x key table wherever the rule is a sentence.

A rule falls into three: what hides a key from every query (padding), the one stretch of keys that a query may see
(causal, windows, documents), and tables for the rest. Statistics need it: how many keys a query had to choose from, how
many queries a key, which queries are padding. Sweeps need it to pass over what is hidden. Next: `weighing.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clearhead.errors import InputError, WatchError
from clearhead.seeing.call import Call

PLACES = 2**22  # of a table, looked at in one go


def numbers(call: Call, heads: Sequence[int] | Tensor) -> Int[Tensor, " heads"]:
    """Return the model's own numbers of some rows of `call.q`, by which a rule's tables are ordered."""
    return torch.tensor([call.heads[int(h)] for h in heads], device=call.q.device)


def tabled(call: Call) -> bool:
    """Say whether the rule has a table with a row for each query."""
    tables = (call.rule.allowed, call.rule.packed, call.rule.bias)
    return any(table is not None and table.shape[2] > 1 for table in tables) or call.rule.bias is not None


def seen_keys(call: Call, batch: int, heads: Sequence[int]) -> Bool[Tensor, "#heads key"]:
    """Return which keys are not hidden from every query alike."""
    rule, device = replace(call.rule, reach=None, since=None, spans=None, bias=None, rows=None), call.q.device
    for name in ("allowed", "packed"):
        table = getattr(rule, name)
        if table is not None and table.shape[2] > 1:
            rule = replace(rule, **{name: None})
    one, keys = torch.zeros(1, dtype=torch.long, device=device), torch.arange(call.n_keys, device=device)
    seen = rule.sees(batch, numbers(call, heads), one, keys)
    if seen is None:
        return torch.ones(1, call.n_keys, dtype=torch.bool, device=device)
    return seen[:, 0].expand(-1, call.n_keys)


def stretches(call: Call, batch: int, heads: Sequence[int]) -> Int[Tensor, "#heads query 2"]:
    """Return from where to where each query may see, by causal masks, windows and documents; padding not counted."""
    rule, at = call.rule, call.rows
    found = torch.stack([torch.zeros_like(at), torch.full_like(at, call.n_keys)], -1)[None]
    if rule.since is not None:
        found[..., 0] = (at + rule.since).clamp(0, call.n_keys)
    if rule.reach is not None:
        found[..., 1] = (at + rule.reach + 1).clamp(0, call.n_keys)
    if rule.spans is not None:
        span = rule.spans[batch if len(rule.spans) > 1 else 0].to(found)
        span = span[numbers(call, heads)] if len(span) > 1 else span
        found = torch.stack(
            [torch.maximum(found[..., 0], span[..., 0]), torch.minimum(found[..., 1], span[..., 1])], -1
        )
    found[..., 1] = torch.maximum(found[..., 0], found[..., 1])
    return found


def counted(call: Call, batch: int) -> Bool[Tensor, " query"] | None:
    """Return which queries are no padding, by the mask: not those whose own key is hidden from everybody. None: all.

    A padded position still looks around, because fused kernels compute its row like any other; what it sees says
    nothing about the text. Where keys belong to another text (cross-attention) the mask cannot say: all count.
    """
    rule, shift = call.rule, call.n_keys - call.n_all
    masks = (rule.keys, rule.allowed, rule.packed, rule.bias)
    nothing_tells = call.located is None and shift > 0 and rule.reach != shift
    if not call.positions.one_text or nothing_tells or all(mask is None for mask in masks):
        return None
    seen = seen_keys(call, batch, range(len(call.heads))).any(0)
    if tabled(call):
        seen = seen & torch.stack([may.flatten(0, 1).any(0) for _, may in table(call, batch)]).any(0)
    own = call.positions.columns(call.places)
    found = seen[own.clamp(min=0)] | (own < 0)
    return None if bool(found.all()) else found


def counted_by(mask: Bool[Tensor, "#batch time"], call: Call, batch: int, name: str) -> Bool[Tensor, " query"] | None:
    """Return which queries are no padding, by a mask of the text's positions; what was written after them is none.

    InputError where the mask cannot be of the text that the layer `name` read.
    """
    if call.positions.unknown:
        raise WatchError(f"layer {name!r}: which of its queries are padding is not known. {call.positions.unknown}")
    n_texts, width = mask.shape
    if n_texts not in (1, call.batch) or (call.positions.first == 0 and call.n_all > width):
        raise InputError(
            f"set_mask: a mask of {n_texts} texts x {width} positions, but layer {name!r} read {call.batch} x "
            f"{call.n_all}: give one of its text, or name the layers that the mask is about, layers=[...]"
        )
    real = F.pad(mask[batch if n_texts > 1 else 0].to(call.q.device), (0, 1), value=True)
    found = real[call.places.clamp(max=width)]
    return None if bool(found.all()) else found


def choices(call: Call, batch: int, heads: Sequence[int]) -> Float[Tensor, "#heads query"]:
    """Return how many keys each query could look at."""
    if tabled(call):
        return torch.cat([may.sum(-1, dtype=call.exact) for _, may in table(call, batch, heads)], 1)
    keys, ends = seen_keys(call, batch, heads), stretches(call, batch, heads)
    before, n = F.pad(keys.cumsum(-1), (1, 0)), max(len(keys), len(ends))
    upto = before.expand(n, -1).gather(1, ends.flatten(1).expand(n, -1)).reshape(n, -1, 2)
    return (upto[..., 1] - upto[..., 0]).to(call.exact)


def audience(
    call: Call, batch: int, heads: Sequence[int], counts: Float[Tensor, " query"]
) -> Float[Tensor, "#heads key"]:
    """Return how many queries could look at each key, each query counting as much as `counts` says."""
    if tabled(call):
        with torch.autocast(counts.device.type, enabled=False):  # or counts above 256 would be rounded
            some = [counts[rows] @ may.to(counts.dtype) for rows, may in table(call, batch, heads)]
        return torch.stack(some).sum(0)
    ends = stretches(call, batch, heads)
    change = counts.new_zeros(len(ends), call.n_keys + 1)
    change.scatter_add_(1, ends[..., 0], counts.expand(len(ends), -1))
    change.scatter_add_(1, ends[..., 1], -counts.expand(len(ends), -1))
    return change[:, :-1].cumsum(1) * seen_keys(call, batch, heads)


def table(
    call: Call, batch: int, heads: Sequence[int] | None = None
) -> Iterator[tuple[slice, Bool[Tensor, "#heads rows key"]]]:
    """Yield rows, and who in them may look where, a few at a time; a bias as low as numbers go hides too."""
    rule, device = call.rule, call.q.device
    which = numbers(call, range(len(call.heads)) if heads is None else heads)
    if all(one is None or one.shape[1] == 1 for one in (rule.spans, rule.allowed, rule.packed, rule.bias)):
        which = which[:1]
    keys, height = torch.arange(call.n_keys, device=device), max(1, PLACES // max(1, call.n_keys * len(which)))
    for top in range(0, call.n_queries, height):
        rows = torch.arange(top, min(top + height, call.n_queries), device=device)
        blank = torch.zeros(len(which), len(rows), call.n_keys, dtype=call.exact, device=device)
        lowest = torch.finfo(call.exact if rule.bias is None else rule.bias.dtype).min / 2
        yield slice(top, top + len(rows)), rule.apply(blank, batch, which, rows, keys) > lowest


def free(call: Call, rows: slice, cols: slice) -> bool:
    """Say whether these queries may see all of these keys by a rule that says so without a table."""
    rule = call.rule
    if rule.tables:
        return False
    ahead = rule.reach is None or cols.stop - 1 <= rows.start + rule.reach
    return ahead and (rule.since is None or cols.start >= rows.stop - 1 + rule.since)


def cut(table: Tensor, batch: int, heads: Tensor, rows: slice, cols: slice) -> Tensor:
    """Return the tile of a table (batch, heads, query, key) whose axes may be one long."""
    tile = table[batch if len(table) > 1 else 0]
    if tile.shape[0] > 1:
        tile = tile[heads]
    if tile.shape[1] > 1:
        tile = tile[:, rows]
    return tile[:, :, cols] if tile.shape[2] > 1 else tile
