"""What looking costs: every head's exact overview against the fused forward, a tile at any length, what heads do.

    python bench/overview.py [--heads 12] [--rounds 12] [--tokens 2048 8192] [--size 64]

One attention call with random queries and keys, causal and not, on the GPU in bfloat16 where there is one, else on the
CPU in float32. Before anything is timed a row of blocks is checked against float64. The plain forward is torch's own
choice of kernel; `forward / pooled` above 1 means that the overviews of all heads took less time than it.
"""

import argparse
import itertools
import statistics

import torch
import torch.nn.functional as F
from measure import finished, interleaved, machine, ratios
from torch import Tensor, nn

import clearhead
from clearhead import Recording
from clearhead.seeing.maps import pyramid

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


class Fused(nn.Module):
    """A model that is nothing but one fused call."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def check(seen: Recording, q: Tensor, k: Tensor, size: int, causal: bool) -> float:
    """Return the largest error of the last row of blocks of one head, in weights; its weights are many."""
    n, start = q.shape[2], pyramid.edges(q.shape[2], size)[-2]
    scores = q[0, 0, start:].double() @ k[0, 0].double().T / q.shape[-1] ** 0.5
    if causal:
        places = torch.arange(n, device=q.device)
        scores.masked_fill_(places > places[start:, None], -torch.inf)
    exact = scores.softmax(-1).sum(0)
    ends = pyramid.edges(n, size)
    want = torch.stack([exact[a:b].sum() for a, b in itertools.pairwise(ends)])
    return float((seen.overview(0, 0, size)[-1].double() - want).abs().max())


@torch.no_grad()
def measure(n_tokens: int, n_heads: int, size: int, rounds: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n_heads, n_tokens, 64, device=DEVICE, dtype=DTYPE) for _ in range(3))
    model = Fused()
    for causal in (False, True):
        with clearhead.watch(model) as seen:
            model(q, k, v, causal)
        error = check(seen, q, k, size, causal)
        calls = {
            "forward": finished(lambda causal=causal: model(q, k, v, causal), DEVICE),
            "pooled": finished(lambda seen=seen: seen.overview(0, size=size), DEVICE),
        }
        for call in calls.values():
            call()
        seconds = interleaved(calls, rounds)
        middle, low, high = ratios(seconds, "pooled", "forward")
        each = ", ".join(f"{name} {1e3 * statistics.median(times):.2f} ms" for name, times in seconds.items())
        print(
            f"{n_tokens:>8,} {'causal' if causal else 'full':6}  {each}; forward / pooled {middle:.2f} ({low:.2f}-"
            f"{high:.2f}); largest error {error:.1e}"
        )
        parts(seen, n_tokens, rounds)


def parts(seen: Recording, n_tokens: int, rounds: int) -> None:
    """Print what one tile, and one sweep over all heads, take."""
    last = slice(n_tokens - 256, None)
    asked = {
        "a 256 x 256 tile": lambda: seen.map(0, 0, last, slice(0, 256)),
        "on the diagonal": lambda: seen.map(0, 0, last, last),
        "what the heads do": lambda: seen.heads(),
        "entropy": lambda: seen.entropy(0),
        "received": lambda: seen.received(0),
    }
    calls = {name: finished(call, DEVICE) for name, call in asked.items()}
    for call in calls.values():
        call()
    for name, times in interleaved(calls, rounds).items():
        low, middle, high = min(times), statistics.median(times), max(times)
        print(f"{'':15}  {name:18} {1e3 * middle:9.3f} ms ({1e3 * low:.3f}-{1e3 * high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--size", type=int, default=64)
    lengths = [8192, 32768, 131072] if DEVICE.type == "cuda" else [1024, 4096]
    parser.add_argument("--tokens", type=int, nargs="+", default=lengths)
    asked = parser.parse_args()
    print(machine())
    print(f"device     {torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'CPU'}")
    for n_tokens in asked.tokens:
        measure(n_tokens, asked.heads, asked.size, asked.rounds)


if __name__ == "__main__":
    main()
