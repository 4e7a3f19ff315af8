"""The server: what the gate refuses, what the page is given, and random requests by its own description."""

import io
import json
import threading
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from clearhead.errors import InputError
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.jobs import Events, Report
from clearhead.explorer.questions import QUESTIONS
from clearhead.explorer.scene import Scene
from clearhead.explorer.server import api, streams
from clearhead.explorer.server.api import application
from clearhead.explorer.server.gate import Gate
from clearhead.explorer.server.serving import configured, listen
from clearhead.explorer.server.streams import Turns

TOKEN, PORT = "t" * 43, 8123
BASE = f"http://127.0.0.1:{PORT}"
OURS = {"Host": f"127.0.0.1:{PORT}"}
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client(exploration: Exploration) -> TestClient:
    return TestClient(Gate(application(exploration), TOKEN, PORT), BASE, headers=BEARER)


def test_the_page_is_given_without_a_token_and_under_a_policy(client: TestClient) -> None:
    answer = client.get("/", headers={"Authorization": ""})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy and "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer" and answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers and "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Host": f"evil.example:{PORT}"}, 421),
        ({"Host": "127.0.0.1"}, 421),
        ({"Host": f"127.0.0.1:{PORT + 1}"}, 421),
        ({"Host": f"localhost.evil.example:{PORT}"}, 421),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Host": f"localhost:{PORT}"}, 200),
        ({"Host": f"[::1]:{PORT}"}, 200),
    ],
)
def test_the_gate(headers: dict[str, str], status: int, client: TestClient) -> None:
    answer = client.get("/api/meta", headers=headers)
    assert answer.status_code == status
    assert (status == 200) != ("error" in answer.json())


def test_a_link_from_another_site_opens_the_page_and_nothing_else(client: TestClient) -> None:
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert client.get("/", headers=followed).status_code == 200
    assert client.get("/api/meta", headers=followed).status_code == 403
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}).status_code == 403


def test_websockets_are_closed(client: TestClient) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect) as closed, client.websocket_connect("/api/meta"):
        pass
    assert closed.value.code == 1008


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/api/", 404),
        ("GET", "/nothing.js", 404),
        ("GET", "/../pyproject.toml", 404),
        ("GET", "/%2e%2e%2fserver%2fgate.py", 404),
        ("POST", "/api/meta", 405),
        ("DELETE", "/api/tile", 405),
        ("POST", "/", 405),
        ("GET", "/api/tile", 400),
        ("GET", "/api/tile?layer=0&head=x", 400),
        ("GET", "/api/tile?layer=0&head=0&head=0", 400),
        ("GET", "/api/tile?layer=77&head=0", 400),
        ("GET", f"/api/strongest?without={'1,' * 2000}", 413),
    ],
)
def test_a_wrong_request_gets_its_status_and_a_sentence(
    method: str, path: str, status: int, client: TestClient
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert status == 405 or answer.json()["error"]


def test_answers_over_http_are_those_of_the_exploration(client: TestClient, exploration: Exploration) -> None:
    assert client.get("/api/meta").json() == json.loads(json.dumps(exploration.ask("meta").meta))
    answer = client.get("/api/tile?layer=1&head=2")
    wanted = exploration.ask("tile", layer=1, head=2)
    assert (answer.content, json.loads(answer.headers["x-meta"])) == (wanted.body, wanted.meta)
    picture = client.get("/api/image?scene=s3")
    assert picture.headers["content-type"] == "image/png"


def test_too_many_questions_at_once_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_OUT", 0)
    assert client.get("/api/meta").status_code == 429


def test_a_taken_port_is_a_sentence() -> None:
    with listen(0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of this machine cannot be used"):
            listen(port)


def test_the_description_names_every_question(client: TestClient) -> None:
    paths: dict[str, Any] = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {f"/api/{name}" for _, name in QUESTIONS}


def test_a_run_is_streamed_line_by_line(client: TestClient) -> None:
    answer = client.post("/api/run", json={"model": "novels", "text": "It was", "generate": {"max_new_tokens": 3}})
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert [event["event"] for event in events if event["event"] != "progress"] == ["token"] * 3 + ["done"]


@pytest.mark.parametrize(
    ("kind", "content", "status"),
    [
        ("text/plain", b"{}", 415),
        ("application/x-www-form-urlencoded", b"scene=s1", 415),
        ("", b"{}", 415),
        ("application/json", b"{", 400),
        ("application/json", b"[]", 400),
        ("application/json", b"[" * 100_000, 400),
        ("application/json", b"\xff", 400),
        ("application/json", b"{}", 400),
        ("application/json", b'{"scene": "s1", "edits": 3}', 400),
        ("application/json", b" " * 2_000_001, 413),
    ],
)
def test_a_wrong_body_gets_a_status_and_a_sentence(kind: str, content: bytes, status: int, client: TestClient) -> None:
    answer = client.post("/api/run", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status and answer.json()["error"]


def test_a_picture_is_put_and_read(client: TestClient) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), "blue").save(buffer, "PNG")
    png = {"Content-Type": "image/png"}
    sent = client.put("/api/image", content=buffer.getvalue(), headers=png).json()
    answer = client.post("/api/run", json={"model": "pictures", "image": sent["image"]})
    assert json.loads(answer.text.splitlines()[-1])["event"] == "done"
    assert client.put("/api/image", content=b"no picture", headers=png).status_code == 400
    assert client.put("/api/image", content=b"x").status_code == 415
    assert client.put("/api/image", content=b"x" * 20_000_001, headers=png).status_code == 413


def test_one_run_at_a_time_one_waits_and_a_third_is_refused(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = Turns()
    assert [turns.take() for _ in range(3)] == [True, True, False]
    turns.leave()
    assert turns.take()
    monkeypatch.setattr(streams, "MAX_WAITING", -1)
    answer = client.post("/api/exact", json={"layer": 0})
    assert answer.status_code == 429 and "ask again later" in answer.json()["error"]


def test_whoever_leaves_stops_the_run(exploration: Exploration, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def endless(exploration: Exploration, **given: Any) -> Events:
        def work(report: Report) -> None:
            report("progress", done=0, of=None, what="waiting")
            begun.set()
            try:
                while True:
                    stopped.wait(0.01)
                    report.check()
            except BaseException:
                stopped.set()
                raise

        return Events(work)

    monkeypatch.setitem(QUESTIONS, ("POST", "exact"), replace(QUESTIONS["POST", "exact"], function=endless))
    listening = listen(0)
    server = uvicorn.Server(configured(exploration, TOKEN, listening.getsockname()[1]))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api/exact"
        with httpx2.stream("POST", url, json={"layer": 0}, headers=BEARER) as answer:
            assert next(answer.iter_lines()) and begun.wait(30)
            assert httpx2.get(url.replace("exact", "meta"), headers=BEARER).status_code == 200  # none is kept waiting
        assert stopped.wait(30)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestWarning")
def test_random_requests_by_the_servers_own_description_find_nothing(scenes: dict[str, Scene]) -> None:
    import schemathesis
    from hypothesis import HealthCheck, given, seed, settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    alone = Exploration([Scene.of(scenes["sentiment"].seen)])  # without models: a random request may run one for long
    app = Gate(application(alone), TOKEN, PORT)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=OURS)
    for found in schema.get_all_operations():
        operation = found.ok()

        @seed(0)
        @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            # what fits the description may still name a layer that is not there, which is 400
            case.call_and_validate(headers=BEARER | OURS, excluded_checks=[positive_data_acceptance])

        check()


def test_neither_the_token_nor_an_address_is_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    client.get("/api/meta")
    client.get("/api/tile?layer=0")
    assert TOKEN not in caplog.text.replace(str(client.headers), "")
