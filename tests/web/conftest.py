"""A real server, a real browser, and a page that may not log an error, ask for anything elsewhere, or shift."""

import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import uvicorn
from PIL import Image
from torch import Tensor, nn

from browsing import Site, Visit
from clearhead.cli.opening import open_for
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.runner import Runner
from clearhead.explorer.scene import Scene
from clearhead.explorer.server.api import application
from clearhead.explorer.server.gate import Gate
from clearhead.explorer.server.serving import listen
from clearhead.seeing import Recording, watch

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking --disable-component-update".split()
TEXT = "attention is not too shabby"
MARKUP = "<script>window.broken = 1</script> <img src=x onerror='window.broken = 2'> not too &amp; shabby"
STORY = "It was the best of times,\nit was the worst of times; it was the age of wisdom. " * 16
NAMES = ("sentiment", "novels", "pictures", "pronounce")
MAX_SHIFT = 0.005
WATCH_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifts.push(entry.value);
}).observe({ type: "layout-shift", buffered: true });
"""


class Heads(nn.Module):
    """Two heads that look back: where they stand, and at what is like them."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def long_recording(n: int = 1200) -> Recording:
    """Return a recording of `n` positions, more than a window has pixels."""
    angles = torch.arange(n)[:, None] / 2.0 ** torch.arange(1, 9)
    waves = torch.cat([angles.sin(), angles.cos()], 1) * torch.tensor([1.5, 3.0])[:, None, None]
    model = Heads()
    with watch(model) as seen, torch.no_grad():
        model(waves[None] + 0.3 * torch.randn(1, 2, n, 16, generator=torch.Generator().manual_seed(0)))
    return seen


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    runner = Runner(NAMES, lambda name: open_for("explore", name))
    noise = torch.rand(3, 56, 84, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray((noise * 255).byte().permute(1, 2, 0).numpy())
    scenes = {
        "sentiment": runner.read("sentiment", TEXT),
        "markup": runner.read("sentiment", MARKUP),
        "novels": runner.read("novels", STORY),
        "pictures": runner.read("pictures", picture, title="noise"),
        "pronounce": runner.read("pronounce", "attention"),
        "long": Scene.of(long_recording()),
    }
    exploration = Exploration(scenes.values(), runner)
    token, listening = secrets.token_urlsafe(32), listen(0)
    port = listening.getsockname()[1]
    gate = Gate(application(exploration), token, port)
    server = uvicorn.Server(uvicorn.Config(gate, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield Site(f"http://127.0.0.1:{port}", token, exploration, scenes, dict(zip(scenes, exploration.scenes)))
    server.should_exit = True
    thread.join(timeout=10)
    listening.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Return the one browser of these tests: playwright starts once in a process."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: chromium): the page is tested in it")
    playwright = pytest.importorskip("playwright.sync_api", reason="the page is driven by playwright")
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@pytest.fixture
def visitor(browser: Any, site: Site) -> Iterator[Callable[..., Visit]]:
    """Return what opens a page of a width and a theme; at the end it must have kept to the rules."""
    visits: list[Visit] = []

    def visit(width: int = 1280, theme: str = "light", **more: Any) -> Visit:
        context = browser.new_context(
            viewport={"width": width, "height": 860}, color_scheme=theme, reduced_motion="reduce", **more
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.add_init_script(WATCH_SHIFTS)
        one = Visit(page, site)

        def requested(request: Any) -> None:
            if not request.url.startswith((site.address, "data:", "blob:", "about:")):
                one.faults.append(f"asked for {request.url}")

        page.on("request", requested)
        page.on(
            "console", lambda said: said.type in ("error", "warning") and one.faults.append(f"console: {said.text}")
        )
        page.on("pageerror", lambda error: one.faults.append(f"error: {error}"))
        visits.append(one)
        return one

    yield visit
    for one in visits:
        shifts = one.page.evaluate("window.shifts ?? []")
        said = one.page.locator(".toast p").all_text_contents()
        one.page.context.close()
        assert one.faults == []
        assert sum(shifts) <= MAX_SHIFT, f"the layout shifted: {shifts}"
        assert said == [], "the page told of a failure"


@pytest.fixture
def visit(visitor: Callable[..., Visit]) -> Visit:
    return visitor()
