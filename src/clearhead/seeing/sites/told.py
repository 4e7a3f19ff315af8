"""What the arguments of the running modules say about positions: caches, position arguments, keys of another text.

An attention call carries queries and keys and no positions. The modules around it are given more: a cache that knows
how many tokens it has read, `cache_position`, the hidden states of another text. `locating.py` puts this together with
the mask and the keys of the call before.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from clearhead.seeing.sites.frames import Frame

# Arguments that say at which place of the row the first token of this forward stands: transformers before version 5,
# gpt-fast and LitGPT, Meta's Llama.
PLACE_ARGUMENTS = "cache_position", "input_pos", "start_pos"
# Arguments that say it for texts without padding only.
POSITION_ARGUMENTS = "position_ids", "positions"
# Arguments of an attention module that hold another text than that of its queries.
OTHER_TEXT_ARGUMENTS = "encoder_hidden_states", "key_value_states", "context", "memory"
# Packages whose caches count every token read, also those that a window has dropped, and drop the oldest first.
KNOWN_PACKAGES = "transformers", "clearhead"


PLAIN = frozenset((Tensor, bool, int, float, str, tuple, list, dict, type(None)))  # arguments that are no caches


@dataclass(frozen=True)
class CacheLength:
    """How many tokens `cache` had read when a forward began, and whether it is of a known package."""

    cache: Any
    read: int
    known: bool

    def has_room_for(self, n_keys: int) -> bool:
        """Return whether the cache holds memory for so many tokens."""
        memories = (getattr(part, "keys", None) for part in _parts(self.cache))
        return any(isinstance(keys, Tensor) and keys.ndim == 4 and keys.shape[-2] == n_keys for keys in memories)


class CacheLengths:
    """What each cache had read before the first module that was given it began, as a forward adds to it."""

    def __init__(self) -> None:
        self.known: dict[int, CacheLength | None] = {}  # by the cache's id

    def look(self, inputs: Any, named: Any) -> None:
        """Note the lengths of the caches among the arguments of a module that begins."""
        for x in (*inputs, *named.values()):
            if _is_cache(x) and id(x) not in self.known:
                self.known[id(x)] = _length(x)

    def of(self, frame: Frame) -> CacheLength | None:
        """Return that of the cache among the arguments of a module."""
        if not self.known:
            return None
        found = (self.known.get(id(x)) for x in (*frame.inputs, *(frame.named or {}).values()))
        return next((one for one in found if one is not None), None)


@dataclass(frozen=True)
class Arguments:
    """The arguments of the modules around an attention call, and the lengths of the caches among them."""

    running: Sequence[Frame]  # of the modules whose forward is running, outermost first
    lengths: CacheLengths

    @property
    def n_added(self) -> int:
        """Return how many keys the attention module adds behind those of its text."""
        module = self.running[-1].module if self.running else None
        if not isinstance(module, nn.MultiheadAttention):
            return 0
        return (module.bias_k is not None) + bool(module.add_zero_attn)

    @property
    def says_another_text(self) -> bool:
        """Return whether the attention module was given another text by an argument that is named for that."""
        named = (self.running[-1].named if self.running else None) or {}
        return any(isinstance(named.get(name), Tensor) for name in OTHER_TEXT_ARGUMENTS)

    def has_sequence(self, batch: int, n_queries: int, n_keys: int) -> bool:
        """Return whether the attention module was given sequences as long as its keys, from which these come.

        Vectors, (batch, time, d_model) or time first. Keys themselves count where they were given to the model, which
        is then nothing but attention; a module inside may be given them by a module that has a cache.
        """
        frame = self.running[-1] if self.running else None
        arguments = () if frame is None else (*frame.inputs, *(frame.named or {}).values())
        given = [x for x in arguments if isinstance(x, Tensor) and x.is_floating_point()]
        if len(self.running) == 1 and any(x.ndim == 4 and n_keys in x.shape[1:3] for x in given):
            return True
        shapes = [tuple(x.shape[:2]) for x in given if x.ndim == 3]
        as_keys = (batch, n_keys), (n_keys, batch)
        return any(shape in as_keys or (n_keys in shape and n_queries not in shape) for shape in shapes)

    @property
    def own_cache(self) -> CacheLength | None:
        """Return the length of the cache that the attention module itself was given."""
        return self.lengths.of(self.running[-1]) if self.running else None

    @property
    def cache(self) -> CacheLength | None:
        """Return the length of the cache that the innermost module with one was given."""
        found = (self.lengths.of(frame) for frame in reversed(self.running))
        return next((one for one in found if one is not None), None)

    @property
    def place(self) -> int | None:
        """Return the place in the row of the first token of this forward, where an argument says it."""
        return self._first(PLACE_ARGUMENTS)

    @property
    def position(self) -> int | None:
        """Return the largest first position among the texts, padding left out, where an argument says it."""
        return self._first(POSITION_ARGUMENTS)

    def _first(self, names: Sequence[str]) -> int | None:
        for frame in reversed(self.running):
            positional = zip(_parameters(type(frame.module)), frame.inputs) if frame.inputs else ()
            given = {**dict(positional), **(frame.named or {})}
            said = (_number(given.get(name)) for name in names)
            if (found := next((one for one in said if one is not None), None)) is not None:
                return found
        return None


def _is_cache(x: Any) -> bool:
    """Return whether an argument is a cache of transformers, or made like one, or of clearhead."""
    if type(x) in PLAIN:
        return False
    return hasattr(x, "get_seq_length") or (hasattr(x, "places") and hasattr(x, "truncate"))


def _parts(cache: Any) -> Iterator[Any]:
    """Yield a cache, its layers, and those of the cache for self-attention that it may hold."""
    yield cache
    yield from getattr(cache, "layers", None) or ()
    own = getattr(cache, "self_attention_cache", None)
    if own is not None:
        yield from _parts(own)


def _length(cache: Any) -> CacheLength | None:
    """Return how many tokens a cache says it has read; None where it cannot say."""
    with contextlib.suppress(Exception):  # foreign code, which may not be ready to answer
        read = _number(cache.get_seq_length() if hasattr(cache, "get_seq_length") else cache.length)
        known = all(type(part).__module__.split(".")[0] in KNOWN_PACKAGES for part in _parts(cache))
        return None if read is None else CacheLength(cache, read, known)
    return None


def _number(said: Any) -> int | None:
    """Return a number; of a tensor of positions the first, the largest over the texts."""
    if isinstance(said, Tensor) and said.numel() and not said.is_floating_point():
        said = said.reshape(-1, said.shape[-1])[:, 0].max() if said.ndim else said
        with contextlib.suppress(RuntimeError, NotImplementedError):  # it holds no numbers: on meta, or being traced
            return int(said)
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def _parameters(kind: Any) -> tuple[str, ...]:
    """Return the names of the arguments of a module's forward, in order."""
    try:
        return tuple(inspect.signature(kind.forward).parameters)[1:]
    except (AttributeError, TypeError, ValueError):  # of code that is not Python's
        return ()
