"""Figures say what the recording says: colors are the page's, pixels are weights, words stand where they belong."""

import base64
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

import clearhead
from clearhead.errors import InputError, WatchError
from clearhead.explorer import joining
from clearhead.explorer.blocks import FLOOR, N_STEPS
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.figures import heads, palette
from clearhead.explorer.scene import Scene
from clearhead.seeing import Recording

WORDS = [f"w{i}" for i in range(12)]


@pytest.fixture(scope="module")
def seen() -> Recording:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    with clearhead.watch(model) as recording, torch.no_grad():
        model(3 * torch.randn(1, 12, 16))
    return recording


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here: it computes the page's colors")
def test_colors_and_floors_are_those_of_the_page() -> None:
    lengths = [1, 8, 31, 32, 100, 512, 8192, 131072]
    script = (
        f'import {{ STOPS, ramp, usualFloor }} from "{(joining.WEB / "scale.js").as_uri()}";'
        f"console.log(JSON.stringify([ramp(STOPS.light, 256), ramp(STOPS.dark, 256), {lengths}.map(usualFloor)]));"
    )
    run = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    light, dark, floors = json.loads(run.stdout)
    assert np.array_equal(palette.colors("light"), light)
    assert np.array_equal(palette.colors("dark"), dark)
    assert [palette.usual_floor(n) for n in lengths] == pytest.approx(floors)


def test_every_cell_of_the_picture_of_all_heads_has_the_color_of_its_weight(seen: Recording) -> None:
    from PIL import Image

    svg = heads.heads_svg(Exploration([Scene.of(seen, WORDS)]))
    png = re.search(r"data:image/png;base64,([^\"]+)", svg)
    assert png is not None
    with Image.open(io.BytesIO(base64.b64decode(png[1]))) as file:
        pixels = np.array(file.convert("RGB"))
    larger = heads.CELL // 12
    for layer in (0, 1):
        for head in range(4):
            weights = seen.map(layer, head).numpy()
            level = np.round(N_STEPS * (1 - np.log(np.maximum(weights, FLOOR)) / np.log(FLOOR)))
            numbers = palette.color_numbers(FLOOR ** (1 - level / N_STEPS), palette.usual_floor(12))
            top = heads.TOP + layer * (heads.CELL + heads.GAP)
            left = heads.LEFT + head * (heads.CELL + heads.GAP)
            found = pixels[top : top + 12 * larger : larger, left : left + 12 * larger : larger]
            np.testing.assert_array_equal(found, palette.colors("light")[numbers])


def test_the_svg_is_well_formed_and_says_what_it_shows(seen: Recording) -> None:
    scene = Scene.of(seen, WORDS)
    root = ElementTree.fromstring(heads.heads_svg(Exploration([scene]), theme="dark"))
    named = {child.tag.rpartition("}")[2]: child.text for child in root}
    assert named["title"] and named["desc"]


def test_a_map_is_drawn_cell_by_cell_and_named(seen: Recording) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is absent: pip install 'clearhead[plot]'")
    figure = seen.plot(1, 2, words=WORDS)
    image = figure.axes[0].get_images()[0]
    np.testing.assert_array_equal(np.asarray(image.get_array()), seen.map(1, 2).numpy())
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == WORDS
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_part_of_a_map_is_drawn_at_its_own_positions(seen: Recording) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is absent: pip install 'clearhead[plot]'")
    ax = seen.plot(0, 1, words=WORDS, rows=slice(2, 6), cols=slice(5, 9)).axes[0]
    np.testing.assert_array_equal(np.asarray(ax.get_images()[0].get_array()), seen.map(0, 1)[2:6, 5:9].numpy())
    assert [label.get_text() for label in ax.get_yticklabels()] == WORDS[2:6]
    assert [label.get_text() for label in ax.get_xticklabels()] == WORDS[5:9]


def test_all_heads_are_drawn_and_numbered(seen: Recording) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is absent: pip install 'clearhead[plot]'")
    titles = [ax.get_title() for ax in seen.plot().axes]
    assert titles == [f"{layer}.{head}" for layer in range(2) for head in range(4)]
    assert [ax.get_title() for ax in seen.plot(1).axes] == titles[4:]


def test_links_are_as_wide_as_their_weights_and_the_text_is_written(seen: Recording) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is absent: pip install 'clearhead[plot]'")
    row = seen.row(0, 0, 3)
    widths = [line.get_linewidth() for line in seen.plot(0, 0, kind="links", query=3, words=WORDS).axes[0].lines]
    floor = palette.usual_floor(12)
    assert widths == pytest.approx([4 * float(w) for i, w in enumerate(row) if i != 3 and w >= floor], rel=1e-5)
    assert [text.get_text() for text in seen.plot(0, 0, kind="text", query=3, words=WORDS).axes[0].texts] == WORDS


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"kind": "pie"}, InputError, "'map' or 'links' or 'text'"),
        ({"layer": 0, "head": 0, "kind": "links"}, InputError, "query="),
        ({"layer": 0, "head": 0, "kind": "text", "query": 1}, InputError, "words="),
        ({"kind": "text", "query": 1}, InputError, "layer= and head="),
        ({"layer": 0, "head": 0, "theme": "red"}, InputError, "'light' or 'dark'"),
        ({"layer": 9, "head": 0}, WatchError, "layer 9"),
        ({"layer": 0, "head": 9}, WatchError, "no head 9"),
    ],
)
def test_what_cannot_be_drawn_is_said(seen: Recording, how: dict[str, object], error: type, said: str) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is absent: pip install 'clearhead[plot]'")
    with pytest.raises(error, match=re.escape(said)):
        seen.plot(**how)


def test_tokens_that_a_tokenizer_adds_are_known_by_their_spelling() -> None:
    from clearhead.explorer.axes import numbered_axis

    words = ["[CLS]", "<s>", "</s>", "<|endoftext|>", "[", "a", "<", "2>1", "Ġ<b", "[sic]"]
    assert numbered_axis(10, words).special == (*[True] * 4, *[False] * 6)
