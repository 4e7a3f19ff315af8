"""One process of several: which texts are its own, where it keeps what it counted, and how all come together.

torchrun (or anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) starts the processes, on one machine or
many. Each takes every WORLD_SIZE-th text. At the end their tallies are exchanged as JSON, over gloo. Nothing else is
shared: a machine reads its own copy of model and corpus, which have to be the same, and keeps its own state files.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from clearhead.atlas.tally import Tally
from clearhead.errors import InputError
from clearhead.training.store import write

PATIENCE = timedelta(days=30)  # one share may take longer than another; torchrun ends all when one is lost


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def here(cls) -> "World":
        """Return which process the environment says this is."""
        return cls(
            *(int(os.environ.get(name, low)) for name, low in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
        )

    @classmethod
    @contextmanager
    def joined(cls) -> Iterator["World"]:
        """Join the others while the body runs, if there are any."""
        world = cls.here()
        if world.size == 1:
            yield world
            return
        dist.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield world
        finally:
            dist.destroy_process_group()

    @property
    def device(self) -> torch.device:
        """Return where this process computes: a GPU of its own, or the CPU."""
        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")

    def gather(self, mine: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what every process gave, in the order of their ranks, to all of them."""
        if self.size == 1:
            return [mine]
        text = torch.tensor(list(json.dumps(mine).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(text)]))
        longest = int(max(lengths))
        texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text))))
        return [json.loads(bytes(text[: int(n)].tolist())) for text, n in zip(texts, lengths)]


def require_same(identities: Sequence[dict[str, Any]]) -> None:
    """Raise InputError unless every process, in the order of their ranks, counts the same."""
    for rank, theirs in enumerate(identities):
        if other := [name for name in theirs if theirs[name] != identities[0][name]]:
            raise InputError(
                f"process {rank} of {len(identities)} has another {other[0]} than process 0: {theirs[other[0]]}, not "
                f"{identities[0][other[0]]}; every machine needs the same"
            )


def _said(value: Any) -> str:
    """Return a part of an identity in words: files by name, each with what tells its content from another's."""
    if not isinstance(value, list):
        return str(value)
    return ", ".join(f"{name} ({mark})" if mark else str(name) for name, mark in value)


class State:
    """What one process keeps on disk: what it counted, up to which text, and of what run that is."""

    def __init__(self, folder: Path, world: World, identity: dict[str, Any]) -> None:
        self.path = folder / f"state-{world.rank}-of-{world.size}.json"
        self.identity = json.loads(json.dumps(identity))

    def read(self) -> dict[str, Any] | None:
        """Return what was kept, or None; InputError if it is of another run, or damaged."""
        if not self.path.is_file():
            others = sorted(path.name for path in self.path.parent.glob("state-*.json"))
            if wrong := [name for name in others if not name.endswith(self.path.name.partition("-of-")[2])]:
                raise InputError(
                    f"{self.path.parent} was begun by another number of processes ({wrong[0]}): start as many again, "
                    f"or give another --out"
                )
            return None
        try:
            kept: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            before, _ = kept["identity"], kept["read"]
            Tally().merge(Tally.from_json(kept["tally"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{self.path} is damaged ({error}): remove it, or give another --out") from error
        if changed := [name for name, value in self.identity.items() if before.get(name) != value]:
            raise InputError(
                f"{self.path.parent} holds a profile of another {changed[0]}: {_said(before.get(changed[0]))}, not "
                f"{_said(self.identity[changed[0]])}; give another --out"
            )
        return kept

    def write(self, n_read: int, tally: dict[str, Any]) -> None:
        """Keep what was counted up to text `n_read`, in one moment."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write(self.path, json.dumps({"identity": self.identity, "read": n_read, "tally": tally}) + "\n")
