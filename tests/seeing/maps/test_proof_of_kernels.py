"""A kernel is believed after it said what tiles say: another stands in its place, made of tiles, right or wrong."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from clearhead.seeing.maps import pyramid, tiles
from clearhead.seeing.rule import Rule
from seeing.dense import call

CUTS = pyramid.cuts(40, 4)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch):
    """Return a function that puts another in the place of the kernel; all calls count as being on a GPU."""
    monkeypatch.setattr(pyramid, "PROVED", {})
    monkeypatch.setattr(pyramid, "_on_a_gpu", lambda call: True)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name == "triton" else find(name))

    def put(pooled) -> None:
        module = ModuleType("clearhead.seeing.maps.kernels")
        module.pooled = pooled
        monkeypatch.setitem(sys.modules, "clearhead.seeing.maps.kernels", module)
        import clearhead.seeing.maps

        monkeypatch.setattr(clearhead.seeing.maps, "kernels", module, raising=False)

    return put


def made_of_tiles(mode: pyramid.Mode = "sum") -> Tensor:
    return pyramid._by_tiles(ONE, 0, range(4), CUTS, CUTS, mode, tiles.WHOLE)


def overview(mode: pyramid.Mode = "sum") -> Tensor:
    return pyramid.pooled(ONE, 0, range(4), CUTS, CUTS, mode=mode)


torch.manual_seed(0)
ONE = call(Rule(reach=0), 40, 40, d_head=16)


def test_a_kernel_that_says_what_tiles_say_is_asked_again_without_proof(kernel) -> None:
    asked: list[bool] = []

    def right(*args, largest: bool, **more) -> Tensor:
        asked.append(largest)
        return made_of_tiles("max" if largest else "sum") * (1 + 1e-6)  # by which it is known

    kernel(right)
    for mode, times in (("sum", 2), ("max", 1)):
        for _ in range(times):
            assert not torch.equal(overview(mode), made_of_tiles(mode))
            torch.testing.assert_close(overview(mode), made_of_tiles(mode), atol=1e-4, rtol=1e-4)
    assert asked == [False] * 4 + [True] * 2
    assert set(pyramid.PROVED.values()) == {""} and len(pyramid.PROVED) == 2


def wrong(*args, **more) -> Tensor:
    found = made_of_tiles()
    found[:, -1] += 0.1
    return found


def hollow(*args, **more) -> Tensor:
    return made_of_tiles() * torch.nan


def broken(*args, **more) -> Tensor:
    raise RuntimeError("no such instruction")


@pytest.mark.parametrize(
    ("pooled", "reason"),
    [(wrong, "differs from tiles by 1.0e-01"), (hollow, "differs from tiles by nan"), (broken, "no such instruction")],
    ids=["wrong", "not a number", "broken"],
)
def test_a_kernel_that_fails_or_differs_is_left_with_one_warning(kernel, pooled, reason: str) -> None:
    kernel(pooled)
    with pytest.warns(UserWarning, match=reason):
        assert torch.equal(overview(), made_of_tiles())
    assert torch.equal(overview(), made_of_tiles())  # a warning would be an error here


def test_memory_that_ran_out_proves_nothing(kernel) -> None:
    def full(*args, **more) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    kernel(full)
    with pytest.raises(torch.OutOfMemoryError):
        overview()
    assert not pyramid.PROVED
