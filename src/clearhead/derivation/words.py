"""Words as people name them, among the pieces a tokenizer cut them into.

A piece goes on where the one before it stopped if it is marked so (WordPiece: `sha ##bby`), or if the others are
marked as beginnings and it is not (GPT-2: `Ġsh abby`, SentencePiece: `▁sh abby`).
"""

from collections.abc import Sequence

from clearhead.errors import InputError, nearest

BEGINNINGS = ("Ġ", "▁")


def find_word(words: Sequence[str], wanted: str) -> int:
    """Return where `wanted` stands; of a word in several pieces, where its last piece stands.

    `shabby@5` is the *shabby* at 5, which may be any of its pieces; `@5` is whatever stands there. Upper and lower
    case are told apart only where both occur. Raises InputError when the word is absent, naming the nearest, or when
    it stands in several places, naming them.
    """
    name, at, position = wanted.rpartition("@")
    name, place = (name, int(position)) if at and position.isdecimal() else (wanted, None)
    if place is not None and place >= len(words):
        raise InputError(f"{wanted}: the last of {len(words)} words stands at {len(words) - 1}")
    if place is not None and not name:
        return place
    groups = group(words)
    spelled = ["".join(bare(words[i]) for i in places) for places in groups]
    exact = [places for places, word in zip(groups, spelled) if word == name]
    found = exact or [places for places, word in zip(groups, spelled) if word.casefold() == name.casefold()]
    if place is not None:
        found = [range(place, place + 1) for places in found if place in places]
    if not found:
        said = f"{name!r} does not stand at {place}" if place is not None else f"there is no word {name!r}"
        raise InputError(f"{said}{nearest(name, [f'{w}@{p[-1]}' for w, p in zip(spelled, groups)])}")
    if len(found) > 1:
        places = ", ".join(f"{name}@{places[-1]}" for places in found)
        raise InputError(f"{name!r} stands in {len(found)} places: ask for one of {places}")
    return found[0][-1]


def label(words: Sequence[str], place: int) -> str:
    """Return the word at `place` in quotation marks, with the piece where it is only one of several."""
    places = next(places for places in group(words) if place in places)
    whole = "".join(bare(words[i]) for i in places)
    return f"“{whole}”" if len(places) == 1 else f"“{whole}” ({words[place]})"


def group(words: Sequence[str]) -> list[range]:
    """Return the places of each whole word, in order."""
    marked = any(word.startswith(BEGINNINGS) for word in words)
    starts = [i for i in range(len(words)) if i == 0 or not _goes_on(words[i - 1], words[i], marked)]
    return [range(start, end) for start, end in zip(starts, [*starts[1:], len(words)])]


def bare(piece: str) -> str:
    """Return a piece without its mark; a piece that is nothing but a mark stays."""
    for mark in ("##", *BEGINNINGS):
        if piece.startswith(mark) and piece != mark:
            return piece.removeprefix(mark)
    return piece


def _goes_on(before: str, piece: str, marked: bool) -> bool:
    if marked:  # punctuation and special tokens such as </s> carry no mark and yet are no part of a word
        return before[-1:].isalnum() and piece[:1].isalnum() and not piece.startswith(BEGINNINGS)
    return piece.startswith("##") and piece != "##"
