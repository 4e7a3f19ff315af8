"""Opening a checkpoint of 500 MB: seconds and memory against reading the file, and against transformers.

    python bench/load.py [--rounds 5] [--text novels FOLDER ...]

A Llama of 124 M parameters in float32, random weights, in one file and in four shards; and GPT-2 124M, whose linear
layers are stored transposed and have to be turned, unless the model is frozen. Every run is a new process; its clock
starts when everything is imported and what that left to Python's garbage collector is collected, and stops when every
page of every weight has been looked at, as a map of a file costs nothing until then. Memory is what the process held
at most, less what it held before. Then, for every --text, process start to first token: a shipped default or a folder
with a tokenizer, on the command line here and by transformers there.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from measure import in_turn, machine, peer, ratios, spawned

from clearhead.checkpoints import find

READING = "reading the file"
KINDS = (
    ("Llama", "one file", "5GB"),
    ("Llama", "four shards", "140MB"),
    ("GPT-2", "one file", "5GB"),
    ("GPT-2", "four shards", "140MB"),
)
CLOCK = """
import gc, resource, sys, time
def held(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
{imports}
gc.collect()
before, start = held(), time.perf_counter()
{open}
print("MEASURED", time.perf_counter() - start, held() - before)
"""
LOOK = """
for p in model.parameters():
    rows = p.detach() if p.stride(-1) == 1 else p.detach().T
    float(rows[..., ::512].sum())
"""
READ = """
import glob
for path in glob.glob({folder!r} + "/*.safetensors"):
    with open(path, "rb") as file:
        while file.read(1 << 24): pass
"""
OURS = "import torch, clearhead, clearhead.checkpoints"
WAYS = {
    READING: ("import torch", READ),
    "clearhead.load": (OURS, "model = clearhead.load({folder!r})" + LOOK),
    "the same, frozen": (OURS, "model = clearhead.load({folder!r}, frozen=True)" + LOOK),
    "transformers": (
        "import torch, transformers; transformers.GPT2LMHeadModel; transformers.LlamaForCausalLM",
        "model = transformers.AutoModelForCausalLM.from_pretrained({folder!r})" + LOOK,
    ),
}
FIRST = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained({folder!r}), AutoModelForCausalLM.from_pretrained({folder!r})
given = tokenizer("It was a dark", return_tensors="pt")
print(tokenizer.decode(model.generate(input_ids=given.input_ids, max_new_tokens=1, do_sample=False)[0]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", nargs="*", default=["novels"], help="defaults or folders that write text")
    asked = parser.parse_args()
    print(machine())
    theirs = peer("transformers", "transformers")
    with tempfile.TemporaryDirectory() as folder:
        for kind, shards, size in KINDS:
            place = str(Path(folder) / f"{kind}-{size}")
            publish(kind, place, size)
            ways = {name: ["-c", CLOCK.format(imports=i, open=o.format(folder=place))] for name, (i, o) in WAYS.items()}
            if theirs is None:
                del ways["transformers"]
            table(f"{kind}, 500 MB in {shards}", ways, READING, asked.rounds)
    for text in asked.text:
        place = str(find(text))
        ours = ["-m", "clearhead", "generate", "It was a dark", "--max-new-tokens", "1", "--model", place]
        ways = {"clearhead generate": ours} | ({"transformers": ["-c", FIRST.format(folder=place)]} if theirs else {})
        table(f"process start to first token of {text}", ways, list(ways)[-1], asked.rounds)


def publish(kind: str, folder: str, shard_size: str) -> None:
    """Write the checkpoint, in a process of its own that gives the memory back."""
    made = {
        "GPT-2": "transformers.GPT2LMHeadModel(transformers.GPT2Config())",
        "Llama": "transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32_000, hidden_size=768, "
        "intermediate_size=2_048, num_hidden_layers=11, num_attention_heads=12))",
    }
    code = (
        f"import transformers, sys; transformers.set_seed(0); {made[kind]}"
        ".save_pretrained(sys.argv[1], max_shard_size=sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, folder, shard_size], check=True, capture_output=True)


def table(title: str, ways: dict[str, list[str]], baseline: str, rounds: int) -> None:
    """Run every way in turn and print a line for each."""
    seconds, memory = in_turn(ways, run, rounds)
    print(f"\n{title}\n{'':20}  {'seconds':>7}  {'MiB':>6}  {'of baseline':>11}  {'(min-max)':>11}")
    for name in ways:
        middle, low, high = (1 / each for each in ratios(seconds, name, baseline))
        took, held = statistics.median(seconds[name]), statistics.median(memory[name])
        print(f"{name:20}  {took:7.3f}  {held:6.0f}  {middle:10.2f}x  ({high:4.2f}-{low:4.2f})")


def run(way: Sequence[str]) -> tuple[float, float]:
    """Return what the process measured of itself, or else its whole time and the most it held, in MiB."""
    took, held, said = spawned(way)
    measured = next((line.split()[1:] for line in said.splitlines() if line.startswith("MEASURED")), None)
    return (float(measured[0]), float(measured[1])) if measured else (took, held)


if __name__ == "__main__":
    main()
