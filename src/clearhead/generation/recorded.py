"""A decoder whose step is recorded once and replayed: for a GPU, that is faster than Python can talk to it.

    fast = Recorded(model, rows=1, max_len=1024, compiled=True)
    for step in generate(fast, [prompt], ...):       # as often as one likes: the recording stays

A step of GPT-2 launches some two hundred kernels of a few microseconds; an H100 is done with each before the next is
asked for. A CUDA graph holds them all and is launched as one. It replays the same addresses and shapes, so tokens,
first places and logits live in fixed tensors, and the cache is of the fixed kind. `compiled` lets torch.compile join
the kernels first: fewer and larger ones, for some tens of seconds of waiting, once.

Prompts are read as ever, only steps of one token are replayed. On a processor without CUDA graphs the same code runs
unrecorded, which is how it is tested.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.block import Activation
from clearhead.cache import FixedLayerCache
from clearhead.errors import ConfigError, InputError
from clearhead.generation.linear import eight_bits
from clearhead.generation.packed import rebuilt
from clearhead.generation.reading import Prompt, check, right_aligned
from clearhead.models.gpt import GPTForCausalLM
from clearhead.packed import PlainLinear

WARM_UP = 3  # steps before recording: libraries choose algorithms and take memory in their first calls


class RowLinear(nn.Module):
    """A linear layer of a single row, written as products and a sum.

    There is nothing to reuse in a matrix that meets one vector, so torch.compile makes one loop of it with the norm
    before and the activation after, where a matrix library is called in between otherwise. The loop waits for memory
    alone: weights of fewer bits are read sooner, and widened on the way.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, then: Activation | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale: Tensor | None = None
        if dtype == torch.int8:
            self.weight, self.scale = eight_bits(weight.float())
        else:
            self.weight = weight.to(dtype)
        self.bias, self.then = bias, then

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; x is (1, 1, channels), or longer where a prompt is read."""
        if x.numel() == x.shape[-1]:
            y = (x.view(1, -1) * self.weight.to(x.dtype)).sum(-1).view(*x.shape[:-1], -1)
        else:
            y = F.linear(x, self.weight.to(x.dtype))
        y = y if self.scale is None else y * self.scale.to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y if self.then is None else self.then(y)


class Recorded:
    """A GPT for up to `rows` texts (prompts, or beams of one) of up to `max_len` tokens, its step recorded.

    A compiled step of one row can read its weights in `dtype`, bfloat16 or int8. One generation at a time: opening the
    next one ends the last. Raises ConfigError for a model that is no GPTForCausalLM, or is in training mode.
    """

    def __init__(
        self,
        model: GPTForCausalLM,
        *,
        rows: int = 1,
        max_len: int,
        compiled: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model, GPTForCausalLM):
            raise ConfigError(f"only a GPTForCausalLM can be recorded, got a {type(model).__name__}")
        check(model, (), None)
        alone = compiled and rows == 1
        if dtype is not None and not alone:
            raise ConfigError(
                "weights of another dtype are read by the compiled step of one row: rows=1, compiled=True"
            )

        def linear(weight: Tensor, bias: Tensor | None, then: Activation | None) -> nn.Module:
            return RowLinear(weight, bias, then, dtype or weight.dtype) if alone else PlainLinear(weight, bias, then)

        self.model, self.rows, self.max_len = rebuilt(model, linear), rows, max_len
        device = model.gpt.words.weight.device
        self.cache = self.model.new_cache(rows, max_len, FixedLayerCache)
        self.starts = torch.zeros(rows, dtype=torch.long, device=device)
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.step: Callable[[Tensor], Tensor] = self.forward
        if compiled:  # tuning also makes Inductor write a product with one vector as a sum, not as a library's call
            options: dict[str, str | int | bool | Callable[..., Any]] = {"coordinate_descent_tuning": True}
            self.step = torch.compile(self.forward, fullgraph=True, dynamic=False, options=options)
        # by its formula, attention over one query is a few kernels that the compiler joins with their neighbours
        self.backends = [SDPBackend.MATH] if compiled else []
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self.record()

    def forward(self, tokens: Int[Tensor, "rows new"]) -> Float[Tensor, "rows new vocab"]:
        """Read tokens behind what the cache holds and return what follows each."""
        return self.model(tokens, self.starts, cache=self.cache)

    @torch.no_grad()
    def record(self) -> None:
        """Run the step until it is warm, then record it; the cache is empty afterwards."""
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self.cache.truncate(0)
                self.call()
        torch.cuda.current_stream().wait_stream(beside)
        self.cache.truncate(0)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self.call()
        self.graph = graph
        self.cache.truncate(0)

    def call(self) -> Float[Tensor, "rows 1 vocab"]:
        """Run the step on `token`."""
        if not self.backends:
            return self.step(self.token)
        with sdpa_kernel(self.backends):
            return self.step(self.token)

    def open(self, prompts: Sequence[Prompt], n_new: int) -> "RecordedReader":
        """Return a reader of `prompts` with room for `n_new` tokens; InputError when there are too many of either."""
        check(self.model, prompts, None)
        longest = max(map(len, prompts))
        if len(prompts) > self.rows or longest + n_new - 1 > self.max_len:
            raise InputError(
                f"{len(prompts)} prompts of up to {longest} tokens and {n_new} new ones, but this was recorded for "
                f"rows={self.rows}, max_len={self.max_len}: record with more"
            )
        return RecordedReader(self, [[int(token) for token in prompt] for prompt in prompts])


class RecordedReader:
    """The rows in use; those not in use are computed too, and ignored."""

    def __init__(self, recorded: Recorded, texts: list[list[int]]) -> None:
        self.recorded, self.texts, self.vocab_size = recorded, texts, recorded.model.config.vocab_size
        self.prompt, starts = right_aligned(texts, recorded.token.device)
        recorded.cache.truncate(0)
        recorded.starts.zero_()
        if starts is not None:
            recorded.starts[: len(texts)] = starts

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "rows new"], last: int = 1) -> Float[Tensor, "rows last vocab"]:
        """Read tokens and return the scores of what follows each of the `last` ones, until the next call."""
        n_rows, recorded = len(tokens), self.recorded
        if tokens.shape[1] == 1:
            recorded.token[:n_rows] = tokens
            if recorded.graph is None:
                return recorded.call()[:n_rows]
            recorded.graph.replay()
            return recorded.logits[:n_rows]
        tokens = F.pad(tokens, (0, 0, 0, recorded.rows - n_rows))
        model = recorded.model
        return model.logits(model.gpt(tokens, recorded.starts, cache=recorded.cache)[:n_rows, -last:])

    def keep(self, rows: Sequence[int]) -> None:
        """Let row i be what row `rows[i]` was; InputError for more rows than were recorded."""
        if len(rows) > self.recorded.rows:
            raise InputError(
                f"{len(rows)} beams, but this was recorded for rows={self.recorded.rows}: record with more"
            )
        kept = torch.tensor(rows, device=self.prompt.device)
        self.recorded.cache.keep(kept)
        self.recorded.starts[: len(rows)] = self.recorded.starts[kept]

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens of every row, padding included."""
        self.recorded.cache.truncate(length)
