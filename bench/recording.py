"""What a recording on disk costs to write and to look at: save, open, a random tile, a step of a generation.

    python bench/recording.py [--tokens 2048] [--layers 12] [--heads 12] [--tiles 200] [--folder DIR]

Random queries and keys of a 124M-parameter shape in bfloat16, causal, one text, streamed to a file by `watch(to=...)`
while fused calls run (the last `--rows` queries look at all keys, so that a long text takes seconds and not hours; with
`--rows 0` all do). The file is opened in a new process: every head and corner is touched once, then tiles of 256 x 256
at random places, layers and heads are timed one by one. Tiles are checked against float64 first. The aim is 10 ms.
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

SIDE = 256


class Layers(nn.Module):
    """Attention of many layers on random numbers, which are drawn again from their seed when they are to be checked."""

    def __init__(self, n_layers: int, n_heads: int, n_tokens: int, n_rows: int) -> None:
        super().__init__()
        self.sizes = n_layers, n_heads, n_tokens, n_rows

    def draw(self, layer: int) -> tuple[Tensor, Tensor]:
        _, n_heads, n_tokens, n_rows = self.sizes
        source = torch.Generator().manual_seed(layer)
        q, k = (torch.randn(1, n_heads, n, 64, generator=source).bfloat16() for n in (n_rows or n_tokens, n_tokens))
        return q, k

    def forward(self) -> None:
        for layer in range(self.sizes[0]):
            q, k = self.draw(layer)
            F.scaled_dot_product_attention(q, k, k, is_causal=q.shape[2] == k.shape[2])


def look(path: str, n_tiles: int) -> None:
    """Open the file in this process, check a few tiles, then time many."""
    start = time.perf_counter()
    seen = clearhead.open_recording(path)
    opened = time.perf_counter() - start
    layers = seen.layers
    source = torch.Generator().manual_seed(0)

    def place(n: int) -> int:
        return int(torch.randint(max(1, n - SIDE), (1,), generator=source))

    def tile() -> tuple[int, int, slice, slice]:
        one = layers[int(torch.randint(len(layers), (1,), generator=source))]
        top, left = place(one.n_queries), place(one.n_keys)
        head = int(torch.randint(one.n_heads, (1,), generator=source))
        return one.index, head, slice(top, top + SIDE), slice(left, left + SIDE)

    first = []
    for one in layers:
        start = time.perf_counter()
        for head in range(one.n_heads):
            for corner in (0, one.n_keys - SIDE):
                seen.map(one.index, head, slice(0, SIDE), slice(corner, corner + SIDE))
        first.append(time.perf_counter() - start)
    worst = 0.0
    for _ in range(4):
        layer, head, rows, cols = tile()
        call, row = seen.call(layer), rows.start
        scores = call.scale * call.q[0, head, row].double() @ call.k[0, head].double().T
        if call.rule.reach is not None:
            scores[row + call.rule.reach + 1 :] = -torch.inf
        worst = max(worst, float((scores.softmax(-1)[cols] - seen.map(layer, head, rows, cols)[0]).abs().max()))
    assert worst < 1e-5, f"a tile is wrong by {worst}"
    each = []
    for _ in range(n_tiles):
        layer, head, rows, cols = tile()
        start = time.perf_counter()
        seen.map(layer, head, rows, cols)
        each.append(1e3 * (time.perf_counter() - start))
    each.sort()
    print(f"  opened in {1e3 * opened:.1f} ms; first touch of a layer {1e3 * statistics.median(first):.0f} ms")
    print(
        f"  a random {SIDE} x {SIDE} tile: median {statistics.median(each):.2f} ms, 99 of 100 under "
        f"{each[int(0.99 * len(each))]:.2f} ms, slowest {each[-1]:.2f} ms; largest error {worst:.1e}"
    )


def steps(n_tokens: int) -> None:
    """Print what one step of a generation costs, watched and not, with a cache of `n_tokens`."""

    class Step(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

    model, cache = Step(), torch.randn(2, 1, 12, n_tokens + 64, 64)
    plain, watched = [], []
    with clearhead.watch(model) as seen:
        for n in range(n_tokens, n_tokens + 64):
            q, (k, v) = torch.randn(1, 12, 1, 64), cache[:, :, :, :n].clone()
            start = time.perf_counter()
            F.scaled_dot_product_attention(q, k, v)
            between = time.perf_counter()
            model(q, k, v)
            plain.append(between - start)
            watched.append(time.perf_counter() - between)
    ratio = statistics.median(b / a for a, b in zip(plain, watched, strict=True))
    kept, given = seen.nbytes, sum(call.k.numel() * 4 for call in seen.calls[0])
    print(f"  a step on {n_tokens} keys: x{ratio:.2f} of its attention alone; kept {kept:,} bytes, given {given:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 2048), ("layers", 12), ("heads", 12), ("rows", 1024), ("tiles", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--look", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.look:
        look(given.look, given.tiles)
        return
    print(machine())
    model = Layers(given.layers, given.heads, given.tokens, given.rows)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "run.seen"
        start = time.perf_counter()
        model()
        plain = time.perf_counter() - start
        start = time.perf_counter()
        with torch.no_grad(), clearhead.watch(model, to=path) as seen:
            model()
        took = time.perf_counter() - start
        size = f"{path.stat().st_size / 2**20:.0f} MiB"
        print(f"{given.tokens} tokens, {given.layers} layers, {given.heads} heads: {size}")
        print(f"  the calls alone {plain:.1f} s; watched and streamed to the file {took:.1f} s ({seen.nbytes:,} bytes)")
        del seen
        subprocess.run([sys.executable, __file__, "--look", str(path), "--tiles", str(given.tiles)], check=True)
    steps(min(given.tokens, 8192))


if __name__ == "__main__":
    main()
