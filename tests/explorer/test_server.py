"""The server: what the gate refuses, what the page is given, and random requests by its own description."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from clearhead.errors import InputError
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.questions import QUESTIONS
from clearhead.explorer.server import api
from clearhead.explorer.server.api import application
from clearhead.explorer.server.gate import Gate
from clearhead.explorer.server.serving import listen

TOKEN, PORT = "t" * 43, 8123
BASE = f"http://127.0.0.1:{PORT}"
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
    assert set(paths) == {f"/api/{name}" for name in QUESTIONS}
