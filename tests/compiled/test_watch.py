"""A compiled model is seen whole, by running uncompiled for as long as it is watched, and stays compiled afterwards."""

import pytest
import torch

from clearhead.attention import attention_map
from clearhead.models.bert import Bert, BertConfig
from clearhead.seeing import watch


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_seen_and_stays_compiled(in_place: bool) -> None:
    torch.manual_seed(0)
    compiled_graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        compiled_graphs.append(graph)
        return graph

    bert = Bert(BertConfig(vocab_size=50, d_model=32, n_heads=4, n_layers=2, d_ff=64)).eval()
    tokens = torch.randint(0, 50, (1, 9))
    if in_place:
        bert.compile(fullgraph=True, backend=backend)
        model: torch.nn.Module = bert
    else:
        model = torch.compile(bert, fullgraph=True, backend=backend)
    with torch.no_grad():
        before = model(tokens)
        for _ in range(2):
            with watch(model) as seen:
                watched = model(tokens)
        after = model(tokens)
    assert [layer.name for layer in seen.layers] == ["blocks.0.attention", "blocks.1.attention"]
    assert seen.notes == ["the compiled model ran uncompiled while it was watched"]
    assert seen.unseen == ()
    assert torch.allclose(before, watched, atol=1e-5)
    assert torch.equal(before, after)
    assert len(compiled_graphs) == 1  # not once more for having been watched
    call = seen.call(1)
    assert torch.allclose(seen.map(1, 2), attention_map(call.q, call.k)[0, 2], atol=1e-6)


def test_an_attention_function_compiled_inside_a_plain_model_is_seen() -> None:
    class Inner(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fast = torch.compile(torch.nn.functional.scaled_dot_product_attention, backend="eager")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fast(x, x, x)

    model, x = Inner(), torch.randn(1, 2, 5, 8)
    before = model(x)
    with watch(model) as seen:
        assert torch.equal(model(x), before)
    assert torch.allclose(seen.map(0, 0), attention_map(x, x)[0, 0], atol=1e-6)
