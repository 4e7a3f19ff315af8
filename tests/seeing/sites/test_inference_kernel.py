"""That torch would have run an inference kernel is said where it would have, and nowhere else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from clearhead.seeing import watch
from clearhead.seeing.sites.whereabouts import PYTHON_FORM

X = torch.randn(2, 5, 16)
KERNELS = {"_native_multi_head_attention", "_transformer_encoder_layer_fwd"}


class Ops(TorchDispatchMode):
    """Knows which operators ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def attention(**settings: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(16, **{"num_heads": 2, "batch_first": True, **settings})


def layer(**settings: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(16, 2, 32, **{"batch_first": True, **settings})


MASK = torch.ones(5, 5, dtype=torch.bool).triu(1)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...], dict[str, Any]]] = {
    "self": (attention, (X, X, X), {"need_weights": False}),
    "weights": (attention, (X, X, X), {}),
    "mask": (attention, (X, X, X), {"attn_mask": MASK}),
    "float mask": (attention, (X, X, X), {"attn_mask": torch.zeros(5, 5)}),
    "padding": (attention, (X, X, X), {"key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)}),
    "cross": (attention, (X, X + 1, X + 1), {}),
    "one text": (attention, (X[0],) * 3, {}),
    "time first": (lambda: attention(batch_first=False), (X, X, X), {}),
    "odd heads": (lambda: attention(num_heads=1), (X, X, X), {}),
    "zero key": (lambda: attention(add_zero_attn=True), (X, X, X), {}),
    "bias keys": (lambda: attention(add_bias_kv=True), (X, X, X), {}),
    "layer": (layer, (X,), {}),
    "masked layer": (layer, (X,), {"src_mask": MASK}),
    "other activation": (lambda: layer(activation=torch.tanh), (X,), {}),
    "other eps": (lambda: layer(layer_norm_eps=1e-5), (X,), {}),
    "no bias": (lambda: layer(bias=False), (X,), {}),
}


@pytest.mark.filterwarnings("ignore")  # torch's own, of masks
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_note_says_so_where_torch_would_have_run_it(case: str, learning: bool, training: bool) -> None:
    make, given, named = CASES[case]
    model = make().train(training)
    with torch.set_grad_enabled(learning):
        with Ops() as ops:
            model(*given, **named)
        with watch(model) as seen:
            model(*given, **named)
    assert seen.notes == ([PYTHON_FORM] if ops.names & KERNELS else [])
    assert len(seen.layers) == 1


def test_the_function_behind_it_alone_has_no_such_kernel() -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = attention()

        def forward(self, x: Tensor) -> Tensor:
            own = self.part
            x = x.transpose(0, 1)
            return nn.functional.multi_head_attention_forward(
                x, x, x, 16, 2, own.in_proj_weight, own.in_proj_bias, None, None, False, 0.0, own.out_proj.weight,
                own.out_proj.bias, training=False, need_weights=False,
            )[0]  # fmt: skip

    model = Calls().eval()
    with torch.no_grad(), watch(model) as seen:
        model(X)
    assert seen.notes == [] and len(seen.layers) == 1
