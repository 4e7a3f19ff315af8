"""flex_attention (Dong et al. 2024): a mask that is a Python function, and scores that may go through another.

The mask is asked about every link once and recognised like any other. Scores that go through a function of the model's
own (`score_mod`) cannot be told from queries and keys: that function is asked about every score once, and the weights
are kept. Where transformers asked for the call, its interface says what the function does. Either way some rows of the
output are computed again from what is to be reported, and the call is refused where they differ. Next: `interface.py`.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from clearhead.seeing.sites.sighting import Sighting

HOME = "torch.nn.attention.flex_attention"
MAX_LINKS = 2**28  # that a mask or a score_mod is asked about
UNCOMPILED = "flex_attention ran uncompiled while it was watched; outputs may move in the last digits"


class CannotTell(Exception):
    """A call of flex_attention that cannot be reported exactly; the message says why."""


def is_flex(func: Any) -> bool:
    """Say whether `func` is the operator that flex_attention ends in, without importing it."""
    return type(func).__name__ == "FlexAttentionHOP"


def sighting_of(
    result: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: tuple[Any, ...],
    scale: float,
    kernel_options: Any = None,
    score_mod_other_buffers: tuple[Any, ...] = (),
    *_: Any,
    asked: Mapping[str, Any] | None = None,
) -> Sighting:
    """Return what a call of the operator that gave `result` was; called as it is.

    `asked` is what transformers' flex entry was asked for, and so what its score_mod does.
    """
    flex: Any = sys.modules[HOME]
    if isinstance(score_mod, torch.fx.GraphModule):
        raise CannotTell("torch has just compiled it: import flex_attention before watching")
    mask = None if block_mask[-1] is flex.noop_mask else _evaluated(block_mask, query, key)
    if score_mod is not flex._identity and asked is None:
        weights = _weights(query, key, score_mod, score_mod_other_buffers, scale, mask)
        return _with_weights(result[0], weights, key, value)
    asked = asked or {}
    for bias in (asked.get("attention_mask"), asked.get("position_bias")):
        if isinstance(bias, Tensor):
            bias = bias[..., : key.shape[-2]]
            if mask is None:
                mask = bias
            else:
                mask = bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else mask + bias
    sinks = asked.get("s_aux")
    out = result[0]
    sighting = Sighting(
        query,
        key,
        mask,
        0.0,
        False,
        scale,
        None,
        v=value,
        out=None if sinks is not None else out,  # the sinks are put in afterwards
        softcap=asked.get("softcap"),
        sinks=None if sinks is None else sinks.reshape(1, -1, 1),
        by_hand=True,
    )
    if (error := _error(sighting, out)) is not None:
        raise CannotTell(f"its output computed again differs by {error:.1e}")
    return sighting


def _evaluated(block_mask: tuple[Any, ...], query: Tensor, key: Tensor) -> Tensor:
    """Return who may look where, as texts x heads x queries x keys, each of the first two one long if all alike."""
    texts, heads = next(part for part in block_mask if isinstance(part, Tensor)).shape[:2]
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if texts * heads * n_queries * n_keys > MAX_LINKS:
        raise CannotTell(f"its mask is a function of {n_queries} x {n_keys} links, more than {MAX_LINKS} in all")
    flex: Any = sys.modules[HOME]
    mask: Tensor = flex.create_mask(block_mask[-1], texts, heads, n_queries, n_keys, device=str(query.device))
    return mask


def _weights(
    query: Tensor,
    key: Tensor,
    score_mod: Callable[..., Tensor],
    buffers: tuple[Any, ...],
    scale: float,
    mask: Tensor | None,
) -> Tensor:
    """Return the weights of a call whose scores go through `score_mod`."""
    batch, heads, n_queries, n_keys = *query.shape[:3], key.shape[2]
    if batch * heads * n_queries * n_keys > MAX_LINKS:
        raise CannotTell(f"its score_mod is a function of {n_queries} x {n_keys} scores, more than {MAX_LINKS} in all")
    flex: Any = sys.modules[HOME]
    exact = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.to(exact) * scale) @ key.to(exact).repeat_interleave(heads // key.shape[1], 1).mT
        changed = lambda b, h, i, j: score_mod(scores[b, h, i, j], b, h, i, j, *buffers)  # noqa: E731 (it counts these)
        # create_mask evaluates a function of places at every place, whatever that returns
        scores = flex.create_mask(changed, batch, heads, n_queries, n_keys, device=str(query.device)).to(exact)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        blind = (scores == -torch.inf).all(-1, keepdim=True)  # torch's kernels give 0 for a row that looks nowhere
        return scores.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)


def _with_weights(out: Tensor, weights: Tensor, key: Tensor, value: Tensor) -> Sighting:
    """Return a call that is told by its weights."""
    q = weights.new_empty(*weights.shape[:3], 0, dtype=value.dtype)
    v = value.to(weights.dtype).repeat_interleave(weights.shape[1] // value.shape[1], 1)
    if (error := _rounding(weights @ v, out)) is not None:
        raise CannotTell(f"its output computed again differs by {error:.1e}")
    return Sighting(
        q,
        key[..., :0],
        None,
        0.0,
        False,
        1.0,
        None,
        v=value,
        out=out,
        by_hand=True,
        weights=weights,
        because="its scores go through a score_mod of its own",
        fixed="gradients through its score_mod are not known" if out.requires_grad else None,
    )


def _error(sighting: Sighting, out: Tensor) -> float | None:
    """Return how far three rows of the output are from weights @ values, if that is more than rounding."""
    q, k, v, mask = sighting.q, sighting.k, sighting.v, sighting.mask
    assert v is not None
    rows = torch.tensor(sorted({0, q.shape[-2] // 2, q.shape[-2] - 1}), device=q.device)
    group, exact = q.shape[1] // k.shape[1], torch.promote_types(q.dtype, torch.float32)
    k, v = (x.to(exact).repeat_interleave(group, 1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if sighting.scale is None else sighting.scale
    with torch.autocast(q.device.type, enabled=False):
        scores = q.index_select(-2, rows).to(exact) * scale @ k.mT
        if sighting.softcap is not None:
            scores = sighting.softcap * (scores / sighting.softcap).tanh()
        if mask is not None:
            mask = mask.index_select(-2, rows) if mask.shape[-2] > 1 else mask
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        want = scores.softmax(-1).nan_to_num() @ v
    return _rounding(want, out.index_select(-2, rows))


def _rounding(want: Tensor, out: Tensor) -> float | None:
    """Return how far `out` is from `want`, if that is more than rounding."""
    error = float((want - out.to(want.dtype)).abs().max())
    allowed = 1e-5 + 16 * torch.finfo(out.dtype).eps * (1 + float(want.abs().max()))
    return None if error <= allowed else error  # nan is no proof
