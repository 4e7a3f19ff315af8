"""Tokens a second of GPT-2 124M in bfloat16 on a GPU: clearhead against transformers, the same random weights.

    python bench/generate_gpu.py [--rounds 3] [--prompt 32] [--new 256] [--batch 1 8]

The baseline is transformers' generate() as people run it, greedy and with its cache that grows. It also runs at its
best, a static cache and a compiled step. Ours: the model as it is, its step recorded as a CUDA graph, compiled and
recorded, and the same with int8 weights. The limit of one row is how often the device could read all weights in a
second, by the rate at which it copies. Logits are compared with float32 first, in units of their spread.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from generate_cpu import BASELINE, Call, opened, prompts, publish, race, with_ours, with_transformers
from measure import machine, peer

from clearhead.checkpoints import load
from clearhead.generation.recorded import Recorded
from clearhead.models.gpt import GPTForCausalLM

DEVICE = torch.device("cuda")
BOUND = {"bf16": 0.03, "int8": 0.05}


def main() -> None:
    asked = arguments()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    transformers = peer("transformers", "transformers")
    if transformers is None or not torch.cuda.is_available():
        sys.exit("stopped    needs a GPU and transformers, which is the baseline")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(machine())
    print(f"gpu        {torch.cuda.get_device_name()}, cuda {torch.version.cuda}")
    print(f"peer       transformers {transformers.__version__}")
    print(f"input      prompts of {asked.prompt} random tokens, {asked.new} new ones, greedy")
    with tempfile.TemporaryDirectory() as folder:
        publish(transformers, Path(folder))
        theirs = opened(transformers, folder, torch.bfloat16).to(DEVICE)
        best = opened(transformers, folder, torch.bfloat16).to(DEVICE)
        exact = load(folder, device="cuda")
        model = load(folder, dtype=torch.bfloat16, device="cuda")
    print(f"limit      {limit(model):,.0f} tokens/s for one row: all weights read once a token")
    for batch in asked.batch:
        calls: dict[str, Call] = {
            BASELINE: with_transformers(theirs),
            "transformers, static and compiled": with_transformers(best, cache_implementation="static"),
            "clearhead, the model as it is": with_ours(model),
        }
        notes: dict[str, str] = {}
        for name, recorded in recordings(model, batch, asked.prompt + asked.new).items():
            error = off(recorded, exact)
            print(f"checked    {name}: logits off by {error:.1e} of their spread")
            if error < BOUND["int8" if "int8" in name else "bf16"]:
                calls[name] = with_ours(recorded)
        race(calls, notes, prompts(batch, asked.prompt), asked.new, asked.rounds)


def recordings(model: GPTForCausalLM, rows: int, max_len: int) -> dict[str, Recorded]:
    """Return our step recorded in every way there is for so many rows."""
    found = {"clearhead, recorded": Recorded(model, rows=rows, max_len=max_len)}
    found["clearhead, compiled"] = Recorded(model, rows=rows, max_len=max_len, compiled=True)
    if rows == 1:
        found["clearhead int8, compiled"] = Recorded(model, max_len=max_len, compiled=True, dtype=torch.int8)
    return found


@torch.no_grad()
def off(recorded: Recorded, exact: GPTForCausalLM) -> float:
    """Return the root mean square error of logits along a text read token by token, in units of their spread."""
    text = prompts(recorded.rows, 24)
    reader = recorded.open([row[:8] for row in text], 17)
    tokens = torch.tensor(text, device=DEVICE)
    scores = [reader.read(tokens[:, :8], 8).float()]
    scores += [reader.read(tokens[:, i : i + 1]).float().clone() for i in range(8, 24)]
    expected = exact(tokens)
    return float((torch.cat(scores, 1) - expected).square().mean().sqrt() / expected.std())


def limit(model: GPTForCausalLM) -> float:
    """Return how often a second the device can read the weights that one token needs."""
    block = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    other = torch.empty_like(block)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    other.copy_(block)
    start.record()
    for _ in range(20):
        other.copy_(block)
    end.record()
    torch.cuda.synchronize()
    rate = 20 * 2 * block.numel() / (start.elapsed_time(end) / 1e3)  # a copy reads and writes
    needed = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "positions" not in name)
    return rate / needed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant runs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="how many prompts at once")
    parser.add_argument("--prompt", type=int, default=32, help="tokens a prompt")
    parser.add_argument("--new", type=int, default=256, help="new tokens")
    return parser.parse_args()


if __name__ == "__main__":
    main()
