"""What the terminal shows is what the recording says, in colour and in plain characters alike."""

import io
import itertools
import json
import re

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from clearhead.attention import Mask, attend
from clearhead.errors import InputError, WatchError
from clearhead.explorer.colours import COLOURS, INK, STEPS, colour, letters, step
from clearhead.explorer.small_maps import fit, grid
from clearhead.explorer.terminal import is_plain, show
from clearhead.explorer.view import View, look, others, pick_query, to_json
from clearhead.seeing import Recording, watch

WORDS = ["[CLS]", "attention", "is", "not", "too", "sha", "##bby", ".", "[SEP]"]
SPECIAL = [True, *[False] * 7, True]
N_LAYERS, N_HEADS = 3, 4


class Given(nn.Module):
    """Layers whose weights are what one wants them to be."""

    def forward(self, scores: Tensor) -> None:
        n = scores.shape[-1]
        x = torch.zeros(1, scores.shape[1], n, 4)
        for layer in scores:
            attend(x, x, x, Mask(bias=layer[None]))


def record(n: int = len(WORDS), n_heads: int = N_HEADS) -> Recording:
    scores = torch.randn(N_LAYERS, n_heads, n, n)
    scores[2, 3, 6 % n, 3 % n] = 4.0  # bby looks at not, in the last head
    scores[1, 0, 6 % n, 0] = 8.0  # and harder at a special token in another
    model = Given()
    with watch(model) as seen:
        model(scores)
    return seen


@pytest.fixture
def seen() -> Recording:
    return record()


@pytest.fixture
def view(seen: Recording) -> View:
    return look(seen, WORDS, SPECIAL, query=6)


def printed(view: View, width: int = 80, colours: bool = False) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    system = "truecolor" if colours else None
    console = Console(file=stream, width=width, force_terminal=colours, color_system=system, highlight=False)
    console.no_color = not colours  # whatever NO_COLOR says where the tests run
    show(view, console)
    stream.seek(0)
    return stream.read()


# ---------------------------------------------------------------- what is shown


def test_the_strongest_head_looks_at_another_word_not_at_a_special_token(view: View, seen: Recording) -> None:
    assert (view.layer, view.head, view.strongest[0].key) == (2, 3, 3)
    assert view.strongest[0].weight == seen.map(2, 3)[6, 3].item()
    assert len(view.strongest) == N_LAYERS * N_HEADS
    weights = [link.weight for link in view.strongest]
    assert weights == sorted(weights, reverse=True)


def test_other_words_are_no_special_tokens_no_punctuation_and_no_piece_of_the_same_word() -> None:
    assert others(WORDS, SPECIAL, 6) == [1, 2, 3, 4]
    assert others(WORDS, SPECIAL, 3) == [1, 2, 4, 5, 6]
    assert others(["[CLS]", "yes", "[SEP]"], [True, False, True], 1) == [0, 2]
    assert others(["yes"], [False], 0) == [0]


@pytest.mark.parametrize(
    ("text", "picked"),
    [
        ("attention is not too sha ##bby .", "##bby"),
        ("i did not like it !", "like"),
        ("I Did Not LIKE It", "LIKE"),
        ("they don ' t", "t"),  # function words alone: their last
        ("it is what it is .", "is"),
        ("sha ##bby it isn ' t", "##bby"),
        (". . ?", "?"),  # no word at all
        ("Ġsha bby Ġis Ġit", "bby"),  # as GPT-2 marks words
        ("Ġgreat Ġit 's Ġnot", "Ġgreat"),
        ("das ist schön", "schön"),
    ],
)
def test_the_word_nobody_named_is_the_last_content_word(text: str, picked: str) -> None:
    words = ["[CLS]", *text.split(), "[SEP]"]
    place = pick_query(words, [True, *[False] * (len(words) - 2), True])
    assert words[place] == picked
    assert picked not in words[place + 1 :]


def test_a_text_of_special_tokens_alone_has_a_word_to_look_from() -> None:
    assert pick_query(["[CLS]", "[SEP]"], [True, True]) == 1


@pytest.mark.parametrize(("layer", "head"), [(0, None), (None, 2), (1, 3)])
def test_only_the_layer_and_head_asked_for_are_ranked(seen: Recording, layer: int | None, head: int | None) -> None:
    view = look(seen, WORDS, SPECIAL, query=6, layer=layer, head=head)
    assert layer in (None, view.layer)
    assert head in (None, view.head)
    assert {(link.layer, link.head) for link in view.strongest} == {
        (one, other)
        for one in range(N_LAYERS)
        for other in range(N_HEADS)
        if layer in (None, one) and head in (None, other)
    }


def test_what_does_not_fit_the_recording_is_refused(seen: Recording) -> None:
    with pytest.raises(InputError, match="8 words for a recording of 9 queries"):
        look(seen, WORDS[1:], SPECIAL[1:], query=3)
    with pytest.raises(InputError, match="no word 9"):
        look(seen, WORDS, SPECIAL, query=9)
    with pytest.raises(WatchError, match="no head 7"):
        look(seen, WORDS, SPECIAL, query=3, head=7)
    with pytest.raises(WatchError, match="layer 5 is not in this recording"):
        look(seen, WORDS, SPECIAL, query=3, layer=5)


def test_json_holds_the_very_weights(view: View, seen: Recording) -> None:
    found = json.loads(json.dumps(to_json(view)))
    assert (found["tokens"], found["query"], found["layers"], found["heads"]) == (WORDS, 6, N_LAYERS, N_HEADS)
    first = found["strongest"][0]
    assert (first["from"], first["to"], first["layer"], first["head"]) == ("bby", "not", 2, 3)
    assert torch.equal(torch.tensor(found["map"]), seen.map(2, 3))
    assert found["weights"] == found["map"][6]
    assert sum(link["weight"] for link in found["links"]) >= 0.7
    assert [link["weight"] for link in found["links"]] == sorted(found["weights"], reverse=True)[: len(found["links"])]


# ---------------------------------------------------------------- how it is drawn


def test_plain_output_is_ascii_without_escape_codes_in_80_columns(view: View) -> None:
    text = printed(view)
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "sha-[bby]" in text
    assert re.search(r"L2 H3 +shabby -> not +0\.\d\d  #+", text)


@pytest.mark.parametrize("width", range(40, 130, 9))
def test_no_line_ends_between_a_character_and_its_number(view: View, width: int) -> None:
    _, scale = re.split(r"character\s+is\s+used:", printed(view, width))
    assert "  # .49" in scale.replace("\n", "  ")
    assert not re.search(r"^\.\d\d  \D \.", scale, re.MULTILINE)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_colour_output_says_the_same_words_within_the_width(view: View, width: int) -> None:
    text = printed(view, width, colours=True)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, bare.splitlines())) <= width
    numbers = re.findall(r"0\.\d\d", bare)
    assert numbers == re.findall(r"0\.\d\d", printed(view, width))
    assert "▀" in bare
    assert "\x1b[38;2;" in text  # 24-bit


def test_each_cell_of_the_grid_is_the_weight_it_stands_for(view: View, seen: Recording) -> None:
    # 4 maps of 9 cells fit: a cell is a weight. Below the heads' names: layers of nine lines, a blank line between.
    lines = [line.plain for line in grid(view, 80, plain=True)]
    for layer in range(N_LAYERS):
        for row in range(9):
            line = lines[1 + layer * 10 + row]
            for head in range(N_HEADS):
                cells = line[5 + head * 10 :][:9].ljust(9)
                expected = "".join(INK[step(weight)] for weight in seen.map(layer, head)[row].tolist())
                assert cells == expected
    chosen = lines[1 + 2 * 10]
    assert chosen[4 + 3 * 10] == "[" and chosen[4 + 4 * 10] == "]"
    assert "".join(lines).count("[") == 9


def test_half_blocks_hold_the_colours_of_two_rows(view: View, seen: Recording) -> None:
    line = list(grid(view, 80, plain=False))[2]  # names, first two rows, next two rows
    at = 5 + 10 + 4  # margin, first map, fifth cell of the second
    style = next(span.style for span in line.spans if span.start <= at < span.end)
    weights = seen.map(0, 1)
    assert style == f"{colour(weights[2, 4].item())} on {colour(weights[3, 4].item())}"


@pytest.mark.parametrize("n_heads", [1, 12, 32])
@pytest.mark.parametrize("n_words", [1, 2, 7, 300])
def test_maps_fit_whatever_the_width(n_words: int, n_heads: int) -> None:
    for width in (40, 80, 100, 200):
        size, in_line = fit(n_words, n_heads, width)
        assert 1 <= size <= min(n_words, 10)
        assert 5 + in_line * (size + 1) <= width
        assert in_line == n_heads or size == min(n_words, 8 if width >= 72 else 4)


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("n", [9, 400])
def test_no_line_is_wider_than_the_terminal_and_the_page_has_an_end(n: int, width: int, colours: bool) -> None:
    words = ["investigation", "##s", "of", "unquestionability", "attention"] * 80
    view = look(record(n, n_heads=12), words[:n], [False] * n, query=6)
    text = re.sub(r"\x1b\[[0-9;]*m", "", printed(view, width, colours))
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) < 140
    left_out = sum(map(int, re.findall(r"\.\.\. (\d+) tokens with", text)))
    shown = len(re.findall(r"investigation|unquest", text.partition("One cell is")[2].partition("carr")[0]))
    assert (left_out > 0) == (n == 400) and shown >= 1


def test_of_many_layers_those_are_drawn_that_look_hardest() -> None:
    scores = torch.randn(15, 2, 9, 9) / 9
    scores[13, 1, 6, 3] = 4.0
    with watch(model := Given()) as seen:
        model(scores)
    text = printed(look(seen, WORDS, SPECIAL, query=6))
    assert len(re.findall(r"^L\d+ ", text.partition("Each map")[0], re.MULTILINE)) == 12
    assert "L13 " in text and "3 layers not drawn: from here" in " ".join(text.split())


def test_in_a_long_text_heads_that_look_at_a_place_come_last() -> None:
    scores = torch.randn(N_LAYERS, N_HEADS, 80, 80)
    scores[0, 0].diagonal(-1).fill_(12.0)  # the token before, whatever it is
    scores[2, 3, 66, 13] = 8.0
    with watch(model := Given()) as seen:
        model(scores)
    view = look(seen, [f"w{i}" for i in range(80)], [False] * 80, query=66)
    assert (view.layer, view.head, view.placed) == (2, 3, 1)
    assert (view.strongest[-1].layer, view.strongest[-1].head, view.strongest[-1].key) == (0, 0, 65)
    assert view.strongest[-1].weight > view.strongest[0].weight
    assert "1 that look mostly at a place come last" in printed(view)
    asked = look(seen, [f"w{i}" for i in range(80)], [False] * 80, query=66, layer=0, head=0)
    assert (asked.layer, asked.head, asked.placed) == (0, 0, 0)


@pytest.mark.parametrize("n", [1, 2, 200])
def test_short_and_long_texts_are_drawn(n: int) -> None:
    view = look(record(n, n_heads=13), [f"w{i}" for i in range(n)], [False] * n, query=n - 1)
    assert max(map(len, printed(view).splitlines())) <= 80
    assert ("One cell is one weight" in printed(view)) == (n < 200)


def test_tokens_cannot_move_the_cursor(seen: Recording) -> None:
    words = [*WORDS]
    words[3] = "no\x1b[2Jt\n"
    assert "\x1b[2J" not in printed(look(seen, words, SPECIAL, query=6), colours=True)


def test_what_was_not_seen_is_said(view: View, seen: Recording) -> None:
    reason = "it came as nested tensors"
    seen.account.miss("encoder.attention", "Attention", reason, 0, 1)
    assert printed(view).count(f"Not seen: encoder.attention (Attention): {reason}") == 1
    seen.account.outside = 2
    assert "Not seen: 2 fused calls came from outside the watched model" in printed(view)
    for i in range(5):
        seen.account.miss(f"{i}.attention", "Attention", reason, 0, 1)
    text = " ".join(printed(view).split())
    assert text.count("Not seen:") == 4
    assert "Not seen: 4 more places, listed in the recording's .unseen" in text


def test_colour_is_for_terminals_that_show_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)

    def console() -> Console:
        return Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), force_terminal=True)

    assert not is_plain(console())
    assert is_plain(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="latin-1"), force_terminal=True))
    assert is_plain(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))
    monkeypatch.setenv("NO_COLOR", "1")
    assert is_plain(console())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert is_plain(console())


# ---------------------------------------------------------------- the colour map


def luminance(hexadecimal: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    channels = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_larger_weights_are_lighter_so_that_grey_shows_the_same() -> None:
    assert all(luminance(a) < luminance(b) for a, b in itertools.pairwise(COLOURS))
    assert len(STEPS) == len(COLOURS) == len(INK) == 10


@pytest.mark.parametrize("weight", STEPS)
def test_letters_are_readable_on_every_colour(weight: float) -> None:
    light, dark = sorted((luminance(colour(weight)), luminance(letters(weight))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_a_weight_falls_on_the_step_that_the_legend_prints() -> None:
    assert [step(weight) for weight in (0.0, 0.009, 0.01, 0.2, 0.25, 0.81, 1.0)] == [0, 0, 1, 4, 5, 9, 9]
