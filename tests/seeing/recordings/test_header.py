"""A recording's header is believed no further than it is checked: each field has a type and limits."""

import copy
import json
import os
import random
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clearhead.errors import ClearheadError, WatchError
from clearhead.models.bert import Bert, BertConfig
from clearhead.seeing import Recording, open_recording, watch

# What a field becomes: other types, and other sizes.
NUMBERS = (-1, 0, 1, 7, 10**6, 10**12, 10**250, 0.5, -2.5, 1e300)
VALUES = (None, True, *NUMBERS, "", "x", [], [0], [[1]], ["x"], {}, {"a": 1})


class Attends(nn.Module):
    """Fused calls with every kind of rule: causal, a table, a bias, padding, grouped keys."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Call the kernel once for each."""
        n = x.shape[-2]
        table = torch.rand(n, n) > 0.5
        table.fill_diagonal_(True)
        for mask in (None, table, torch.randn(1, 4, n, n), (torch.arange(n) > 2).view(1, 1, 1, n)):
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], is_causal=True, enable_gqa=True)


def of_bert() -> Recording:
    model = Bert(BertConfig(vocab_size=50, d_model=16, n_heads=4, n_layers=2, d_ff=16, max_len=16)).eval()
    with torch.no_grad(), watch(model, values=True) as seen:
        model(torch.randint(0, 50, (2, 9)), torch.tensor([9, 4]))
        model(torch.randint(0, 50, (1, 5)))
    return seen


def of_kernels(**options: Any) -> Recording:
    model = Attends()
    with torch.no_grad(), watch(model, **options) as seen:
        for n in (6, 11):
            model(torch.randn(1, 4, n, 8))
    return seen


RECORDINGS: dict[str, Callable[[], Recording]] = {
    "padded texts and values": of_bert,
    "every rule": of_kernels,
    "some rows": lambda: of_kernels(rows=[1, 4]),
}


def places(said: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the values are, those inside others too."""
    for key, value in said.items() if isinstance(said, dict) else enumerate(said):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def rewrite(whole: bytes, change: Callable[[Any], Any]) -> bytes:
    """Return the file with what its header says changed, under a checksum that fits."""
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    meta = header["__metadata__"]
    meta["recording"] = json.dumps(change(json.loads(meta["recording"])))
    meta["check"] = str(zlib.crc32(meta["recording"].encode()))
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[start:]


def mutated(said: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of what a header says with another value at a place; Ellipsis takes it away."""
    said = copy.deepcopy(said)
    inner = said
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return said


def ask_everything(seen: Recording) -> None:
    """Ask what a recording can be asked; its own errors are answers, too."""
    repr(seen)
    for attribute in ("layers", "forwards", "unseen", "notes", "nbytes", "words"):
        getattr(seen, attribute)
    for layer in list(seen.calls):
        for number in range(len(seen.calls[layer])):
            call, where = seen.calls[layer][number], {"call": number}
            with suppress(ClearheadError):
                found = seen.map(layer, call.heads[0], **where)
                assert found.shape == (call.n_queries, call.n_keys)
            for question in (seen.entropy, seen.received, seen.to_dense):
                with suppress(ClearheadError):
                    question(layer, **where)
    for ask in (seen.heads, seen.strongest, seen.rollout, seen.to_dense, seen.sinks):
        with suppress(ClearheadError):
            ask()


@pytest.mark.parametrize("kind", RECORDINGS)
def test_a_header_of_any_content_is_refused_when_it_is_opened_or_answers(kind: str, tmp_path: Path) -> None:
    chance, path = random.Random(kind), tmp_path / "run.seen"
    RECORDINGS[kind]().save(path)
    whole = path.read_bytes()
    ask_everything(open_recording(path))
    said: list[Any] = []
    rewrite(whole, lambda found: said.append(found) or found)
    everywhere = list(places(said[0]))
    n_trials = int(os.environ.get("CLEARHEAD_FUZZ", "60"))
    refused = 0
    for _ in range(n_trials):
        place, value = chance.choice(everywhere), chance.choice((*VALUES, ...))
        path.write_bytes(rewrite(whole, lambda found: mutated(found, place, value)))  # noqa: B023
        try:
            seen = open_recording(path)
        except WatchError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 600, (place, value)
            continue
        ask_everything(seen)
    assert refused > n_trials / 2


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("names",), {}, "names: expected a list, got {}"),
        (("names", 0), 3, r"names\[0\]: expected a text, got 3"),
        (("missed",), [{"name": 3}], r"missed\[0\].name: expected a text, got 3"),
        (("ran",), [["a"]], r"ran\[0\]: expected a text, got \['a'\]"),
        (("n_forwards",), -1, "n_forwards: expected a whole number from 0"),
        (("calls", 0, "scale"), "1", r"calls\[0\].scale: expected a number from .*, got '1'"),
        (("calls", 0, "heads"), [0, 1, 1, 2], r"calls\[0\].heads: expected 4 ascending numbers"),
        (("calls", 0, "dropout"), 2, r"calls\[0\].dropout: expected a number from 0 to 1, got 2"),
        (("calls", 0, "rule"), 99, r"calls\[0\].rule: expected a whole number from 0 to"),
        (("calls", 0, "tensors", "q", "tensor"), "no", r"calls\[0\].tensors.q: expected the name of a tensor of this"),
        (("calls", 0, "tensors", "q", "tensor"), None, "expected a tensor's name for shape"),
        (("calls", 0, "tensors", "q", "shape"), [1, 4, 6], r"calls\[0\].tensors.q: expected shape \[1, 4, 6\], got"),
        (("rules", 0, "reach"), 0.5, r"rules\[0\].reach: expected a whole number .*, or null, got 0.5"),
        (("calls", 0, "forward"), ..., r"calls\[0\].forward: expected .*, and it is missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_field_what_was_expected_and_what_is_there(
    place: tuple[Any, ...], value: Any, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.seen"
    of_kernels().save(path)
    path.write_bytes(rewrite(path.read_bytes(), lambda found: mutated(found, place, value)))
    with pytest.raises(WatchError, match=rf"run\.seen is damaged: .*{said}"):
        open_recording(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, 2]", "3", "NaN", '{"names": NaN}'])
def test_a_header_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.seen"
    of_kernels().save(path)

    def changed(whole: bytes) -> bytes:
        start = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:start])
        header["__metadata__"] |= {"recording": text, "check": str(zlib.crc32(text.encode()))}
        new = json.dumps(header).encode()
        return len(new).to_bytes(8, "little") + new + whole[start:]

    path.write_bytes(changed(path.read_bytes()))
    with pytest.raises(WatchError, match=r"run\.seen is damaged"):
        open_recording(path)


@pytest.mark.parametrize("version", ["²", "9" * 5_000, "-1", "1.0", "x", "٣"])
def test_a_version_that_is_none_of_ours_is_refused(version: str, tmp_path: Path) -> None:
    path = tmp_path / "run.seen"
    of_kernels().save(path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    header["__metadata__"]["version"] = version
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])
    with pytest.raises(WatchError, match="of the format, this clearhead reads up to"):
        open_recording(path)
