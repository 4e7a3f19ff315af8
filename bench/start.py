"""Process start to first answer: a sentence in, its label out, against a transformers pipeline on the same checkpoint.

    python bench/start.py [--model sentiment] [--rounds 9] [--processor]

Every run is a new process, ours and theirs in turn; the clock starts before the interpreter does. `import torch` alone
is shown beside them, because it is most of what is left. Memory is the largest the process ever held. With --processor
the seconds are those that the process computed, which a busy machine disturbs less.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial

from measure import in_turn, machine, peer, ratios, spawned

from clearhead.checkpoints import find

TEXT = "attention is not too shabby"
THEIRS = "transformers pipeline"
PIPELINE = f"""
from transformers import pipeline
print(pipeline("text-classification", model={{folder!r}}, device="cpu")({TEXT!r}))
"""
LIBRARY = f"""
import torch, clearhead
from clearhead.checkpoints import find
model, tokenizer = clearhead.load({{folder!r}}), clearhead.Tokenizer.load(find({{folder!r}}))
print(list(clearhead.classify(model, [tokenizer.encode({TEXT!r}).ids])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sentiment", help="a shipped default, a checkpoint folder or a hub name")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--processor", action="store_true", help="seconds of the processor instead of the clock's")
    asked = parser.parse_args()
    folder = str(find(asked.model))
    print(machine())
    ways = {
        "import torch": ["-c", "import torch"],
        "clearhead classify": ["-m", "clearhead", "classify", TEXT, "--model", folder],
        "clearhead, as a library": ["-c", LIBRARY.format(folder=folder)],
    }
    if peer("transformers", "transformers"):
        ways[THEIRS] = ["-c", PIPELINE.format(folder=folder)]
    seconds, memory = in_turn(ways, partial(run, of_the_processor=asked.processor), asked.rounds)
    print(f"{'':24}  {'seconds':>7}  {'peak MiB':>8}  {'of theirs':>9}  {'(min-max)':>11}")
    for name in ways:
        line = f"{name:24}  {statistics.median(seconds[name]):7.2f}  {statistics.median(memory[name]):8.0f}"
        if THEIRS in ways:
            middle, low, high = (1 / each for each in ratios(seconds, name, THEIRS))
            line += f"  {middle:8.2f}x  ({high:4.2f}-{low:4.2f})"
        print(line)


def run(way: Sequence[str], *, of_the_processor: bool) -> tuple[float, float]:
    """Return the seconds and the peak MiB of a process that answered."""
    took, held, answer = spawned(way, of_the_processor=of_the_processor)
    if not (answer.strip() or "import torch" in way[1]):
        sys.exit(f"{' '.join(way)} answered nothing")
    return took, held


if __name__ == "__main__":
    main()
