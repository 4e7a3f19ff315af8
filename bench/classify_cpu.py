"""Sentences a second on SST-2 dev: clearhead against transformers, ONNX Runtime and OpenVINO, the same weights.

    CLEARHEAD_DATA=folder python bench/classify_cpu.py [--model sentiment] [--rounds 5] [--rows 872] [--threads 2]

The baseline is transformers as people run it: batches of 32 in the order given, padded to the longest. Every peer is
also given its best: batches sorted by length, and torch.compile with frozen weights for transformers. Ours is timed on
the very same batches too. Before anything is timed, every contestant's log-probabilities are compared with those of
float64, and its accuracy is counted; one that computes something else does not run.

CLEARHEAD_DATA holds sst2/dev.tsv.xz (sentence, tab, label). Peers that are absent are skipped by name.
"""

import argparse
import lzma
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, kernels, machine, peer, report
from torch import Tensor

from clearhead.checkpoints import find, load
from clearhead.classification import classify, fastest, padded
from clearhead.data.tokenizer import Tokenizer
from clearhead.packed import pack

Rows = list[list[int]]
Call = Callable[[Rows], Tensor]  # rows of one batch -> logits
BASELINE = "transformers, as given"
BOUND = {"fp32": 1e-4, "bf16": 0.3}  # of a log-probability; what does not compute the same is off by whole units


def main() -> None:
    asked = arguments()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if asked.threads:
        torch.set_num_threads(asked.threads)
    folder = find(asked.model)
    rows, labels = examples(folder, asked.rows)
    print(machine())
    n_tokens, n_padded = sum(map(len, rows)), sum(len(batch) * max(map(len, batch)) for batch in batches(rows))
    print(f"input      SST-2 dev, {len(rows)} sentences, {n_tokens} tokens, {n_padded} padded in batches of 32")
    calls = contestants(folder, compiled=not asked.no_compile)
    exact_model = load(folder, dtype=torch.float64).requires_grad_(False)
    exact = torch.cat([exact_model(torch.tensor([row])) for row in rows])
    say_kernels(folder, rows)

    print("\nSST-2 dev, mixed lengths")
    ways = {f"{name}, {way}": over(call, way) for name, call in calls.items() for way in ("as given", "sorted")}
    ways["clearhead fp32, classify()"] = classified(folder, None)
    ways["clearhead bf16, classify()"] = classified(folder, torch.bfloat16)
    race(ways, rows, exact, labels, asked.rounds)

    full = torch.randint(exact_model.config.vocab_size, (16, 128), generator=torch.Generator().manual_seed(0))
    print("\n16 x 128 tokens: no padding to leave out")
    exact = exact_model(full)
    race({f"{name}, as given": call for name, call in calls.items()}, full.tolist(), exact, None, 4 * asked.rounds)


def race(ways: dict[str, Call], rows: Rows, exact: Tensor, labels: Tensor | None, rounds: int) -> None:
    """Check every contestant's log-probabilities against those of `exact`, time those that pass, print the table."""
    notes = {}
    for name in list(ways):
        logits = ways[name](rows)
        error = (logits.log_softmax(-1) - exact.log_softmax(-1)).abs().max().item()
        notes[name] = f"error {error:.0e}"
        if labels is not None:
            notes[name] += f", accuracy {(logits.argmax(-1) == labels).float().mean():.4f}"
        if not error < BOUND["bf16" if "bf16" in name else "fp32"]:
            print(f"left out   {name}: {notes[name]}")
            del ways[name]
    seconds = interleaved({name: lambda call=call: call(rows) for name, call in ways.items()}, rounds)
    report(seconds, BASELINE, len(rows), "sentences", notes)


# ---------------------------------------------------------------- the contestants


def contestants(folder: Path, *, compiled: bool) -> dict[str, Call]:
    """Return every way that can run here: batch of rows -> logits."""
    transformers = peer("transformers", "transformers")
    if transformers is None:
        sys.exit("stopped    transformers is the baseline: without it there is no ratio to print")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"peer       transformers {transformers.__version__}")
    opened = transformers.AutoModelForSequenceClassification.from_pretrained
    theirs, half = (opened(folder, dtype=dtype).eval() for dtype in (torch.float32, torch.bfloat16))
    model = load(folder)
    calls: dict[str, Call] = {
        "transformers": masked(lambda **batch: theirs(**batch).logits),
        "transformers bf16": masked(lambda **batch: half(**batch).logits.float()),
        "clearhead fp32, padded": padded(model),
        "clearhead fp32, packed": pack(model),
    }
    if compiled:
        calls["transformers compiled"] = compile_frozen(theirs)
    try:
        calls["clearhead bf16, packed"] = pack(model, torch.bfloat16)
    except ValueError as error:
        print(f"skipped    clearhead bf16: {error}")
    return calls | exported(theirs)


def compile_frozen(model: torch.nn.Module) -> Call:
    """Return transformers at its best: compiled for any length, weights constant, packed by Inductor."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    run = torch.compile(model, dynamic=True)
    return masked(lambda **batch: run(**batch).logits)


def exported(model: torch.nn.Module) -> dict[str, Call]:
    """Return ONNX Runtime and OpenVINO on the same graph, with our number of threads."""
    calls: dict[str, Call] = {}
    onnxruntime = peer("onnxruntime", "onnxruntime onnx onnxscript")
    openvino = peer("openvino", "openvino onnx onnxscript")
    if not (onnxruntime or openvino) or not peer("onnxscript", "onnx onnxscript"):
        return calls
    with tempfile.TemporaryDirectory() as folder:
        path = write_onnx(model, Path(folder) / "model.onnx")
        if onnxruntime:
            print(f"peer       onnxruntime {onnxruntime.__version__}")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            run = lambda **batch: session.run(None, {name: t.numpy() for name, t in batch.items()})[0]  # noqa: E731
            calls["onnxruntime"] = masked(run)
        for precision in ("f32", "bf16") if openvino else ():
            compiled = openvino.Core().compile_model(
                path,
                "CPU",
                {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()},
            )
            hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
            print(f"peer       openvino {openvino.__version__}, computing in {hint}")
            calls["openvino" if precision == "f32" else "openvino bf16"] = masked(lambda c=compiled, **b: c(b)[0])
    return calls


def write_onnx(model: torch.nn.Module, path: Path) -> str:
    """Write the transformers model as an ONNX graph for any batch and length, and return where."""
    tokens = torch.ones(2, 9, dtype=torch.long)
    mask = (torch.arange(9) < torch.tensor([[9], [5]])).long()  # ragged, or the exporter finds it needs no mask
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    names = ["input_ids", "attention_mask"]
    program = torch.onnx.export(
        Logits(model), (tokens, mask), dynamo=True, input_names=names, dynamic_shapes=(sizes, sizes), verbose=False
    )
    program.save(str(path))
    return str(path)


class Logits(torch.nn.Module):
    """A transformers classifier that returns a tensor."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def masked(run: Callable[..., Any]) -> Call:
    """Return `run` as a call on rows: padded to the longest, with the mask that says so."""

    def call(rows: Rows) -> Tensor:
        tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        with torch.inference_mode():
            return torch.as_tensor(run(input_ids=tokens, attention_mask=mask))

    return call


# ---------------------------------------------------------------- the input


def over(call: Call, way: str) -> Call:
    """Return `call` in batches of 32, as given or sorted by length, its answers in the order given."""

    def run(rows: Rows) -> Tensor:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i])) if way == "sorted" else list(range(len(rows)))
        answers = torch.cat([call([rows[i] for i in batch]) for batch in batches(order)])
        return torch.empty_like(answers).index_copy_(0, torch.tensor(order), answers)

    return run


def classified(folder: Path, dtype: torch.dtype | None) -> Call:
    """Return ours as people run it: `classify` with its own windows and batches."""
    model = load(folder)
    runner, _ = fastest(model, dtype)
    return lambda rows: torch.stack(list(classify(model, rows, runner=runner))).log()


def batches(items: Sequence[Any], size: int = 32) -> Iterator[Any]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def examples(folder: Path, n: int) -> tuple[Rows, Tensor]:
    """Return SST-2 dev as rows of token ids, and its labels: 0 negative, 1 positive."""
    path = Path(os.environ.get("CLEARHEAD_DATA", "")) / "sst2" / "dev.tsv.xz"
    if not os.environ.get("CLEARHEAD_DATA") or not path.exists():
        sys.exit(
            f"skipped: no SST-2 dev: set CLEARHEAD_DATA to a folder that holds sst2/dev.tsv.xz (looked for {path})"
        )
    text = lzma.decompress(path.read_bytes()).decode("utf-8")
    lines = [line.split("\t") for line in text.splitlines()[1 : n + 1]]
    encoded = Tokenizer.load(folder).encode_many([text for text, _ in lines])
    return [row.ids for row in encoded], torch.tensor([int(label) for _, label in lines])


def say_kernels(folder: Path, rows: Rows) -> None:
    """Print which kernels ours runs on, in each dtype, or why not."""
    for dtype in (None, torch.bfloat16):
        try:
            run = pack(load(folder), dtype)
        except ValueError as error:
            print(f"ours       {error}")
            continue
        run(rows[:32])  # builds what it runs on, which is not what it runs
        print(f"ours       {run.note}; {', '.join(kernels(lambda run=run: run(rows[:32]))) or 'no oneDNN kernels'}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sentiment", help="a shipped default, a checkpoint folder or a hub name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=872, help="how many of the sentences")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it takes a minute)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
