"""The page, driven as a person drives it: every part once, by mouse and by keyboard."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from browsing import Visit

WIDTHS = (1280, 400, 320)


def state(page: Any) -> dict[str, str]:
    """Return the view that the page's address will hold: what `Copy the view` gives."""
    page.locator(".share summary").click()
    page.get_by_role("button", name="Copy the view").click()
    said = page.locator(".toast p").text_content()
    page.locator(".toast button").click()
    return dict(part.split("=") for part in said.split("#", 1)[1].split("&"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window(width: int, theme: str, visitor: Callable[..., Visit]) -> None:
    visit = visitor(width, theme)
    for name in ("heads", "head"):
        page = visit.open(f"v=1&page={name}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        visit.keep(f"{name}-{width}-{theme}")


@pytest.mark.parametrize("scene", ["novels", "pictures", "pronounce", "markup", "long"])
def test_every_kind_of_recording_opens(scene: str, visit: Visit) -> None:
    for name in ("heads", "head"):
        visit.open(f"v=1&page={name}", scene)
        visit.keep(f"{name}-{scene}")


def test_the_token_leaves_the_address_and_stays_for_a_reload(visit: Visit) -> None:
    page = visit.open()
    assert visit.site.token not in page.url
    page.reload()
    visit.settle()
    assert page.locator(".sentence").text_content().startswith("“shabby” looks at “not” with 99.2")


def test_without_a_token_the_page_says_what_is_missing(visit: Visit) -> None:
    visit.page.goto(visit.site.address)
    visit.page.wait_for_selector(".refusal")
    assert "token is missing" in visit.page.locator(".refusal").text_content()
    visit.faults.clear()  # the browser logs the 401


def test_an_address_of_another_version_is_refused(visit: Visit) -> None:
    visit.page.goto(visit.site.url("v=7"))
    visit.page.wait_for_selector(".refusal")
    assert "version 7" in visit.page.locator(".refusal").text_content()


def test_a_text_full_of_markup_is_shown_as_text(visit: Visit) -> None:
    page = visit.open("v=1&page=head", "markup")
    assert "script" in page.locator(".paper").text_content() and "onerror" in page.locator(".paper").text_content()
    assert page.locator(".clearhead script, .paper img").count() == 0
    assert page.evaluate("window.broken") is None


def test_a_word_is_pinned_by_a_click_and_a_span_with_shift(visit: Visit) -> None:
    page = visit.open()
    click_word(page, "attention")
    visit.settle()
    assert page.locator(".who").text_content() == "“attention”"
    click_word(page, "too", shift=True)
    visit.settle()
    assert page.locator(".who").text_content() == "“attention” to “too”"
    found = state(page)
    assert found["q"] == "1" and found["to"] == "4"


def click_word(page: Any, word: str, shift: bool = False) -> None:
    place = page.evaluate(
        """(word) => {
          const root = document.getElementById("explorer").shadowRoot;
          const node = root.querySelector(".paper p").firstChild;
          const range = document.createRange();
          const at = node.data.indexOf(word);
          range.setStart(node, at);
          range.setEnd(node, at + word.length);
          const { x, y, width, height } = range.getBoundingClientRect();
          return [x + width / 2, y + height / 2];
        }""",
        word,
    )
    if shift:
        page.keyboard.down("Shift")
    page.mouse.click(*place)
    if shift:
        page.keyboard.up("Shift")


def test_who_looks_at_a_word_is_its_column(visit: Visit) -> None:
    page = visit.open("v=1&page=head&l=2&h=0&q=3")
    page.get_by_role("button", name="is looked at by").click()
    visit.settle()
    column = visit.site.scenes["sentiment"].seen.map(2, 0)[:, 3]
    first = page.locator(".links .link").first.text_content()
    assert float(first.split()[-1]) == pytest.approx(float(column.max()), rel=0.01)


def test_a_cell_opens_its_head_and_escape_returns(visit: Visit) -> None:
    page = visit.open()
    page.locator('.cell[data-head="1.8"]').click()
    visit.settle()
    assert page.locator("h1").text_content() == "Layer 1, head 8"
    page.locator(".map .window").focus()
    page.keyboard.press("Escape")
    visit.settle()
    assert page.locator('.cell[aria-selected="true"]').get_attribute("data-head") == "1.8"


def test_heads_are_sorted_and_filtered(visit: Visit) -> None:
    page = visit.open()
    rows = {(one.layer, one.head): one for one in visit.site.scenes["sentiment"].seen.heads()}
    page.get_by_label("Sort").select_option("entropy")
    visit.settle()
    shown = [one.get_attribute("data-head") for one in page.locator(".cell").all()]
    entropies = [rows[tuple(map(int, name.split(".")))].entropy for name in shown]
    assert len(shown) == len(rows) and entropies == sorted(entropies, reverse=True)
    page.locator(".chip").first.click()
    visit.settle()
    assert 0 < page.locator(".cell").count() < len(rows)


def test_the_scatter_takes_any_two_numbers_and_a_color(visit: Visit) -> None:
    page = visit.open()
    before = page.locator(".scatter").inner_html()
    page.get_by_label("Across").select_option("layer")
    page.get_by_label("Color").select_option("kind")
    visit.settle()
    assert page.locator(".scatter").inner_html() != before
    assert page.locator(".scatter .mark svg").count() == page.locator(".cell").count()


def test_everything_is_reached_by_keyboard_alone(visit: Visit) -> None:
    page = visit.open()
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(() => { const e = document.getElementById('explorer').shadowRoot.activeElement; "
                "return e ? e.getAttribute('role') || e.textContent || e.type : ''; })()"
            )
        )
    assert {"All heads", "One head", "Try your own", "Share", "listbox", "range", "gridcell"} <= set(reached)
    page.locator('.cell[tabindex="0"]').focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    visit.settle()
    assert page.locator("h1").text_content() == "Layer 3, head 1"
    page.locator(".map .window").focus()
    for key in ("]", "{", "+", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    visit.settle()
    found = state(page)
    assert (found["l"], found["h"]) == ("2", "2") and "z" in found
    page.keyboard.press("Control+z")


def test_a_word_is_found_with_a_slash(visit: Visit) -> None:
    page = visit.open("v=1&page=head&q=1")
    page.locator(".map .window").focus()
    page.keyboard.press("/")
    page.keyboard.type("shab")
    page.keyboard.press("Enter")
    visit.settle()
    assert page.locator(".who").text_content() == "“shabby”"


def test_the_map_is_a_grid_that_says_its_cell(visit: Visit) -> None:
    page = visit.open("v=1&page=head", "long")
    window = page.locator(".map .window")
    assert window.get_attribute("aria-rowcount") == "1200" and window.get_attribute("aria-colcount") == "1200"
    window.focus()
    page.keyboard.press("Home")
    visit.settle()
    cell = page.locator(".map [role=gridcell]")
    assert cell.get_attribute("aria-colindex") == "1" and "looks at position 0 (key 0)" in cell.text_content()
    page.locator("[role=status][aria-live]", has_text="(key 0)").wait_for(state="attached")
    page.get_by_text("The strongest links of this head").click()
    visit.settle()
    assert page.locator(".strongest tbody tr").count() == 20


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(theme: str, visitor: Callable[..., Visit]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe looks for barriers")
    visit = visitor(theme=theme)
    for name in ("heads", "head"):
        page = visit.open(f"v=1&page={name}")
        found = axe.Axe().run(page).response["violations"]
        assert [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found] == []


def test_forced_colors_and_a_sharp_screen_change_nothing_that_counts(visitor: Callable[..., Visit]) -> None:
    visit = visitor(forced_colors="active", device_scale_factor=2)
    page = visit.open("v=1&page=head&l=2&h=0")
    assert page.locator(".map .tiles").evaluate("(canvas) => canvas.width / canvas.clientWidth") == pytest.approx(
        2, abs=0.01
    )
    visit.keep("head-forced-colors")


def test_what_is_taken_away_is_the_numbers(visit: Visit, tmp_path: Any) -> None:
    page = visit.open("v=1&page=head&l=2&h=0&q=6")
    seen = visit.site.scenes["sentiment"].seen

    def saved(label: str) -> str:
        page.locator(".share summary").click()
        with page.expect_download() as waiting:
            page.get_by_role("button", name=label).click()
        waiting.value.save_as(tmp_path / "file")
        return str(tmp_path / "file")

    with open(saved("Save the numbers"), encoding="utf-8", newline="") as file:
        lines = file.read().strip().split("\r\n")
    weights = [[float(value) for value in line.split(",")[2:]] for line in lines[1:]]
    assert weights == [pytest.approx(row, rel=1e-5) for row in seen.map(2, 0).tolist()]
    with open(saved("Save as SVG"), encoding="utf-8") as file:
        svg = file.read()
    assert re.search(r'<svg [^>]*width="89mm"', svg) and ">shabby<" not in svg and ">bby<" in svg
    assert "99.2" in svg and "clearhead explore" in svg and visit.site.token not in svg
    with open(saved("Save as PNG"), "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"


def test_a_head_switched_off_moves_the_answer_and_undo_brings_it_back(visit: Visit) -> None:
    page = visit.open("v=1&page=head&l=2&h=0")
    page.get_by_role("button", name="Switch head 2.0 off").click()
    page.wait_for_selector(".edits li")
    visit.settle()
    assert page.locator(".touch .answers .was").count() == 2
    page.get_by_role("button", name="See the difference").click()
    visit.settle()
    assert page.locator(".compared canvas.tiles").count() == 3
    visit.keep("compare")
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Undo").click()
    visit.settle()
    assert page.locator(".edits li").count() == 0 and page.locator(".touch .answers .was").count() == 0


def test_a_text_of_ones_own_is_read(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("button", name="Try your own").click()
    page.get_by_label("Your text").fill("a film of rare beauty")
    page.get_by_role("button", name="Read it").click()
    page.locator(".title", has_text="rare beauty").wait_for()
    visit.settle()
    assert "beauty" in page.locator(".paper").text_content()
    page.evaluate("window.shifts = []")  # another recording took the place of the first, as was asked for
