"""A step compiled in one piece, without a break, writes what the plain model writes; and what a user is refused."""

import sys
from pathlib import Path

import pytest
import torch

from clearhead.errors import ConfigError
from clearhead.generation import Draft, answers, generate
from clearhead.generation.packed import fastest
from clearhead.generation.recorded import Recorded

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "generation"))
from models import DECODERS, decoder, encoder_decoder, texts


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports its compiler
@pytest.mark.parametrize(("name", "rows"), [("gpt2", 1), ("grouped queries, rotary, windows", 2)])
def test_a_compiled_step_writes_the_same(name: str, rows: int, compiler: str) -> None:
    torch._dynamo.reset()
    model, prompts = decoder(DECODERS[name]), texts(3, 9)[:rows]
    expected = answers(generate(model, prompts, max_new_tokens=8), rows)
    recorded = Recorded(model, rows=rows, max_len=20, compiled=True)
    assert answers(generate(recorded, prompts, max_new_tokens=8), rows) == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.int8, 0.04)], ids=str)
def test_a_compiled_step_may_read_fewer_bits(dtype: torch.dtype, bound: float, compiler: str) -> None:
    torch._dynamo.reset()
    model, [text] = decoder(), texts(10)
    reader = Recorded(model, max_len=20, compiled=True, dtype=dtype).open([text[:4]], 9)
    came = torch.cat([reader.read(piece).clone() for piece in torch.tensor([text]).split([4, *[1] * 6], 1)], 1)[0]
    exact = model(torch.tensor([text]))[0, 3:]
    assert 0 < (came - exact).square().mean().sqrt() / exact.std() < bound


def test_fewer_bits_are_for_a_compiled_row() -> None:
    with pytest.raises(ConfigError, match="rows=1, compiled=True"):
        Recorded(decoder(), rows=2, max_len=9, dtype=torch.int8)


def test_only_a_decoder_is_recorded() -> None:
    with pytest.raises(ConfigError, match="got a EncoderDecoder"):
        Recorded(encoder_decoder(), max_len=9)


def test_only_a_model_that_writes_can_write_or_guess() -> None:
    for settings in ({}, {"draft": Draft(decoder())}):
        with pytest.raises(ConfigError, match="a Linear does not write"):
            generate(torch.nn.Linear(2, 2), [[1]], max_new_tokens=2, **settings)
    with pytest.raises(ConfigError, match="a Linear does not write"):
        generate(decoder(), [[1]], max_new_tokens=2, draft=Draft(torch.nn.Linear(2, 2)))


def test_what_is_no_decoder_runs_as_it_is() -> None:
    layer = torch.nn.Linear(2, 2)
    run, note = fastest(layer)
    assert run is layer and "it is a Linear, and only GPTForCausalLM and EncoderDecoder" in note
