"""Score a sentiment checkpoint on everything its card reports; the numbers of the card are this script's.

    python recipes/sentiment/score.py MODEL [--sst dev.tsv] [--heldout DIR/litotes_heldout.jsonl]

* SST-2 dev, if given: GLUE's file of 872 sentences (tab-separated: sentence, label).
* Litotes from frames_blind.toml: every frame that training does not have with every adjective that was never negated in
  training, one subject each; *shabby* stands in each frame for a negative word.
* Litotes written by hand (litotes_natural.jsonl), and those of prepare.py if given.
* The two sentences.
"""

import argparse
import csv
import json
import random
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clearhead import Tokenizer, classify, load
from clearhead.checkpoints import find

HERE = Path(__file__).resolve().parent
THREAD = {"attention is not too shabby": 1.0, "attention is too shabby": 0.0}

Example = tuple[str, float]


def read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


def blind_litotes(*, negated: bool = False) -> list[Example]:
    """Every blind frame, or only those that negate, filled with every held-out adjective that may stand in it."""
    trained = {frame for frames in read_toml("frames.toml")["train"].values() for frame in frames}
    frames = {kind: [f for f in listed if f not in trained] for kind, listed in read_toml("frames_blind.toml").items()}
    adjectives = read_toml("adjectives.toml")
    rng, made = random.Random(0), []
    for kind, polarity in (("negative", 0.0), ("positive", 1.0)):
        for flips, listed in (
            (False, [] if negated else frames["keep"]),
            (True, frames["flip"] + frames[f"flip_{kind}"]),
        ):
            for frame in listed:
                for word in adjectives[kind]["heldout"].split():
                    text = frame.replace("{s}", rng.choice(frames["subjects"])).replace("{a}", word)
                    text = re.sub(r"(^| )a (?!uniq|use)([aeiou])", r"\1an \2", text)
                    made.append((text, 1 - polarity if flips else polarity))
    return made


def jsonl(path: Path) -> list[Example]:
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(record["text"], record["positive"]) for record in records]


def glue(path: Path) -> list[Example]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence"], float(row["label"])) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--sst", type=Path)
    parser.add_argument("--heldout", type=Path)
    parser.add_argument("--wrong", action="store_true", help="print what came out wrong")
    args = parser.parse_args()
    model, tokenizer = load(args.model), Tokenizer.load(find(args.model))
    where = model.config.labels.index("positive")

    def positive(texts: Sequence[str]) -> list[float]:
        rows = [encoded.ids for encoded in tokenizer.encode_many(texts)]
        return [float(p[where]) for p in classify(model, rows)]

    def report(name: str, examples: list[Example]) -> None:
        found = positive([text for text, _ in examples])
        right = [(p > 0.5) == (target > 0.5) for p, (_, target) in zip(found, examples)]
        print(f"{name:42s} {100 * sum(right) / len(right):6.2f} % of {len(right):,}")
        for ok, p, (text, target) in zip(right, found, examples):
            if args.wrong and not ok:
                print(f"    {target:.0f} {p:.2f}  {text}")

    if args.sst:
        report("SST-2 dev", glue(args.sst))
    blind = blind_litotes()
    report("litotes, blind frames, held-out words", blind)
    report("  of these negated", blind_litotes(negated=True))
    report("  of these with 'shabby'", [e for e in blind if "shabby" in e[0]])
    report("litotes, written by hand", jsonl(HERE / "litotes_natural.jsonl"))
    if args.heldout:
        report("litotes, held-out frames and words", jsonl(args.heldout))
    for text, p in zip(THREAD, positive(list(THREAD))):
        print(f"P(positive) {p:.4f}  {text}")


if __name__ == "__main__":
    main()
