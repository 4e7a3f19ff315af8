"""The lesson, gone through by keyboard: its numbers are those of the question, and every screen says something."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from browsing import Visit

STEPS = ["values", "naive", "queries", "scale", "softmax", "head", "heads", "dropout", "projection"]
MORE = {"sentiment": [], "novels": ["mask"], "pictures": ["patches"], "pronounce": ["mask", "source"]}
LAYER, HEAD, QUERY = 2, 0, 6
VIEW = f"v=1&page=lesson&l={LAYER}&h={HEAD}&q={QUERY}"


def numbers(visit: Visit, **more: Any) -> dict[str, Any]:
    """Return what the question says of the view."""
    given = {"scene": visit.site.ids["sentiment"], "layer": LAYER, "head": HEAD, "query": QUERY, **more}
    return visit.site.exploration.ask("lesson", **given).meta


def figures(page: Any, values: Sequence[float]) -> list[str]:
    """Return numbers as the page writes them."""
    found: list[str] = page.evaluate("async (xs) => xs.map((await import('/scale.js')).figures)", list(values))
    return found


def shown(page: Any, rows: int = 0) -> list[str]:
    """Return the numbers beside the bars of one group of rows."""
    found: list[str] = page.locator(".lessonrows").nth(rows).locator(".bar-value").all_text_contents()
    return found


def says(page: Any) -> str:
    return str(page.locator(".shows").text_content())


@pytest.mark.parametrize("scene", MORE)
def test_the_keyboard_goes_through_every_step_and_on_to_the_map(scene: str, visit: Visit) -> None:
    page = visit.open("v=1&page=lesson", scene)
    steps = STEPS + MORE[scene]
    assert page.locator(".lessonsteps button").count() == len(steps)
    titles, sentences = [], []
    for i, step in enumerate(steps):
        assert page.locator(".lessonsteps [aria-current=step]").text_content() == str(i + 1)
        assert page.evaluate("document.querySelector('#explorer').shadowRoot.activeElement?.tagName") == "H1"
        titles.append(page.locator(".lessontext h1").text_content())
        sentences.append(says(page))
        assert "undefined" not in says(page) and "NaN" not in says(page)
        visit.keep(f"lesson-{scene}-{i + 1}-{step}")
        page.keyboard.press("n" if i % 2 else "ArrowRight")
        visit.settle()
    assert len(set(titles)) == len(set(sentences)) == len(steps)
    assert page.locator(".headpage").is_visible()


def test_back_goes_back_and_the_address_holds_the_step(visit: Visit) -> None:
    page = visit.open(f"{VIEW}&step=softmax")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**step=scale*")
    page.keyboard.press("p")
    page.wait_for_url("**step=queries*")
    page.get_by_role("button", name="Step 9 of 9").click()
    page.wait_for_url("**step=projection*")


def test_values_and_scores_on_the_page_are_those_of_the_question(visit: Visit) -> None:
    found = numbers(visit)
    page = visit.open(f"{VIEW}&step=values")
    assert shown(page) == figures(page, found["values"]["lengths"])
    page = visit.open(f"{VIEW}&step=queries")
    assert shown(page) == figures(page, found["scores"])
    page.locator(".lessonrow").nth(2).click()
    visit.settle()
    why = visit.site.exploration.ask(
        "why", scene=visit.site.ids["sentiment"], layer=LAYER, head=HEAD, query=QUERY, key=2
    ).meta
    split = [channel["product"] for channel in why["channels"][:6]]
    assert shown(page, 1) == figures(page, [*split, why["score"] - sum(split)])
    assert page.locator("h2").first.text_content() == "The score of “is”, by channel"


def test_the_naive_sum_is_the_same_for_every_word(visit: Visit) -> None:
    page = visit.open(f"{VIEW}&step=naive")
    strip = page.locator(".strip-vector .own").get_attribute("d")
    page.locator(".pinner button", has_text="attention").click()
    visit.settle()
    assert "exactly what “bby” got" in says(page)
    assert page.locator(".strip-vector .own").get_attribute("d") == strip


def test_the_scale_is_switched_and_the_softmax_and_its_gradient_move(visit: Visit) -> None:
    found = numbers(visit)
    page = visit.open(f"{VIEW}&step=scale")
    assert page.locator(".segments [aria-pressed=true]").text_content() == "1/√D"
    for scale in found["scales"]:
        page.locator(f".segments [data-key={scale['name']}]").click()
        visit.settle()
        assert shown(page) == figures(page, scale["weights"])
        assert shown(page, 1)[1:] == figures(page, [scale["gradient"]])
        for number in figures(page, [scale["std"], scale["peak"], scale["gradient"]]):
            assert number in says(page)
        visit.keep(f"lesson-scale-{scale['name']}")


def test_a_raised_score_takes_from_the_other_words(visit: Visit) -> None:
    weights = numbers(visit)["weights"]
    page = visit.open(f"{VIEW}&step=softmax")
    assert shown(page) == figures(page, weights)
    for _ in range(3):
        page.locator(".lessonrow").nth(2).click()
    visit.settle()
    raised = [w * (2.718281828459045**3 if i == 2 else 1) for i, w in enumerate(weights)]
    assert shown(page) == figures(page, [w / sum(raised) for w in raised])
    page.get_by_role("button", name="As it was").click()
    visit.settle()
    assert shown(page) == figures(page, weights)


def test_one_head_switches_from_equal_shares_to_its_own(visit: Visit) -> None:
    found = numbers(visit)
    page = visit.open(f"{VIEW}&step=head")
    assert shown(page) == figures(page, found["weights"])
    assert f"{found['mix']['angle']:.0f}° away" in says(page)
    page.get_by_role("button", name="equal shares").click()
    visit.settle()
    assert set(shown(page)) == set(figures(page, [1 / found["n_allowed"]]))


def test_heads_are_switched_off_in_the_sum(visit: Visit) -> None:
    found = numbers(visit)
    page = visit.open(f"{VIEW}&step=heads")
    assert shown(page) == figures(page, found["projection"]["added"])
    page.locator(".lessonrow").nth(0).click()
    visit.settle()
    rest = [row[1:] for row in found["projection"]["products"][1:]]
    assert figures(page, [sum(map(sum, rest)) ** 0.5])[0] in says(page)
    for i in range(1, len(found["heads"])):
        page.locator(".lessonrow").nth(i).click()
    visit.settle()
    assert says(page) == "With every head off, the layer adds nothing."


def test_dropout_strikes_others_every_time(visit: Visit) -> None:
    page = visit.open(f"{VIEW}&step=dropout")
    for seed in range(4):
        dropout = numbers(visit, seed=seed)["dropout"]
        assert shown(page) == figures(page, dropout["weights"])
        assert page.locator("li.struck").count() == sum(dropout["struck"])
        assert figures(page, [dropout["sum"]])[0] in says(page)
        page.get_by_role("button", name="Strike again").click()
        visit.settle()


def test_a_share_is_switched_to_what_it_moves(visit: Visit) -> None:
    found = numbers(visit)
    page = visit.open(f"{VIEW}&step=projection")
    parts = {"weight": found["weights"], "moved": found["values"]["moved"], "projected": found["projection"]["moved"]}
    for name, values in parts.items():
        page.locator(f".segments [data-key={name}]").click()
        visit.settle()
        assert shown(page) == figures(page, values)


def test_without_its_mask_a_gpt_looks_ahead(visit: Visit) -> None:
    page = visit.open("v=1&page=lesson&step=mask&l=0&h=0&q=3", "novels")
    assert "may look at 4 of" in says(page)
    before = page.locator("li.struck").count()
    page.get_by_role("button", name="mask off").click()
    visit.settle()
    assert before > 0 and page.locator("li.struck").count() == 0
    visit.keep("lesson-mask-off")


def test_the_lesson_goes_on_with_a_sentence_of_ones_own(visit: Visit) -> None:
    page = visit.open(f"{VIEW}&step=softmax")
    page.get_by_role("button", name="Try your own").click()
    page.get_by_label("Your text").fill("a good film")
    page.get_by_role("button", name="Read it").click()
    page.wait_for_selector(".lessonrow :text('film')")
    visit.settle()
    assert page.locator(".lessonsteps [aria-current=step]").text_content() == "5"
    assert page.locator(".lessonrow").count() == 5
    page.evaluate("window.shifts = []")  # the box closed over another recording, as was asked for


def test_a_recording_alone_says_what_it_does_not_hold(visit: Visit) -> None:
    page = visit.open("v=1&page=lesson&step=values", "long")
    assert says(page) == "The values were not recorded: watch(model, values=True) keeps them."
    page = visit.open("v=1&page=lesson&step=scale&q=900", "long")
    assert "standard deviation" in says(page)
    visit.keep("lesson-long")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400, 320])
def test_no_screen_is_wider_than_its_window(width: int, theme: str, visitor: Callable[..., Visit]) -> None:
    visit = visitor(width, theme)
    page = visit.open(VIEW)
    for step in STEPS:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        small = page.evaluate(
            "[...document.querySelector('#explorer').shadowRoot.querySelectorAll('.lesson button')].filter((b) => "
            "b.getClientRects().length && Math.min(b.offsetWidth, b.offsetHeight) < 24).map((b) => b.textContent)"
        )
        assert small == []
        visit.keep(f"lesson-{step}-{width}-{theme}")
        page.keyboard.press("ArrowRight")
        visit.settle()
