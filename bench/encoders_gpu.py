"""Encoders on a GPU in bfloat16: BERT-base on texts of all lengths, ViT-B/16 on pictures, the same random weights.

    python bench/encoders_gpu.py [--rounds 5] [--texts 4096] [--pictures 1024] [--layers 12] [--device cuda]

BERT: the baseline is transformers compiled, in batches as given, padded to the longest text; it also runs sorted by
length. Ours reads the same rows: the model as it is, sorted, and compiled and sorted. Lengths are drawn from a
log-normal as those of sentences and paragraphs are (median 40, at most 512). ViT: the baseline is timm compiled; ours
as it is and compiled. Everybody's numbers are compared with float32 before anything is timed.
"""

import argparse
import sys
from collections.abc import Callable, Iterator

import torch
from measure import finished, interleaved, machine, peer, report
from torch import Tensor, nn

from clearhead.models.bert import Bert, BertConfig
from clearhead.models.vit import ViTConfig, ViTForImageClassification

Rows = list[list[int]]
BOUND = 0.05  # root mean square error in units of the answer's spread: bfloat16 keeps about three digits


def main() -> None:
    asked = arguments()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("stopped    no GPU that torch can use; --device cpu --texts 64 --layers 2 tries the script out")
    print(machine())
    if asked.device == "cuda":
        print(f"gpu        {torch.cuda.get_device_name()}, cuda {torch.version.cuda}")
    with torch.inference_mode():
        texts(asked)
        pictures(asked)


def texts(asked: argparse.Namespace) -> None:
    """Race BERT-base on ragged rows."""
    torch.manual_seed(0)
    lengths = torch.distributions.LogNormal(3.7, 0.8).sample((asked.texts,)).clamp(3, 512).int().tolist()
    rows = [torch.randint(1_000, 30_000, (n,)).tolist() for n in lengths]
    n_padded = sum(len(batch) * max(map(len, batch)) for batch in batches(rows))
    print(f"\nBERT-base, {asked.texts} texts, {sum(lengths):,} tokens, {n_padded:,} padded in batches of 64 as given")
    exact = Bert(BertConfig(n_layers=asked.layers, pooler=None)).eval().to(asked.device)
    ours = Bert(exact.config).eval().to(asked.device, torch.bfloat16)
    ours.load_state_dict(exact.state_dict())
    calls: dict[str, Callable[[], Tensor]] = {
        "clearhead, sorted": lambda: means(ours, rows, asked.device, in_order=True),
    }
    compiled = torch.compile(ours, dynamic=True)
    calls["clearhead, compiled, sorted"] = lambda: means(compiled, rows, asked.device, in_order=True)
    baseline = "clearhead, sorted"
    if transformers := peer("transformers", "transformers"):
        theirs = theirs_of(transformers, exact).to(asked.device, torch.bfloat16)
        packed = torch.compile(theirs, dynamic=True)
        baseline = "transformers, compiled, as given"
        calls[baseline] = lambda: means(packed, rows, asked.device, in_order=False)
        calls["transformers, compiled, sorted"] = lambda: means(packed, rows, asked.device, in_order=True)
    race(calls, means(exact, rows, asked.device, in_order=True), baseline, sum(lengths), "tokens", asked)


def means(model: Callable[..., Tensor], rows: Rows, device: str, *, in_order: bool) -> Tensor:
    """Return the mean hidden state of every row, in the order given: padded batches of 64, sorted by length or not."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if in_order else list(range(len(rows)))
    found = []
    for batch in batches([rows[i] for i in order]):
        lengths = torch.tensor([len(row) for row in batch], device=device)
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in batch], batch_first=True).to(device)
        hidden = model(tokens, lengths)
        inside = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
        found.append((hidden * inside.unsqueeze(-1)).sum(1, dtype=torch.float32) / lengths.unsqueeze(-1))
    return torch.empty_like(flat := torch.cat(found)).index_copy_(0, torch.tensor(order, device=device), flat)


def theirs_of(transformers: object, exact: Bert) -> nn.Module:
    """Return transformers' BERT with our weights, as a call on tokens and lengths."""
    import tempfile

    from clearhead.checkpoints import save

    class Theirs(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
            return self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state

    with tempfile.TemporaryDirectory() as folder:
        save(exact, folder, family="bert")
        return Theirs(transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval())  # type: ignore[attr-defined]


def pictures(asked: argparse.Namespace) -> None:
    """Race ViT-B/16 on pictures of 224 x 224."""
    torch.manual_seed(0)
    config = ViTConfig(n_layers=asked.layers, labels=tuple(map(str, range(1_000))))
    exact = ViTForImageClassification(config).eval().to(asked.device)
    ours = ViTForImageClassification(config).eval().to(asked.device, torch.bfloat16)
    ours.load_state_dict(exact.state_dict())
    pixels = torch.randn(min(asked.pictures, 256), 3, 224, 224, device=asked.device)
    n = max(1, asked.pictures // len(pixels))
    half = pixels.bfloat16()
    print(f"\nViT-B/16, {n * len(pixels)} pictures in batches of {len(pixels)}")
    compiled = torch.compile(ours)
    calls: dict[str, Callable[[], Tensor]] = {
        "clearhead": lambda: [ours(half) for _ in range(n)][-1],
        "clearhead, compiled": lambda: [compiled(half) for _ in range(n)][-1],
    }
    race(calls, exact(pixels), "clearhead", n * len(pixels), "pictures", asked)
    if timm := peer("timm", "--no-deps timm torchvision"):
        torch.manual_seed(0)
        theirs = timm.create_model("vit_base_patch16_224", num_classes=1_000, depth=asked.layers).eval()
        packed = torch.compile(theirs.to(asked.device, torch.bfloat16))
        theirs_exact = theirs.float()(pixels)  # its own weights: speed does not depend on them
        theirs.to(torch.bfloat16)
        calls = {"timm, compiled": lambda: [packed(half) for _ in range(n)][-1]}
        assert off(calls["timm, compiled"](), theirs_exact) < BOUND
        calls["clearhead, compiled"] = lambda: [compiled(half) for _ in range(n)][-1]
        timed(calls, "timm, compiled", n * len(pixels), "pictures", asked)


def race(
    calls: dict[str, Callable[[], Tensor]],
    exact: Tensor,
    baseline: str,
    work: int,
    unit: str,
    asked: argparse.Namespace,
) -> None:
    """Compare every contestant with `exact`, then time them in turn."""
    for name, call in calls.items():
        error = off(call(), exact)
        print(f"checked    {name}: off by {error:.1e} of the spread")
        if not error < BOUND:
            sys.exit(f"stopped    {name} computes something else")
    timed(calls, baseline, work, unit, asked)


def timed(
    calls: dict[str, Callable[[], Tensor]], baseline: str, work: int, unit: str, asked: argparse.Namespace
) -> None:
    """Time the contestants in turn, each to the moment the device is done."""
    device = torch.device(asked.device)
    seconds = interleaved({name: finished(call, device) for name, call in calls.items()}, asked.rounds)
    report(seconds, baseline, work, unit, {})


def off(answer: Tensor, exact: Tensor) -> float:
    """Return the root mean square error in units of the spread."""
    return float((answer.float() - exact).square().mean().sqrt() / exact.std())


def batches(rows: Rows, size: int = 64) -> Iterator[Rows]:
    """Yield the rows `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant runs")
    parser.add_argument("--texts", type=int, default=4_096)
    parser.add_argument("--pictures", type=int, default=1_024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
