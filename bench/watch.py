"""What watching costs, and what it saves: six claims, each beside its peer in the same run.

    python bench/watch.py [--only forward compiled maps tile whole attnread] [--layers 12] [--rounds 8]
                          [--tokens 512 2048] [--map-tokens 4096] [--tile-tokens 1024 4096 16384] [--whole-tokens 16384]

forward   a watched forward against a plain one, in time and in what is kept
compiled  the same by torch.compile, default backend: watched while a second graph runs, against the first
maps      forward and the exact 64 x 64 overview of every head of transformers' GPT-2, against its output_attentions
          (eager, the maps pooled to the same size) and against a forward that sees nothing, in time and peak memory
tile      any 256 x 256 tile of exact weights, at lengths 1 : 4 : 16, to see that it does not grow
whole     a GPT-2 124M shape (no logits) over one long text: watched forward, then the overviews of all heads
attnread  all its patterns against ours, on a GPT-2 it supports; skipped where it is not installed

Random weights and tokens; on the GPU in bfloat16 where there is one, else on the CPU in float32. Before anything is
timed, outputs are checked to be equal bit for bit and maps against the peer's. Peak memory is that of the process
(Linux) or of the GPU, above what was held before the call; it is asked while the answers to be checked are made, so
that 12 layers of 4,096 tokens take two minutes and a half with --rounds 2, and 11 GiB for the peer.
"""

import argparse
import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, machine, peer, ratios
from torch import Tensor

import clearhead
from clearhead import GPT, GPTConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
VOCABULARY, MAP, TILE = 50_257, 64, 256


def finished(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return `call`, waiting until the GPU is done."""

    def run() -> Any:
        result = call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def peak(call: Callable[[], Any]) -> tuple[float | None, Any]:
    """Return the MiB that `call` held at its highest, above what was held before, and its answer.

    None where the memory cannot be asked.
    """
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        answer = finished(call)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20, answer
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        before = resident("VmRSS")
    except (OSError, StopIteration):
        return None, call()
    answer = call()
    return resident("VmHWM") - before, answer


def resident(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) / 2**10


def compare(
    calls: dict[str, Callable[[], Any]],
    baseline: str,
    rounds: int,
    check: Callable[[dict[str, Any]], str] | None = None,
) -> None:
    """Print time and peak memory of every call, and how many times the baseline that is; first what `check` says."""
    calls = {name: finished(call) for name, call in calls.items()}
    memory, answers = {}, {}
    for name, call in calls.items():  # also what warms them up
        memory[name], answers[name] = peak(call)
    if check is not None:
        print(check(answers), flush=True)
    del answers
    seconds = interleaved(calls, rounds)
    for name, each in seconds.items():
        middle, low, high = ratios(seconds, baseline, name)
        held = "" if memory[name] is None else f"  peak +{memory[name]:,.0f} MiB"
        took = f"{1e3 * statistics.median(each):10.1f} ms"
        print(f"  {name:32} {took}  {middle:7.3f} x {baseline} ({low:.3f}-{high:.3f}){held}")


def theirs(family: str, n_tokens: int, n_layers: int, attention: str) -> Any:
    """Return transformers' "Bert" or "GPT2" of base shape with random weights, the same at each call."""
    transformers = peer("transformers", "transformers>=5")
    if transformers is None:
        sys.exit(1)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=VOCABULARY, num_hidden_layers=n_layers, max_position_embeddings=n_tokens, use_cache=False,
        attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(transformers, f"{family}Model")(config).to(DEVICE, DTYPE).eval()


def pooled(map_: Tensor, size: int) -> Tensor:
    """Return the sums of size x size blocks of maps whose length `size` divides."""
    *lead, rows, cols = map_.shape
    return map_.reshape(*lead, size, rows // size, size, cols // size).sum((-3, -1))


# ---------------------------------------------------------------- the claims


def forward(asked: argparse.Namespace) -> None:
    for n_tokens in asked.tokens:
        forward_at(n_tokens, asked)


def compiled(asked: argparse.Namespace) -> None:
    for n_tokens in asked.tokens:
        torch.compiler.reset()
        forward_at(n_tokens, asked, torch.compile(theirs("Bert", n_tokens, asked.layers, "sdpa"), dynamic=False))


def forward_at(n_tokens: int, asked: argparse.Namespace, model: Any = None) -> None:
    if model is None:
        model = theirs("Bert", n_tokens, asked.layers, "sdpa")
    tokens = torch.randint(0, VOCABULARY, (1, n_tokens), device=DEVICE)
    plain = model(tokens).last_hidden_state
    with clearhead.watch(model) as seen:
        watched = model(tokens).last_hidden_state
    assert torch.equal(plain, watched), "watching changed the output"
    assert not seen.notes, seen.notes
    print(f"forward, {n_tokens:,} tokens, {asked.layers} layers; kept {seen.nbytes / 2**20:,.0f} MiB")
    del seen, plain, watched

    def watching() -> None:
        with clearhead.watch(model):
            model(tokens)

    compare({"plain": lambda: model(tokens), "watched": watching}, "plain", asked.rounds)


def maps(asked: argparse.Namespace) -> None:
    n_tokens = asked.map_tokens
    fused, eager = (theirs("GPT2", n_tokens, asked.layers, way) for way in ("sdpa", "eager"))
    tokens = torch.randint(0, VOCABULARY, (1, n_tokens), device=DEVICE)

    def ours() -> list[Tensor]:
        with clearhead.watch(fused) as seen:
            fused(tokens)
        return [seen.overview(layer, size=MAP) for layer in range(asked.layers)]

    def dense() -> list[Tensor]:
        found = eager(tokens, output_attentions=True).attentions
        return [pooled(one[0].float(), MAP) for one in found]

    def check(answers: dict[str, Any]) -> str:
        pairs = zip(answers["watch and overviews"], answers["output_attentions"], strict=True)
        off = max(float((a - b).abs().max()) for a, b in pairs)
        allowed = 1.0 if DTYPE.itemsize == 2 else 1e-3  # eager bfloat16 rounds every weight before it is summed
        assert off < allowed * n_tokens / MAP, f"overviews differ by {off}"
        return f"  {MAP} x {MAP} of every head, sums differ by {off:.1e}"

    print(f"maps, GPT-2, {n_tokens:,} tokens, {asked.layers} layers")
    calls = {"blind": lambda: fused(tokens), "watch and overviews": ours, "output_attentions": dense}
    compare(calls, "blind", asked.rounds, check)


def tile(asked: argparse.Namespace) -> None:
    print(f"tile, {TILE} x {TILE} exact weights")
    for n_tokens in asked.tile_tokens:
        model = theirs("Bert", n_tokens, 1, "sdpa")
        with clearhead.watch(model) as seen:
            model(torch.randint(0, VOCABULARY, (1, n_tokens), device=DEVICE))
        run = finished(partial(seen.map, 0, 3, slice(0, TILE), slice(n_tokens - TILE, None)))
        run()
        each = []
        for _ in range(50 * asked.rounds):
            start = time.perf_counter()
            run()
            each.append(time.perf_counter() - start)
        low, middle, high = (1e6 * x for x in statistics.quantiles(each, n=4))
        print(f"  {n_tokens:10,} tokens  {middle:8.0f} us ({low:.0f}-{high:.0f})")


def whole(asked: argparse.Namespace) -> None:
    n_tokens = asked.whole_tokens
    torch.manual_seed(0)
    model = GPT(GPTConfig(max_len=n_tokens, n_layers=asked.layers)).to(DEVICE, DTYPE).eval()
    tokens = torch.randint(0, 50_000, (1, n_tokens), device=DEVICE)
    took: dict[str, float] = {}
    kept: list[int] = []

    def run() -> None:
        start = time.perf_counter()
        with clearhead.watch(model) as seen:
            finished(lambda: model(tokens))()
        took["forward"] = time.perf_counter() - start
        kept.append(seen.nbytes)
        start = time.perf_counter()
        for layer in range(asked.layers):
            cells = finished(partial(seen.overview, layer, size=MAP))()
            assert abs(float(cells.sum()) / (len(cells) * n_tokens) - 1) < 1e-3, "an overview lost weight"
        took["overviews"] = time.perf_counter() - start

    held, _ = peak(run)
    dense = asked.layers * model.config.n_heads * n_tokens**2 * DTYPE.itemsize / 2**30
    print(
        f"whole, {n_tokens:,} tokens, {asked.layers} layers: watched forward {took['forward']:.1f} s, overviews of all "
        f"heads {took['overviews']:.1f} s, kept {kept[0] / 2**20:,.0f} MiB"
        + ("" if held is None else f", peak +{held:,.0f} MiB")
        + f"; the dense maps would be {dense:,.1f} GiB"
    )


def attnread(asked: argparse.Namespace) -> None:
    found = peer("attnread", "attnread==0.1.2 (pins torch, transformers and nnsight: in an environment of its own)")
    transformers = peer("transformers", "transformers>=5")
    if found is None or transformers is None:
        return
    n_tokens = min(asked.tokens)
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=asked.layers, n_positions=n_tokens, attn_implementation="sdpa")
    model = transformers.GPT2LMHeadModel(config).to(DEVICE, DTYPE).eval().requires_grad_(False)
    inputs = {"input_ids": torch.randint(0, 50_000, (1, n_tokens), device=DEVICE)}

    def ours() -> list[Tensor]:
        with clearhead.watch(model) as seen:
            model(**inputs)
        return [seen.map(layer, head) for layer in range(config.n_layer) for head in range(config.n_head)]

    def its() -> list[Tensor]:
        patterns = found.extract_attention(model, inputs)
        return [patterns["text", i, h][0] for i in range(config.n_layer) for h in range(config.n_head)]

    off = max(float((a.cpu() - b.cpu().float()).abs().max()) for a, b in zip(ours(), its(), strict=True))
    print(f"attnread, {n_tokens:,} tokens, {asked.layers} layers: every weight of every head, differing by {off:.1e}")
    compare({"watch and maps": ours, "attnread": its}, "watch and maps", asked.rounds)


CLAIMS = {claim.__name__: claim for claim in (forward, compiled, maps, tile, whole, attnread)}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = DEVICE.type == "cuda"
    parser.add_argument("--only", choices=CLAIMS, nargs="+", default=list(CLAIMS))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192, 32768] if gpu else [512, 2048])
    parser.add_argument("--map-tokens", type=int, default=8192 if gpu else 4096)
    lengths = [8192, 32768, 131_072] if gpu else [1024, 4096, 16384]
    parser.add_argument("--tile-tokens", type=int, nargs="+", default=lengths)
    parser.add_argument("--whole-tokens", type=int, default=131_072 if gpu else 16384)
    asked = parser.parse_args()
    if asked.map_tokens % MAP:
        parser.error(f"--map-tokens must be a multiple of {MAP}, got {asked.map_tokens}")
    print(machine())
    print(f"device     {torch.cuda.get_device_name() if gpu else 'CPU'}")
    for name in asked.only:
        CLAIMS[name](asked)


if __name__ == "__main__":
    main()
