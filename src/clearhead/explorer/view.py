"""What is worth looking at in a recording, for one word of one text: numbers only, drawn by `terminal.py`.

Every number is a weight of the model, of one token on one token. Where a tokenizer cuts a word into pieces, pieces are
shown side by side and nothing is added up or averaged over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from clearhead.derivation.words import bare, group
from clearhead.errors import InputError
from clearhead.seeing import Link, Recording

COVERAGE = 0.7  # links are listed until they carry this much of the query's weight
N_STRONGEST = 5
LONG = 64  # tokens from which heads that look at places rather than words are told apart, and come last
PLACES = ("sink", "previous", "self", "next")  # what such a head is called in seeing/maps/habits.py
WHOLE_MAP = 128  # tokens up to which the chosen head's whole map goes into the JSON

# English words that hold a sentence together rather than say what it is about: articles, pronouns, prepositions,
# conjunctions, auxiliaries, negations, and what tokenizers leave of contractions (don't, it's). A word of another
# language, or one missing here, counts as content: the choice is a default, and --query overrules it.
FUNCTION_WORDS = frozenset(
    """
    a about after again all also am an and any are as at be because been before being but by can could did do does doing
    down for from had has have having he her here hers him his how i if in into is it its just may me might more most
    must my never no nor not of off on once only or other our out over own shall she should so some such than that the
    their them then there these they this those through to too under up us very was we were what when where which while
    who whom whose why will with would you your yours
    aren couldn d didn doesn don hadn hasn haven isn ll m ma mustn re s shan shouldn t ve wasn weren won wouldn y
    """.split()
)

CAVEAT = "Attention shows where a head looks, not why the model decides: it is not an explanation."


@dataclass(frozen=True)
class View:
    """One word of one text, in the head that looks hardest from there at another word, or in the one asked for.

    query, layer, head: whose look is shown; `chosen` says in words how layer and head came about.
    keys:      what can be looked at: the words themselves, or those of a source in cross-attention.
    strongest: for every head (of the layers and heads asked for) its heaviest link from the query to another word,
               heaviest first. Another word: no special token, no punctuation, no piece of the query's own word.
    placed:    how many of these come last because over a long text they look mostly at a place: the token before or
               after, the query's own, the first.
    weights:   what the query gives to each token in the chosen head.
    links:     the fewest of these that carry 70 % of the weight; special tokens count here.
    patches:   of a picture, how many rows and columns of patches there are; they are the last of the words.
    """

    seen: Recording
    words: tuple[str, ...]
    keys: tuple[str, ...]
    query: int
    layer: int
    head: int
    chosen: str
    strongest: tuple[Link, ...]
    placed: int
    weights: tuple[float, ...]
    links: tuple[Link, ...]
    patches: tuple[int, int] | None = None

    @property
    def crosses(self) -> bool:
        """Return whether one text looks at another."""
        return self.keys is not self.words

    @property
    def another(self) -> str:
        """Return what it is that heads are ranked by looking at."""
        return "a word of the source" if self.crosses else "another patch" if self.patches else "another word"


@dataclass(frozen=True)
class Source:
    """The text looked at in cross-attention, in the pieces the model reads."""

    words: Sequence[str]
    special: Sequence[bool]


def look(
    seen: Recording,
    words: Sequence[str],
    special: Sequence[bool],
    *,
    query: int,
    layer: int | None = None,
    head: int | None = None,
    source: Source | None = None,
    patches: tuple[int, int] | None = None,
) -> View:
    """Return the view from the token at `query`; raises InputError if `words` are not the tokens that were read.

    With a `source` the recording is of cross-attention, whose keys are the source's words.
    """
    first, n_keys = seen.layers[0], len(source.words if source else words)
    if (len(words), n_keys) != (first.n_queries, first.n_keys) or len(words) != len(special):
        raise InputError(
            f"{len(words)} words for a recording of {first.n_queries} queries and {first.n_keys} keys"
            + (f", {n_keys} words in the source" if source else "")
        )
    if not 0 <= query < len(words):
        raise InputError(f"there is no word {query}: the text has {len(words)}, counted from 0")
    shown = tuple(words)
    if source is None:
        keys, targets = shown, others(words, special, query)
    else:
        keys, targets = tuple(source.words), spoken(source.words, source.special) or list(range(n_keys))
    strongest, placed = rank(seen, targets, query, layer, head)
    best = strongest[0]
    among = {(True, True): "all heads", (False, True): "this layer's heads", (True, False): f"all layers' head {head}"}
    asked = (layer is None, head is None)
    view = View(
        seen=seen,
        words=shown,
        keys=keys,
        query=query,
        layer=best.layer,
        head=best.head,
        chosen="as asked",
        strongest=strongest,
        placed=placed,
        weights=tuple(seen.row(best.layer, best.head, query).tolist()),
        links=tuple(seen.links(best.layer, best.head, query, COVERAGE)),
        patches=patches,
    )
    if not any(asked):
        return view
    by_place = " and that looks at no fixed place" if placed else ""
    return replace(view, chosen=f"of {among[asked]}, the one that looks hardest at {view.another} from here{by_place}")


def others(words: Sequence[str], special: Sequence[bool], query: int) -> list[int]:
    """Return where the other words stand; in a text that has none, all other tokens, or the only one."""
    own = next(places for places in group(words) if query in places)
    outside = [i for i in range(len(words)) if i not in own]
    said = set(spoken(words, special))
    return [i for i in outside if i in said] or outside or [query]


def spoken(words: Sequence[str], special: Sequence[bool]) -> list[int]:
    """Return where tokens stand that are written in the text and are no punctuation."""
    return [i for i in range(len(words)) if not special[i] and any(map(str.isalnum, words[i]))]


def rank(
    seen: Recording, keys: list[int], query: int, layer: int | None, head: int | None
) -> tuple[tuple[Link, ...], int]:
    """Return each head's heaviest link from `query` to one of `keys`, heaviest first, and how many are put last.

    Over a long text those are put last that look mostly at a place, whatever word stands there.
    """
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
    by_place = looking_at_places(seen)
    found.sort(key=lambda link: ((link.layer, link.head) in by_place, -link.weight))
    placed = sum((link.layer, link.head) in by_place for link in found)
    return tuple(found), 0 if placed == len(found) else placed


def looking_at_places(seen: Recording) -> set[tuple[int, int]]:
    """Return which heads give at least half of their weight to a place: layer and head; none in a short text."""
    first = seen.layers[0]
    if first.n_queries != first.n_keys or first.n_keys < LONG:
        return set()
    return {(habit.layer, habit.head) for habit in seen.heads() if habit.kind in PLACES}


def pick_query(words: Sequence[str], special: Sequence[bool]) -> int:
    """Return the word to look from when nobody named one: the last content word, of several pieces the last.

    In a text of function words alone their last; without any word, the last piece that is no special token, if any.
    """
    pieces = [i for i in range(len(words)) if not special[i]]
    spelled = {places[-1]: "".join(bare(words[i]) for i in places) for places in group(words)}
    letters = {i: "".join(filter(str.isalnum, word)).casefold() for i, word in spelled.items() if not special[i]}
    spoken = [i for i, word in letters.items() if word]
    content = [i for i in spoken if letters[i] not in FUNCTION_WORDS]
    return (content or spoken or pieces or range(len(words)))[-1]


def shares(view: View, layer: int, size: int) -> torch.Tensor:
    """Return, for every head of a layer, the share of each block of queries' attention that goes to a block of keys.

    Exact sums over the keys of a block, means over its queries: rows sum to 1 (heads, row_blocks, col_blocks).
    """
    mass = view.seen.overview(layer, size=size)
    return mass / mass.sum(-1, keepdim=True).clamp(min=1e-9)


def to_json(view: View) -> dict[str, Any]:
    """Return the view as plain values; words by their place in `tokens`."""
    n = max(len(view.words), len(view.keys))
    return {
        "tokens": list(view.words),
        **({"source_tokens": list(view.keys)} if view.crosses else {}),
        "query": view.query,
        "layer": view.layer,
        "head": view.head,
        "layers": len(view.seen.layers),
        "heads": view.seen.layers[0].n_heads,
        "strongest": [_link(view, link) for link in view.strongest],
        "links": [_link(view, link) for link in view.links],
        "weights": list(view.weights),
        "map": view.seen.map(view.layer, view.head).tolist() if n <= WHOLE_MAP else None,
        "unseen": [{"name": u.name, "reason": u.reason, "how_often": u.how_often} for u in view.seen.unseen],
    }


def _link(view: View, link: Link) -> dict[str, Any]:
    return {
        "from": bare(view.words[link.query]),
        "to": bare(view.keys[link.key]),
        "from_place": link.query,
        "to_place": link.key,
        "weight": link.weight,
        "layer": link.layer,
        "head": link.head,
    }
