"""What a recording on disk costs: to stream it there, to open it, to answer for a random tile; a watched decode step.

    python bench/recording.py [--tokens 4096] [--layers 12] [--heads 12] [--tiles 200] [--folder DIR]

A recording of the 124M-parameter shape in bfloat16, one causal text, is written as `watch(to=...)` writes it, layer by
layer. Queries and keys are random numbers, and so are the normalisers except those of the rows that are checked: to run
the attention of 100,000 tokens would take this machine hours and change nothing of what is timed. The file is opened in
a new process, every head and two corners are touched once, tiles are checked against float64, then tiles of 256 x 256
at random places, layers and heads are timed one by one. The aim is 10 ms at --tokens 100000.

Last, steps of a generation: fused calls with a cache that grows, plain and watched in turn.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import machine
from torch import Tensor, nn

import clearhead
from clearhead.seeing.call import Call
from clearhead.seeing.recordings.keeping import Keeper
from clearhead.seeing.recordings.saving import finish
from clearhead.seeing.recordings.store import File
from clearhead.seeing.rule import Rule

SIDE, D_HEAD = 256, 64


def write(path: Path, n_layers: int, n_heads: int, n_tokens: int) -> float:
    """Write the recording and return the seconds that took, drawing numbers not counted."""
    file, recording, rule, took = File(path), clearhead.Recording(), Rule(reach=0), 0.0
    keeper = Keeper(place=file)
    drawn = torch.randn(1, n_heads, n_tokens, D_HEAD, generator=torch.Generator().manual_seed(0)).bfloat16()
    for layer in range(n_layers):
        q, k = drawn.roll(layer, 2), drawn.roll(layer + 1, 3).roll(-layer, 2)
        lse = torch.full((1, n_heads, n_tokens), 8.0)
        for row in checked(n_tokens):
            scores = (q[0, :, row, None].double() @ k[0, :, : row + 1].double().mT)[:, 0] / D_HEAD**0.5
            lse[0, :, row] = scores.logsumexp(-1).float()
        heads = tuple(range(n_heads))
        call = Call(q, k, rule, D_HEAD**-0.5, heads, heads, n_heads, n_heads, lse)
        start = time.perf_counter()
        kept = keeper.keep(recording.index(f"layers.{layer}"), call, q.dtype)
        took += time.perf_counter() - start
        assert kept is not None
        recording.calls[layer] = [kept]
    start = time.perf_counter()
    keeper.finish()
    finish(recording, file)
    return took + time.perf_counter() - start


def checked(n_tokens: int) -> list[int]:
    """Return the rows whose normaliser is right."""
    return [n_tokens // 3, n_tokens // 2, n_tokens - SIDE]


def look(path: str, n_tiles: int) -> None:
    """Open the file in this process, check a few tiles, then time many."""
    start = time.perf_counter()
    seen = clearhead.open_recording(path)
    opened = time.perf_counter() - start
    layers, source = seen.layers, torch.Generator().manual_seed(0)

    def some(n: int) -> int:
        return int(torch.randint(max(1, n), (1,), generator=source))

    first = []
    for one in layers:
        start = time.perf_counter()
        for head in range(one.n_heads):
            for corner in (0, one.n_keys - SIDE):
                seen.map(one.index, head, slice(0, SIDE), slice(corner, corner + SIDE))
        first.append(time.perf_counter() - start)
    worst = 0.0
    for row in checked(layers[0].n_keys):
        layer, head, left = some(len(layers)), some(layers[0].n_heads), some(row)
        call = seen.call(layer)
        scores = call.scale * call.q[0, head, row].double() @ call.k[0, head, : row + 1].double().mT
        tile = seen.map(layer, head, slice(row, row + SIDE), slice(left, min(left + SIDE, row + 1)))
        worst = max(worst, float((scores.softmax(-1)[left : left + SIDE] - tile[0]).abs().max()))
    assert worst < 1e-5, f"a tile is wrong by {worst}"
    each = []
    for _ in range(n_tiles):
        layer, head, top, left = (some(n) for n in (len(layers), one.n_heads, one.n_keys - SIDE, one.n_keys - SIDE))
        start = time.perf_counter()
        seen.map(layer, head, slice(top, top + SIDE), slice(left, left + SIDE))
        each.append(1e3 * (time.perf_counter() - start))
    each.sort()
    print(
        f"  opened in {1e3 * opened:.0f} ms; first touch of a layer, all heads {1e3 * statistics.median(first):.0f} ms"
    )
    print(
        f"  a random {SIDE} x {SIDE} tile: median {statistics.median(each):.2f} ms, 99 of 100 under "
        f"{each[int(0.99 * len(each))]:.2f} ms, slowest {each[-1]:.2f} ms; largest error {worst:.1e}"
    )


class Step(nn.Module):
    """One attention of a decoder at one step."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def steps(n_tokens: int, n_heads: int) -> None:
    """Print what a step of a generation costs, watched and not, with a cache of `n_tokens` and more."""
    model, cache = Step(), torch.randn(2, 1, n_heads, n_tokens + 64, D_HEAD)
    plain, watched = [], []
    with clearhead.watch(model) as seen:
        for n in range(n_tokens, n_tokens + 64):
            q, (k, v) = torch.randn(1, n_heads, 1, D_HEAD), cache[:, :, :, :n].clone()
            start = time.perf_counter()
            F.scaled_dot_product_attention(q, k, v)
            between = time.perf_counter()
            model(q, k, v)
            plain.append(between - start)
            watched.append(time.perf_counter() - between)
    ratio = statistics.median(b / a for a, b in zip(plain, watched, strict=True))
    given = sum(call.n_keys for call in seen.calls[0]) * n_heads * D_HEAD * 4
    print(f"  a step on {n_tokens} keys, float32: x{ratio:.2f} of its attention alone")
    print(f"  of 64 steps {seen.nbytes / 2**20:.0f} MiB are kept, {given / 2**20:.0f} MiB of keys were shown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 4096), ("layers", 12), ("heads", 12), ("tiles", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--look", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.look:
        look(given.look, given.tiles)
        return
    print(machine())
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "run.seen"
        took = write(path, given.layers, given.heads, given.tokens)
        size = path.stat().st_size / 2**20
        print(f"{given.tokens} tokens, {given.layers} layers, {given.heads} heads: {size:.0f} MiB")
        print(f"  streamed to the file, checksums and sync included, in {took:.1f} s, {size / took:.0f} MiB/s")
        sys.stdout.flush()
        subprocess.run([sys.executable, __file__, "--look", str(path), "--tiles", str(given.tiles)], check=True)
    steps(min(given.tokens, 8192), given.heads)


if __name__ == "__main__":
    main()
