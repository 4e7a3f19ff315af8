"""What is worth looking at in a recording, for one word of one text: numbers only, drawn by `terminal.py`.

Every number is a weight of the model, of one token on one token. Where a tokenizer cuts a word into pieces, pieces are
shown side by side and nothing is added up or averaged over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clearhead.derivation.words import bare, group
from clearhead.errors import InputError
from clearhead.seeing import Link, Recording

COVERAGE = 0.7  # links are listed until they carry this much of the query's weight
N_STRONGEST = 5
WHOLE_MAP = 128  # tokens up to which the chosen head's whole map goes into the JSON

CAVEAT = "Attention shows where a head looks, not why the model decides: it is not an explanation."


@dataclass(frozen=True)
class View:
    """One word of one text, in the head that looks hardest from there at another word, or in the one asked for.

    query, layer, head: whose look is shown; `chosen` says in words how layer and head came about.
    strongest: for every head (of the layers and heads asked for) its heaviest link from the query to another word,
               heaviest first. Another word: no special token, no punctuation, no piece of the query's own word.
    weights:   what the query gives to each token in the chosen head.
    links:     the fewest of these that carry 70 % of the weight; special tokens count here.
    """

    seen: Recording
    words: tuple[str, ...]
    special: tuple[bool, ...]
    query: int
    layer: int
    head: int
    chosen: str
    strongest: tuple[Link, ...]
    weights: tuple[float, ...]
    links: tuple[Link, ...]


def look(
    seen: Recording,
    words: Sequence[str],
    special: Sequence[bool],
    *,
    query: int,
    layer: int | None = None,
    head: int | None = None,
) -> View:
    """Return the view from the token at `query`; raises InputError if `words` are not the tokens that were read."""
    first = seen.layers[0]
    if not len(words) == len(special) == first.n_queries == first.n_keys:
        raise InputError(f"{len(words)} words for a recording of {first.n_queries} queries and {first.n_keys} keys")
    if not 0 <= query < len(words):
        raise InputError(f"there is no word {query}: the text has {len(words)}, counted from 0")
    strongest = rank(seen, others(words, special, query), query, layer, head)
    best = strongest[0]
    among = {(True, True): "all heads", (False, True): "this layer's heads", (True, False): f"all layers' head {head}"}
    asked = (layer is None, head is None)
    chosen = (
        f"of {among[asked]}, the one that looks hardest at another word from here" if asked in among else "as asked"
    )
    return View(
        seen=seen,
        words=tuple(words),
        special=tuple(special),
        query=query,
        layer=best.layer,
        head=best.head,
        chosen=chosen,
        strongest=strongest,
        weights=tuple(seen.row(best.layer, best.head, query).tolist()),
        links=tuple(seen.links(best.layer, best.head, query, COVERAGE)),
    )


def others(words: Sequence[str], special: Sequence[bool], query: int) -> list[int]:
    """Return where the other words stand; in a text that has none, all other tokens, or the only one."""
    own = next(places for places in group(words) if query in places)
    outside = [i for i in range(len(words)) if i not in own]
    spoken = [i for i in outside if not special[i] and any(map(str.isalnum, words[i]))]
    return spoken or outside or [query]


def rank(seen: Recording, keys: list[int], query: int, layer: int | None, head: int | None) -> tuple[Link, ...]:
    """Return each head's heaviest link from `query` to one of `keys`, heaviest first."""
    found = []
    for one in seen.layers:
        if layer is not None and one.index != layer:
            continue
        kept = seen.call(one.index).heads
        for h in kept if head is None else [head]:
            row = seen.row(one.index, h, query)[keys]
            place = int(row.argmax())
            found.append(Link(query, keys[place], float(row[place]), one.index, h))
    if not found:
        seen.call(layer if layer is not None else 0)  # says which layers there are
    return tuple(sorted(found, key=lambda link: -link.weight))


def pick_query(words: Sequence[str], special: Sequence[bool]) -> int:
    """Return the word to look from when nobody named one: the last that is neither punctuation nor a special token."""
    spoken = [i for i, word in enumerate(words) if not special[i] and any(map(str.isalnum, word))]
    return spoken[-1] if spoken else len(words) - 1


def shares(view: View, layer: int, size: int) -> torch.Tensor:
    """Return, for every head of a layer, the share of each block of queries' attention that goes to a block of keys.

    Exact sums over the keys of a block, means over its queries: rows sum to 1 (heads, row_blocks, col_blocks).
    """
    mass = view.seen.overview(layer, size=size)
    return mass / mass.sum(-1, keepdim=True).clamp(min=1e-9)


def to_json(view: View) -> dict[str, Any]:
    """Return the view as plain values; words by their place in `tokens`."""
    n = len(view.words)
    return {
        "tokens": list(view.words),
        "query": view.query,
        "layer": view.layer,
        "head": view.head,
        "layers": len(view.seen.layers),
        "heads": view.seen.layers[0].n_heads,
        "strongest": [_link(view, link) for link in view.strongest],
        "links": [_link(view, link) for link in view.links],
        "weights": list(view.weights),
        "map": view.seen.map(view.layer, view.head).tolist() if n <= WHOLE_MAP else None,
        "unseen": [{"name": u.name, "reason": u.reason} for u in view.seen.unseen],
    }


def _link(view: View, link: Link) -> dict[str, Any]:
    return {
        "from": bare(view.words[link.query]),
        "to": bare(view.words[link.key]),
        "from_place": link.query,
        "to_place": link.key,
        "weight": link.weight,
        "layer": link.layer,
        "head": link.head,
    }
