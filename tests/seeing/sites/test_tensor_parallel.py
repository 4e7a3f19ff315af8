"""Heads that tensor parallelism has split over processes are numbered in each, and a note says so."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.seeing import watch
from clearhead.seeing.sites.whereabouts import TENSOR_PARALLEL

distributed = pytest.importorskip("torch.distributed")
pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no distributed package")
N_PROCESSES = 2


@pytest.fixture
def mesh() -> Iterator[object]:
    """One of two processes, the other of which is only said to be there: collectives return what they were given."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=1, world_size=N_PROCESSES, store=FakeStore())
    yield init_device_mesh("cpu", (N_PROCESSES,))
    distributed.destroy_process_group()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).unflatten(-1, (-1, 8)).transpose(1, 2) for one in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_of_one_process_are_said_to_be_that(mesh: object) -> None:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model, x = Attention(), torch.randn(1, 5, 32)
    with torch.no_grad(), watch(model) as whole:
        model(x)
    plan = {**{f"{name}_proj": ColwiseParallel() for name in "qkv"}, "out_proj": RowwiseParallel()}
    parallelize_module(model, mesh, plan)
    with torch.no_grad(), watch(model) as seen:
        model(x).sum()  # which waits for the collective
    assert (whole.notes, whole.layers[0].n_heads) == ([], 4)
    assert seen.layers[0].n_heads == 2
    assert seen.notes == [TENSOR_PARALLEL.format(N_PROCESSES)]
