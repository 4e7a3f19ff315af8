"""The mapping engine: what it writes it reads back, and it accounts for every tensor."""

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clearhead.checkpoints.mapping import (
    SAME,
    TRANSPOSED,
    Alias,
    Ignored,
    Rule,
    Table,
    read_tensors,
    stacked,
    write_tensors,
)
from clearhead.errors import CheckpointError

Model = tuple[Table, dict[str, Tensor]]


class InMemory:
    """A checkpoint that is a dict."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        """Return the tensor."""
        return self.tensors[name]

    def file(self, name: str) -> str:
        """Return a name for messages."""
        return "a dict"


def read(table: Table, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """Read from a dict."""
    return dict(read_tensors(table, InMemory(tensors), like, n_layers))


# A row: is it one a layer, how its name ends, its shape here, and its op by name and number of parts.
ROWS = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from([("{p}", (3,)), ("weight", (3, 2)), ("weight", (2, 2)), ("bias", (4,))]),
        st.sampled_from([("same", 1), ("transposed", 1), ("stacked", 2), ("stacked", 3)]),
    ),
    min_size=1,
    max_size=6,
)
LAYERS = st.integers(1, 12)  # beyond 9, where "layer.1" begins "layer.10"


def build(rows: list[tuple[bool, tuple[str, tuple[int, ...]], tuple[str, int]]], n_layers: int) -> Model:
    """Return the table that `rows` describe and a model's tensors for it, every number in them different."""
    rules, ours, count = [], {}, 0
    for row, (layered, (end, shape), (op, parts)) in enumerate(rows):
        where = "layer.{i}." if layered else ""
        names = tuple(f"{where}ours{row}.{part}.{end}" for part in range(parts))
        transposed = op == "transposed" and len(shape) == 2
        by = stacked(parts) if op == "stacked" else TRANSPOSED if transposed else SAME
        rules.append(Rule(f"h.{where}theirs{row}.{end}", names, by))
        for name in names:
            for i in range(n_layers if layered else 1):
                for p in ("weight", "bias") if end == "{p}" else ("",):
                    numbers = torch.arange(count, count + math.prod(shape), dtype=torch.float32).reshape(shape)
                    ours[name.replace("{i}", str(i)).replace("{p}", p)] = numbers
                    count += numbers.numel()
    return Table(tuple(rules)), ours


@given(ROWS, LAYERS)
def test_reading_what_was_written_is_identity(rows: list, n_layers: int) -> None:
    table, ours = build(rows, n_layers)
    theirs = write_tensors(table, ours, n_layers)
    assert not theirs.keys() & ours.keys()
    again = read(table, theirs, ours, n_layers)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)


@given(ROWS, LAYERS)
def test_writing_what_was_read_is_identity_under_prefixes(rows: list, n_layers: int) -> None:
    table, ours = build(rows, n_layers)
    theirs = {f"their.{name}": tensor for name, tensor in write_tensors(table, ours, n_layers).items()}
    like = {f"our.{name}": tensor.to("meta") for name, tensor in ours.items()}
    table = table.under("their.", "our.")
    again = write_tensors(table, read(table, theirs, like, n_layers), n_layers)
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


@given(ROWS, LAYERS, st.randoms(use_true_random=False))
def test_every_tensor_is_accounted_for(rows: list, n_layers: int, random: Random) -> None:
    table, ours = build(rows, n_layers)
    theirs = write_tensors(table, ours, n_layers)
    name = random.choice(sorted(theirs))
    without = {key: tensor for key, tensor in theirs.items() if key != name}
    with pytest.raises(CheckpointError, match=f"missing {name!r}"):
        read(table, without, ours, n_layers)
    with pytest.raises(CheckpointError, match="unexpected 'one more'"):
        read(table, {**theirs, "one more": theirs[name]}, ours, n_layers)
    with pytest.raises(CheckpointError, match=f"{name!r} has shape"):
        read(table, {**theirs, name: theirs[name][None]}, ours, n_layers)


NORM = Table(
    rules=(Rule("norm.{p}", "ours.{p}"),),
    aliases=(Alias("norm.gamma", "norm.weight"),),
    ignored=(Ignored("steps", "counted by the trainer"),),
)
ONES, ZEROS = torch.ones(3), torch.zeros(3)
OURS = {"ours.weight": ONES, "ours.bias": ZEROS}


def test_an_alias_stands_for_its_tensor() -> None:
    came = read(NORM, {"norm.gamma": ONES, "norm.bias": ZEROS, "steps": ONES}, OURS, 1)
    assert torch.equal(came["ours.weight"], ONES) and torch.equal(came["ours.bias"], ZEROS)


def test_an_equal_copy_is_accepted_and_a_different_one_refused() -> None:
    tensors = {"norm.weight": ONES, "norm.bias": ZEROS}
    assert read(NORM, {**tensors, "norm.gamma": ONES.clone()}, OURS, 1).keys() == OURS.keys()
    with pytest.raises(CheckpointError, match=r"'norm.gamma' should equal 'norm.weight'"):
        read(NORM, {**tensors, "norm.gamma": ONES + 1e-6}, OURS, 1)


def test_names_are_never_matched_in_part() -> None:
    # A key that merely contains "gamma" was renamed by a substring replacement elsewhere, for years.
    with pytest.raises(CheckpointError, match=r"missing 'norm.weight'; unexpected 'norm.gamma_rays'"):
        read(NORM, {"norm.gamma_rays": ONES, "norm.bias": ZEROS}, OURS, 1)


def test_sizes_that_no_memory_holds_are_refused_before_they_are_made() -> None:
    huge = torch.empty(2**30, 2**20, device="meta")
    table = Table(rules=(Rule("qkv", ("q", "k"), stacked(2)),))
    with pytest.raises(CheckpointError, match=r"'qkv' has shape \(4, 4\), expected 2,251,799,813,685,248 numbers"):
        read(table, {"qkv": torch.zeros(4, 4)}, {"q": huge, "k": huge}, 1)


def test_quantised_tensors_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'norm.weight' holds torch.int8"):
        read(NORM, {"norm.weight": ONES.to(torch.int8), "norm.bias": ZEROS}, OURS, 1)


def test_a_tensor_without_a_rule_is_not_dropped() -> None:
    with pytest.raises(CheckpointError, match=r"no place for 'ours.extra'"):
        write_tensors(NORM, {**OURS, "ours.extra": ONES}, 1)


def test_opening_a_checkpoint_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    # 2 to 4 seconds, which torch.cat of tensors on "meta" costs
    from clearhead.checkpoints import save
    from clearhead.models.gpt import GPTConfig, GPTForCausalLM

    save(GPTForCausalLM(GPTConfig(vocab_size=20, d_model=16, n_heads=2, n_layers=1, d_ff=32)), tmp_path, family="gpt2")
    code = f"import sys, clearhead; clearhead.load({str(tmp_path)!r}); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
