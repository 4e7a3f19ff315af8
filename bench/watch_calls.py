"""What watching a short text costs in Python calls, which a busy machine does not disturb: watched and plain forward.

    python bench/watch_calls.py [--layers 12]

Small transformers models with random weights read 8 tokens. Calls of Python and of C functions are counted by
sys.setprofile over one forward, after two that warm up. On a short text the time of watching is that of these calls; on
a long one the kernels hide it (bench/watch.py measures seconds).
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from measure import machine, peer

from clearhead import watch

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 100}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    layers = parser.parse_args().layers
    transformers = peer("transformers", "transformers")
    if transformers is None:
        sys.exit("stopped    needs transformers, whose models are watched")
    print(machine())
    sizes = {**SIZES, "num_hidden_layers": layers}
    models = {"BERT, sdpa": transformers.BertModel(transformers.BertConfig(**sizes))}
    for way in ("sdpa", "eager"):
        config = transformers.LlamaConfig(**sizes, num_key_value_heads=2)
        models[f"Llama, {way}"] = transformers.LlamaForCausalLM._from_config(config, attn_implementation=way)
    tokens = torch.arange(8)[None]
    print(f"{'':14}  {'plain':>8}  {'watched':>8}  {'a layer':>8}")
    for name, model in models.items():
        model.eval()
        plain = calls(lambda model=model: model(tokens))
        with watch(model):
            watched = calls(lambda model=model: model(tokens))
        print(f"{name:14}  {plain:8,}  {watched:8,}  {(watched - plain) / layers:8,.0f}")


@torch.no_grad()
def calls(run: Callable[[], Any]) -> int:
    """Return how many functions are called while `run` runs for the third time."""
    run()
    run()
    n = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal n
        n += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return n


if __name__ == "__main__":
    main()
