"""Tokens a second of GPT-2 124M on a CPU: clearhead against transformers and CTranslate2, the same random weights.

    python bench/generate_cpu.py [--rounds 5] [--batch 1 8] [--prompt 32] [--new 64] [--threads 2] [--no-compile]

The baseline is transformers' generate() as people run it, greedy and with its cache. It is also given the one flag
that makes float32 products faster on a CPU (`torch.set_float32_matmul_precision("medium")`), and bfloat16 weights. Ours
runs packed, at once, and for one prompt also compiled, which takes a minute before the first token.
Before anything is timed, the logits of every contestant that shows them are compared with float64 along the same text,
in units of their spread; the others are compared by the tokens they write. Peers that are absent are skipped by name.
"""

import argparse
import importlib
import importlib.util
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, machine, peer, report
from torch import Tensor, nn

from clearhead.checkpoints import load
from clearhead.generation import answers, generate
from clearhead.generation.packed import fastest
from clearhead.generation.recorded import Recorded
from clearhead.models.gpt import GPTForCausalLM

Prompts = list[list[int]]
Call = Callable[[Prompts, int], list[list[int]]]  # prompts, how many new tokens -> answers
BASELINE = "transformers"
BOUND = {
    "fp32": 1e-4,
    "fp16": 3e-3,
    "bf16": 0.03,
    "int8": 0.05,
}  # root mean square of the error, in units of the logits' spread


def main() -> None:
    asked = arguments()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if asked.threads:
        torch.set_num_threads(asked.threads)
    transformers = peer("transformers", "transformers")
    if transformers is None:
        sys.exit("stopped    transformers is the baseline: without it there is no ratio to print")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(machine())
    print(f"peer       transformers {transformers.__version__}")
    print(f"input      prompts of {asked.prompt} random tokens, {asked.new} new ones, greedy")
    with tempfile.TemporaryDirectory() as folder:
        theirs = publish(transformers, Path(folder))
        models, notes = ours(Path(folder), None if asked.no_compile else asked.prompt + asked.new)
        calls: dict[str, Call] = {
            "transformers": with_transformers(theirs),
            "transformers, medium": medium(with_transformers(theirs)),
            "transformers bf16": with_transformers(opened(transformers, folder, torch.bfloat16)),
            **{name: with_ours(model) for name, model in models.items()},
            **ctranslate2(Path(folder)),
        }
        for batch in asked.batch:
            able = {name: call for name, call in calls.items() if batch == 1 or "compiled" not in name}
            race(able, notes, prompts(batch, asked.prompt), asked.new, asked.rounds)


def race(calls: dict[str, Call], notes: dict[str, str], given: Prompts, n_new: int, rounds: int) -> None:
    """Let everybody write once and compare, then time."""
    expected = calls[BASELINE](given, n_new)
    said = dict(notes)
    for name, call in calls.items():
        came = call(given, n_new)
        assert all(len(row) == n_new for row in came), f"{name} wrote {[len(row) for row in came]} tokens"
        same = sum(a == b for row, other in zip(came, expected) for a, b in zip(row, other)) / (n_new * len(given))
        said[name] = f"{said.get(name, '')} {100 * same:.0f} % of the baseline's tokens".strip()
    print(f"\nbatch {len(given)}")
    seconds = interleaved({name: lambda call=call: call(given, n_new) for name, call in calls.items()}, rounds)
    report(seconds, BASELINE, n_new * len(given), "tokens", said)


# ---------------------------------------------------------------- the contestants


def ours(folder: Path, max_len: int | None) -> tuple[dict[str, GPTForCausalLM | Recorded], dict[str, str]]:
    """Return our models, those of them whose logits are right, and what each is and how far off.

    With a `max_len`, also the step of one row compiled for it.
    """
    plain = load(folder)
    exact_model = load(folder, dtype=torch.float64)
    text = torch.tensor(prompts(1, 64))
    with torch.no_grad():
        exact = exact_model(text)
    kinds = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
    found: dict[str, tuple[GPTForCausalLM | Recorded, str, str]] = {
        "clearhead, the model as it is": (plain, "fp32", "")
    }
    for kind, dtype in kinds.items():
        model, note = fastest(plain, dtype)
        if model is plain:
            print(f"skipped    clearhead {kind}: {note}")
        else:
            found[f"clearhead {kind}"] = (model, kind, note)
        if max_len is not None and kind != "fp16":
            compiled = Recorded(plain, max_len=max_len, compiled=True, dtype=dtype)
            found[f"clearhead {kind}, compiled"] = (compiled, kind, "one row, by torch.compile")
    models, notes = {}, {}
    for name, (model, kind, note) in found.items():
        with torch.no_grad():
            reads = model.model if isinstance(model, Recorded) else model
            cache = reads.new_cache(1, text.shape[1])  # one token at a time, since that is what is timed
            logits = torch.cat([reads(token, cache=cache) for token in text.split(1, dim=1)], dim=1)
            error = float((logits.double() - exact).square().mean().sqrt() / exact.std())
        if error > BOUND[kind]:
            print(f"left out   {name}: logits off by {error:.1e} of their spread")
            continue
        models[name], notes[name] = model, f"error {error:.0e} of the spread; {note};"
    return models, notes


def with_ours(model: GPTForCausalLM | Recorded) -> Call:
    return lambda given, n_new: answers(generate(model, given, max_new_tokens=n_new), len(given))


def with_transformers(model: Any, **settings: Any) -> Call:
    def call(given: Prompts, n_new: int) -> list[list[int]]:
        tokens = torch.tensor(given, device=model.device)
        written: Tensor = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=n_new, do_sample=False, **settings
        )
        return written[:, tokens.shape[1] :].tolist()

    return call


def medium(call: Call) -> Call:
    def with_flag(given: Prompts, n_new: int) -> list[list[int]]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        try:
            return call(given, n_new)
        finally:
            torch.set_float32_matmul_precision(before)

    return with_flag


def ctranslate2(folder: Path) -> dict[str, Call]:
    """Return CTranslate2 on the same weights, with our number of threads, in every number it has.

    It runs in a process of its own: loaded beside torch, its OpenMP takes a third of torch's speed (LOG.md).
    """
    if importlib.util.find_spec("ctranslate2") is None:
        print("skipped    ctranslate2: not installed; pip install ctranslate2")
        return {}
    process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    version, kinds = process.submit(open_ctranslate2, str(folder), torch.get_num_threads()).result()
    print(f"peer       ctranslate2 {version}, in a process of its own")
    calls: dict[str, Call] = {}
    for kind, refusal in kinds.items():
        if refusal:
            print(f"skipped    ctranslate2 {kind}: {refusal}")
        else:
            calls[f"ctranslate2 {kind}"] = lambda given, n_new, kind=kind: process.submit(
                run_ctranslate2, kind, given, n_new
            ).result()
    return calls


GENERATORS: dict[str, Any] = {}  # CTranslate2's, in its process


def open_ctranslate2(folder: str, threads: int) -> tuple[str, dict[str, str]]:
    """Open it in every number; return its version, and for each number why it refused, or nothing."""
    library = importlib.import_module("ctranslate2")
    library.converters.TransformersConverter(folder).convert(f"{folder}/ct2", force=True)
    refusals = dict.fromkeys(("float32", "bfloat16", "int8"), "")
    for kind in refusals:
        try:
            GENERATORS[kind] = library.Generator(f"{folder}/ct2", "cpu", compute_type=kind, intra_threads=threads)
        except ValueError as error:
            refusals[kind] = str(error)
    return library.__version__, refusals


def run_ctranslate2(kind: str, given: Prompts, n_new: int) -> list[list[int]]:
    """Return its answers."""
    found = GENERATORS[kind].generate_batch(
        [[f"t{token}" for token in row] for row in given],
        max_length=n_new,
        min_length=n_new,
        sampling_topk=1,
        include_prompt_in_result=False,
    )
    return [each.sequences_ids[0] for each in found]


# ---------------------------------------------------------------- the input


def publish(transformers: Any, folder: Path) -> Any:
    """Write a GPT-2 124M of random weights, with a vocabulary of words t0 t1 ... that CTranslate2 asks for."""
    import tokenizers

    torch.manual_seed(0)
    config = transformers.GPT2Config(eos_token_id=None, bos_token_id=None, pad_token_id=None)
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if "wte" not in name and "wpe" not in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.05)  # fresh weights only repeat the last token
    model.save_pretrained(folder)
    words = tokenizers.models.WordLevel({f"t{i}": i for i in range(config.vocab_size)}, unk_token="t0")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words), bos_token="t50256", eos_token="t50256", unk_token="t50256"
    ).save_pretrained(folder)
    return model


def opened(transformers: Any, folder: str, dtype: torch.dtype) -> Any:
    return transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=dtype).eval()


def prompts(n: int, length: int) -> Prompts:
    return torch.randint(50_000, (n, length), generator=torch.Generator().manual_seed(n)).tolist()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant runs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="how many prompts at once")
    parser.add_argument("--prompt", type=int, default=32, help="tokens a prompt")
    parser.add_argument("--new", type=int, default=64, help="new tokens")
    parser.add_argument("--threads", type=int, help="of torch and of every peer")
    parser.add_argument("--no-compile", action="store_true", help="leave out what has to be compiled first")
    return parser.parse_args()


if __name__ == "__main__":
    main()
