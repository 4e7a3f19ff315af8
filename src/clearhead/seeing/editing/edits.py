"""What an edit does to one attention call, after the model's own kernel has run: the mathematics of `editor.py`.

Nothing is run twice but the rows that an edit names. With w the weights of a head and v its values:

    switch_off     out_i = 0                                          scaled after the kernel: the same under any kernel
    cut            out_i = out_i - w_ij v_j                           the one weight from the kernel's log-sum-exp
    cut, renormalised     out_i = (out_i - w_ij v_j) / (1 - w_ij)     the same, where most of the row is left; else
                          softmax of the row with -inf at j, times v  the row alone
    temperature    out = softmax(scores / factor) v
    replace        out = pattern @ v
    patch          out = what a head gave in another run

Where one head is edited more than once they act in this order: replace, cut, patch, switch_off. What no edit names
keeps its bits. Scaling heads is Michel et al. 2019, "Are Sixteen Heads Really Better than One?"; cutting links is the
"attention knockout" of Geva et al. 2023; patching is Vig et al. 2020, "causal mediation analysis".
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.errors import ShapeError, WatchError
from clearhead.seeing.call import Call
from clearhead.seeing.editing.kinds import Cut, Edit, Patch, Places, Replace, Site, SwitchOff, Temperature
from clearhead.seeing.maps import formula, products
from clearhead.seeing.positions import Positions
from clearhead.seeing.recordings.recording import FEW, Recording

Mixing = Replace | Cut | Temperature  # what changes the weights that a head mixes its values by
MOST = 0.5  # of a row may be cut and the rest stretched: rounding of what was there grows to twice its size


def apply(edits: Sequence[Edit], site: Site) -> tuple[Float[Tensor, "batch heads query d_value"] | None, list[Edit]]:
    """Return what the heads give after `edits`, None for no change, and which edits found their place here."""
    out = site.out.clone()  # in its own layout, so that what follows runs the same kernels
    with products.full_precision():
        done: list[Edit] = [*_mix([edit for edit in edits if isinstance(edit, Mixing)], site, out)]
        done += _patch([edit for edit in edits if isinstance(edit, Patch)], site, out)
        done += _switch_off([edit for edit in edits if isinstance(edit, SwitchOff)], site, out)
    return (out if done else None), done


def addressed(edit: Edit, site: Site) -> tuple[list[int], list[int]]:
    """Return the texts and heads of a call that an edit is about; raises WatchError where they do not exist."""
    call = site.call
    for what, asked, n in (("head", edit.heads, call.n_heads), ("text", edit.texts, call.batch)):
        if wrong := [i for i in asked or () if not 0 <= i < n]:
            raise WatchError(
                f"{edit.said}: layer {site.index} {site.name!r} has {n} {what}s, counted from 0: there is no "
                f"{what} {wrong[0]}"
            )
    texts = list(range(call.batch) if edit.texts is None else edit.texts)
    return texts, list(range(call.n_heads) if edit.heads is None else edit.heads)


def _switch_off(edits: Iterable[SwitchOff], site: Site, out: Tensor) -> Iterator[Edit]:
    for edit in edits:
        texts, heads = addressed(edit, site)
        if edit.others:
            heads = [head for head in range(site.call.n_heads) if head not in heads]
        for text in texts:
            out[text, heads] = 0
        yield edit


def _patch(edits: Iterable[Patch], site: Site, out: Tensor) -> Iterator[Edit]:
    for edit in edits:
        texts, heads = addressed(edit, site)
        site.require_positions(edit, edit.query)
        rows = site.rows(edit.query)
        if not rows:
            edit.why = _absent_query(edit.query, site)
            continue
        for text in texts:
            for head in heads:
                given = _given(edit, site, text, head)
                if given.shape == (site.call.n_queries, out.shape[-1]):
                    given = given[rows]
                elif given.shape != (len(rows), out.shape[-1]):
                    raise ShapeError(
                        f"{edit.said}: layer {site.index} {site.name!r} expects the output of "
                        f"{site.call.n_queries} queries, {out.shape[-1]} numbers each, got {tuple(given.shape)}; "
                        f"query= names the positions where texts are not of one length"
                    )
                out[text, head, rows] = given.to(out)
        yield edit


def _given(edit: Patch, site: Site, text: int, head: int) -> Tensor:
    if isinstance(edit.source, Tensor):
        return edit.source
    source = edit.source
    call = _recorded(edit, source, site)
    if call.n_queries < call.n_all:  # which of them stands where is not to be guessed
        raise WatchError(f"{edit.said}: that recording kept only some rows: record without rows=, or give the tensor")
    return source.output(site.name, head, batch=text if call.batch > 1 else 0)


def _recorded(edit: Patch, source: Recording, site: Site) -> Call:
    """Return what a recording holds of the layer of this name; numbers depend on what else ran, names do not."""
    names = [layer.name for layer in source.layers]
    if site.name not in names:
        more = ", ..." if len(names) > FEW else ""
        raise WatchError(
            f"{edit.said}: layer {site.index} {site.name!r} is not in that recording, which has "
            f"{', '.join(map(repr, names[:FEW]))}{more}: give the tensor, such as seen.output(layer, head)"
        )
    calls = source.calls[source.number(site.name)]
    if len(calls) > 1:
        raise WatchError(
            f"{edit.said}: that recording holds {len(calls)} runs of layer {site.index} {site.name!r}: give the "
            f"output of one, seen.output(layer, head, call=...), or record one run"
        )
    return calls[0]


def _mix(edits: Iterable[Mixing], site: Site, out: Tensor) -> list[Edit]:
    """Apply replaced patterns and cuts, head by head, heads with the same edits together."""
    done: list[Edit] = []
    todo: dict[tuple[int, int], list[Mixing]] = {}
    for edit in edits:
        texts, heads = addressed(edit, site)
        if not _is_here(edit, site):
            continue
        for text in texts:
            for head in heads:
                todo.setdefault((text, head), []).append(edit)
        done.append(edit)
    alike: dict[tuple[int, tuple[int, ...]], tuple[list[int], list[Mixing]]] = {}
    for (text, head), some in todo.items():
        alike.setdefault((text, tuple(map(id, some))), ([], some))[0].append(head)
    for (text, _), (heads, some) in alike.items():
        _mix_alike(some, site, text, torch.tensor(heads, device=out.device), out)
    return done


def _is_here(edit: Mixing, site: Site) -> bool:
    """Return whether a call has the positions of an edit; raises for what can never be right."""
    call = site.call
    if isinstance(edit, Replace):
        if edit.pattern.shape != (call.n_queries, call.n_keys):
            raise ShapeError(
                f"{edit.said}: layer {site.index} {site.name!r} has {call.n_queries} queries and {call.n_keys} keys, "
                f"the pattern is {' x '.join(map(str, edit.pattern.shape))}"
            )
        return True
    if call.dropout:
        raise WatchError(
            f"{edit.said}: layer {site.index} {site.name!r} drops weights at random (dropout {call.dropout}), and "
            f"which ones only its kernel knows: call model.eval() first"
        )
    if isinstance(edit, Temperature):
        if call.weights is not None:
            raise WatchError(f"{edit.said}: layer {site.index} {site.name!r} has weights of its own kind and no scores")
        return True
    if not edit.of_map:
        site.require_positions(edit, edit.query, edit.key)
    if not site.named_rows(edit):
        edit.why = _absent_query(edit.query, site)
        return False
    if not site.cut_cols(edit):
        edit.why = f"there is no key {edit.key}: its last call had {_said(call.positions)}"
        return False
    return True


def _absent_query(asked: Places, site: Site) -> str:
    first, n = site.call.positions.first, site.call.n_queries
    had = f"had {n}" if not first else f"had positions {first} to {first + n - 1}, what came before was read earlier"
    return f"there is no query {asked}: its last call {had}"


def _said(stands: Positions) -> str:
    """Return which tokens the keys of a call are, in words."""
    if len(stands.keys) == 1 and not stands.keys[0].position:
        return str(stands.end)
    return "tokens " + ", ".join(f"{one.position} to {one.position + one.length - 1}" for one in stands.keys)


def _mix_alike(edits: Sequence[Mixing], site: Site, text: int, heads: Tensor, out: Tensor) -> None:
    """Write into `out` what `heads` of one text give after `edits`, touching only the rows that these name."""
    call = site.call
    cuts = [edit for edit in edits if isinstance(edit, Cut)]
    patterns = [edit.pattern for edit in edits if isinstance(edit, Replace)]
    factors = [edit.factor for edit in edits if isinstance(edit, Temperature)]
    if factors and patterns:
        raise WatchError(
            f"layer {site.index} {site.name!r}: a replaced pattern has no scores that a temperature divides"
        )
    rows: Sequence[int] = (
        range(call.n_queries) if patterns or factors else sorted({row for cut in cuts for row in site.cut_rows(cut)})
    )
    given = patterns[-1].to(out.device).expand(len(heads), -1, -1) if patterns else None
    if given is None and call.weights is not None:
        given = call.weights[text, heads]
    v = site.values(text, heads)
    kinds = {cut.renormalise for cut in cuts}
    if len(kinds) == 1 and not patterns and not factors and not site.wants_gradient and call.lse is not None:
        rows = _take_away(cuts, site, text, heads, rows, out)
    every = torch.arange(call.n_keys, device=out.device)
    for some in _pieces(rows, len(heads) * call.n_keys, out.device):
        closed = _gone([cut for cut in cuts if cut.renormalise], site, some)
        if given is not None:
            weights = given[:, some].to(v)
            left = weights.masked_fill(closed, 0)
            scale = weights.sum(-1, keepdim=True) / left.sum(-1, keepdim=True)
            weights = torch.where(closed.any(-1, keepdim=True), left * scale.nan_to_num(0, 0, 0), weights)
        else:
            factor = math.prod(factors)
            scores = formula.scores(call, text, heads, some, every).masked_fill(closed, -torch.inf) / factor
            sinks = formula.sinks(call, text, heads, some)
            weights = _softmax(scores, None if sinks is None else sinks / factor)
        if False in kinds:
            weights = weights.masked_fill(_gone([cut for cut in cuts if not cut.renormalise], site, some), 0)
        out[text, heads[:, None], some] = (weights @ v).to(out.dtype)


def _take_away(
    cuts: Sequence[Cut], site: Site, text: int, heads: Tensor, rows: Sequence[int], out: Tensor
) -> Sequence[int]:
    """Take the weights of cuts of one kind off what the kernel gave; return rows for which that is not exact enough.

    The rest of a row is stretched where it is renormalised: only as far as `MOST`, and only numbers that the kernel
    did not round to fewer bits than weights are computed in.
    """
    call, stretched = site.call, cuts[0].renormalise
    if stretched and out.dtype != call.exact:
        return rows
    v, left_over = site.values(text, heads), []
    cols = torch.tensor(sorted({key for cut in cuts for key in site.cut_cols(cut)}), device=out.device)
    for some in _pieces(rows, len(heads) * len(cols), out.device):
        lost = formula.weights(call, text, heads, some, cols)
        lost = lost.masked_fill(~_gone(cuts, site, some)[:, cols], 0)
        if stretched:
            mass = lost.sum(-1)
            fits = (mass <= MOST).all(0)
            left_over += some[~fits].tolist()
            lost, some, mass = lost[:, fits], some[fits], mass[:, fits, None]
        place = text, heads[:, None], some
        rest = out[place].to(call.exact) - lost @ v[:, cols]
        out[place] = (rest / (1 - mass) if stretched else rest).to(out.dtype)
    return left_over


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Return the weights of rows; a row that may look nowhere gives 0, as torch's kernels have it."""
    if sinks is not None:
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)


def _gone(cuts: Iterable[Cut], site: Site, rows: Tensor) -> Tensor:
    """Return which links of `rows` are cut: (rows, keys), True = gone."""
    gone = torch.zeros(len(rows), site.call.n_keys, dtype=torch.bool, device=rows.device)
    for cut in cuts:
        mine = torch.isin(rows, torch.tensor(site.named_rows(cut), device=rows.device))
        keys = torch.zeros(site.call.n_keys, dtype=torch.bool, device=rows.device)
        keys[site.cut_cols(cut)] = True
        links = mine[:, None] & keys
        if cut.spares_own and site.own is not None:
            links &= site.own.to(rows.device)[rows, None] != torch.arange(len(keys), device=rows.device)
        gone |= links
    return gone


def _pieces(rows: Sequence[int], width: int, device: torch.device) -> Iterator[Tensor]:
    """Yield `rows` in pieces whose weights fit one tile."""
    height = max(1, formula.TILE // max(1, width))
    for top in range(0, len(rows), height):
        yield torch.tensor(rows[top : top + height], device=device)
