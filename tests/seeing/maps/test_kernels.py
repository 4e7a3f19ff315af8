"""The GPU's overview kernel equals float64: on a GPU as it is compiled, elsewhere in Triton's interpreter."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clearhead.seeing.call import Call
from clearhead.seeing.maps import products, pyramid, sight, tiles
from clearhead.seeing.rule import Rule
from seeing.dense import call

triton = pytest.importorskip("triton", reason="Triton absent (190 MB): the line for it in tests/peers.txt says how")
if not torch.cuda.is_available() and triton.__version__ < "3.7" and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip(f"the interpreter of Triton {triton.__version__} needs NumPy 2.3", allow_module_level=True)

from clearhead.seeing.maps import kernels  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if torch.cuda.is_available() else [])]  # not interpreted


def reference(q: Tensor, k: Tensor, lse: Tensor, size: tuple[int, int], how: dict[str, Any]) -> Tensor:
    scores = how["scale"] * q.double() @ k.double()[how["kv_of"].long()].mT - lse.double()[..., None]
    if how.get("hidden") is not None:
        scores += how["hidden"].double()[:, None]
    weights, rows, cols = scores.exp2(), torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])
    if how.get("reach") is not None:
        weights = weights * (cols <= rows + how["reach"])
    if how.get("since") is not None:
        weights = weights * (cols >= rows + how["since"])
    cuts = pyramid.cuts(q.shape[1], size[0]), pyramid.cuts(k.shape[1], size[1])
    found = torch.zeros(len(q), *size, dtype=torch.float64)
    for i in range(size[0]):
        for j in range(size[1]):
            block = weights[:, cuts[0][i] : cuts[0][i + 1], cuts[1][j] : cuts[1][j + 1]].flatten(1)
            if block.shape[1]:
                found[:, i, j] = block.amax(1) if how.get("largest") else block.sum(1)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("sizes", "size", "d", "how"),
    [
        ((64, 64), (4, 4), 16, {}),
        ((64, 64), (8, 4), 16, {"reach": 0}),
        ((128, 128), (16, 16), 64, {"reach": 0, "largest": True}),
        ((150, 150), (7, 7), 24, {"reach": 0}),  # blocks of 21 and 22
        ((100, 150), (1, 5), 16, {"reach": 50, "since": 20, "hidden": 0.3}),
        ((77, 50), (64, 64), 24, {"reach": 0, "since": -9}),  # more blocks than positions
        ((300, 300), (2, 2), 16, {"reach": 0, "largest": True}),  # blocks larger than a tile
        ((60, 60), (60, 60), 16, {"reach": 3, "since": -3}),
        ((1, 300), (1, 32), 40, {"reach": 299, "hidden": 0.2}),
        ((33, 20), (5, 3), 8, {"reach": -3}),
    ],
)
@pytest.mark.parametrize("room", [kernels.ROOM, 2**14], ids=["an H100's", "little room"])
def test_the_kernel_pools_what_the_formula_says(
    sizes: tuple[int, int],
    size: tuple[int, int],
    d: int,
    how: dict[str, Any],
    dtype: torch.dtype,
    room: int,
    monkeypatch: Any,
) -> None:
    monkeypatch.setattr(kernels, "_room", lambda device: room)
    q, k, lse = (
        torch.randn(3, sizes[0], d).to(dtype),
        torch.randn(2, sizes[1], d).to(dtype),
        8 + 3 * torch.rand(3, sizes[0]),
    )
    how = {**how, "scale": 0.3, "kv_of": torch.tensor([0, 1, 1], dtype=torch.int32)}
    if "hidden" in how:
        how["hidden"] = torch.where(torch.rand(1, sizes[1]) < how["hidden"], products.NEVER, 0.0)
    there = {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in how.items()}
    have = kernels.pooled(q.to(DEVICE), k.to(DEVICE), lse.to(DEVICE), size, **there).cpu().double()
    want = reference(q, k, lse, size, how)
    assert (have - want).abs().max().item() <= 3e-6 * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("mode", ["sum", "max"])
@pytest.mark.parametrize(
    "rule",
    [
        Rule(),
        Rule(reach=0),
        Rule(reach=0, since=-7),
        Rule(reach=0, keys=torch.tensor([[5, 40], [0, 20]])),
        Rule(allowed=(torch.arange(40) % 3 > 0)[None, None, None]),
    ],
    ids=["none", "causal", "window", "padding", "keys"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_overview_on_a_gpu_is_that_of_a_cpu(
    cuda: torch.device, rule: Rule, mode: pyramid.Mode, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = call(rule, 40, 40, d_head=64)
    one.q, one.k = one.q.to(dtype), one.k.to(dtype)
    there = Call(one.q.to(cuda), one.k.to(cuda), rule.to(cuda), one.scale, one.heads, one.kv_of, 4, 2, None)
    calls, run = 0, kernels.pooled

    def counted(*args: Any, **more: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return run(*args, **more)

    monkeypatch.setattr(kernels, "pooled", counted)
    for size in (3, 8, 40):
        cuts = pyramid.edges(40, size)
        want, have = (
            pyramid.pooled(c, 1, range(4), cuts, cuts, mode=mode, part=tiles.Part(counted=sight.counted(c, 1)))
            for c in (one, there)
        )
        assert have.cpu() == pytest.approx(want, abs=1e-5)
    assert calls == 3
