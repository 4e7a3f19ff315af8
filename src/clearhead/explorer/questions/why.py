"""The question `why`: one weight taken apart, down to the channels of its query and its key.

    score = q . k = sum of q_c k_c        z = scale * score (+ bias)        weight = exp(z - lse)

For any watched model. Where the layer is one of ours and what it was given is at hand, the eight steps of the
derivation come with it, in sentences with this text's numbers, and with the lines of clearhead that compute them.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clearhead.attention import MultiHeadAttention
from clearhead.derivation import derive
from clearhead.explorer.questions.place import KEY, OF_HEAD, QUERY, Place, place
from clearhead.explorer.table import Answer, Question
from clearhead.seeing.maps import formula, weighing

if TYPE_CHECKING:
    from clearhead.explorer.exploration import Exploration

MAX_CHANNELS = 16
MAX_KEYS = 16
MAX_STEPS_POSITIONS = 4096  # in a longer text the steps are left out: they go through all values
PROJECTIONS = ("out_proj", "o_proj", "c_proj", "proj", "dense", "o", "wo", "to_out")  # what libraries call W_O


def why(
    exploration: "Exploration", scene: str | None, call: int, batch: int, layer: int, head: int, query: int, key: int
) -> Answer:
    """Answer `why`."""
    at = place(exploration, scene, layer, call, batch, head)
    row, key = at.require_query(query), at.require_key(key)
    one, i = at.call, at.heads[0]
    if one.weights is not None:
        return Answer(_kept(at, layer, head, query, key, call))
    q, k = one.q[batch, i, row].to(one.exact), one.k[batch, one.kv_of[i], key].to(one.exact)
    products = q * k
    score = float(products.sum())
    index = torch.tensor([i], device=q.device), torch.tensor([row], device=q.device)
    scores = formula.scores(one, batch, *index, torch.arange(one.n_keys, device=q.device))[0, 0]
    weights = at.scene.seen.row(layer, head, query, batch=batch, call=call)
    peak, rest = formula.normaliser(one, batch)
    scaled = one.scale * score
    capped = scaled if one.softcap is None else one.softcap * math.tanh(scaled / one.softcap)
    final, hidden = float(scores[key]), not math.isfinite(float(scores[key]))
    best = weights.sort(descending=True, stable=True)
    order = products.abs().argsort(descending=True, stable=True)[:MAX_CHANNELS].tolist()
    channels = [{"channel": c, "q": float(q[c]), "k": float(k[c]), "product": float(products[c])} for c in order]
    found: dict[str, Any] = {
        "weight": float(weights[key]),
        "rank": 1 + int((weights > weights[key]).sum()),
        "score": score,
        "scale": one.scale,
        "scaled": scaled,
        "softcap": one.softcap,
        "bias": None if hidden or one.rule.bias is None else final - capped,
        "z": None if hidden else final,
        "hidden": hidden,
        "lse": float(peak[i, row] + rest[i, row]),
        "sink": None if (sink := formula.sinks(one, batch, *index)) is None else float(sink),
        "channels": channels,
        "rest": score - sum(channel["product"] for channel in channels),
        "softmax": {
            "top": [
                {"key": j, "score": _number(scores[j]), "weight": float(weights[j])}
                for j in best.indices[:MAX_KEYS].tolist()
            ]
        },
    }
    found |= _moved(at, key, float(weights[key]))
    return Answer(found | {"steps": derivation_steps(at, query) or _plain_steps(found, query, key)})


def _kept(at: Place, layer: int, head: int, query: int, key: int, call: int) -> dict[str, Any]:
    """Return what is known of a weight that queries and keys do not tell: the weight itself."""
    weights = at.scene.seen.row(layer, head, query, batch=at.batch, call=call)
    best = weights.sort(descending=True, stable=True)
    unknown = ("score", "scale", "scaled", "softcap", "bias", "z", "lse", "sink", "rest")
    top = [{"key": j, "score": None, "weight": float(weights[j])} for j in best.indices[:MAX_KEYS].tolist()]
    said = "The model computes this weight in a way of its own, which queries and keys do not tell: it was kept."
    step = {"name": "weight", "equation": f"w = {float(weights[key]):.4g}", "sentence": said}
    return {
        "weight": float(weights[key]),
        "rank": 1 + int((weights > weights[key]).sum()),
        **dict.fromkeys(unknown),
        "hidden": False,
        "channels": [],
        "softmax": {"top": top},
        **_moved(at, key, float(weights[key])),
        "steps": [step | {"code": None, "file": None, "line": None}],
    }


def _number(score: Tensor) -> float | None:
    """Return a score, None where the key is hidden: JSON has no infinity."""
    return float(score) if math.isfinite(float(score)) else None


def _moved(at: Place, key: int, weight: float) -> dict[str, float | None]:
    """Return how long the key's value is and what the weight moved, before and after the output projection."""
    names = ("value_norm", "moved", "projected_norm", "moved_projected")
    if at.call.v is None:
        return dict.fromkeys(names)
    length = float(weighing.lengths(at.call, at.batch, at.heads, "values")[0, key])
    found: dict[str, float | None] = {"value_norm": length, "moved": weight * length}
    width = at.call.v.shape[-1]
    projection = output_projection(at, at.call.n_heads * width)
    if projection is None:
        return found | dict.fromkeys(names[2:])
    blocks = projection.weight.detach().to(at.call.v).reshape(-1, at.call.n_heads, width)
    value = weighing.values(at.call, at.batch, at.heads)[0, key]
    projected = float((blocks[:, at.call.heads[at.heads[0]]].to(value) @ value).norm())
    return found | {"projected_norm": projected, "moved_projected": weight * projected}


def output_projection(at: Place, n_features: int) -> nn.Linear | None:
    """Return the layer's output projection, where its model is at hand and it takes `n_features`."""
    if at.scene.model is None:
        return None
    try:
        module = at.scene.model.get_submodule(at.scene.seen.name(at.layer).partition("#")[0])
    except AttributeError:
        return None
    named = (getattr(module, name, None) for name in PROJECTIONS)
    fitting = (one for one in named if isinstance(one, nn.Linear) and one.in_features == n_features)
    return next(fitting, None)


def derivation_steps(at: Place, query: int) -> list[dict[str, Any]]:
    """Return the steps of the derivation, or none where the layer is not ours or what it was given is not at hand."""
    name = at.scene.seen.name(at.layer)
    given = at.scene.given.get(name)
    if given is None or at.scene.model is None or at.batch or at.call.rule.rows is not None:
        return []
    attention = at.scene.model.get_submodule(name)
    n_keys = len(given.x if given.memory is None else given.memory)
    fits = (len(given.x), n_keys) == (at.call.n_queries, at.call.n_keys)
    if not fits or n_keys > MAX_STEPS_POSITIONS or not isinstance(attention, MultiHeadAttention):
        return []
    queries, keys = (at.scene.axes[i] for i in at.scene.axes_of(at.layer, at.call))
    derivation = derive(
        attention,
        given.x,
        queries.marked,
        query=query,
        head=at.call.heads[at.heads[0]],
        mask=given.mask,
        memory=given.memory,
        memory_words=keys.marked if given.memory is not None else (),
        thing="patch" if queries.picture is not None else "word",
    )
    return [
        {
            "name": step.name,
            "equation": step.equation,
            "sentence": step.sentence,
            "code": step.source.text,
            "file": step.source.file,
            "line": step.source.first_line,
        }
        for step in derivation.steps
    ]


def _plain_steps(found: dict[str, Any], query: int, key: int) -> list[dict[str, Any]]:
    """Return the formula step by step, with the numbers of one weight."""
    steps = [("score", "s = Σ_c q_c k_c", f"The query and the key match by {found['score']:.4g}.")]
    factor = f"The score is multiplied by {found['scale']:.4g}: {found['scaled']:.4g}."
    steps.append(("scale", "z = scale · s", factor))
    if found["softcap"] is not None:
        steps.append(("softcap", "z ← c tanh(z / c)", f"It cannot leave ±{found['softcap']:.4g}."))
    if found["hidden"]:
        steps.append(("mask", "z ← -∞", f"Query {query} may not look at key {key}."))
    elif found["bias"] is not None:
        steps.append(("bias", "z ← z + b", f"The model adds {found['bias']:.4g}: {found['z']:.4g}."))
    said = f"Of all the query's weights, which sum to 1, this key gets {found['weight']:.4g}."
    steps.append(("softmax", "w = exp(z - log Σ_j exp(z_j))", said))
    if found["moved"] is not None:
        said = f"The value is {found['value_norm']:.4g} long, so the weight moves {found['moved']:.4g}."
        steps.append(("what it moves", "|w v|", said))
    blank = {"code": None, "file": None, "line": None}
    return [{"name": name, "equation": equation, "sentence": said, **blank} for name, equation, said in steps]


QUESTIONS = (
    Question(
        "why",
        "One weight taken apart: its score by channels, scale, bias, mask, softmax, and what it moved.",
        why,
        {**OF_HEAD, "query": QUERY, "key": KEY},
    ),
)
