"""An exported file holds what it says: exact weights, as many heads as fit, and nothing that could run."""

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clearhead
from clearhead.errors import InputError
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.export import export, key_of
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


def held_by(path: Path) -> dict[str, Any]:
    """Return what the page of a file reads."""
    found = re.search(r'<script type="application/json" id="answers">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    held: dict[str, Any] = json.loads(found[1])
    return held


def unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))


def test_every_weight_of_every_head_is_held_exactly(seen: Recording, tmp_path: Path) -> None:
    said = export(Exploration([Scene.of(seen, WORDS)]), tmp_path / "page.html")
    held = held_by(tmp_path / "page.html")
    assert (said.n_heads, said.n_zoomed, said.n_exact) == (8, 8, 8)
    assert said.nbytes == (tmp_path / "page.html").stat().st_size
    name = held["answers"]["meta?"]["meta"]["id"]
    for layer in (0, 1):
        for head in range(4):
            packed = held["maps"][f"{name}/-1/0/{layer}/{head}"]
            weights = np.frombuffer(unpacked(packed["bytes"]), dtype="<f4").reshape(packed["rows"], packed["cols"])
            np.testing.assert_array_equal(weights, seen.map(layer, head).numpy())


def test_answers_are_those_that_the_page_would_get_from_a_server(seen: Recording, tmp_path: Path) -> None:
    exploration = Exploration([Scene.of(seen, WORDS)])
    export(exploration, tmp_path / "page.html")
    held = held_by(tmp_path / "page.html")["answers"]
    place = {"scene": held["meta?"]["meta"]["id"], "call": -1, "batch": 0}
    for name, asked in (
        ("overview", {**place, "layer": 1, "mode": "sum"}),
        ("tile", {**place, "layer": 0, "head": 3, "mode": "max", "s": 0, "ty": 0, "tx": 0}),
        ("margins", {**place, "layer": 1, "head": 2}),
        ("heads", place),
    ):
        answer = exploration.ask(name, **asked)
        entry = held[key_of(name, asked)]
        assert entry["meta"] == json.loads(json.dumps(answer.meta))
        assert answer.body is None or unpacked(entry["bytes"]) == answer.body


def test_a_small_budget_holds_fewer_heads_and_says_so(seen: Recording, tmp_path: Path) -> None:
    exploration = Exploration([Scene.of(seen, WORDS)])
    whole = export(exploration, tmp_path / "whole.html")
    least = export(exploration, tmp_path / "least.html", budget=1)
    some = export(exploration, tmp_path / "some.html", budget=(whole.nbytes + least.nbytes) // 2)
    assert least.n_exact == least.n_zoomed == 0 < some.n_exact + some.n_zoomed < 16
    assert least.nbytes < some.nbytes < whole.nbytes
    assert some.nbytes <= (whole.nbytes + least.nbytes) // 2 + 10_000
    assert "larger budget" in str(least) and "all 8 heads exactly" in str(whole)
    n_overviews = sum(key.startswith("overview?") for key in held_by(tmp_path / "least.html")["answers"])
    assert n_overviews == 2, "all heads are always there in small"


def test_a_text_full_of_markup_stays_text(seen: Recording, tmp_path: Path) -> None:
    evil = ["</script><script>alert(1)</script>", "<!--", "]]>", *WORDS[3:]]
    export(Exploration([Scene.of(seen, evil)]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)</script>" not in page
    assert held_by(tmp_path / "page.html")["answers"]["meta?"]["meta"]["axes"][0]["tokens"][0] == evil[0]


def test_a_file_can_run_nothing(seen: Recording, tmp_path: Path) -> None:
    export(Exploration([Scene.of(seen, WORDS)]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "default-src 'none'" in page and "connect-src" not in page
    assert not any(held_by(tmp_path / "page.html")["answers"]["meta?"]["meta"]["can"].values())


def test_what_cannot_be_written_is_said_and_leaves_nothing_behind(seen: Recording, tmp_path: Path) -> None:
    exploration = Exploration([Scene.of(seen, WORDS)])
    with pytest.raises(InputError, match="cannot be written"):
        export(exploration, tmp_path / "nowhere" / "page.html")
    with pytest.raises(InputError, match="budget="):
        export(exploration, tmp_path / "page.html", budget=0)
    assert list(tmp_path.iterdir()) == []
