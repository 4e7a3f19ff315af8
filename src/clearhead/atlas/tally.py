"""What was counted so far: a sum for every statistic of every head, that can be saved, merged and gone on with.

A statistic of one text is a mean over the queries that `seeing.Habit` counts; over a corpus it is the mean over
all these queries: texts weigh as many as they have, and one with none, such as a single token, says nothing. Beside it
stands the spread from text to text, by the same weights.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from clearhead.seeing import Recording

NOT_MEANS = ("layer", "head", "kind", "queries", "heaviest")  # fields of a Habit that are names, not quantities


@dataclass
class HeadTally:
    """One head: for each statistic [sum of weights, of weight * x, of weight * x * x], and how often it was what."""

    sums: dict[str, list[float]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, x: float, weight: float) -> None:
        """Count one text's statistic."""
        sums = self.sums.setdefault(name, [0.0, 0.0, 0.0])
        for power in range(3):
            sums[power] += weight * x**power

    def means(self) -> dict[str, float]:
        """Return the mean of every statistic, and as `x_sd` its standard deviation from text to text."""
        found = {}
        for name, (weight, first, second) in self.sums.items():
            found[name] = first / weight
            found[f"{name}_sd"] = max(0.0, second / weight - found[name] ** 2) ** 0.5
        return found


@dataclass
class Tally:
    """A whole model over so many texts."""

    texts: int = 0
    tokens: int = 0
    layers: dict[int, str] = field(default_factory=dict)
    heads: dict[tuple[int, int], HeadTally] = field(default_factory=dict)

    def add(self, seen: Recording, tokens: Int[Tensor, " key"], separators: list[int]) -> None:
        """Count one text, recorded alone; `separators` are the positions of its special tokens but the first."""
        self.layers |= {layer.index: layer.name for layer in seen.layers}
        self.tokens += seen.layers[0].n_queries
        for habit in seen.heads(separators=separators, tokens=tokens):
            if not habit.queries:
                continue
            head = self.heads.setdefault((habit.layer, habit.head), HeadTally())
            head.kinds[habit.kind] += 1
            for name, x in vars(habit).items():
                if name not in NOT_MEANS and x is not None:
                    head.add(name, x, float(habit.queries))

    def merge(self, other: "Tally") -> None:
        """Count what another one counted."""
        self.texts += other.texts
        self.tokens += other.tokens
        self.layers |= other.layers
        for place, theirs in other.heads.items():
            head = self.heads.setdefault(place, HeadTally())
            head.kinds += theirs.kinds
            for name, sums in theirs.sums.items():
                ours = head.sums.get(name, [0.0, 0.0, 0.0])
                head.sums[name] = [a + b for a, b in zip(ours, sums)]

    def table(self) -> list[dict[str, Any]]:
        """Return a row for every head: where it is, what it most often was and how often, and its means."""
        rows = []
        for (layer, number), head in sorted(self.heads.items()):
            times, kind = max((times, kind) for kind, times in head.kinds.items())  # of a tie the same, whoever counts
            name = {"layer": layer, "head": number, "module": self.layers[layer], "kind": kind}
            rows.append({**name, "kind_share": times / sum(head.kinds.values()), **head.means()})
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return it as plain dicts and lists; numbers come back to the last bit."""
        heads = [[*place, head.sums, dict(head.kinds)] for place, head in self.heads.items()]
        return {"texts": self.texts, "tokens": self.tokens, "layers": list(self.layers.items()), "heads": heads}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Tally":
        """Return what `to_json` wrote."""
        heads = {(i, h): HeadTally(sums, Counter(kinds)) for i, h, sums, kinds in fields["heads"]}
        return cls(fields["texts"], fields["tokens"], dict(fields["layers"]), heads)
