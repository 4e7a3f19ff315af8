"""The explorer as a widget: in a real JupyterLab, driven by a real browser, and its messages by themselves."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clearhead
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.scene import Scene
from clearhead.seeing import Recording

pytest.importorskip("anywidget", reason="anywidget is absent: pip install 'clearhead[notebook]'")

from clearhead.explorer.widget import MAX_ASKS, ExplorerWidget

TEXT = "attention is not too shabby"
CELL = f"""
import clearhead, torch
model = clearhead.load("sentiment")
text = clearhead.Tokenizer.load(clearhead.find("sentiment")).encode({TEXT!r})
with clearhead.watch(model) as seen, torch.no_grad():
    model(torch.tensor([text.ids]))
seen.show(words=text.pieces)
"""


@pytest.fixture(scope="module")
def seen() -> Recording:
    model = clearhead.load("sentiment")
    text = clearhead.Tokenizer.load(clearhead.find("sentiment")).encode(TEXT)
    with clearhead.watch(model) as recording, torch.no_grad():
        model(torch.tensor([text.ids]))
    recording.words = text.pieces
    return recording


class Kernel(ExplorerWidget):
    """A widget whose answers are kept instead of sent."""

    def send(self, content: Any, buffers: Any = None) -> None:
        self.__dict__.setdefault("answers", []).append((content, list(buffers or [])))

    def hear(self, message: Any) -> list[tuple[dict[str, Any], list[bytes]]]:
        """Return what the widget answers to a message."""
        before = len(self.__dict__.setdefault("answers", []))
        self._hear(self, message, [])
        return self.__dict__["answers"][before:]


@pytest.fixture()
def kernel(seen: Recording) -> Kernel:
    return Kernel(Exploration([Scene.of(seen)]))


def test_questions_of_one_message_are_answered_in_one_message(kernel: Kernel, seen: Recording) -> None:
    row = {"id": 1, "name": "row", "parameters": {"layer": 2, "head": 0, "query": 6, "to": None}}
    meta = {"id": 2, "name": "meta", "parameters": {}}
    [(answer, buffers)] = kernel.hear({"kind": "ask", "asks": [row, meta]})
    first, second = answer["answers"]
    weights = np.frombuffer(buffers[first["buffer"]], dtype="<f4")
    torch.testing.assert_close(torch.from_numpy(weights.copy()), seen.row(2, 0, 6))
    assert second["meta"]["axes"][0]["tokens"][3] == "not" and second["buffer"] is None


def test_a_wrong_question_is_answered_with_a_sentence_and_the_others_are_answered(kernel: Kernel) -> None:
    wrong = [
        {"id": 1, "name": "nothing", "parameters": {}},
        {"id": 2, "name": "row", "parameters": {"layer": 99, "head": 0, "query": 0}},
        {"id": 3, "name": "row", "parameters": {"layer": "2", "head": 0, "query": 0}},
        {"id": 4, "name": "run", "body": {"text": "a text"}},  # a recording alone has no model to run
    ]
    answers: dict[int, Any] = {}
    for content, _ in kernel.hear({"kind": "ask", "asks": [*wrong, {"id": 5, "name": "meta", "parameters": {}}]}):
        answers |= {one["id"]: one for one in content["answers"]}
    deadline = time.monotonic() + 20
    while 4 not in answers and time.monotonic() < deadline:  # a long question is answered by its own thread
        for content, _ in kernel.__dict__["answers"]:
            answers |= {one["id"]: one for one in content["answers"]}
    assert all(isinstance(answers[i].get("error"), str) for i in (1, 2, 3))
    assert "error" in answers[4] or answers[4]["event"]["event"] == "error"
    assert answers[5]["meta"]["version"] == 1


@pytest.mark.parametrize(
    "message",
    [
        *(None, 3, [], {}),
        *({"kind": "ask"}, {"kind": "ask", "asks": {}}, {"kind": "ask", "asks": [None, 7]}),
        *({"kind": "cancel"}, {"kind": "cancel", "id": "x"}, {"kind": ["ask"], "asks": [{}]}),
    ],
    ids=repr,
)
def test_what_is_no_message_of_the_page_is_ignored(kernel: Kernel, message: Any) -> None:
    assert kernel.hear(message) == []


@pytest.mark.parametrize(
    "ask",
    [
        *({}, {"id": None}, {"id": 1, "name": 5}, {"id": True, "name": "meta", "parameters": [1]}),
        {"id": 1, "name": "tile", "parameters": {"layer": 2, "head": 0, "s": 10**30, "ty": 0, "tx": 0}},
        *({"id": 1, "name": "row", "parameters": {"__class__": 1}}, {"id": 1, "name": "__init__", "parameters": {}}),
    ],
    ids=repr,
)
def test_a_question_that_is_none_is_answered_with_a_sentence_or_at_its_defaults(kernel: Kernel, ask: Any) -> None:
    [(answer, _)] = kernel.hear({"kind": "ask", "asks": [ask]})
    [one] = answer["answers"]
    assert isinstance(one.get("error"), str) or one["meta"]["version"] == 1


def test_a_message_holds_a_bounded_number_of_questions(kernel: Kernel) -> None:
    asks = [{"id": i, "name": "nothing", "parameters": {}} for i in range(10 * MAX_ASKS)]
    [(answer, _)] = kernel.hear({"kind": "ask", "asks": asks})
    assert len(answer["answers"]) == MAX_ASKS


def test_a_notebook_without_a_kernel_has_a_picture_and_a_line_of_text(seen: Recording) -> None:
    bundle = seen.show()._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert data["image/svg+xml"].startswith("<svg") and "data:image/png;base64," in data["image/svg+xml"]
    assert data["text/plain"] == repr(seen)
    assert "application/vnd.jupyter.widget-view+json" in data


# ---------------------------------------------------------------- a real JupyterLab


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Return a browser's page on a notebook with one cell that shows a recording, and one that keeps it busy."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is absent: pip install 'clearhead[test]'")
    place = tmp_path_factory.mktemp("jupyter")
    cells = [_cell(CELL), _cell("import time\ntime.sleep(40)")]
    spec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    notebook = {"cells": cells, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
    (place / "seen.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        name: str(place / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    options = ["--no-browser", "--allow-root", f"--port={port}", "--IdentityProvider.token=tok"]
    options += [f"--ServerApp.root_dir={place}", "--LabApp.news_url=None"]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with (place / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env={**os.environ, **own}, stdout=log, stderr=log
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/status?token=tok", server, place / "log")
        found = browser.new_page(viewport={"width": 1280, "height": 1000})
        found.goto(f"http://127.0.0.1:{port}/lab/tree/seen.ipynb?token=tok")
        found.wait_for_selector(".jp-NotebookPanel .jp-CodeCell .cm-content", timeout=120_000)
        found.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)  # or the cell is not run
        found.locator(".jp-CodeCell .cm-content").first.click()
        found.keyboard.press("Shift+Enter")
        yield found
        found.close()
    finally:
        server.terminate()
        server.wait(30)


def _cell(source: str) -> dict[str, Any]:
    return {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None}


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def test_jupyterlab_shows_the_explorer_and_it_answers_while_a_cell_runs(page: Any) -> None:
    explorer = page.locator("[data-settled]")
    explorer.wait_for(timeout=120_000)
    assert explorer.get_by_text("not").first.is_visible()
    # a letter typed in the explorer is its own: in JupyterLab `b` would insert a cell
    n_cells = page.locator(".jp-Cell").count()
    explorer.locator("button").first.focus()
    page.keyboard.press("b")
    page.keyboard.press("b")
    assert page.locator(".jp-Cell").count() == n_cells
    # the second cell keeps the kernel busy while a head is opened: the answer comes from another thread
    page.locator(".jp-CodeCell .cm-content").nth(1).click()
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=busy]", timeout=30_000)
    explorer.get_by_text("One head").first.click()
    page.get_by_role("heading", name="Layer 2, head 0").wait_for(timeout=60_000)
    page.locator("[data-settled]").wait_for(timeout=60_000)
    assert page.locator(".jp-Notebook-ExecutionIndicator[data-status=busy]").count() == 1
    if folder := os.environ.get("CLEARHEAD_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "jupyterlab.png")
