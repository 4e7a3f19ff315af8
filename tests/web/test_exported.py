"""An exported file in a real browser, opened from the disk: it shows the same numbers and asks nobody for anything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import SETTLED, Site
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.export import export


@pytest.fixture(scope="module")
def path(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the exported sentence."""
    found = tmp_path_factory.mktemp("exported") / "page.html"
    export(Exploration([site.scenes["sentiment"]]), found, view="v=1&page=head&l=2&h=0")
    return found


@pytest.fixture()
def page(path: Path, browser: Any) -> Iterator[Any]:
    """Return a page on the exported sentence; it fails where anything is logged as an error or asked for."""
    found = browser.new_page()
    faults: list[str] = []
    found.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    found.on("pageerror", lambda error: faults.append(str(error)))
    allowed = (path.as_uri(), "data:", "blob:")
    found.on("request", lambda asked: None if asked.url.startswith(allowed) else faults.append(asked.url))
    found.goto(path.as_uri())
    found.wait_for_selector(SETTLED, state="attached")
    yield found
    found.close()
    assert faults == []


def test_a_file_begins_where_it_was_told_to_and_every_head_can_be_opened(page: Any) -> None:
    assert page.get_by_role("heading", name="Layer 2, head 0").is_visible()
    page.keyboard.press("Tab")
    page.locator("[role=grid]").first.focus()
    page.keyboard.press("]")
    page.wait_for_selector(SETTLED, state="attached")
    assert page.get_by_role("heading", name="Layer 2, head 1").is_visible()


def test_the_weight_under_the_cross_hair_is_the_recordings(page: Any, site: Site) -> None:
    weight = float(site.scenes["sentiment"].seen.map(2, 0)[6, 3])
    assert f"{weight:.2f}" in page.locator(".status").first.text_content()


def test_a_file_offers_nothing_that_it_cannot_do(page: Any) -> None:
    assert page.get_by_role("button", name="Switch head").count() == 0
    assert page.get_by_role("button", name="Try your own").count() == 0


def test_the_lesson_of_the_first_head_is_in_the_file(page: Any) -> None:
    page.get_by_text("Lesson").first.click()
    page.wait_for_selector(SETTLED, state="attached")
    assert page.get_by_role("heading", name="Every word has something to give").is_visible()
    assert "The longest value is that of" in page.locator(".lesson").text_content()
