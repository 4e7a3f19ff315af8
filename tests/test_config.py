"""Facts about config.py: what is described wrongly is refused by name."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from clearhead.config import build_config
from clearhead.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    steps: int | None = None
    labels: tuple[str, ...] = ()
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    optimizer: Optimizer = field(default_factory=Optimizer)


def test_values_arrive_in_their_declared_types() -> None:
    built = build_config(
        Recipe,
        {"name": "a", "labels": ["x", "y"], "optimizer": {"lr": 1, "betas": [0, 1.0]}},
        where="r.toml",
    )
    assert built == Recipe(name="a", labels=("x", "y"), optimizer=Optimizer(lr=1.0, betas=(0.0, 1.0)))
    assert isinstance(built.optimizer.lr, float) and isinstance(built.optimizer.betas[0], float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "stepz": 3}, r"r.toml: unknown key 'stepz'; did you mean 'steps'\?"),
        ({"name": "a", "zzz": 3}, "unknown key 'zzz'; known: compile, labels"),
        ({}, "r.toml: missing 'name', which Recipe needs"),
        ({"name": 3}, r"r.toml: name: expected str, got 3 \(int\)"),
        ({"name": "a", "steps": "many"}, r"steps: expected int, got 'many' \(str\)"),
        ({"name": "a", "steps": True}, r"steps: expected int, got True \(bool\)"),
        ({"name": "a", "compile": 1}, r"compile: expected bool, got 1 \(int\)"),
        ({"name": "a", "precision": "fp8"}, "precision: expected one of 'fp32', 'bf16', got 'fp8'"),
        ({"name": "a", "labels": ["x", 1]}, r"labels\[1\]: expected str, got 1"),
        ({"name": "a", "optimizer": {"betas": [0.9]}}, "optimizer: betas: expected 2 values, got 1"),
        ({"name": "a", "optimizer": {"lr": "fast"}}, "optimizer: lr: expected float, got 'fast'"),
        ({"name": "a", "optimizer": {"lrr": 1}}, "optimizer: unknown key 'lrr'; did you mean 'lr'"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(Recipe, values, where="r.toml")


def test_nearest_offers_one_name_or_all_of_them() -> None:
    assert nearest("sentimant", ["sentiment", "novels"]) == "; did you mean 'sentiment'?"
    assert nearest("xyz", ["b", "a"]) == "; known: a, b"
