"""Several streams of tiles at once on a CPU, each by one thread from its first tile to its last.

A tile is too small to be shared: torch would hand each product, exponential and sum of it out to its threads and wait
for them all, a thousand times a layer. Whole heads are shared instead, one thread computing all tiles of a head. Torch
releases Python's lock while it computes. Next: `tiles.py`, whose `each` goes through heads so.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")

BUSY = threading.Lock()  # how many threads torch takes is one number for the process: one caller at a time changes it


def drain(streams: Sequence[Iterator[Item]], do: Callable[[Item], None], *, alone: bool = False) -> None:
    """Call `do` with every item of every stream, those of one stream in order and by one thread.

    As many threads work as torch was given (`torch.get_num_threads`, the same again afterwards), the caller's among
    them. What one of them raises, Ctrl-C too, stops the others after the item at hand and is raised here. Where another
    caller is at it already, this one works `alone`, as it does when asked to: what a GPU is given waits for what the
    same thread gave it, and for nobody else's.
    """
    n_threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    n_workers = 1 if alone else min(n_threads, len(streams))
    if n_workers < 2 or not BUSY.acquire(blocking=False):
        for stream in streams:
            for item in stream:
                do(item)
        return
    waiting: queue.SimpleQueue[Iterator[Item] | None] = queue.SimpleQueue()
    for each in (*streams, *[None] * n_workers):
        waiting.put(each)
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode(inference), torch.no_grad():  # settings of a thread, which a new one has not
                for stream in iter(waiting.get, None):
                    for item in stream:
                        if raised:
                            return
                        do(item)
        except BaseException as error:
            raised.append(error)

    others = [threading.Thread(target=work) for _ in range(n_workers - 1)]
    try:
        torch.set_num_threads(1)
        for thread in others:
            thread.start()
        work()
    except BaseException as error:
        raised.append(error)
    finally:
        _join(others, raised)
        torch.set_num_threads(n_threads)
        BUSY.release()
    if raised:
        raise raised[0]


def _join(threads: Sequence[threading.Thread], raised: list[BaseException]) -> None:
    """Wait until every thread is done, also where one is told to stop meanwhile: they stop soon."""
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as error:
                raised.append(error)
