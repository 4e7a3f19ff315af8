"""What a derivation says: each step's equation with the layer's sizes, and one sentence with the text's own numbers.

Nothing here is computed for the derivation; it is only told. Next: `words.py`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.attention import MultiHeadAttention
from clearhead.derivation.words import group, label
from clearhead.errors import counted, several
from clearhead.positions import Order
from clearhead.rotary import NormedQueriesAndKeys

Known = dict[str, Tensor]  # every tensor of a derivation, by its name


def equations(attention: MultiHeadAttention, known: Known, query: int) -> list[str]:
    """Return the eight equations for word `query`, in the field's symbols; b_ij is a bias, R_i a turn by position.

    A layer's equations hold what it has: no `+ b_V` where there is no such vector, `norm` where queries and keys are
    normalised.
    """
    x, seen, d_head = known["x"], known.get("memory", known["x"]), attention.d_head
    b = {name: f" + b_{name}" if linear.bias is not None else "" for name, linear in _linears(attention)}
    asks, answers = f"W_Q x_i{b['Q']}", f"W_K x_j{b['K']}"
    order = attention.order
    if isinstance(order, NormedQueriesAndKeys):
        asks, answers, order = f"norm({asks})", f"norm({answers})", order.then
    if order is not None and type(order).turn is not Order.turn:
        asks, answers = f"R_i({asks})", f"R_j({answers})"
    usual = math.isclose(attention.scale, d_head**-0.5)
    scaled = f"s_ij / √D, √D = √{d_head} = {d_head**0.5:.4g}" if usual else f"{attention.scale:.4g} s_ij, D = {d_head}"
    if attention.softcap is not None:
        scaled = f"{attention.softcap:.4g} tanh({attention.scale:.4g} s_ij / {attention.softcap:.4g})"
    d_heads = attention.n_heads * d_head
    power = "z_ij + b_ij" if "bias" in known else "z_ij"
    return [
        f"x_j ∈ R^{seen.shape[-1]}, j = 0 … {len(seen) - 1}",
        f"v_j = W_V x_j{b['V']}, W_V ∈ R^({d_head}×{seen.shape[-1]})",
        f"o_i = Σ_j v_j / T, i = {query}, T = {int(known['allowed'].sum())}",
        f"q_i = {asks}, k_j = {answers}, s_ij = q_i · k_j",
        f"z_ij = {scaled}",
        f"w_ij = exp({power}) / {'(exp(sink) + Σ_j exp(' + power + '))' if 'sink' in known else f'Σ_j exp({power})'}",
        f"o_i = Σ_j w_ij v_j ∈ R^{d_head}",
        f"y_i = W_O [o_i^0 … o_i^{attention.n_heads - 1}]{b['O']}, W_O ∈ R^({x.shape[-1]}×{d_heads})",
    ]


def _linears(attention: MultiHeadAttention) -> Iterable[tuple[str, nn.Linear]]:
    return zip("QKVO", (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj))


@dataclass(frozen=True)
class Teller:
    """Says the eight sentences of one derivation: word `query` of `words` asks, `seen_words` may answer.

    `thing` is what a word is called: a word, or the patch of a picture.
    """

    known: Known
    words: Sequence[str]
    seen_words: Sequence[str]
    query: int
    head: int
    dropout: float
    thing: str = "word"

    def sentences(self) -> list[str]:
        """Return the sentences in order; who may look nowhere has little to tell."""
        if not self.known["allowed"].any():
            blind = f"{self.asker} may look at no {self.thing}: every share is 0, and so is what this head gives it."
            return [self.vectors(), self.values(), *[blind] * 5, self.all_heads()]
        return [
            self.vectors(),
            self.values(),
            self.naive_sum(),
            self.scores(),
            self.scale(),
            self.softmax(),
            self.one_head(),
            self.all_heads(),
        ]

    @property
    def asker(self) -> str:
        """Return the word that asks, as it is called in a sentence."""
        return label(self.words, self.query)

    def vectors(self) -> str:
        x, seen = self.known["x"], self.known.get("memory", self.known["x"])
        own = next(places for places in group(self.words) if self.query in places) if seen is x else ()
        others = [j for j in range(len(seen)) if j not in own]
        if not others:
            return f"{self.asker} is {x.shape[-1]} numbers, and it is the only {self.thing}."
        cosines = F.cosine_similarity(x[self.query], seen[others], dim=-1)
        return (
            f"{self.asker} is {x.shape[-1]} numbers; of the other {several(self.thing)} "
            f"{self._name(others[int(cosines.argmax())])} points most nearly the same way "
            f"(cosine {_number(cosines.max())})."
        )

    def values(self) -> str:
        lengths = self.known["values"].norm(dim=-1)
        return (
            f"Head {self.head} makes {self.known['values'].shape[-1]} numbers of each {self.thing}, its value; the "
            f"longest is that of {self._name(lengths.argmax())} (length {_number(lengths.max())}), the shortest that "
            f"of {self._name(lengths.argmin())} ({_number(lengths.min())})."
        )

    def naive_sum(self) -> str:
        count = int(self.known["allowed"].sum())
        top = self._name(self.known["weights"].argmax())
        if count == 1:
            return f"{self.asker} may look at one {self.thing} alone, {top}: there is nothing to weigh."
        return (
            f"All {counted(count, self.thing)} count 1/{count} = {_number(1 / count)}, whoever asks and however they "
            f"are ordered: {top} can do no more for {self.asker} than for any other {self.thing}."
        )

    def scores(self) -> str:
        scores, allowed = self.known["scores"], self.known["allowed"]
        best = scores.masked_fill(~allowed, -math.inf).argmax()
        worst = scores.masked_fill(~allowed, math.inf).argmin()
        return (
            f"What {self.asker} looks for is best matched by {self._name(best)} (q · k = {_number(scores[best])}) and "
            f"least by {self._name(worst)} ({_number(scores[worst])})."
        )

    def scale(self) -> str:
        stds, peaks = self.known["stds"].tolist(), self.known["peaks"].tolist()
        return (
            f"The standard deviation of the scores goes from {_number(stds[0])} to {_number(stds[3])}, and the largest "
            f"weight will be {_number(peaks[3])}; unscaled it would be {_number(peaks[0])}, and under 1/D "
            f"{_number(peaks[2])} (standard deviation {_number(stds[2])})."
        )

    def softmax(self) -> str:
        weights = self.known["weights"]
        order = weights.argsort(descending=True).tolist()
        others = ", ".join(f"{_number(weights[j])} from {self._name(j)}" for j in order[1:3] if weights[j] > 0)
        alike = math.exp(-(weights * weights.clamp(min=1e-30).log()).sum())
        spread = _number(alike)
        things = self.thing if spread == "1" else several(self.thing)
        return (
            f"{self.asker} takes {_number(weights[order[0]])} from {self._name(order[0])}"
            f"{f', {others}' if others else ''}: as spread out as {spread} {things} of equal weight."
        )

    def one_head(self) -> str:
        output, naive = self.known["head_output"], self.known["naive_sum"]
        cosine = F.cosine_similarity(output, naive, dim=0).clamp(-1, 1)
        return (
            f"So mixed, head {self.head} gives {self.asker} a vector of length {_number(output.norm())}, "
            f"{math.degrees(math.acos(cosine)):.0f}° away from the naive sum."
        )

    def all_heads(self) -> str:
        lengths = self.known["added"].norm(dim=-1)
        rank = f"number {int((lengths > lengths[self.head]).sum()) + 1}"
        heads = "The one head, its" if len(lengths) == 1 else f"The {len(lengths)} heads, concatenated to"
        drops = f" While training, each weight is dropped with probability {_number(self.dropout)}; now none is."
        return (
            f"{heads} {self.known['concatenated'].numel()} numbers, are projected; "
            f"head {self.head} adds a vector of length {_number(lengths[self.head])} ({rank} of {len(lengths)})."
            f"{drops if self.dropout else ''}"
        )

    def _name(self, place: Tensor | int) -> str:
        return label(self.seen_words, int(place))


def _number(value: Tensor | float) -> str:
    return f"{float(value):.3g}"
