"""The picture equals the numbers: pixels read back from canvases, against colors that Python finds from a Recording.

The table of colors is made a second time here, in numpy, from the colors at equal distances that `scale.js` names.
"""

import base64
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from browsing import Visit
from clearhead.explorer.joining import WEB
from clearhead.explorer.questions import exact, maps
from clearhead.seeing.maps import pyramid

FLOOR = 1e-6
LOG_FLOOR = math.log(FLOOR)
READ_CANVAS = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let text = "";
  for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
  return [canvas.width, canvas.height, btoa(text)];
}"""
TO_LMS = np.array(
    """
    0.4122214708 0.5363325363 0.0514459929
    0.2119034982 0.6806995451 0.1073969566
    0.0883024619 0.2817188376 0.6299787005
    """.split(),
    float,
).reshape(3, 3)
TO_LAB = np.array(
    """
    0.2104542553 0.7936177850 -0.0040720468
    1.9779984951 -2.4285922050 0.4505937099
    0.0259040371 0.7827717662 -0.8086757660
    """.split(),
    float,
).reshape(3, 3)


def stops(name: str, theme: str) -> list[str]:
    source = (WEB / "scale.js").read_text(encoding="utf-8")
    block = re.search(rf"export const {name} = \{{(.*?)\}};", source, re.S)
    assert block is not None
    line = re.search(rf"{theme}: \[(.*?)\]", block[1], re.S)
    assert line is not None
    return re.findall(r"#[0-9a-f]{6}", line[1])


def ramp(colors: list[str], size: int) -> np.ndarray:
    """Return `size` colors between some, straight in OKLab (Ottosson 2020)."""
    rgb = np.array([[int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)] for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ TO_LMS.T) @ TO_LAB.T
    places = np.linspace(0, len(colors) - 1, size)
    between = np.stack([np.interp(places, range(len(colors)), channel) for channel in lab.T], 1)
    linear = (between @ np.linalg.inv(TO_LAB).T) ** 3 @ np.linalg.inv(TO_LMS).T
    gamma = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    return (gamma.clip(0, 1) * 255).round()


def colors_of(shares: np.ndarray, floor: float, theme: str) -> np.ndarray:
    """Return the color of each share: to its byte, back to the middle of the byte's step, to a place on the scale."""
    byte = np.where(shares < FLOOR, 1, (2 + 253 * (1 - np.log(shares.clip(FLOOR, 1)) / LOG_FLOOR)).round())
    middle = np.where(byte < 2, 0, FLOOR ** (1 - (byte - 2) / 253))
    place = np.where(middle > 0, 1 - np.log(middle.clip(1e-12)) / math.log(floor), 0).clip(0, 1)
    return ramp(stops("STOPS", theme), 256)[(255 * place).round().astype(int)]


def usual_floor(n_keys: int) -> float:
    return float(10.0 ** min(-2, max(-6, -round(math.log10(10 * n_keys)))))


def pixels(canvas: Any) -> np.ndarray:
    width, height, text = canvas.evaluate(READ_CANVAS)
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4).astype(float)


def is_near(found: np.ndarray, wanted: np.ndarray) -> None:
    """Compare, with one step of a byte or of rounding allowed."""
    assert found.shape == wanted.shape
    step = np.abs(np.diff(ramp(stops("STOPS", "light"), 256), axis=0)).max()
    assert np.abs(found - wanted).max() <= step + 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_head_of_the_first_page_is_its_exact_overview(theme: str, visitor: Callable[..., Visit]) -> None:
    visit = visitor(theme=theme)
    page = visit.open(scene="novels")
    seen = visit.site.scenes["novels"].seen
    floor = usual_floor(32)
    for layer in seen.layers:
        overview = seen.overview(layer.index).numpy()
        heights = np.diff(pyramid.edges(layer.n_queries, 32))
        wanted = colors_of(overview / heights[None, :, None], floor, theme)
        for i, head in enumerate(seen.call(layer.index).heads):
            found = pixels(page.locator(f'.cell[data-head="{layer.index}.{head}"] canvas'))
            hidden = found[..., 3] == 0
            assert (hidden == np.triu(np.ones_like(hidden), 1)).all(), "what lies ahead is hatched, nothing else is"
            is_near(found[~hidden][:, :3], wanted[i][~hidden])
    visit.keep(f"heads-novels-{theme}")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_cells_of_a_map_have_the_colors_of_their_weights(theme: str, visitor: Callable[..., Visit]) -> None:
    visit = visitor(theme=theme)
    page = visit.open("v=1&page=head&l=2&h=0")
    weights = visit.site.scenes["sentiment"].seen.map(2, 0).numpy()
    found = pixels(page.locator(".map .tiles"))
    height, width, _ = found.shape
    side = min(height, width, 96 * len(weights)) / len(weights)
    places = ((np.arange(len(weights)) + 0.5) * side).astype(int)
    is_near(found[places][:, places][..., :3], colors_of(weights, usual_floor(len(weights)), theme))
    visit.keep(f"head-sentiment-{theme}")


def test_one_pixel_a_weight_is_drawn_at_zoom_nought(visit: Visit) -> None:
    page = visit.open("v=1&page=head&l=0&h=1&z=0", scene="long")
    weights = visit.site.scenes["long"].seen.map(0, 1).numpy()
    found = pixels(page.locator(".map .tiles"))
    height, width, _ = found.shape
    seen = np.tril(np.ones_like(weights, dtype=bool))[:height, :width]
    is_near(found[seen][:, :3], colors_of(weights[:height, :width], usual_floor(len(weights)), "light")[seen])
    assert "One pixel is one weight" in page.locator(".status").text_content()


def test_one_pixel_is_the_share_of_two_by_two_weights_one_zoom_level_up(visit: Visit) -> None:
    page = visit.open("v=1&page=head&l=0&h=1&z=-1", scene="long")
    n = len(visit.site.scenes["long"].seen.map(0, 1)) // 2
    share = visit.site.scenes["long"].seen.map(0, 1).numpy().reshape(n, 2, n, 2).sum((1, 3)) / 2
    found = pixels(page.locator(".map .tiles"))[:n, :n]
    height, width, _ = found.shape
    seen = np.tril(np.ones_like(share, dtype=bool))[:height, :width]
    is_near(found[seen][:, :3], colors_of(share[:height, :width], usual_floor(2 * n), "light")[seen])
    assert "One pixel is 2 × 2 tokens" in page.locator(".status").text_content()


def test_a_map_drawn_from_a_sample_says_so_and_becomes_exact(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (maps, exact):
        monkeypatch.setattr(module, "MAX_EXACT_WEIGHTS", 2**16)
    page = visit.page
    page.goto(visit.site.url("v=1&page=head&l=0&h=0&z=-1", "long"))
    page.locator(".sampled", has_text="Drawn from a sample of the rows, standard error at most").wait_for()
    page.wait_for_selector("#explorer[data-settled]:not([data-sampled])", state="attached")
    weights = visit.site.scenes["long"].seen.map(0, 0).numpy()
    n = len(weights) // 2
    share = weights.reshape(n, 2, n, 2).sum((1, 3)) / 2
    found = pixels(page.locator(".map .tiles"))[:n, :n]
    height, width, _ = found.shape
    seen = np.tril(np.ones_like(share, dtype=bool))[:height, :width]
    is_near(found[seen][:, :3], colors_of(share[:height, :width], usual_floor(2 * n), "light")[seen])
    assert not page.locator(".sampled").is_visible()


def test_the_largest_weight_of_a_block_is_a_mode_of_its_own(visit: Visit) -> None:
    page = visit.open("v=1&page=head&l=2&h=0&mode=max")
    assert page.locator(".maptools button[aria-pressed=true]").text_content() == "maximum"
    assert "One cell is one weight" in page.locator(".status").text_content()


def test_numbers_in_the_cells_and_in_words_are_those_of_the_recording(visit: Visit) -> None:
    page = visit.open("v=1&page=head&l=2&h=0&q=6&k=3")
    weight = float(visit.site.scenes["sentiment"].seen.row(2, 0, 6)[3])
    cell = page.locator(".map [role=gridcell]").text_content()
    said = float(re.search(r": ([\d.]+), 1st of its row", cell)[1])
    assert said == pytest.approx(weight, rel=0.01)
    page.locator(".map .window").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    visit.settle()
    weight = float(visit.site.scenes["sentiment"].seen.row(2, 0, 5)[2])
    cell = page.locator(".map [role=gridcell]").text_content()
    assert float(re.search(r": ([\d.]+), \d+\w\w of its row", cell)[1]) == pytest.approx(weight, rel=0.05)
