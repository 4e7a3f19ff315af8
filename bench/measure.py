"""What every script of bench/ measures with: contestants take turns, ratios come from the same round, spread is shown.

Load, heat and clock speed drift over minutes. Contestants that run A B C, B C A, C A B share the drift, so each round
gives one ratio to the baseline; the median of those is quoted, with the smallest and the largest beside it.
"""

import importlib
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every call in every round; each has run once before, so that nothing is built meanwhile."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
        if sys.stderr.isatty():
            print(f"\rround {turn + 1} of {rounds} ", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r" + " " * 20 + "\r", end="", file=sys.stderr)
    return seconds


def spawned(way: Sequence[str], *, of_the_processor: bool = False) -> tuple[float, float, str]:
    """Return the seconds, the peak MiB and what was said of a new Python that runs `way` to its end, or stop.

    Seconds `of_the_processor` are those that the process computed, without those in which it waited for others.
    """
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *way], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=quiet)
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    took = usage.ru_utime + usage.ru_stime if of_the_processor else time.perf_counter() - start
    if status != 0:
        sys.exit(f"{Path(sys.executable).name} {' '.join(way)} failed:\n{said}")
    return took, usage.ru_maxrss / 1024, said


def in_turn(
    ways: Mapping[str, Sequence[str]], run: Callable[[Sequence[str]], tuple[float, float]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return what `run` says of every way in every round, seconds and MiB.

    A first round, which fills the file cache, is thrown away.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-1, rounds):
        for name, way in ways.items():
            took, held = run(way)
            if turn >= 0:
                seconds[name].append(took)
                memory[name].append(held)
    return seconds, memory


def finished(call: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """Return `call`, waiting until a GPU is done."""

    def run() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def ratios(seconds: Mapping[str, Sequence[float]], name: str, baseline: str) -> tuple[float, float, float]:
    """Return how many times faster than `baseline` `name` ran: median, smallest and largest over the rounds."""
    each = [slow / fast for slow, fast in zip(seconds[baseline], seconds[name], strict=True)]
    return statistics.median(each), min(each), max(each)


def report(
    seconds: Mapping[str, Sequence[float]], baseline: str, work: int, unit: str, notes: Mapping[str, str]
) -> None:
    """Print one line a contestant: work per second, times the baseline (smallest-largest), and a note."""
    width = max(map(len, seconds))
    print(f"{'':{width}}  {unit + '/s':>12}  {'x baseline':>10}  {'(min-max)':>13}")
    for name, each in seconds.items():
        middle, low, high = ratios(seconds, name, baseline)
        rate = work / statistics.median(each)
        print(f"{name:{width}}  {rate:12.1f}  {middle:9.2f}x  ({low:5.2f}-{high:5.2f})  {notes.get(name, '')}".rstrip())


def machine() -> str:
    """Return what the numbers depend on: processor, its instructions, threads, versions, and who else is at work."""
    model = next((value for key, value in _cpu_facts() if key == "model name"), platform.processor() or "unknown")
    has = [
        n for n in ("avx2", "avx512", "vnni", "avx512_bf16", "amx_tile") if getattr(torch.cpu, f"_is_{n}_supported")()
    ]
    load = os.getloadavg()[0]
    lines = [
        f"processor  {model}, {os.cpu_count()} cores, {' '.join(has) or 'no vector instructions that torch names'}",
        f"torch      {torch.__version__}, {torch.get_num_threads()} threads, "
        f"float32 products {torch.get_float32_matmul_precision()}, python {platform.python_version()}",
        f"load       {load:.2f} before we start" + (": NOT QUIET, ratios only" if load > 0.5 else ""),
    ]
    return "\n".join(lines)


def _cpu_facts() -> Iterator[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        key, _, value = line.partition(":")
        yield key.strip(), value.strip()


def kernels(call: Callable[[], Any]) -> list[str]:
    """Return which oneDNN kernels `call` runs, most frequent first, e.g. `matmul brg_matmul:avx512_core`."""
    with tempfile.TemporaryFile("w+") as log:
        sys.stdout.flush()
        saved = os.dup(1)
        os.dup2(log.fileno(), 1)
        try:
            with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
                call()
        finally:
            os.dup2(saved, 1)
            os.close(saved)
        log.seek(0)
        fields = [line.split(",") for line in log if ",exec,cpu," in line]
    names = [" ".join(line[line.index("cpu") + 1 :][:2]) for line in fields]
    return sorted(set(names), key=names.count, reverse=True)


def peer(module: str, install: str) -> ModuleType | None:
    """Return the peer's module, or None where it is absent, saying so and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        print(f"skipped    {module}: {error}; pip install {install}")
        return None
