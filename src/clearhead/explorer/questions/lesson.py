"""The question `lesson`: the numbers of every step of attention, for one query of one head.

The page's lesson goes from the values of the words to the output of the layer, one step a screen:

    values    naive sum    queries and keys    scale    softmax    one head    many heads    dropout    projection

The numbers are computed from the queries, keys, values and log-sum-exp of a recording, of any watched model. What was
not recorded is null, and `missing` says in a sentence why. Where the layer is one of ours, `steps` holds the equations,
sentences and source lines of the derivation. Next: `clearhead/derivation/steps.py`, the same steps as code.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from clearhead.explorer.questions.place import OF_HEAD, QUERY, Place, place
from clearhead.explorer.questions.why import derivation_steps, output_projection
from clearhead.explorer.table import Answer, Parameter, Question
from clearhead.seeing.maps import formula, weighing

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

MAX_KEYS = 256  # that are listed: of a longer text the heaviest; sums and means are over all keys
KEYS_AROUND = 16  # on either side of the position that asks: listed whatever their weight, hidden ones too
DROPOUT = 0.1  # the probability that the lesson strikes out a weight with, that of BERT and of Vaswani et al. 2017
LOWEST_SCORE = -1e30  # models that mask by adding a number add a lower one

# By step of the lesson: the derivation's name of it, and its equation where the layer is not ours.
STEPS = {
    "values": ("values", "v_j = W_V x_j"),
    "naive": ("naive sum", "o_i = Σ_j v_j / T"),
    "queries": ("queries and keys", "s_ij = q_i · k_j"),
    "scale": ("scale", "z_ij = s_ij / √D"),
    "softmax": ("softmax", "w_ij = exp(z_ij) / Σ_j exp(z_ij)"),
    "head": ("one head", "o_i = Σ_j w_ij v_j"),
    "heads": ("all heads", "[o_i^0 … o_i^(H-1)]"),
    "dropout": ("", "w_ij ← m_ij w_ij / (1 - p), m_ij = 0 with probability p, else 1"),
    "projection": ("all heads", "y_i = W_O [o_i^0 … o_i^(H-1)]"),
}
NOT_RECORDED = {
    "scores": "The model computes these weights in a way of its own, which queries and keys do not tell.",
    "values": "The values were not recorded: watch(model, values=True) keeps them.",
    "projection": "The output projection of this layer is not at hand: it is found where the model itself is watched.",
}


@dataclass(frozen=True, eq=False)
class Row:
    """One query of one head: its place, its row of `call.q`, its weights, its visible and its listed keys."""

    at: Place
    row: int
    weights: Float[Tensor, " key"]
    allowed: Bool[Tensor, " key"]
    listed: Int[Tensor, " listed"]

    def list(self, values: Tensor) -> list[Any]:
        """Return the values of the listed keys as plain numbers."""
        found: list[Any] = values[self.listed].tolist()
        return found


def lesson(
    exploration: "Exploration", scene: str | None, call: int, batch: int, layer: int, head: int, query: int, seed: int
) -> Answer:
    """Answer `lesson`."""
    at = place(exploration, scene, layer, call, batch, head)
    row = at.require_query(query)
    final = _logits(at, at.heads, row)[0]
    weights = at.scene.seen.row(layer, head, query, batch=batch, call=call)
    listed = _listed(weights, at.scene.first_query(layer, at.call) + query)
    one = Row(at, row, weights, final > LOWEST_SCORE, listed)
    rest = weights.index_fill(0, listed, 0)
    found: dict[str, Any] = {
        "n_keys": len(weights),
        "n_allowed": int(one.allowed.sum()),
        "keys": listed.tolist(),
        "left_out": {"keys": len(weights) - len(listed), "weight": float(rest.sum())},
        "allowed": one.list(one.allowed),
        "weights": one.list(weights),
        **_scores(one, final),
        **_outputs(one, seed),
    }
    found["missing"] = {name: sentence for name, sentence in NOT_RECORDED.items() if found[name] is None}
    return Answer(found | {"steps": _steps(at, query)})


def _listed(weights: Float[Tensor, " key"], own: int) -> Int[Tensor, " listed"]:
    """Return the keys that are listed, in order: the heaviest, and those around the position that asks."""
    around = (torch.arange(len(weights), device=weights.device) - own).abs() <= KEYS_AROUND
    return (weights + around).topk(min(len(weights), MAX_KEYS)).indices.sort().values


def _logits(at: Place, heads: list[int], row: int) -> Float[Tensor, "heads key"]:
    """Return what the softmax is taken of, -inf where the mask hides a key."""
    device = at.call.q.device
    places = torch.tensor(heads, device=device), torch.tensor([row], device=device)
    return formula.scores(at.call, at.batch, *places, torch.arange(at.call.n_keys, device=device))[:, 0]


def _scores(one: Row, final: Float[Tensor, " key"]) -> dict[str, Any]:
    """Return the scores, and what each scale makes of them; null where the weights were kept as the model had them.

    `unmasked` are the weights if nothing were hidden, `to_hidden` the sum of those that the mask hides: null where a
    bias is added to the scores, which is unknown of keys that are hidden.
    """
    call, i = one.at.call, one.at.heads[0]
    if call.weights is not None:
        return dict.fromkeys(("d_head", "scores", "scales", "own", "softcap", "biased", "unmasked", "to_hidden"))
    d_head, biased = call.q.shape[-1], call.rule.bias is not None
    q, k = call.q[one.at.batch, i, one.row].to(call.exact), call.k[one.at.batch, call.kv_of[i]].to(call.exact)
    scores = k @ q
    index = torch.tensor([i], device=q.device), torch.tensor([one.row], device=q.device)
    sink = formula.sinks(call, one.at.batch, *index)
    scaled = _capped(call.scale * scores, call.softcap)
    bias = torch.where(one.allowed, final - scaled, 0) if biased else torch.zeros_like(scaled)
    factors = {"none": 1.0, "root": d_head**-0.5, "D": 1 / d_head}
    own = next((name for name, factor in factors.items() if math.isclose(factor, call.scale)), "own")
    scales = [
        {"name": name, "factor": factor, **_scaled(one, _capped(factor * scores, call.softcap), bias, sink)}
        for name, factor in {**factors, own: call.scale}.items()
    ]
    unmasked = None if biased else _softmax(scaled, torch.ones_like(one.allowed), sink)
    return {
        "d_head": d_head,
        "scores": one.list(scores),
        "scales": scales,
        "own": own,
        "softcap": call.softcap,
        "biased": biased,
        "unmasked": None if unmasked is None else one.list(unmasked),
        "to_hidden": None if unmasked is None else float(unmasked[~one.allowed].sum()),
    }


def _scaled(one: Row, scaled: Tensor, bias: Tensor, sink: Tensor | None) -> dict[str, Any]:
    """Return what the softmax makes of scores under one scale.

    `std` is the standard deviation of the scores, `peak` the largest weight, `entropy` that of the weights in nats,
    `gradient` the sum over keys of the derivative of a key's weight by its own score, w (1 - w).
    """
    z = scaled + bias
    shares = _softmax(z, one.allowed, sink)
    return {
        "std": float(scaled[one.allowed].std(correction=0)) if bool(one.allowed.any()) else 0.0,
        "peak": float(shares.max()),
        "entropy": float(-(shares * shares.clamp(min=1e-30).log()).sum()),
        "gradient": float((shares * (1 - shares)).sum()),
        "z": [value if allowed else None for value, allowed in zip(one.list(z), one.list(one.allowed))],
        "weights": one.list(shares),
    }


def _capped(scaled: Tensor, softcap: float | None) -> Tensor:
    return scaled if softcap is None else softcap * (scaled / softcap).tanh()


def _softmax(z: Float[Tensor, " key"], allowed: Bool[Tensor, " key"], sink: Tensor | None) -> Float[Tensor, " key"]:
    """Return the shares of scores, 0 for a hidden key; a sink takes a share that no key gets."""
    z = z.masked_fill(~allowed, -torch.inf)
    if sink is not None:
        z = torch.cat([z, sink.flatten().to(z)])
    return z.softmax(0).nan_to_num(0)[: len(allowed)]  # NaN: a query that may look nowhere


def _outputs(one: Row, seed: int) -> dict[str, Any]:
    """Return what weights and values make: the naive sum, the head's own sum, all heads, dropout, the projection."""
    at, call, weights = one.at, one.at.call, one.weights
    struck = (torch.rand(call.n_keys, generator=torch.Generator().manual_seed(seed)) < DROPOUT).to(weights.device)
    struck &= one.allowed
    thinned = weights.masked_fill(struck, 0) / (1 - DROPOUT)
    dropout = {
        "p": DROPOUT,
        "seed": seed,
        "n_struck": int(struck.sum()),
        "struck": one.list(struck),
        "weights": one.list(thinned),
        "sum": float(thinned.sum()),
    }
    looks = [
        at.scene.seen.row(at.layer, number, int(call.rows[one.row]), batch=at.batch, call=at.number)
        for number in call.heads
    ]
    heads = [{"head": n, "key": int(w.argmax()), "weight": float(w.max())} for n, w in zip(call.heads, looks)]
    if call.v is None:
        none = dict.fromkeys(("values", "naive", "mix", "projection"))
        blank = {"length": None, "angle": None}
        return {**none, "heads": [head | {"length": None} for head in heads], "dropout": dropout | blank}
    v = weighing.values(call, at.batch, at.heads)[0]
    naive = one.allowed.to(v) @ v / max(1, int(one.allowed.sum()))
    mix, after = weights.to(v) @ v, thinned.to(v) @ v
    outputs = torch.stack([w.to(v) @ weighing.values(call, at.batch, [h])[0] for h, w in enumerate(looks)])
    lengths = v.norm(dim=-1)
    return {
        "values": {"lengths": one.list(lengths), "moved": one.list(weights * lengths)},
        "naive": {"length": float(naive.norm()), "vector": naive.tolist()},
        "mix": {"length": float(mix.norm()), "angle": _angle(mix, naive), "vector": mix.tolist()},
        "heads": [head | {"length": float(output.norm())} for head, output in zip(heads, outputs)],
        "dropout": dropout | {"length": float(after.norm()), "angle": _angle(after, mix)},
        "projection": _projected(one, outputs, v),
    }


@torch.no_grad()
def _projected(
    one: Row, outputs: Float[Tensor, "heads d_value"], v: Float[Tensor, "key d_value"]
) -> dict[str, Any] | None:
    """Return what the output projection makes of the heads: W_O^h o^h is what head h adds to the output.

    `products` holds the inner products of what the heads add, from which the length of the sum of any of them follows.
    `output` is the length of the layer's output, null where some of its heads were not recorded.
    """
    call = one.at.call
    projection = output_projection(one.at, call.n_heads * v.shape[-1])
    if projection is None:
        return None
    blocks = projection.weight.to(v).reshape(-1, call.n_heads, v.shape[-1]).transpose(0, 1)
    added = torch.einsum("hmd,hd->hm", blocks[list(call.heads)], outputs)
    whole = added.sum(0) if projection.bias is None else added.sum(0) + projection.bias.to(v)
    lengths = (v[one.listed] @ blocks[call.heads[one.at.heads[0]]].mT).norm(dim=-1)
    return {
        "d_in": projection.in_features,
        "d_out": projection.out_features,
        "concatenated": float(outputs.norm()),
        "added": added.norm(dim=-1).tolist(),
        "products": (added @ added.mT).tolist(),
        "output": float(whole.norm()) if len(call.heads) == call.n_heads else None,
        "lengths": lengths.tolist(),
        "moved": (one.weights[one.listed] * lengths).tolist(),
    }


def _angle(a: Float[Tensor, " d_value"], b: Float[Tensor, " d_value"]) -> float:
    """Return the angle between two vectors, in degrees."""
    return math.degrees(math.acos(float(nn.functional.cosine_similarity(a, b, dim=0).clamp(-1, 1))))


def _steps(at: Place, query: int) -> dict[str, dict[str, Any]]:
    """Return the equation of every step; of our own layers also the sentence and the source lines of the derivation."""
    known = {step["name"]: step for step in derivation_steps(at, query)}
    blank = {"sentence": None, "code": None, "file": None, "line": None}
    return {
        name: {"equation": equation, **blank, **known.get(theirs, {})} for name, (theirs, equation) in STEPS.items()
    }


QUESTIONS = (
    Question(
        "lesson",
        "The numbers of every step of attention for one query, from the values to the output of the layer.",
        lesson,
        {
            **OF_HEAD,
            "query": QUERY,
            "seed": Parameter("integer", "from which dropout draws what it strikes", 0, low=0, high=2**31 - 1),
        },
    ),
)
