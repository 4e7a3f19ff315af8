"""`edit`: a model runs as it always does, but for the heads and links that you change: is attention what decides?

    with edit(model) as change:
        change.switch_off(layer=2, head=0)
        change.cut(layer=1, head=3, query=6, key=4)
        model(tokens)

Edits act behind the kernel, on what it gave: the model's own kernels run, what no edit names keeps its bits, and when
the body ends the model is what it was. Next: `edits.py` holds the mathematics, `effects.py` tries every head or link.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clearhead.errors import InputError, WatchError, counted
from clearhead.seeing import arguments
from clearhead.seeing.call import Call
from clearhead.seeing.editing import edits
from clearhead.seeing.editing.kinds import Cut, Edit, Met, Patch, Places, Replace, Site, SwitchOff, Temperature
from clearhead.seeing.editing.unchanged import passed_by, unseen_of
from clearhead.seeing.maps import sight
from clearhead.seeing.recorder import Recorder, four, not_plain
from clearhead.seeing.recordings.recording import FEW, Recording
from clearhead.seeing.sites.locating import Asked
from clearhead.seeing.sites.sighting import Sighting, dtype_in_kernel
from clearhead.seeing.sites.whereabouts import standing_beside

Layers = int | str | Sequence[int | str] | None
Heads = int | Sequence[int] | None
Texts = int | Sequence[int] | None


@contextlib.contextmanager
def edit(model: nn.Module) -> Iterator["Edits"]:
    """Change the attention of `model` while the body runs, as the body says; afterwards it is what it was.

    Works on what `watch` can see. Inside the body, edits count from the moment they are made. Layers are numbered in
    the order they run, or named as modules (`"decoder.*"`); heads, texts and positions count from 0, positions also
    from the end. With a cache, positions are those of the whole text, as `sites/locating.py` finds them.

    Editing may be nested, with itself and with `watch`: the inner one acts on, or sees, what the outer one left. The
    weights of a recording are always those that queries and keys make, before any edit of that layer. Gradients flow
    through an edit as through the model, but to what a score_mod of flex_attention has learned.

    WatchError for a head or a text that a layer does not have, when the layer runs; for edits that never applied,
    when the body ends; for positions of a layer of which nothing tells where it stands in the text; for attention that
    can be seen but not edited.
    """
    if not isinstance(model, nn.Module):
        raise WatchError(f"edit() expects the torch.nn.Module that will run, got a {type(model).__name__}")
    change = Edits()
    with contextlib.closing(change.recorder), standing_beside(model, change.recorder, change.act):
        yield change
    if unused := change.unused:
        raise WatchError(f"{len(unused)} of {counted(len(change.edits), 'edit')} never applied: {'; '.join(unused)}")


class Edits:
    """What is to be changed; made by `edit`. `layer`, `head` and `batch` take one, several, or None for all."""

    def __init__(self) -> None:
        self.edits: list[Edit] = []
        self.met: dict[int, Met] = {}
        self.recorder = Recorder(Recording())  # it knows the layers by number and name, and keeps no tensors
        self.recorder.not_in_graphs = "it is edited"
        self.recorder.also_backward = True  # or gradients would be those of another model

    def switch_off(self, layer: Layers, head: Heads = None, *, batch: Texts = None) -> None:
        """Let heads give nothing; without `head`, the whole layer's attention, of which only a bias remains."""
        self._add(SwitchOff(**_address("switch_off", layer, head, batch)))

    def keep_only(self, layer: Layers, head: Heads, *, batch: Texts = None) -> None:
        """Let all heads of a layer but these give nothing."""
        self._add(SwitchOff(**_address("keep_only", layer, head, batch), others=True))

    def cut(
        self,
        layer: Layers,
        head: Heads,
        query: Places,
        key: Places,
        *,
        renormalise: bool = True,
        batch: Texts = None,
    ) -> None:
        """Cut the links from `query` to `key`: positions, slices or lists of them, None for all.

        With `renormalise` the row's other weights sum to 1 again, as if a mask had hidden the key; a row that loses
        all its links gives 0. Without it the weight becomes 0 and the others stay: out_i - w_ij v_j.
        """
        query, key = _places(query, "query"), _places(key, "key")
        address = _address("cut", layer, head, batch, query=query, key=key)
        self._add(Cut(**address, query=query, key=key, renormalise=renormalise))

    def cut_link(
        self, layer: int, head: int | None, row: int, column: int, *, renormalise: bool = True, batch: Texts = None
    ) -> None:
        """Cut one link of the map of a call: row and column count there, as in `Recording.map`, not in the text."""
        address = _address("cut_link", layer, head, batch, row=row, column=column)
        self._add(Cut(**address, query=row, key=column, renormalise=renormalise, of_map=True))

    def hide(self, layer: Layers, key: Places, *, renormalise: bool = True, batch: Texts = None) -> None:
        """Hide tokens from all other positions, in all heads: cut every link to `key` but a token's link to itself.

        Args:
            layer: The layers to act on, by number or name; None for all.
            key: The positions of the tokens: a number, a slice or a list.
            renormalise: Whether the weights that are left of a row sum to 1 again, as in `cut`.
            batch: The texts to act on; None for all.
        """
        key = _places(key, "key")
        address = _address("hide", layer, None, batch, key=key)
        self._add(Cut(**address, query=None, key=key, renormalise=renormalise, spares_own=True))

    def temperature(self, layer: Layers, head: Heads, factor: int | float, *, batch: Texts = None) -> None:
        """Divide the scores of heads by `factor` before the softmax: above 1 they spread, below 1 they concentrate.

        Raises:
            InputError: The factor is no number above 0.
        """
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
            raise InputError(f"factor= expects a number above 0, got {factor!r}")
        self._add(Temperature(**_address("temperature", layer, head, batch, factor=factor), factor=float(factor)))

    def replace(self, layer: Layers, head: Heads, pattern: Float[Tensor, "query key"], *, batch: Texts = None) -> None:
        """Let heads mix their values by `pattern`, which is used as it is: no softmax, no mask, no dropout."""
        if not isinstance(pattern, Tensor):
            raise InputError(f"pattern= expects a tensor of queries x keys, got {pattern!r}")
        self._add(Replace(**_address("replace", layer, head, batch), pattern=pattern))

    def patch(
        self,
        layer: Layers,
        head: Heads,
        output: Float[Tensor, "query d_value"] | Recording,
        *,
        query: Places = None,
        batch: Texts = None,
    ) -> None:
        """Let heads give what they gave in another run, at the positions `query` only if given.

        `output` is what one head gave, or a recording of one run made with `watch(model, outputs=True)`, of which the
        layer of the same name and the same head are taken, and the same text unless it holds one alone.
        """
        if not isinstance(output, Tensor | Recording):
            raise InputError(f"output= expects a tensor of queries x d_value, or a recording, got {output!r}")
        query = _places(query, "query")
        self._add(Patch(**_address("patch", layer, head, batch, query=query), source=output, query=query))

    @property
    def unused(self) -> tuple[str, ...]:
        """Return the edits that were applied nowhere so far, each with the reason."""
        return tuple(f"{edit.said}: {self._reason(edit, want)}" for edit in self.edits for want in edit.waiting)

    @property
    def notes(self) -> list[str]:
        """Return what else than the edits is not as it would be without them, such as a compiled model uncompiled.

        And in which forwards an edit that was applied in others changed nothing, because attention was not seen there.
        """
        seen = self.recorder.recording
        return [*seen.notes, *filter(None, (passed_by(edit, seen) for edit in self.edits))]

    @property
    def why_nothing(self) -> str:
        """Return why no attention was met."""
        seen = self.recorder.recording
        why = [*map(str, seen.unseen[:FEW]), *seen.notes]
        return "; ".join(why) or "no attention ran; run the model inside the with block"

    def act(self, sighting: Sighting) -> Tensor | None:
        """Return what a call gives after the edits that are about it, or None where none is."""
        recorder = self.recorder
        if not recorder.frames.running:
            recorder.recording.account.outside += 1
            return None
        index, name = recorder.count()
        if torch._C._current_graph_task_id() != -1 and f"{name}#2" in recorder.recording.names:
            raise WatchError(f"{name} attends more than once and is checkpointed: which time this is cannot be known")
        now = self.meet(index, name, sighting)
        mine = [(edit, want) for edit in self.edits for want in _wants(edit, index, name)]
        if not mine:
            return None
        where = f"{mine[0][0].said}: layer {index} {name!r}"
        if sighting.fixed is not None:
            raise WatchError(f"{where} can be seen but not edited: {sighting.fixed}")
        if sighting.v is None or sighting.out is None:
            raise WatchError(f"{where} can be seen but not edited: it computes attention where its output is not known")
        if (reason := not_plain(sighting)) is not None:
            raise WatchError(f"{where} cannot be edited: {reason}")
        with torch._C.DisableTorchFunction():  # what is computed here is no part of the model: no watcher sees it
            call = recorder.describe(sighting)
            dtype = dtype_in_kernel(sighting.q)
            call = replace(call, q=call.q.to(dtype), k=call.k.to(dtype), located=now.positions)
            call = _as_given(call, sighting)
            site = Site(call, four(sighting.v).to(dtype), four(sighting.out), name, index)
            for edit, _ in mine:
                if now.positions.one_text and not now.positions.first:
                    self.note_padding(edit, call)
            out, done = edits.apply([edit for edit, _ in mine], site)
        for edit, want in mine:
            if edit in done:
                edit.waiting.discard(want)
        return None if out is None else out.reshape(sighting.out.shape)

    def meet(self, index: int, name: str, sighting: Sighting) -> Met:
        """Note that a layer ran, and where its queries and keys stand."""
        with torch._C.DisableTorchFunction(), torch.no_grad():
            q, k = four(sighting.q), four(sighting.k)
            shape = max(q.shape[0], k.shape[0]), max(q.shape[1], k.shape[1]), q.shape[2], k.shape[2]
            keys = k[:, 0].detach().clone()  # the cache may be written over before the next call
            rule = partial(self.recorder.rule, sighting, shape, dtype_in_kernel(sighting.q))
            call = Asked(name, q.shape[2], k.shape[2], rule, lambda: keys)
            located = self.recorder.locator.locate(call, self.recorder.arguments)
        self.met[index] = now = Met(name, *shape, located)
        return now

    def note_padding(self, edit: Edit, call: Call) -> None:
        """Say once of an edit by positions that texts here begin with padding, which positions count, as maps do."""
        if isinstance(edit, Cut | Patch) and not edit.looked:
            edit.looked = True
            texts = range(call.batch) if edit.texts is None else edit.texts
            real = {text: sight.counted(call, text) for text in texts if 0 <= text < call.batch}
            begun = {text: int(one.to(torch.uint8).argmax()) for text, one in real.items() if one is not None}
            if padded := [f"text {text} begins at {first}" for text, first in begun.items() if first]:
                self.recorder.recording.note(
                    f"{edit.said}: positions count the padding before a text, as maps do; {', '.join(padded[:FEW])}"
                )

    def _add(self, edit: Edit) -> None:
        edit.since = self.recorder.recording.n_forwards
        self.edits.append(edit)

    def _reason(self, edit: Edit, want: int | str | None) -> str:
        if not self.met:
            return self.why_nothing
        if edit.why:
            return edit.why
        if want is not None and (unseen := unseen_of([want], self.recorder.recording)):
            return "; ".join(map(str, unseen[:FEW]))
        names = ", ".join(f"{index} {met.name!r}" for index, met in list(self.met.items())[:FEW])
        more = f", ... {max(self.met)}" if len(self.met) > FEW else ""
        if want is None or any(arguments.means(want, index, met.name) for index, met in self.met.items()):
            return "the layer did not run again after the edit was made"
        return f"no layer {want!r} ran, of {len(self.met)}: {names}{more}"


def _as_given(call: Call, sighting: Sighting) -> Call:
    """Return the call with what is learned in its mask or sinks as the model gave it: gradients go there too."""
    mask, sinks = sighting.mask, sighting.sinks
    if call.rule.bias is not None and mask is not None and mask.requires_grad:
        lead = sighting.q.shape[:-2]
        mask = mask.expand(*lead, *mask.shape[-2:]).flatten(0, -4) if mask.ndim > 4 else mask[(None,) * (4 - mask.ndim)]
        call = replace(call, rule=replace(call.rule, bias=mask))
    if sinks is not None and sinks.requires_grad:
        call = replace(call, sinks=sinks.expand(-1, call.n_heads, -1))
    return call


def _wants(edit: Edit, index: int, name: str) -> Iterator[int | str | None]:
    """Yield which of the layers that an edit names this one is."""
    if edit.layers is None:
        yield None
    for want in edit.layers or ():
        if arguments.means(want, index, name):
            yield want


def _address(verb: str, layer: Layers, head: Heads, batch: Texts, **more: Any) -> dict[str, Any]:
    """Return where an edit acts, as the fields of `Edit`."""
    for what, given in (("layer", layer), ("head", head), ("batch", batch)):
        if _is_list(given) and not len(given):  # type: ignore[arg-type]  # it has a length
            raise InputError(f"{verb}: {what}={given!r} names none; None means all of them")
    shown = {"layer": layer, "head": head, **more, "batch": batch}
    said = f"{verb}({', '.join(f'{name}={_short(x)}' for name, x in shown.items() if x is not None)})"
    layers: Any = layer if layer is None or _is_list(layer) else [layer]
    return {
        "said": said,
        "layers": None if layers is None else tuple(_layer(one) for one in layers),
        "heads": None if head is None else _some(head, "head"),
        "texts": None if batch is None else _some(batch, "batch"),
    }


def _is_list(given: Any) -> bool:
    return (isinstance(given, Sequence) and not isinstance(given, str)) or getattr(given, "ndim", 0) > 0


def _some(given: Any, what: str) -> tuple[int, ...]:
    """Return one number or several as several."""
    return tuple(arguments.several(given, what)) if _is_list(given) else (arguments.whole(given, what),)


def _layer(given: Any) -> int | str:
    return given if isinstance(given, str) else arguments.whole(given, "layer")


def _places(given: Any, what: str) -> Places:
    """Return positions: None, a number, a slice or a list."""
    if given is None:
        return None
    listed = isinstance(given, slice) or _is_list(given)
    return arguments.positions(given, what) if listed else arguments.whole(given, what)


def _short(given: Any) -> str:
    if isinstance(given, slice):
        return f"{'' if given.start is None else given.start}:{'' if given.stop is None else given.stop}"
    return repr(given)
