"""`watch`: a model runs as it always does; the queries, keys and normaliser of every attention call are kept.

    with watch(model) as seen:
        model(tokens)
    seen.map(layer=3, head=7)

The model is not changed: `sites/whereabouts.py` knows which module is running, `sites/fused.py` sees the calls. What
ran and could not be seen is listed by name in `seen.unseen`. Next: `recordings/recording.py`, what comes out.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from clearhead.errors import InputError, WatchError
from clearhead.seeing import arguments
from clearhead.seeing.call import Call
from clearhead.seeing.recognition import Masks, recognise
from clearhead.seeing.recordings.keeping import Keeper
from clearhead.seeing.recordings.memory import NoRoom, place
from clearhead.seeing.recordings.recording import Recording
from clearhead.seeing.recordings.saving import finish
from clearhead.seeing.recordings.store import File
from clearhead.seeing.rule import Rule
from clearhead.seeing.sites.locating import Asked, Locator
from clearhead.seeing.sites.sighting import Sighting, dtype_in_kernel
from clearhead.seeing.sites.subclasses import holds_numbers
from clearhead.seeing.sites.whereabouts import Whereabouts, standing_beside

NO_GRADIENT = (
    "gradients=True keeps none of a layer whose output required no gradient when it ran: in torch.no_grad(), behind "
    "frozen weights, or in torch.utils.checkpoint(use_reentrant=True), where use_reentrant=False keeps them"
)
KEPT = "the model's own weights were kept, a number for every link, where queries and keys do not tell them"
NOT_NUMBERS = (
    "the model's own softmax gave rows that are not numbers, for queries with no key to look at: they are NaN in maps, "
    "and left out of overviews and statistics"
)


@contextlib.contextmanager
def watch(
    model: nn.Module,
    *,
    layers: Sequence[int | str] | None = None,
    heads: Sequence[int] | None = None,
    rows: slice | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    to: str | os.PathLike[str] | None = None,
    outputs: bool = False,
    values: bool = False,
    gradients: bool = False,
    budget: int | None = None,
) -> Iterator[Recording]:
    """Record the attention of `model` while the body runs; outputs, gradients and kernels stay what they were.

    `layers` keeps only some layers, by number in the order they run or by module name (`"decoder.*"`); `heads` only
    some heads of each; `rows` only some queries of each call, by a slice (`slice(-1000, None)`) or by position. Queries
    and keys are copied in the dtype the kernel read, or in `dtype`: maps are then of that precision. Copies stay on the
    model's device, or go `to="cpu"`, or to the file that is named, which `open_recording` opens later; `to="disk"` is a
    file that lasts as long as the recording.

    `nbytes` of the recording says how much that came to. What would take more than `budget` bytes, or than may safely
    be used, is not recorded and is listed in `seen.unseen`; the model runs on. It is not kept alive by the recording.
    Watching may be nested. `outputs` keeps what each head gave, too, for `Recording.output` and for patching it into
    another run (`edit`).

    `values` keeps the values too, for maps weighted by what a head moves; `gradients` keeps, besides those, the
    gradient by every call's output, once the model has run backwards, for maps of gradient x attention.

    Seen are fused calls, nn.MultiheadAttention, attention written out by hand, flex_attention, flash_attn 2, torch's
    varlen_attn, and what transformers' attention interface is asked for. A model under torch.compile is compiled once
    more, for watching, and its graphs run; its own stay as they are. Exceptions to "nothing changes", in `seen.notes`
    when they happened: a compiled model whose attention cannot be told from within one graph (by hand, flex_attention,
    graph breaks, `gradients`) and flex_attention run uncompiled, and nn.MultiheadAttention leaves its inference kernel;
    outputs then move in the last digits.
    """
    if not isinstance(model, nn.Module):
        raise WatchError(f"watch() expects the torch.nn.Module that will run, got a {type(model).__name__}")
    if layers is not None and (isinstance(layers, str) or not isinstance(layers, Sequence)):
        raise InputError(f'layers= expects numbers or names in a list, such as [0, "decoder.*"], got {layers!r}')
    heads = None if heads is None else arguments.several(heads, "heads")
    recorder = Recorder(Recording(), layers, heads, Keeper(rows, dtype, place(to), budget))
    recorder.outputs, recorder.values, recorder.gradients = outputs, values or gradients, gradients
    if gradients:
        recorder.not_in_graphs = "gradients were asked for"
    with contextlib.closing(recorder), standing_beside(model, recorder, recorder.keep):
        yield recorder.recording


class Recorder(Whereabouts):
    """Turns each sighting into a `Call` of the right layer."""

    def __init__(
        self,
        recording: Recording,
        layers: Sequence[int | str] | None = None,
        heads: Sequence[int] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        super().__init__(recording)
        self.layers, self.heads, self.keeper = layers, heads, keeper or Keeper()
        self.recording.settle = self.keeper.place.settle
        self.outputs = self.values = self.gradients = False
        self.masks = Masks()
        self.locator = Locator()

    def keep(self, sighting: Sighting) -> None:
        """Copy what a fused call was given, into the layer it belongs to."""
        if not self.frames.running:
            self.recording.account.outside += 1
            return
        if torch._C._current_graph_task_id() != -1:
            return  # activation checkpointing runs a layer again during backward: already seen
        index, name = self.count()
        if self.layers is not None and not any(arguments.means(want, index, name) for want in self.layers):
            self.recording.skipped.add(index)
            return
        if (reason := not_plain(sighting)) is not None:
            self.frames.refuse(reason)
            return
        try:
            described = self.describe(sighting)
            rule = described.rule  # of all its queries
            if not described.heads:
                n = described.n_heads
                self.frames.refuse(f"heads= names none of its {n} heads, which count from 0")
                return
            call = self.keeper.keep(index, described, dtype_in_kernel(sighting.q))
        except NoRoom as error:
            self.frames.refuse(str(error))
            return
        except RuntimeError as error:  # of torch, memory included: the model's own run goes on
            self.frames.refuse(f"it could not be copied: {error}")
            return
        if call is None:
            self.recording.skipped.add(index)
            return
        if call.q.dtype != dtype_in_kernel(sighting.q):
            self.recording.note(f"queries and keys were kept in {call.q.dtype}: maps are of that precision")
        if sighting.weights is not None:
            self.recording.note(f"{KEPT}: {sighting.because}")
            if bool(sighting.weights.isnan().any()):
                self.recording.note(NOT_NUMBERS)
        call.forward = self.recording.n_forwards - 1
        call.located = self.locator.locate(
            Asked(name, call.n_all, call.n_keys, lambda: rule, partial(self.keys_of, call)), self.arguments
        )
        self.recording.calls.setdefault(index, []).append(call)
        own, lay = sighting.gave or (sighting.out, four)
        if self.gradients and own is not None and own.requires_grad:
            own.register_hook(partial(self.keep_gradient, call, lay))  # type: ignore[no-untyped-call]  # torch's
        elif self.gradients:
            self.recording.note(NO_GRADIENT)

    def keys_of(self, call: Call) -> Tensor:
        """Return the keys that were kept of a call's first head."""
        self.keeper.place.settle()
        return call.k[:, 0]

    def close(self) -> None:
        """Let go of what only a running model needs."""
        self.locator = Locator()
        self.keeper.finish()
        self.masks.clear()
        if isinstance(file := self.keeper.place, File):
            if self.recording.calls:
                finish(self.recording, file)
            else:
                file.drop()

    def keep_gradient(self, call: Call, lay: Callable[[Tensor], Tensor], gradient: Tensor | None) -> None:
        """Keep the gradient by a call's output, once it is known; None comes where something behind it gives none."""
        if gradient is None:
            return
        kept = lay(gradient.detach())
        call.gradient = self.keeper.later(call, kept if len(call.heads) == call.n_heads else kept[:, list(call.heads)])

    def describe(self, sighting: Sighting) -> Call:
        """Return the call with the model's own tensors: good while the call lasts."""
        q, k, lse = four(sighting.q), four(sighting.k), sighting.lse
        batch, n_heads = max(q.shape[0], k.shape[0]), max(q.shape[1], k.shape[1])
        if k.shape[1] > 1 and k.stride(1) == 0 and sighting.weights is None:
            k = k[:, :1]  # one head, shown to all
        q, k = q.expand(batch, n_heads, -1, -1), k.expand(batch, -1, -1, -1)
        n_queries, n_kv_heads, n_keys = q.shape[2], k.shape[1], k.shape[2]
        group = n_heads // max(1, n_kv_heads)
        heads = tuple(h for h in range(n_heads) if self.heads is None or h in self.heads)
        kv = sorted({h // group for h in heads})
        if lse is not None:
            lse = lse.reshape(batch, n_heads, -1)[..., :n_queries]
        which = slice(None) if len(heads) == n_heads else list(heads)  # on a GPU, picking by a list waits for it
        v = self.values_of(sighting.v, (batch, n_heads, n_kv_heads), heads, kv) if self.values else None
        sinks = None if sighting.sinks is None else sighting.sinks.detach().expand(-1, n_heads, -1)[:, list(heads)]
        if len(heads) < n_heads:
            q, k, lse = q[:, list(heads)], k[:, kv], None if lse is None else lse[:, list(heads)]
        return Call(
            q=q,
            k=k,
            rule=self.rule(sighting, (batch, n_heads, n_queries, n_keys), dtype_in_kernel(sighting.q)),
            scale=q.shape[-1] ** -0.5 if sighting.scale is None else sighting.scale,
            heads=heads,
            kv_of=tuple(kv.index(h // group) for h in heads),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            lse=lse,
            dropout=sighting.dropout,
            out=four(sighting.out)[:, which] if self.outputs and sighting.out is not None else None,
            v=v,
            softcap=sighting.softcap,
            sinks=sinks,
            weights=None if sighting.weights is None else four(sighting.weights)[:, which],
        )

    def values_of(
        self, v: Tensor | None, sizes: tuple[int, int, int], heads: Sequence[int], kv: list[int]
    ) -> Tensor | None:
        """Return the values: as many rows as `kv` has, or where a model has more, one for each of `heads`."""
        if v is None:
            return None
        batch, n_heads, n_kv_heads = sizes
        v = four(v)
        shared = v.shape[1] in (1, n_kv_heads)
        v = v.expand(batch, n_kv_heads if shared else n_heads, -1, -1)
        return v if len(heads) == n_heads else v[:, kv if shared else list(heads)]

    def rule(self, sighting: Sighting, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Rule:
        """Return the call's rule, the very object of another layer that was given the same mask."""
        if sighting.rule is not None:
            return sighting.rule
        if sighting.weights is not None:
            return self.masks.shared(recognise(visible(sighting.weights, sighting.mask), False, shape))
        if sighting.mask is None:
            return recognise(None, sighting.is_causal, shape)
        self.masks.during(self.recording.n_forwards)
        exact = sighting.mask.dtype if sighting.by_hand else dtype
        return self.masks.rule(sighting.mask, sighting.q.shape[:-2], shape, exact)


def four(x: Tensor) -> Tensor:
    """Return `x` as (batch, heads, time, d_head): of three axes the first are heads, of five the first two texts."""
    return x.flatten(0, -4) if x.ndim > 4 else x[(None,) * (4 - x.ndim)]


@torch.no_grad()
def visible(weights: Tensor, mask: Tensor | None) -> Tensor:
    """Return which keys the queries of kept weights may look at: what the mask says, if it is known, or not 0."""
    if mask is None:
        return four(weights).nan_to_num(0) != 0
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def not_plain(sighting: Sighting) -> str | None:
    """Say why a call cannot be recorded, or None."""
    q, mask = sighting.q, sighting.mask
    if q.is_meta:
        return "it ran on the meta device, which holds no numbers"
    if q.is_nested:
        return "its queries came as nested tensors, which are not recorded yet"
    if type(q) not in (Tensor, nn.Parameter):
        return f"its queries came as {type(q).__name__}, not as plain tensors"
    if torch._C._functorch.is_functorch_wrapped_tensor(q):
        return "it ran inside torch.func (vmap, grad): watch the plain call"
    if mask is not None and not holds_numbers(mask):
        return f"its mask came as {type(mask).__name__}, whose numbers are not known here: give a plain tensor"
    return None
