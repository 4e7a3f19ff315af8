"""The derivation in the terminal: every step, every number, nothing that only a colour terminal understands."""

import io

import pytest
import torch
from rich.console import Console

from clearhead.attention import CAUSAL, Mask, MultiHeadAttention
from clearhead.derivation import Derivation, derive
from clearhead.explorer.derivation_view import MOST_WORDS, show


def derived(words: list[str], query: int, mask: Mask = CAUSAL) -> Derivation:
    return derive(MultiHeadAttention(16, 4), torch.randn(len(words), 16), words, query=query, head=1, mask=mask)


def printed(derivation: Derivation, *, terminal: bool = False, source: bool = False, width: int = 80) -> str:
    file = io.StringIO()
    colours = "truecolor" if terminal else None
    show(derivation, Console(file=file, width=width, force_terminal=terminal, color_system=colours), source=source)
    return file.getvalue()


def test_every_step_is_there_with_its_sentence() -> None:
    derivation = derived("attention is not too sha ##bby".split(), 5)
    flat = " ".join(printed(derivation).split())
    for number, step in enumerate(derivation.steps, 1):
        assert f"{number} {step.name} {step.equation} {step.sentence}" in flat


def test_the_table_holds_the_weights_of_the_derivation() -> None:
    words = "attention is not too sha ##bby".split()
    derivation = derived(words, 4)
    rows = {line.split()[0]: line.split() for line in printed(derivation).splitlines() if line and line[0] != " "}
    for j in range(5):
        assert f"{derivation['weights'][j]:.3f}" in rows[words[j]]
    assert rows["sha"][1] == "*"
    assert rows["##bby"][3:] == ["-"] * 5, "what comes later may not be looked at"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("width", [36, 50, 70, 120])
def test_a_narrow_terminal_gets_fewer_columns_and_whole_numbers(width: int, terminal: bool) -> None:
    derivation = derived("attention is not too sha ##bby".split(), 5)
    text = printed(derivation, width=width, terminal=terminal)
    assert "…" not in text.replace("o_i^0 …", "").replace("[o_i^0", "").replace("0 …", "").replace("… o_i", "")
    for j in range(6):
        assert f"{derivation['weights'][j]:.3f}" in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_pipe_gets_plain_lines_that_fit(width: int) -> None:
    text = printed(derived(["[bold]", ":smile:", "[/]", "extraordinarily-long-word"], 3), width=width)
    assert "\x1b" not in text
    assert all(len(line) <= width for line in text.splitlines())
    assert "[bold]" in text and ":smile:" in text and "[/]" in text


def test_a_terminal_gets_shades() -> None:
    assert "\x1b[" in printed(derived(["not", "shabby"], 1), terminal=True)


def test_of_a_long_text_the_largest_weights_are_listed_and_the_rest_is_summed() -> None:
    derivation = derived([f"w{i}" for i in range(100)], 99)
    text = printed(derivation)
    assert sum(line.startswith("w") and "*" not in line for line in text.splitlines()) >= MOST_WORDS - 1
    rest = derivation["weights"].sort(descending=True).values[MOST_WORDS:].sum()
    assert f"{100 - MOST_WORDS} others" in text and f"{rest:.3f}" in text


def test_source_lines_are_shown_on_demand_with_their_numbers() -> None:
    derivation = derived(["not", "shabby"], 1)
    assert "def softmax(" not in printed(derivation)
    lines = printed(derivation, source=True).splitlines()
    source = derivation.steps[5].source
    assert f"   {source.file}:{source.first_line}" in lines
    assert any(line.split()[:3] == [str(source.first_line), "def", "softmax("] for line in lines)
