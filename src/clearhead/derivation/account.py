"""The account of a derivation: the eight steps called in order on a real layer, and everything they returned.

Nothing is computed here that the steps do not compute, except what is said about them: spreads, and what each head
adds. Next: `sentences.py` puts it in words.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clearhead.attention import EVERYWHERE, Mask, MultiHeadAttention
from clearhead.derivation.sentences import Teller, equations
from clearhead.derivation.steps import (
    mix,
    multi_head,
    naive_sum,
    queries_and_keys,
    scale,
    scores,
    softmax,
    values,
    vectors,
)
from clearhead.errors import InputError, ShapeError

STEPS: tuple[tuple[str, tuple[Callable[..., Any], ...]], ...] = (
    ("words to vectors", (vectors,)),
    ("values", (values,)),
    ("naive sum", (naive_sum,)),
    ("queries and keys", (queries_and_keys, scores)),
    ("scale", (scale,)),
    ("softmax", (softmax,)),
    ("one head", (mix,)),
    ("all heads", (multi_head,)),
)


@dataclass(frozen=True)
class Source:
    """Lines of clearhead itself: `text` begins at line `first_line` of `file`, a path inside the package."""

    file: str
    first_line: int
    text: str

    @classmethod
    def of(cls, *functions: Callable[..., Any]) -> "Source":
        """Return the lines of `functions`, which stand one after the other in one file."""
        lines = [inspect.getsourcelines(function) for function in functions]
        file = inspect.unwrap(functions[0]).__code__.co_filename
        inside = Path(file).relative_to(Path(__file__).parents[2]).as_posix()
        return cls(inside, lines[0][1], "\n\n".join("".join(text) for text, _ in lines))


@dataclass(frozen=True, eq=False)
class Step:
    """One step: its equation with this layer's sizes, a sentence with this text's numbers, tensors and source lines."""

    name: str
    equation: str
    sentence: str
    tensors: dict[str, Tensor]
    source: Source


@dataclass(frozen=True, eq=False)
class Derivation:
    """Eight steps from `words` to what the layer gives word `query`; up to step 7 they are those of one `head`.

    `memory_words` are the words looked at: `words` themselves, or another text's in cross-attention. `thing` is what
    sentences call one of them, such as patch.
    """

    words: tuple[str, ...]
    memory_words: tuple[str, ...]
    query: int
    head: int
    steps: tuple[Step, ...]
    thing: str = "word"

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor by its name, e.g. `derivation["weights"]`; KeyError lists the names."""
        named = {name: tensor for step in self.steps for name, tensor in step.tensors.items()}
        if name not in named:
            raise KeyError(f"{name!r}: a derivation holds {', '.join(named)}")
        return named[name]

    def to_json(self, *, max_values: int = 65_536) -> dict[str, Any]:
        """Return plain dicts, lists and numbers for json.dumps; float32 numbers come back exactly.

        A tensor is `{"shape": [...], "values": nested lists}`. One of more than `max_values` numbers has values null.
        """
        steps = [
            {
                "name": step.name,
                "equation": step.equation,
                "sentence": step.sentence,
                "tensors": {
                    name: {"shape": list(t.shape), "values": _plain(t) if t.numel() <= max_values else None}
                    for name, t in step.tensors.items()
                },
                "source": vars(step.source).copy(),
            }
            for step in self.steps
        ]
        memory = {"memory_tokens": list(self.memory_words)} if "memory" in self.steps[0].tensors else {}
        return {"tokens": list(self.words), **memory, "head": self.head, "query": self.query, "steps": steps}


def _plain(tensor: Tensor) -> Any:
    """Return nested lists, each float32 as the shortest decimal that reads back as the same float32."""
    if tensor.dtype in (torch.bool, torch.float64):
        return tensor.tolist()
    return tensor.float().cpu().numpy().astype(str).astype(float).tolist()


@torch.no_grad()
def derive(
    attention: MultiHeadAttention,
    x: Float[Tensor, "time d_model"],
    words: Sequence[str],
    *,
    query: int,
    head: int,
    mask: Mask = EVERYWHERE,
    memory: Float[Tensor, "key d_model"] | None = None,
    memory_words: Sequence[str] = (),
    thing: str = "word",
) -> Derivation:
    """Derive what `attention` gives word `query` of one text, showing `head` on the way.

    `x` is what the layer is given for that text, without a batch dimension, and `mask` the mask it is given. With
    a `memory` (cross-attention) keys and values are made from that. Always as at inference: nothing is dropped.
    `thing` is what sentences call a word.

    Raises InputError for a query or head that does not exist or a vector that is not all numbers, ShapeError where
    words, vectors and mask do not fit together, ConfigError as the layer itself does.
    """
    x = vectors(words, x)
    seen_words, seen = (words, x) if memory is None else (memory_words, vectors(memory_words, memory))
    _check_index("query", query, len(words), "words")
    _check_index("head", head, attention.n_heads, "heads")
    allowed, bias = _rules(attention, mask, query, len(words), seen)

    v = values(attention, seen)
    naive = naive_sum(v, allowed)
    q, k = queries_and_keys(attention, x, memory)
    q = q[:, query : query + 1]  # one word asks, all may answer
    s = scores(q, k)
    z = scale(s, attention.scale, attention.softcap)
    w = softmax(z, bias, allowed, attention.sinks)
    o = mix(w, v)
    y = multi_head(attention, o.to(x.dtype))

    here = (head, 0)
    added = {} if bias is None else {"bias": bias[here]}
    sunk = {} if attention.sinks is None else {"sink": attention.sinks[head]}
    others = _under_other_scales(attention, s[here], allowed[here], added.get("bias"), sunk.get("sink"))
    tensors: tuple[dict[str, Tensor], ...] = (
        {"x": x} if memory is None else {"x": x, "memory": memory},
        {"values": v[head]},
        {"naive_sum": naive[here]},
        {"query": q[here], "keys": k[head], "scores": s[here]},
        {"scaled": z[here], **others},
        {"allowed": allowed[here], **added, **sunk, "weights": w[here]},
        {"head_output": o[here]},
        {"all_weights": w[:, 0], "concatenated": o.flatten(), "added": _added(attention, o[:, 0]), "output": y[0]},
    )
    known = {name: tensor for step in tensors for name, tensor in step.items()}
    told = Teller(known, words, seen_words, query, head, attention.dropout, thing).sentences()
    steps = tuple(
        Step(name, equation, sentence, held, Source.of(*functions))
        for (name, functions), equation, sentence, held in zip(
            STEPS, equations(attention, known, query), told, tensors, strict=True
        )
    )
    return Derivation(tuple(words), tuple(seen_words), query, head, steps, thing)


def _check_index(what: str, index: int, count: int, things: str) -> None:
    if not 0 <= index < count:
        raise InputError(f"{what} {index} does not exist: there are {count} {things}, 0 to {count - 1}")


def _rules(
    attention: MultiHeadAttention, mask: Mask, query: int, n_queries: int, seen: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return whom word `query` may look at and what is added to its scores, `(heads, 1, key)` each; biases finite."""
    n_keys, device = len(seen), seen.device
    full = (1, attention.n_heads, n_queries, n_keys)

    def row(rule: Tensor) -> Tensor:
        try:
            return rule.broadcast_to(full)[0, :, query : query + 1]
        except RuntimeError:
            raise ShapeError(f"a mask for this text must broadcast to {full}, got {tuple(rule.shape)}") from None

    dense = mask.dense(n_queries, n_keys, device)
    allowed = row(torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device) if dense is None else dense)
    biases = [] if mask.bias is None else [row(mask.bias)]
    if attention.order is not None:
        keys = torch.arange(n_keys, device=device)
        by_order = attention.order.bias(keys[query : query + 1], keys)
        biases += [] if by_order is None else [by_order]
    if not biases:
        return allowed, None
    bias = sum(biases, torch.zeros(attention.n_heads, 1, n_keys, device=device))
    allowed = allowed & (bias != -math.inf)  # two ways of forbidding
    return allowed, bias.masked_fill(~allowed, 0)


def _under_other_scales(
    attention: MultiHeadAttention, s: Tensor, allowed: Tensor, bias: Tensor | None, sink: Tensor | None
) -> dict[str, Tensor]:
    """Return four factors (none, 1/√D, 1/D, this layer's) with the scores' standard deviation and largest weight."""
    factors = s.new_tensor([1.0, attention.d_head**-0.5, 1 / attention.d_head, attention.scale])
    scaled = torch.stack([scale(s[None], float(factor), attention.softcap) for factor in factors])
    stds = scaled[..., allowed].std(-1, correction=0).flatten() if allowed.any() else torch.zeros_like(factors)
    sinks = None if sink is None else sink.expand(len(factors))
    shares = softmax(scaled, None if bias is None else bias[None, None], allowed[None, None], sinks)
    return {"factors": factors, "stds": stds, "peaks": shares.amax((1, 2))}


def _added(attention: MultiHeadAttention, heads: Tensor) -> Tensor:
    """Return what each head adds to the output, `W_O^h o^h`: `(heads, d_model)`, with b_O they sum to the output."""
    alone = torch.eye(len(heads), device=heads.device).unsqueeze(-1) * heads  # row h: head h's output, zeros elsewhere
    alone = alone.flatten(1).to(attention.out_proj.weight.dtype)
    return (attention.out_proj(alone) - attention.out_proj(torch.zeros_like(alone[:1]))).to(heads.dtype)
