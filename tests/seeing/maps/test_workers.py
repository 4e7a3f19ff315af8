"""Whole heads on threads of their own: the same numbers, the same settings afterwards, errors and Ctrl-C passed on."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from clearhead.seeing.call import Call
from clearhead.seeing.maps import formula, habits, products, pyramid, rollout, statistics, tiles, workers
from clearhead.seeing.maps.products import full_precision
from clearhead.seeing.rule import Rule
from seeing.dense import call, rules

HEADS = range(4)
ASKED: dict[str, Callable[[Call], object]] = {
    "overview": lambda one: pyramid.pooled(one, 0, HEADS, *[pyramid.edges(120, 7)] * 2),
    "largest": lambda one: pyramid.pooled(one, 0, HEADS, *[pyramid.edges(120, 7)] * 2, mode="max"),
    "entropy": lambda one: statistics.entropy(one, 0, HEADS),
    "received": lambda one: statistics.received(one, 0, HEADS),
    "strongest": lambda one: statistics.strongest(one, 0, HEADS, 40, apart=1, without=[3]),
    "habits": lambda one: habits.habits(one, 0, HEADS, 0),
    "normaliser": lambda one: formula._swept(one, 0),
}


def same(have: object, want: object) -> bool:
    """Say whether two answers are the same to the last bit."""
    if isinstance(have, Tensor):
        return torch.equal(have, want)
    return all(map(same, have, want)) if isinstance(have, tuple) else have == want


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Let torch have three threads, share any sweep, and return which threads multiplied.

    While a sweep is shared its first product waits for a second thread: on a busy machine one alone may be through with
    all heads before another has begun.
    """
    before, seen, multiply = torch.get_num_threads(), set[int](), torch.bmm
    arrived = threading.Condition()

    def watched(*args: Tensor, **rest: Tensor) -> Tensor:
        with arrived:
            seen.add(threading.get_ident())
            arrived.notify_all()
            if workers.BUSY.locked():
                arrived.wait_for(lambda: len(seen) > 1, timeout=60)
        return multiply(*args, **rest)

    monkeypatch.setattr(tiles, "MANY", 0)
    monkeypatch.setitem(products.ROOM, "cpu", (2**12, 64))  # one head a tile
    monkeypatch.setattr(torch, "bmm", watched)
    torch.set_num_threads(3)
    yield seen
    torch.set_num_threads(before)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("kind", ["none", "padding left", "bits"])
def test_numbers_are_the_same_by_one_thread_and_by_three(asked: str, kind: str, threads: set[int]) -> None:
    one = call(rules(120, 120)[kind], 120, 120)
    have = ASKED[asked](one)
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    threads.clear()
    one.normalisers.clear()
    assert same(have, ASKED[asked](one))
    assert threads == {threading.get_ident()}


@pytest.mark.parametrize("asked", ASKED)
def test_numbers_are_the_same_in_inference_mode(asked: str, threads: set[int]) -> None:
    one = call(rules(120, 120)["causal"], 120, 120)
    have = ASKED[asked](one)
    one.normalisers.clear()
    threads.clear()
    with torch.inference_mode():
        assert same(ASKED[asked](one), have)
    assert len(threads) > 1


@pytest.mark.parametrize("asked", ["map", "window", "received", "overview", "habits", "sinks", "rollout"])
def test_numbers_are_the_same_under_autocast(asked: str, threads: set[int]) -> None:
    # On threads of their own heads were exact, on the caller's rounded to bfloat16.
    places = torch.arange(300)  # more than the 256 to which bfloat16 counts
    ask: Callable[[Call], object] = {
        **ASKED,
        "overview": lambda one: pyramid.pooled(one, 0, HEADS, *[pyramid.edges(300, 7)] * 2),
        "map": lambda one: formula.weights(one, 0, places[:4], places, places),
        "window": lambda one: formula.window(one, 0, 1, slice(0, 300), slice(0, 300)),
        "sinks": lambda one: statistics.sinks(one, 0, HEADS, 0.002, None),
        "rollout": lambda one: rollout.overview([one, one], 0, 8),
    }[asked]
    one = call(rules(300, 300)["bits"], 300, 300)
    have = ask(one)
    one.normalisers.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert same(ask(one), have)
        assert (places[:2].float() @ torch.ones(2)).dtype == torch.bfloat16  # and the caller's stays on


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_only_the_caller_queues_work(threads: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(products.ROOM, "cuda", (2**12, 64))
    one = call(Rule(), 120, 120)
    one.q, one.k = one.q.cuda(), one.k.cuda()
    formula._swept(one, 0)
    statistics.entropy(one, 0, HEADS)
    assert threads == {threading.get_ident()}


def test_who_is_asked_to_work_alone_does(threads: set[int]) -> None:
    by: set[int] = set()
    workers.drain([iter([i]) for i in range(6)], lambda _: by.add(threading.get_ident()), alone=True)
    assert by == {threading.get_ident()}


def test_heads_are_computed_by_several_threads(threads: set[int]) -> None:
    both, others = threading.Barrier(3, timeout=60), set[int]()

    def do(item: int) -> None:
        both.wait()  # nobody goes on before three are at it
        others.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()

    with torch.enable_grad():
        workers.drain([iter([i]) for i in range(6)], do)
    assert len(others) == 3
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_one_thread_raises_stops_all(error: type[BaseException], threads: set[int]) -> None:
    done: list[int] = []

    def do(item: int) -> None:
        if item == 5:
            raise error("of one")
        done.append(item)

    def endless(start: int) -> Iterator[int]:
        while True:
            yield start

    with pytest.raises(error, match="of one"):
        workers.drain([endless(0), iter([1, 5]), endless(2)], do)
    assert torch.get_num_threads() == 3
    workers.drain([iter([7]), iter([8])], do)  # and nothing is left locked
    assert {7, 8} < set(done)


def test_a_sweep_within_a_sweep_works_alone(threads: set[int]) -> None:
    found: list[tuple[int, int]] = []

    def outer(item: int) -> None:
        here = threading.get_ident()
        workers.drain([iter([item]), iter([item])], lambda inner: found.append((inner, here - threading.get_ident())))

    workers.drain([iter([1]), iter([2])], outer)
    assert sorted(found) == [(1, 0), (1, 0), (2, 0), (2, 0)]


def test_precision_returns_to_what_it_was_when_the_last_thread_is_done() -> None:
    backend = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = backend.fp32_precision
    backend.fp32_precision = "bf16"
    try:
        first, second = full_precision(), full_precision()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert backend.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert backend.fp32_precision == "bf16"
    finally:
        backend.fp32_precision = before
