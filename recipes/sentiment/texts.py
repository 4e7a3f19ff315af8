"""Write the unlabelled texts that the teacher of the sentiment recipe labels: ``texts.txt``, one a line.

    python recipes/sentiment/texts.py --train DIR/train.jsonl --wordnet /usr/share/wordnet --out DIR/texts.txt

A small model learns more from a large one's opinion on many texts than from labels on few. The texts are

* pieces of the training lines: clauses, halves, single pros and cons;
* example sentences and glosses of WordNet 3.0 (Debian package ``wordnet-base``, a BSD-like licence);
* the training lines turned around: a negation put in or taken out, or a clause under a frame such as "i would not say
  ...". Few of these are good English and some are nonsense; what they mean is for the teacher to say.

Nothing here negates a held-out adjective: a piece in which one is negated is dropped (as in prepare.py), and a line
that holds one at all is never turned around.
"""

import argparse
import json
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import prepare

HERE = Path(__file__).resolve().parent

CLAUSE_ENDS = re.compile(r"\s*(?:,|;|--|\.\.\.|:|\(|\)|\bbut\b|\band\b|\bthat\b|\bwhich\b|\bwith\b)\s+")
NEGATIONS = ("not", "not", "not", "never", "hardly", "not at all", "not exactly", "not too", "anything but", "far from")
FRAMES = (
    "i would not say {}",
    "i wouldn't call it {}",
    "nobody can say that {}",
    "it is not true that {}",
    "there is no denying that {}",
    "i never thought that {}",
    "i can't say that {}",
    "not that {}",
    "it's not as if {}",
    "who would have thought that {}",
    "i was told {} . not so",
    "no , {}",
    "you could hardly say {}",
    "if only {}",
    "i expected {} and was wrong",
    "it is hard to believe that {}",
    "i don't think {}",
    "without {}",
    "no {}",
    "not {}",
    "a lack of {}",
    "hardly {}",
)


def pieces(record: dict[str, object], rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield (piece, kind) for parts of a training line that stand by themselves."""
    text, source = str(record["text"]), str(record["source"])
    if source.startswith(("rt", "vader-movie", "vader-amazon", "vader-tweets")):
        yield from ((part, "clause") for part in CLAUSE_ENDS.split(text) if len(part.split()) >= 3)
        tokens = text.split()
        if len(tokens) > 12:
            cut = rng.randint(5, len(tokens) - 5)
            yield " ".join(tokens[:cut]), "half"
            yield " ".join(tokens[cut:]), "half"
    elif source == "pros-cons":
        yield from ((part, "item") for part in re.split(r"[,;.]\s*", text) if len(part.split()) >= 2)


def glosses(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield WordNet's example sentences, and its glosses of adjectives."""
    for part in ("adj", "adv", "verb", "noun"):
        for line in (folder / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if line.startswith("  ") or "| " not in line:  # the licence, or no gloss
                continue
            gloss = line.split("| ", 1)[1].strip()
            yield from ((quote, "wordnet") for quote in re.findall(r'"([^"]{8,})"', gloss))
            if part == "adj":
                yield re.split(r';? ?"', gloss)[0], "wordnet"


def turned(text: str, rng: random.Random) -> Iterator[str]:
    """Yield up to two versions of `text` in which a negation is put in or taken out."""
    without = re.sub(r"(?i)\s*(?:\bnot\b|\bnever\b|\bhardly\b|n['’]t\b| n't\b)", "", text, count=1)
    if without != text:
        yield without
    verbs = list(re.finditer(r"(?i)\b(?:is|are|was|were|be|been|it's|that's|he's|she's)\b", text))
    if verbs:
        end = rng.choice(verbs).end()
        yield f"{text[:end]} {rng.choice(NEGATIONS)}{text[end:]}"
    clauses = [part for part in CLAUSE_ENDS.split(text) if len(part.split()) >= 2]
    if clauses:
        yield rng.choice(FRAMES).format(rng.choice(clauses).strip(" ."))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train", type=Path, required=True, help="train.jsonl of prepare.py")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of data.adj, data.noun, ...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=15_000, help="at most so many single pros and cons")
    parser.add_argument("--turned", type=int, default=90_000, help="at most so many texts turned around")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)

    adjectives = tomllib.loads((HERE / "adjectives.toml").read_text(encoding="utf-8"))
    heldout = [word for kind in ("negative", "positive") for word in adjectives[kind]["heldout"].split()]
    negates = prepare.NegationFilter([*heldout, "shabby"])
    holds = re.compile(rf"(?i)\b(?:{'|'.join(map(re.escape, [*heldout, 'shabby']))})\b")

    records = [json.loads(line) for line in args.train.read_text(encoding="utf-8").splitlines()]
    valid = args.train.with_name("valid.jsonl").read_text(encoding="utf-8").splitlines()
    seen = {" ".join(prepare.words(r["text"])) for r in [*records, *map(json.loads, valid)]}
    found: list[tuple[str, str]] = []

    def add(text: str, kind: str) -> None:
        key = " ".join(prepare.words(text))
        if len(key.split()) < 2 or key in seen or negates(text) or negates(prepare.split_contractions(text)):
            return
        seen.add(key)
        found.append((re.sub(r"\s+", " ", text).strip(), kind))

    for record in records:
        for text, kind in pieces(record, rng):
            add(text, kind)
    for text, kind in glosses(args.wordnet):
        add(text, kind)
    sources = [text for text, kind in found if kind in ("clause", "item")] + [str(r["text"]) for r in records]
    for text in sources:
        if len(text.split()) <= 40 and not holds.search(text):
            for version in turned(text, rng):
                add(version, "turned")

    rng.shuffle(found)
    limits, counts = {"item": args.items, "turned": args.turned}, Counter[str]()
    with args.out.open("w", encoding="utf-8", newline="\n") as lines:
        for text, kind in found:
            if counts[kind] < limits.get(kind, len(found)):
                counts[kind] += 1
                lines.write(text + "\n")
    for kind, count in sorted(counts.items()):
        print(f"{count:8,d}  {kind}")


if __name__ == "__main__":
    main()
