"""A text that was read in several forwards, as one: the calls of each layer joined into a single call.

A generation reads its prompt in one forward and every later token in another. Each of these calls has a few rows of the
text's map. Joined, every position has the row of the forward that read it, over one axis of keys. A joined recording is
a recording: maps, statistics and files are those of any other.

Two things are made sure of. A token's key must be the same, bit for bit, in all the forwards that used it, or one axis
of keys could not give exact rows; caches that turn keys again, and beams that are not followed, are refused. A position
that was read twice (a rejected draft) has the row that was read last.

Beam search changes the places of texts in the batch: `beam_indices` says in which row of the batch a returned sequence
was at each step. Next: `saving.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from clearhead.errors import InputError, WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.maps import sight
from clearhead.seeing.positions import in_order
from clearhead.seeing.recordings import peers
from clearhead.seeing.recordings.questions import LARGEST_MAP
from clearhead.seeing.recordings.recording import Recording
from clearhead.seeing.rule import Rule

PER_QUERY = ("q", "lse", "sinks", "out", "gradient")  # fields of a call with a row for every query
PER_KEY = ("k", "v")  # and for every key


@dataclass(frozen=True)
class Step:
    """One forward's call of a layer, its texts those of the answer; `real` says which of these it was made for."""

    call: Call
    real: Tensor

    @property
    def queries(self) -> range:
        """Return the positions of its queries."""
        first = self.call.positions.first
        return range(first, first + self.call.n_all)


def joined(recording: Recording, beam_indices: Int[Tensor, "sequence step"] | None) -> Recording:
    """Return a recording with one call a layer, of the latest text; see `Recording.joined`."""
    recording.settle()
    recording.layers  # noqa: B018 (raises, and says why there is nothing)
    if beam_indices is not None and (beam_indices.ndim != 2 or beam_indices.is_floating_point()):
        raise InputError(f"beam_indices= expects whole numbers, sequences x steps, got {tuple(beam_indices.shape)}")
    found = Recording()
    found.names, found.words, found.notes = list(recording.names), recording.words, list(recording.notes)
    found.account, found.skipped, found.n_forwards = recording.account, set(recording.skipped), recording.n_forwards
    n_rows = max(calls[-1].batch for calls in recording.calls.values())
    for layer, calls in recording.calls.items():
        name = f"layer {layer} {recording.names[layer]!r}"
        steps = _steps(_latest_text(calls, name), beam_indices, n_rows, name)
        call, real = _join(steps, name)
        call.forward = 0
        found.calls[layer] = [call]
        mask = recording.mask_of(layer)
        if mask is not None:
            rows = torch.arange(call.batch) * len(mask) // call.batch  # sequences of one text are side by side
            real = real.clone()
            real[:, : mask.shape[1]] &= mask[rows].to(real.device)
        if not bool(real.all()):
            found.masks.append(((layer,), real))
    return found


def _latest_text(calls: Sequence[Call], name: str) -> Sequence[Call]:
    """Return the calls of the text that was read last, from its first position on."""
    if unknown := [call.positions.unknown for call in calls if call.positions.unknown]:
        raise WatchError(f"{name}: forwards cannot be joined, as it is not known where they stand. {unknown[0]}")
    begins = [i for i, call in enumerate(calls) if call.positions.first == 0]
    if not begins:
        raise WatchError(f"{name}: the recording begins at position {calls[0].positions.first}: watch the prompt too")
    return calls[begins[-1] :]


def _steps(calls: Sequence[Call], beams: Tensor | None, n_rows: int, name: str) -> list[Step]:
    """Return the calls with the texts of the answer in their rows."""
    if beams is None:
        if len({call.batch for call in calls}) > 1:
            raise WatchError(
                f"{name}: the batch had {sorted({call.batch for call in calls})} texts in different forwards: say with "
                f"beam_indices= in which row of the batch each sequence was at each step"
            )
        every = torch.ones(calls[0].batch, dtype=torch.bool, device=calls[0].q.device)
        return [Step(call, every) for call in calls]
    beams, steps, step = beams.to(calls[0].q.device), [], 0
    for i, call in enumerate(calls):
        step += i > 0 and call.n_all == 1  # the prompt may have been read in several forwards: all are step 0
        if step >= beams.shape[1]:
            break
        if call.batch < n_rows:  # read before each text was repeated for its beams, as by an encoder
            rows = torch.arange(len(beams), device=beams.device) * call.batch // len(beams)
        else:
            rows = beams[:, step]
        if int(rows.max()) >= call.batch:
            raise InputError(f"beam_indices= names row {int(rows.max())} of the batch, which had {call.batch}: {name}")
        steps.append(Step(_picked(call, rows.clamp(min=0)), rows >= 0))
    return steps


def _picked(call: Call, rows: Int[Tensor, " sequence"]) -> Call:
    """Return a call with some of its texts, in another order."""
    tensors: dict[str, Any] = {
        name: x.index_select(0, rows) for name, x in call.tensors.items() if len(x) > 1 or call.batch == 1
    }
    tables: dict[str, Any] = {
        name: x.index_select(0, rows) for name, x in call.rule.tables.items() if name != "rows" and len(x) > 1
    }
    return replace(call, **tensors, rule=replace(call.rule, **tables), normalisers={})


def _join(steps: Sequence[Step], name: str) -> tuple[Call, Tensor]:
    """Return one call for all steps, and which of its positions are there in each text: (sequence, time)."""
    last = steps[-1].call
    n_read = max(step.queries.stop for step in steps)
    owner = torch.full((n_read,), -1)  # which step's row each position has
    real = torch.zeros(last.batch, n_read, dtype=torch.bool, device=last.q.device)
    for i, step in enumerate(steps):
        owner[step.queries.start : step.queries.stop] = i
        real[:, step.queries.start : step.queries.stop] = step.real[:, None]
    if len(steps) == 1:
        return replace(last, normalisers={}), real
    if bool((owner < 0).any()):
        raise WatchError(f"{name}: no forward read position {int((owner < 0).nonzero()[0])}: watch all of them")
    if len({_kind(step.call) for step in steps}) > 1:
        raise WatchError(f"{name}: its forwards differ in scale, heads or sinks, or in whose keys they look at")
    n_keys = n_read if last.positions.one_text else last.n_keys
    taken = [_taken(step, owner, i) for i, step in enumerate(steps)]
    places = torch.cat([places for places, _ in taken])
    order = places.argsort()
    rows = [rows for _, rows in taken]
    fields: dict[str, Any] = {"weights": _of_links(steps, rows, order, n_keys)}
    if fields["weights"] is not None:  # then queries and keys tell nothing, and have no numbers
        steps = [replace(step, call=replace(step.call, **_without_numbers(step.call))) for step in steps]
    fields |= {key: _of_queries(key, steps, rows, order) for key in PER_QUERY}
    fields |= {key: _of_keys(key, steps, n_keys, name) for key in PER_KEY}
    rule = _rule(steps, taken, order, n_keys, real)
    if len(places) < n_read:  # only some rows were kept
        rule = replace(rule, rows=places[order])
    where = in_order(n_keys, one_text=last.positions.one_text)
    return replace(last, **fields, rule=rule, n_asked=n_read, located=where, normalisers={}), real


def _without_numbers(call: Call) -> dict[str, Any]:
    return {"q": call.q[..., :0], "k": call.k[..., :0], "lse": None}


def _kind(call: Call) -> tuple[object, ...]:
    """Return what all calls of a text have to share."""
    n_other = None if call.positions.one_text else call.n_keys
    return call.scale, call.softcap, call.heads, call.sinks is None, n_other


def _taken(step: Step, owner: Tensor, i: int) -> tuple[Tensor, Tensor]:
    """Return the positions of which a step has the row, and which of its kept rows these are."""
    rows = (owner.to(step.call.q.device)[step.call.places] == i).nonzero()[:, 0]
    return step.call.places[rows], rows


def _of_queries(key: str, steps: Sequence[Step], rows: Sequence[Tensor], order: Tensor) -> Tensor | None:
    """Return a field with a row for every query, in the order of the text; None where a step has none."""
    tables = [getattr(step.call, key) for step in steps]
    if any(table is None for table in tables):
        return None
    tables = [x.expand(*x.shape[:2], s.call.n_queries, *x.shape[3:]) for x, s in zip(tables, steps)]
    tables = [x.expand(max(len(t) for t in tables), *x.shape[1:]) for x in tables]
    return torch.cat([x.index_select(2, r) for x, r in zip(tables, rows)], 2).index_select(2, order)


def _of_links(steps: Sequence[Step], rows: Sequence[Tensor], order: Tensor, n_keys: int) -> Tensor | None:
    """Return the weights by position, where some step has the model's own, which queries and keys do not tell."""
    if all(step.call.weights is None for step in steps):
        return None
    one = steps[0].call
    if one.batch * len(one.heads) * len(order) * n_keys > LARGEST_MAP:
        raise WatchError(f"the joined weights would be a table of {len(order)} x {n_keys} a head: join fewer forwards")
    found = []
    for step, some in zip(steps, rows):
        weights = peers.dense(step.call, None)[:, :, some]
        wide = weights.new_zeros(*weights.shape[:3], n_keys)
        for start, stop, shift in _tokens(step.call):
            wide[..., start + shift : stop + shift] = weights[..., start:stop]
        found.append(wide)
    return torch.cat(found, 2).index_select(2, order)


def _of_keys(key: str, steps: Sequence[Step], n_keys: int, name: str) -> Tensor | None:
    """Return the keys or values of every position; WatchError where they were not the same in all steps.

    Keys of a rejected draft need not be: they are compared up to the first position that was read again.
    """
    tables = [getattr(step.call, key) for step in steps]
    if any(table is None for table in tables):
        return None
    last, todo = tables[-1], list(zip(steps, tables, _read_again(steps, name)))
    if _tokens(steps[-1].call) == [(0, n_keys, 0)] and bool(steps[-1].real.all()):
        found = last[:, :, :n_keys]
        todo = [one for one in todo if (one[1].data_ptr(), one[1].stride()) != (last.data_ptr(), last.stride())]
    else:
        found = last.new_zeros(*last.shape[:2], n_keys, last.shape[3])
        for step, table, _ in todo:
            for start, stop, shift in _tokens(step.call):
                found[step.real, :, start + shift : stop + shift] = table[step.real, :, start:stop]
    for step, table, end in todo:
        for start, stop, shift in _tokens(step.call):
            stop = min(stop, end - shift)
            if not torch.equal(found[step.real, :, start + shift : stop + shift], table[step.real, :, start:stop]):
                what = "keys" if key == "k" else "values"
                raise WatchError(
                    f"{name}: a token has other {what} in one forward than in another. Of a beam search, say with "
                    f"beam_indices= in which row of the batch each sequence was at each step; a cache that turns or "
                    f"merges keys has no one axis of keys: ask for its forwards one by one, call="
                )
    return found


def _read_again(steps: Sequence[Step], name: str) -> list[int]:
    """Return for each step the first position that a later one read again, or that after its last key.

    WatchError where queries before that position saw keys behind it: they would be shown keys of a later forward.
    """
    found: list[int] = []
    for i, step in enumerate(steps):
        call, end = step.call, step.call.positions.end
        again = min([end, *(later.queries.start for later in steps[i + 1 :])]) if call.positions.one_text else end
        rows = (call.places < again).nonzero()[:, 0]
        cols = (call.positions.of_columns(call.n_keys, call.q.device) >= again).nonzero()[:, 0]
        for text in range(call.batch) if len(rows) and len(cols) else ():
            may = call.rule.sees(text, torch.arange(call.n_heads, device=cols.device), rows, cols)
            if may is None or bool(may.any()):
                raise WatchError(
                    f"{name}: position {again} was read again, and queries before it saw what it was first"
                )
        found.append(again)
    return found


def _tokens(call: Call) -> list[tuple[int, int, int]]:
    return list(call.positions.parts(slice(0, call.n_keys)))


def _rule(
    steps: Sequence[Step], taken: Sequence[tuple[Tensor, Tensor]], order: Tensor, n_keys: int, real: Tensor
) -> Rule:
    """Return who looked where, by position: as one stretch a query where that says it, else as a table."""
    calls = [step.call for step in steps]
    if all(_is_sentence(call) for call in calls):
        found = [[_stretches(call, text)[rows] for text in range(call.batch)] for call, (_, rows) in zip(calls, taken)]
        spans = torch.cat([torch.stack(some) for some in found], 1)[:, order]  # (text, query, 2)
        places = torch.cat([places for places, _ in taken])[order]
        spans = spans * real[:, places, None]
        looks = spans[..., 0] < spans[..., 1]
        begins = spans[..., 0].masked_fill(~looks, n_keys).amin(1)  # of each text, the first key that anybody saw
        keys = torch.stack([begins, torch.full_like(begins, n_keys)], 1).int() if bool(begins.any()) else None
        causal = torch.stack([begins[:, None].expand_as(looks), (places + 1).expand_as(looks)], -1)
        if torch.equal(looks, causal[..., 0] < causal[..., 1]) and torch.equal(spans[looks], causal[looks]):
            return Rule(reach=0, keys=keys)
        return Rule(spans=spans[:, None].int(), keys=keys)
    return _table(steps, taken, order, n_keys)


def _is_sentence(call: Call) -> bool:
    rule = call.rule
    shared = rule.spans is None or rule.spans.shape[1] == 1
    return shared and rule.allowed is rule.packed is rule.bias is None and len(_tokens(call)) == 1


def _stretches(call: Call, text: int) -> Tensor:
    """Return from which position to which each kept query may see, in one text: (query, 2)."""
    ((start, stop, shift),) = _tokens(call)
    ends = sight.stretches(call, text, [0])[0].clamp(start, stop)
    if call.rule.keys is not None:
        first, after = call.rule.keys[text if len(call.rule.keys) > 1 else 0].long()
        ends = ends.clamp(min=first).clamp(max=torch.maximum(first, after))
    return ends + shift


def _table(steps: Sequence[Step], taken: Sequence[tuple[Tensor, Tensor]], order: Tensor, n_keys: int) -> Rule:
    """Return who looked where as a table of links, and what was added to scores as another."""
    calls = [step.call for step in steps]
    biases = [call.rule.bias for call in calls if call.rule.bias is not None]
    many = any(t.shape[1] > 1 for call in calls for n, t in call.rule.tables.items() if n not in ("keys", "rows"))
    n_heads = calls[0].n_heads if many else 1
    shape = (calls[0].batch, n_heads, len(order), n_keys)
    if torch.Size(shape).numel() > LARGEST_MAP:
        raise WatchError(f"the joined mask would be a table of {' x '.join(map(str, shape))}: join fewer forwards")
    heads = torch.arange(n_heads, device=order.device)
    allowed = torch.zeros(shape, dtype=torch.bool, device=order.device)
    bias = torch.zeros(shape, dtype=biases[0].dtype, device=order.device) if biases else None
    place, n_done = order.argsort(), 0  # of each row taken, in order
    for step, (_, rows) in zip(steps, taken):
        call, to = step.call, place[n_done : n_done + len(rows)]
        n_done += len(rows)
        for text in step.real.nonzero()[:, 0].tolist():
            for start, stop, shift in _tokens(call):
                cols = torch.arange(start, stop, device=order.device)
                may = call.rule.sees(text, heads, rows, cols)
                to_cols = cols + shift
                allowed[text, heads[:, None, None], to[:, None], to_cols] = True if may is None else may
                if bias is not None and call.rule.bias is not None:
                    blank = torch.zeros(n_heads, len(rows), len(cols), dtype=bias.dtype, device=order.device)
                    added = Rule(bias=call.rule.bias).apply(blank, text, heads, rows, cols)
                    bias[text, heads[:, None, None], to[:, None], to_cols] = added
    return Rule(allowed=allowed, bias=bias)
