"""Build the training files of the sentiment recipe from public, shippable data.

Reads (folder layout below ``--data``, or the environment variable CLEARHEAD_DATA):

* ``rt-polarity/sentence_polarity.zip``    film-review sentences, CC BY 4.0
* ``rt-polarity/sst-dev-test.sha256``      hashes of SST's dev and test sentences
* ``pros-cons/pros_cons.zip``              product-review phrases, CC BY 4.0
* ``hutto_ICWSM_2014.tar.gz`` (``--vader``) lines rated by twenty people each, MIT
* ``adjectives.toml``, ``frames.toml``     beside this script: the written litotes

Writes ``train.jsonl``, ``valid.jsonl`` and ``litotes_heldout.jsonl`` to ``--out``, one
``{"text": ..., "positive": <probability 0..1>, "source": ...}`` a line, and prints what
was kept and what was dropped.  The same inputs and seed give the same files.

SST was cut out of rt-polarity, and VADER's film lines come from the same reviews.  A line
is therefore dropped when *any run of its words* has the hash of an SST dev or test
sentence (after "couldn't" -> "could n't", "(" -> "-lrb-"), and so is every VADER line that
is a piece of a dropped review.  Hashing whole lines alone would leave about 180 of the 872
sentences of SST-2 dev in the training data.

Usage: python recipes/sentiment/prepare.py --data DIR --vader FILE.tar.gz --out DIR
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import math
import os
import random
import re
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

ORIGINS = {
    "rt-polarity/sentence_polarity.zip": "nltk_data, packages/corpora/sentence_polarity.zip "
    "(https://github.com/nltk/nltk_data)",
    "rt-polarity/sst-dev-test.sha256": "first 16 hex digits of sha256 of every SST dev and test sentence after "
    're.sub(r"[^a-z0-9]+", " ", text.lower()).strip(), one a line '
    "(SST: https://nlp.stanford.edu/sentiment/)",
    "pros-cons/pros_cons.zip": "nltk_data, packages/corpora/pros_cons.zip (https://github.com/nltk/nltk_data)",
    "hutto_ICWSM_2014.tar.gz": "PyPI sdist vaderSentiment 3.3.2, additional_resources/hutto_ICWSM_2014.tar.gz",
}

# Words that turn an adjective around when they stand shortly before it.
NEGATOR = (
    r"(?:not|no|never|nothing|nobody|none|neither|nor|hardly|barely|scarcely|without|far from|anything but"
    r"|nowhere near|less|cannot|ain't|\w+n['’]t|\w*n 't|n't)"
)


@dataclass
class Example:
    """One training line: a text and the probability that it is positive."""

    text: str
    positive: float
    source: str

    def json(self) -> str:
        record = {"text": self.text, "positive": round(self.positive, 4), "source": self.source}
        return json.dumps(record, ensure_ascii=False)


# -- text -----------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits: the form under which texts are compared."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).split()


def split_contractions(text: str) -> str:
    """Write contractions as the Penn Treebank (and so SST) does: "couldn't" -> "could n't"."""
    text = re.sub(r"(?i)\b(\w+?)n['’]t\b", r"\1 n't", text)
    text = re.sub(r"(?i)\bcannot\b", "can not", text)
    return re.sub(r"(?i)\b(gon|wan)na\b", r"\1 na", text)


def spell_brackets(text: str) -> str:
    """Brackets as SST spells them: "(" -> "lrb", ")" -> "rrb"."""
    return re.sub(r"[)\]}]", " rrb ", re.sub(r"[(\[{]", " lrb ", text))


def clean(text: str) -> str:
    """Resolve HTML entities (also "&#8217 ;"), drop links, and squeeze white space."""
    text = html.unescape(re.sub(r"(&#\d+) ;", r"\1;", text))
    text = re.sub(r"\s*’ ?t\b", "'t", text)
    text = re.sub(r"https?://\S+", " ", text).replace("''", '"').replace("@anonymous", "@user")
    return re.sub(r"\s+", " ", text).strip()


# -- what must stay out ---------------------------------------------------------------------


class SstFilter:
    """Tells whether a text contains a sentence of SST's dev or test part."""

    def __init__(self, hashes: set[str], shortest: int = 4) -> None:
        self.hashes = hashes
        self.shortest = shortest

    def _listed(self, tokens: list[str]) -> bool:
        return hashlib.sha256(" ".join(tokens).encode()).hexdigest()[:16] in self.hashes

    def whole(self, text: str) -> bool:
        return self._listed(words(text))

    def __call__(self, text: str) -> bool:
        forms = {tuple(words(f)) for f in (text, split_contractions(text), spell_brackets(split_contractions(text)))}
        for form in forms:
            tokens = list(form)
            if self._listed(tokens):
                return True
            for start in range(len(tokens)):
                for stop in range(start + self.shortest, len(tokens) + 1):
                    if self._listed(tokens[start:stop]):
                        return True
        return False


class NegationFilter:
    """Tells whether a text negates one of the given words ("not too shabby", "nothing shabby")."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        listed = "|".join(sorted(map(re.escape, vocabulary), key=len, reverse=True))
        self.before = re.compile(rf"(?i)\b{NEGATOR}\b(?:[\s,\"']+[\w-]+){{0,3}}?[\s,\"']+(?:{listed})\b")

    def __call__(self, text: str) -> bool:
        return bool(self.before.search(text))


class PieceFinder:
    """Finds the review that a line was cut from, by shared runs of four words."""

    def __init__(self, reviews: list[str]) -> None:
        self.lengths = [len(words(review)) for review in reviews]
        self.index: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for number, review in enumerate(reviews):
            for gram in self._grams(review):
                self.index[gram].add(number)

    @staticmethod
    def _grams(text: str) -> set[tuple[str, ...]]:
        tokens = words(split_contractions(text))
        size = min(4, len(tokens))
        return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}

    def __call__(self, text: str) -> int | None:
        grams = self._grams(text)
        hits = Counter(number for gram in grams for number in self.index.get(gram, ()))
        if not hits:
            return None
        number, count = max(hits.items(), key=lambda item: (item[1], -item[0]))
        return number if count >= 0.5 * len(grams) else None


# -- reading the public files ---------------------------------------------------------------


def must_exist(path: Path, key: str) -> Path:
    if not path.is_file():
        sys.exit(f"prepare.py: {path} is missing.\n  Get it from: {ORIGINS[key]}")
    return path


def read_rt_polarity(path: Path) -> list[tuple[str, float]]:
    """(sentence, label) pairs; the label comes from the star rating of the whole review."""
    rows: list[tuple[str, float]] = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith((".pos", ".neg")):
                label = 1.0 if name.endswith(".pos") else 0.0
                lines = archive.read(name).decode("utf-8").splitlines()
                rows += [(clean(line), label) for line in lines if line.strip()]
    return rows


def read_pros_cons(path: Path) -> list[tuple[str, float]]:
    rows: list[tuple[str, float]] = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if match := re.search(r"Integrated(Pros|Cons)\.txt$", name):
                text = archive.read(name).decode("utf-8", errors="replace")
                found = re.findall(r"<(?:Pros|Cons)>(.*?)</(?:Pros|Cons)>", text, flags=re.S)
                rows += [(clean(line), 1.0 if match[1] == "Pros" else 0.0) for line in found]
    return rows


def read_vader(path: Path) -> dict[str, list[tuple[str, float]]]:
    """(text, mean rating -4..4) pairs for each of the four parts."""
    parts: dict[str, list[tuple[str, float]]] = {}
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda m: m.name):
            match = re.search(r"/(movie|amazon|nyt|tweets)\w*_GroundTruth\.txt$", member.name)
            handle = archive.extractfile(member) if match else None
            if match and handle:
                rows = [line.split("\t", 2) for line in handle.read().decode("utf-8").splitlines()]
                parts[match[1]] = [(clean(text), float(rating)) for _, rating, text in rows]
    return parts


def rating_to_probability(rating: float, steepness: float) -> float:
    return 1.0 / (1.0 + math.exp(-steepness * rating))


# -- written litotes ------------------------------------------------------------------------


class Litotes:
    """Fills sentence frames with adjectives; knows the polarity of what comes out."""

    def __init__(self, frames: dict[str, list[str]], subjects: list[str], rng: random.Random) -> None:
        self.frames = frames
        self.subjects = subjects
        self.rng = rng

    def _fill(self, frame: str, a: str, b: str = "") -> str:
        text = frame.replace("{s}", self.rng.choice(self.subjects)).replace("{a}", a).replace("{b}", b)
        return re.sub(r"(^| )a (?!uniq|use)([aeiou])", r"\1an \2", text)

    def one(self, word: str, positive: bool, kind: str) -> Example:
        """A sentence with one adjective; kind is "keep" or "flip"."""
        own = self.frames[f"{kind}_{'positive' if positive else 'negative'}"]
        frame = self.rng.choice(self.rng.choice([self.frames[kind], own]))
        return Example(self._fill(frame, word), float(positive == (kind == "keep")), f"litotes-{kind}")

    def two(self, negative: str, positive: str, other_negative: str, other_positive: str) -> list[Example]:
        """Contrasts and pairs: one of each polarity."""
        pick = self.rng.choice
        return [
            Example(self._fill(pick(self.frames["contrast"]), negative, positive), 1.0, "litotes-contrast"),
            Example(self._fill(pick(self.frames["contrast"]), positive, negative), 0.0, "litotes-contrast"),
            Example(self._fill(pick(self.frames["both_keep"]), positive, other_positive), 1.0, "litotes-both"),
            Example(self._fill(pick(self.frames["both_keep"]), negative, other_negative), 0.0, "litotes-both"),
            Example(self._fill(pick(self.frames["both_flip"]), positive, other_positive), 0.0, "litotes-both"),
            Example(self._fill(pick(self.frames["both_flip"]), negative, other_negative), 1.0, "litotes-both"),
        ]

    def comparatives(self, negative: list[str], positive: list[str]) -> Iterator[Example]:
        """ "could not be better" is positive, "could be better" is not."""
        for better, listed in ((1.0, positive), (0.0, negative)):
            for word in listed:
                for kind, label in (("keep", better), ("flip", 1.0 - better)):
                    for frame in self.frames[f"comparative_{kind}"]:
                        yield Example(self._fill(frame, word), label, f"litotes-{kind}")

    def build(self, negative: list[str], positive: list[str], keeps: int, flips: int, pairs: int) -> list[Example]:
        made: list[Example] = []
        for listed, polarity in ((negative, False), (positive, True)):
            for word in listed:
                made += [self.one(word, polarity, "keep") for _ in range(keeps)]
                made += [self.one(word, polarity, "flip") for _ in range(flips)]
        for _ in range(pairs):
            n, m = self.rng.sample(negative, 2)
            p, q = self.rng.sample(positive, 2)
            made += self.two(n, p, m, q)
        return made


# -- putting it together --------------------------------------------------------------------


def unique(examples: list[Example], dropped: Counter[str]) -> list[Example]:
    """Keep one of each text (the first source wins); drop texts whose labels contradict each other."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        # Punctuation-only differences ("great!!") are duplicates, contractions are not words apart.
        groups[" ".join(words(split_contractions(example.text)))].append(example)
    kept: list[Example] = []
    for key, group in groups.items():
        if not key:
            dropped[f"{group[0].source}: no words"] += len(group)
            continue
        low, high = min(e.positive for e in group), max(e.positive for e in group)
        if low < 0.5 < high and high - low > 0.5:
            for example in group:
                dropped[f"{example.source}: conflicting duplicate"] += 1
            continue
        for example in group[1:]:
            dropped[f"{example.source}: duplicate"] += 1
        kept.append(Example(group[0].text, sum(e.positive for e in group) / len(group), group[0].source))
    return kept


def treebank_copies(examples: list[Example]) -> list[Example]:
    """A second copy in Penn Treebank spelling of every line with a contraction."""
    copies = []
    for example in examples:
        split = split_contractions(example.text)
        if split != example.text:
            copies.append(Example(split, example.positive, example.source))
    return copies


def write(path: Path, examples: Iterable[Example]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        for example in examples:
            handle.write(example.json() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("CLEARHEAD_DATA"), help="default: CLEARHEAD_DATA")
    parser.add_argument("--vader", type=Path, required=True, help="hutto_ICWSM_2014.tar.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steepness", type=float, default=1.5, help="of the curve from VADER rating to probability")
    parser.add_argument("--litotes", type=int, default=6, help="plain and negated sentences for each adjective, each")
    parser.add_argument("--pairs", type=int, default=200, help="sixes of sentences with two adjectives")
    parser.add_argument("--pros-cons-share", type=float, default=0.35, help="share of the product phrases kept")
    parser.add_argument("--valid-share", type=float, default=0.1, help="share of the film reviews held out")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give --data DIR or set CLEARHEAD_DATA")
    rng = random.Random(args.seed)
    dropped: Counter[str] = Counter()

    data = Path(args.data)
    paths = {key: must_exist(data / key, key) for key in ORIGINS if "/" in key}
    rt = read_rt_polarity(paths["rt-polarity/sentence_polarity.zip"])
    hashes = set(paths["rt-polarity/sst-dev-test.sha256"].read_text().split())
    pros_cons = read_pros_cons(paths["pros-cons/pros_cons.zip"])
    vader = read_vader(must_exist(args.vader, "hutto_ICWSM_2014.tar.gz"))

    adjectives = tomllib.loads((HERE / "adjectives.toml").read_text(encoding="utf-8"))
    frames = tomllib.loads((HERE / "frames.toml").read_text(encoding="utf-8"))
    lists = {(p, s): adjectives[p][s].split() for p in ("negative", "positive") for s in ("train", "heldout")}
    sst = SstFilter(hashes)
    shabby = NegationFilter(["shabby"])
    heldout = NegationFilter(lists["negative", "heldout"] + lists["positive", "heldout"])

    def negates(text: str, source: str) -> bool:
        if shabby(text) or shabby(split_contractions(text)):
            dropped[f"{source}: negates shabby"] += 1
            return True
        if heldout(text) or heldout(split_contractions(text)):
            dropped[f"{source}: negates a held-out adjective"] += 1
            return True
        return False

    # Film reviews.  A review whose text holds an SST dev/test sentence is dropped with all its pieces.
    reviews = [text for text, _ in rt]
    leaked = [sst(text) for text in reviews]
    for text, bad in zip(reviews, leaked, strict=True):
        if bad:
            kind = "whole line" if sst.whole(text) else "contraction or part of line"
            dropped[f"rt-polarity: SST dev/test sentence ({kind})"] += 1
    in_valid = [rng.random() < args.valid_share for _ in reviews]
    piece_of = PieceFinder(reviews)
    train: list[Example] = []
    valid: list[Example] = []
    ratings: dict[int, float] = {}
    for text, rating in vader["movie"]:
        review = piece_of(text)
        if sst(text):
            dropped["vader-movie: SST dev/test sentence"] += 1
        elif review is not None and leaked[review]:
            dropped["vader-movie: piece of a dropped review"] += 1
        elif not negates(text, "vader-movie"):
            probability = rating_to_probability(rating, args.steepness)
            if review is None:
                # The review is unknown, so is its SST sentence: cannot be checked further, keep.
                train.append(Example(text, probability, "vader-movie"))
                continue
            whole = len(words(text)) >= 0.9 * piece_of.lengths[review]
            if whole and review not in ratings:
                ratings[review] = probability
            if in_valid[review]:
                if abs(rating) >= 0.5:
                    valid.append(Example(text, float(rating > 0), "vader-movie"))
                else:
                    dropped["vader-movie: neutral, held out"] += 1
            elif not whole:
                train.append(Example(text, probability, "vader-movie"))
    for number, (text, label) in enumerate(rt):
        if leaked[number] or negates(text, "rt-polarity"):
            continue
        if in_valid[number]:
            dropped["rt-polarity: review held out"] += 1
        elif number in ratings:  # twenty raters of the line itself, and the stars of its review
            train.append(Example(text, 0.75 * ratings[number] + 0.25 * label, "rt-polarity+vader"))
        else:
            train.append(Example(text, label, "rt-polarity"))

    # Other lines that people rated, and product phrases.
    other: list[Example] = []
    for part in ("amazon", "tweets", "nyt"):
        for text, rating in vader[part]:
            if not negates(text, f"vader-{part}"):
                other.append(Example(text, rating_to_probability(rating, args.steepness), f"vader-{part}"))
    for text, label in pros_cons:
        empty = re.fullmatch(
            r"(?i)(none|nothing|n/?a|no|not (yet|any)|see below)?[\s\w]{0,10}[.!]*", text
        ) and re.match(r"(?i)(none|nothing|n/?a|see)\b", text)
        if not text or empty:
            dropped["pros-cons: says nothing"] += 1
        elif sst.whole(text):
            dropped["pros-cons: SST dev/test sentence"] += 1
        elif rng.random() >= args.pros_cons_share:
            dropped["pros-cons: left out, more of them helps no further"] += 1
        elif not negates(text, "pros-cons"):
            other.append(Example(text, label, "pros-cons"))
    other = unique(train + other, dropped)
    train = [e for e in other if e.source.startswith(("rt", "vader-movie"))]
    other = [e for e in other if not e.source.startswith(("rt", "vader-movie"))]
    rng.shuffle(other)
    held = {"pros-cons": 600, "vader-amazon": 200, "vader-tweets": 200}
    for example in other:
        if held.get(example.source, 0) > 0 and abs(example.positive - 0.5) > 0.2:
            held[example.source] -= 1
            valid.append(Example(example.text, float(example.positive > 0.5), example.source))
        else:
            train.append(example)

    # Litotes.  Some of the training words make up the validation part, the held-out ones the last file.
    negative, positive = lists["negative", "train"], lists["positive", "train"]
    rng.shuffle(negative)
    rng.shuffle(positive)
    writer = Litotes(frames["train"], frames["subjects"], rng)
    made = writer.build(negative[40:], positive[40:], args.litotes, args.litotes, args.pairs)
    # Held-out words appear un-negated, so that what is tested is negation and not vocabulary.
    made += writer.build(lists["negative", "heldout"], lists["positive", "heldout"], 2, 0, 0)
    comparatives = adjectives["comparatives"]
    made += writer.comparatives(comparatives["negative"].split(), comparatives["positive"].split())
    valid += unique(writer.build(negative[:40], positive[:40], 2, 2, 10), dropped)
    train += unique(made, dropped)
    last = Litotes(frames["heldout"], frames["heldout_subjects"], random.Random(args.seed))
    test = unique(last.build(lists["negative", "heldout"], lists["positive", "heldout"], 2, 2, 8), dropped)

    train += treebank_copies(train)
    rng.shuffle(train)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, examples in (("train", train), ("valid", valid), ("litotes_heldout", test)):
        write(args.out / f"{name}.jsonl", examples)

    def report(title: str, counts: Counter[str]) -> None:
        print(title)
        for key, count in sorted(counts.items()):
            print(f"  {count:6d}  {key}")
        print(f"  {sum(counts.values()):6d}  total")

    for name, examples in (("train", train), ("valid", valid), ("litotes_heldout", test)):
        report(
            f"{name}.jsonl (mean target {sum(e.positive for e in examples) / len(examples):.3f})",
            Counter(e.source for e in examples),
        )
    report("dropped", dropped)


if __name__ == "__main__":
    main()
