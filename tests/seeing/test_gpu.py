"""On a GPU the same kernels run, hand out their normaliser, and the maps are exact."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from clearhead.attention import Mask, attention_map
from clearhead.seeing import watch
from seeing.dense import Fused

BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]


@pytest.mark.parametrize("mask", ["none", "causal", "lengths", "bias", "blind"])
@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_gpu_kernels_are_watched_without_a_trace(
    cuda: torch.device, backend: SDPBackend, dtype: torch.dtype, with_grad: bool, mask: str
) -> None:
    q, k, v = (torch.randn(2, 4, 77, 64, device=cuda, dtype=dtype, requires_grad=with_grad) for _ in range(3))
    keys, bias = torch.arange(77, device=cuda), torch.randn(1, 4, 77, 77, device=cuda, dtype=dtype)
    inside = (keys < torch.tensor([77, 30], device=cuda)[:, None])[:, None, None]
    nobody = (torch.arange(2, device=cuda) > 0)[:, None, None, None].expand(2, 1, 77, 77)
    how, rule = {
        "none": ({}, Mask()),
        "causal": ({"is_causal": True}, Mask(causal=True)),
        "lengths": ({"attn_mask": inside}, Mask(allowed=inside)),
        "bias": ({"attn_mask": bias}, Mask(bias=bias.float())),
        "blind": ({"attn_mask": nobody}, Mask(allowed=nobody)),
    }[mask]
    model = Fused()

    def run() -> list[Tensor]:
        out = model(q, k, v, **how)
        return [out, *(torch.autograd.grad(out.float().square().sum(), (q, k, v)) if with_grad else ())]

    with sdpa_kernel(backend):
        try:
            blind, again = run(), run()
        except RuntimeError as error:
            pytest.skip(f"{backend.name} does not take this: {str(error).splitlines()[0]}")
        with watch(model) as seen:
            watched = run()
    same = [torch.equal(a, b) for a, b in zip(blind, again)]  # some backward kernels add up in any order
    assert [torch.equal(a, b) or not s for a, b, s in zip(blind, watched, same)] == [True] * len(same)
    assert same[0]
    assert (seen.call(0).lse is None) == (backend is SDPBackend.MATH)
    expected = attention_map(q.float(), k.float(), rule)
    for batch in range(2):
        assert seen.map(0, 3, batch=batch).cpu().numpy() == pytest.approx(
            expected[batch, 3].detach().cpu().numpy(), abs=1e-5 if dtype == torch.float32 else 1e-4
        )


def test_tf32_does_not_touch_the_maps(cuda: torch.device) -> None:
    q, k, v = torch.randn(3, 1, 2, 50, 64, device=cuda)
    model = Fused()
    with watch(model) as seen:
        model(q, k, v)
    exact = seen.map(0, 0)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert torch.equal(seen.map(0, 0), exact)
        assert seen.overview(0, 0, size=5).sum().item() == pytest.approx(50, abs=1e-4)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_copies_sent_to_the_cpu_are_those_of_the_call_though_the_model_writes_over_them(cuda: torch.device) -> None:
    class Overwriting(nn.Module):
        def forward(self, qk: Tensor) -> None:
            for layer in range(20):
                qk.mul_(1.01).add_(layer)
                F.scaled_dot_product_attention(qk[0], qk[1], qk[1])
            qk.zero_()

    model = Overwriting()
    start = torch.randn(2, 1, 8, 4096, 64, device=cuda, dtype=torch.bfloat16)
    with watch(model) as here:
        model(start.clone())
    with watch(model, to="cpu") as there:
        model(start.clone())
        first = there.call(1).q.clone()  # asked for while copies are on their way
    assert torch.equal(first, there.call(1).q)
    for layer in here.numbers:
        mine, theirs = here.call(layer), there.call(layer)
        assert theirs.q.device.type == theirs.k.device.type == "cpu"
        assert theirs.q.is_pinned()
        assert torch.equal(mine.q.cpu(), theirs.q) and torch.equal(mine.k.cpu(), theirs.k)
        assert mine.lse is not None and theirs.lse is not None and torch.equal(mine.lse.cpu(), theirs.lse)


def test_a_generation_on_a_gpu_keeps_every_key_once(cuda: torch.device) -> None:
    class Step(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, k)

    model, cache = Step(), torch.randn(1, 2, 40, 64, device=cuda)
    for to in (None, "cpu"):
        with watch(model, to=to) as seen:
            for n in range(10, 40):
                model(torch.randn(1, 2, 1, 64, device=cuda), cache[:, :, :n].clone())
        assert len({call.k.data_ptr() for call in seen.calls[0]}) == 1
        assert all(torch.equal(call.k.cpu(), cache[:, :, : call.n_keys].cpu()) for call in seen.calls[0])


def test_what_a_gpu_has_left_is_known(cuda: torch.device) -> None:
    from clearhead.seeing.recordings.memory import available

    before = available(cuda)
    held = torch.empty(2**28, dtype=torch.uint8, device=cuda)
    assert 2**27 < before - available(cuda) < 2**29
    del held
    assert abs(available(cuda) - before) < 2**27  # kept by torch, and to be had again
