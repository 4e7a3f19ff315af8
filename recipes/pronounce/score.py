"""Score a model that pronounces on words it was not trained on; the numbers of the card are this script's.

    python recipes/pronounce/score.py MODEL --test prepared/test.tsv [--beams 5] [--wrong]

A word is right when the answer equals any of its listed pronunciations; word error is the share of the others. Phoneme
error is the edit distance to the nearest listed pronunciation, over the phonemes of that one, summed over all words.
Both are printed with the digits of stress and without. Without is how the literature on CMUdict counts: Chen 2003 and
those who follow its setting (Toshniwal & Livescu 2016, for one) take stress off before they train. Here the model says
stress, and it is taken off both sides before they are compared.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from clearhead import Tokenizer, find, generate, load
from clearhead.generation import GREEDY, Beams, Greedy, answers

Phonemes = tuple[str, ...]
LONGEST = 40  # phonemes of an answer; the dictionary's longest has 32


def read_words(path: Path) -> dict[str, list[Phonemes]]:
    """Return the listed pronunciations of every word of a .tsv file."""
    listed: dict[str, list[Phonemes]] = {}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        word, phonemes = line.split("\t")
        listed.setdefault(word, []).append(tuple(phonemes.split()))
    return listed


def pronounce(
    model: object, tokenizer: Tokenizer, words: Sequence[str], choose: Greedy | Beams, batch_size: int = 256
) -> list[Phonemes]:
    """Return a pronunciation for every word, in order; words of similar length go together."""
    end = model.config.end_id  # type: ignore[attr-defined]
    order = sorted(range(len(words)), key=lambda n: len(words[n]))
    found: dict[int, Phonemes] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        sources = [row.ids for row in tokenizer.encode_many([words[n] for n in numbers])]
        steps = generate(model, sources, max_new_tokens=LONGEST, choose=choose, stop=[end])  # type: ignore[arg-type]
        for n, ids in zip(numbers, answers(steps, len(numbers)), strict=True):
            found[n] = tuple(tokenizer.decode(ids).split())
    return [found[n] for n in range(len(words))]


def distance(one: Phonemes, other: Phonemes) -> int:
    """Return how many insertions, deletions and substitutions lie between two pronunciations (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row, above = [i], row
        for j, b in enumerate(other, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b)))
    return row[-1]


def without_stress(phonemes: Phonemes) -> Phonemes:
    """Return AH K for AH0 K."""
    return tuple(each.rstrip("012") for each in phonemes)


def errors(
    said: Sequence[Phonemes], listed: Sequence[Sequence[Phonemes]], heard: Callable[[Phonemes], Phonemes]
) -> tuple[float, float]:
    """Return word error and phoneme error, both from 0 up, after `heard` has been done to both sides."""
    n_wrong = n_edits = n_phonemes = 0
    for answer, pronunciations in zip(said, listed, strict=True):
        apart = [(distance(heard(answer), heard(each)), len(each)) for each in pronunciations]
        edits, length = min(apart)
        n_wrong += edits > 0
        n_edits += edits
        n_phonemes += length
    return n_wrong / len(said), n_edits / n_phonemes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--words", type=int, help="only every n-th word, so that there are about this many")
    parser.add_argument("--wrong", action="store_true", help="print what came out wrong")
    args = parser.parse_args()
    model, tokenizer = load(args.model), Tokenizer.load(find(args.model))
    words = read_words(args.test)
    if args.words:
        words = {word: words[word] for word in list(words)[:: max(1, len(words) // args.words)]}
    print(f"{len(words):,} words, {sum(map(len, words.values())):,} pronunciations")
    for name, choose in (("greedy", GREEDY), (f"{args.beams} beams", Beams(args.beams))):
        began = time.perf_counter()
        said = pronounce(model, tokenizer, list(words), choose)
        seconds = time.perf_counter() - began
        for stress, heard in (("with stress", lambda each: each), ("without stress", without_stress)):
            word, phoneme = errors(said, list(words.values()), heard)
            print(f"{name:8s} {stress:15s} word error {100 * word:5.2f} %   phoneme error {100 * phoneme:5.2f} %")
        print(f"{name:8s} {len(words) / seconds:,.0f} words a second")
        if args.wrong:
            for (word, listed), answer in zip(words.items(), said):
                if without_stress(answer) not in map(without_stress, listed):
                    print(f"    {word}: {' '.join(answer)}, listed {' | '.join(map(' '.join, listed))}")


if __name__ == "__main__":
    main()
