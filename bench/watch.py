"""What watching costs: a watched forward against a plain one, then a tile and an overview of what was recorded.

    python bench/watch.py [--layers 12] [--rounds 12] [--tokens 512 2048 8192]

A BERT-base shape with random weights, one text of random tokens, on the GPU in bfloat16 where there is one, else on the
CPU in float32. Before anything is timed the outputs are checked to be equal bit for bit, and a tile against float64.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from measure import interleaved, machine, ratios
from torch import Tensor

import clearhead
from clearhead import Bert, BertConfig, Recording

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finished(call: Callable[[], object]) -> Callable[[], None]:
    """Return `call`, waiting until the GPU is done."""

    def run() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return run


def microseconds(call: Callable[[], object], rounds: int) -> float:
    run, each = finished(call), []
    run()
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        each.append(time.perf_counter() - start)
    return 1e6 * statistics.median(each)


def check(model: Bert, tokens: Tensor) -> Recording:
    """Return a recording, after outputs and a tile have been found right."""
    plain = model(tokens)
    caught: list[tuple[Tensor, Tensor]] = []
    attention = model.blocks[0].attention
    hook = attention.register_forward_pre_hook(
        lambda layer, given: caught.append((layer.q_proj(given[0]), layer.k_proj(given[0])))
    )
    with clearhead.watch(model) as seen:
        watched = model(tokens)
    hook.remove()
    assert torch.equal(plain, watched), "watching changed the output"
    q, k = (x[0, :, : attention.d_head].double() for x in caught[0])  # head 0
    exact = (attention.scale * q[:64] @ k.T).softmax(-1)[:, -64:]
    tile = seen.map(0, 0, slice(0, 64), slice(tokens.shape[1] - 64, None)).double()
    print(f"  outputs equal; largest error of a tile {float((tile - exact).abs().max()):.1e}")
    return seen


@torch.no_grad()
def measure(n_tokens: int, n_layers: int, rounds: int) -> None:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    torch.manual_seed(0)
    model = Bert(BertConfig(max_len=n_tokens, n_layers=n_layers)).to(DEVICE, dtype).eval()
    tokens = torch.randint(0, 30_000, (1, n_tokens), device=DEVICE)

    def watched() -> None:
        with clearhead.watch(model):
            model(tokens)

    print(f"{n_tokens:,} tokens")
    seen = check(model, tokens)
    calls = {"plain": finished(lambda: model(tokens)), "watched": finished(watched)}
    calls["watched"]()
    seconds = interleaved(calls, rounds)
    middle, low, high = ratios(seconds, "plain", "watched")
    plain, kept = 1e3 * statistics.median(seconds["plain"]), seen.nbytes / 2**20
    print(f"  forward {plain:.1f} ms; watched / plain {middle:.3f} ({low:.3f}-{high:.3f}); kept {kept:.0f} MiB")
    layer, head, last = n_layers // 2, 3, slice(n_tokens - 256, None)
    tile = microseconds(lambda: seen.map(layer, head, slice(0, 256), last), rounds)
    overview = microseconds(lambda: seen.overview(layer, head, 64), rounds)
    print(f"  a 256 x 256 tile {tile:.0f} us; a 64 x 64 overview of one head {overview:.0f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=12)
    lengths = [2048, 8192, 32768] if DEVICE.type == "cuda" else [512, 2048]
    parser.add_argument("--tokens", type=int, nargs="+", default=lengths)
    asked = parser.parse_args()
    print(machine())
    print(f"device     {torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'CPU'}")
    for n_tokens in asked.tokens:
        measure(n_tokens, asked.layers, asked.rounds)


if __name__ == "__main__":
    main()
