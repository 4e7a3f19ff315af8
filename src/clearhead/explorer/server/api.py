"""Questions over HTTP: every question of the table is one address, checked by the table and answered in a thread.

    GET  /api/{name}?parameters      answered at once: JSON, or bytes with a small JSON in the header X-Meta
    POST /api/{name}                 a JSON body; the answer is one JSON object a line, as things happen
    PUT  /api/image                  the bytes of a picture
    GET  /  /{file}                  the page, read once when the server starts: no request reaches the file system

An error is `{"error": sentence}`. Next: `streams.py`, then `serving.py`.
"""

import json
from importlib.resources import files
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clearhead.errors import ClearheadError, nearest
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.jobs import Events
from clearhead.explorer.questions import QUESTIONS
from clearhead.explorer.questions.running import MAX_IMAGE_BYTES
from clearhead.explorer.server.openapi import describe
from clearhead.explorer.server.streams import Turns, streamed
from clearhead.explorer.table import Answer, Question

MAX_QUERY_BYTES = 2_000
MAX_BODY_BYTES = 2_000_000  # of JSON
MAX_OUT = 64  # questions that wait for an answer at the same time; a page asks four
N_THREADS = 2  # that answer questions; a model runs in one of its own
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "QUERY")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Api:
    """Answers requests about one exploration."""

    def __init__(self, exploration: Exploration) -> None:
        self.exploration, self.out, self.turns = exploration, 0, Turns()
        self.limiter = anyio.CapacityLimiter(N_THREADS)

    async def question(self, request: Request) -> Response:
        """Answer a question."""
        name = request.path_params["name"]
        methods = [method for method, each in QUESTIONS if each == name]
        if not methods:
            known = sorted({each for _, each in QUESTIONS})
            raise HTTPException(404, f"there is no question {name[:40]!r}{nearest(name, known)}")
        if request.method not in methods:
            raise HTTPException(405, f"{name} is asked with {' or '.join(methods)}", {"Allow": ", ".join(methods)})
        if len(request.scope["query_string"]) > MAX_QUERY_BYTES:
            raise HTTPException(413, f"a question has at most {MAX_QUERY_BYTES:,} letters")
        if self.out >= MAX_OUT:
            raise HTTPException(429, f"{MAX_OUT} questions are waiting already: ask again when some are answered")
        self.out += 1
        try:
            question = QUESTIONS[request.method, name]
            if question.method == "GET":
                return await self.at_once(question, request)
            if request.query_params:
                raise HTTPException(400, f"{name} takes its parameters in the body, not in the address")
            return await (self.taken if question.method == "PUT" else self.streamed)(question, request)
        finally:
            self.out -= 1

    async def at_once(self, question: Question, request: Request) -> Response:
        """Answer a question with what a thread finds."""
        given = question.read(request.query_params.multi_items())
        found = await anyio.to_thread.run_sync(self.ask, question.name, given, limiter=self.limiter)
        return answered(found)

    def ask(self, name: str, given: dict[str, Any]) -> Answer:
        """Ask the exploration."""
        return self.exploration.ask(name, **given)

    def stream(self, name: str, given: dict[str, Any]) -> Events:
        """Ask the exploration for events, the first of which is still to be asked for."""
        return self.exploration.stream(name, **given)

    async def taken(self, question: Question, request: Request) -> Response:
        """Take in bytes."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/octet-stream" and not kind.startswith("image/"):
            raise HTTPException(415, "expected the bytes of a picture, Content-Type image/... or octet-stream")
        data = await body(request, MAX_IMAGE_BYTES)
        return answered(await anyio.to_thread.run_sync(question.function, self.exploration, data, limiter=self.limiter))

    async def streamed(self, question: Question, request: Request) -> Response:
        """Answer a question with events; where too many wait for their turn it is refused."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, "expected JSON, Content-Type application/json")
        given = parsed(await body(request, MAX_BODY_BYTES))
        events = await anyio.to_thread.run_sync(self.stream, question.name, given, limiter=self.limiter)
        if not self.turns.take():
            raise HTTPException(429, "one question that takes long is being answered and one waits: ask again later")
        return streamed(self.turns, events)


async def body(request: Request, limit: int) -> bytes:
    """Return the body of a request; 413 as soon as it is larger than the limit."""
    found = bytearray()
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
        raise HTTPException(413, f"at most {limit:,} bytes are read")
    try:
        async for part in request.stream():
            found += part
            if len(found) > limit:
                raise HTTPException(413, f"at most {limit:,} bytes are read")
    except ClientDisconnect:
        raise HTTPException(400, "the request ended before its body did") from None
    return bytes(found)


def parsed(data: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; 400 where there is none."""
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise HTTPException(400, "the body is no JSON object")
    return found


def answered(found: Answer) -> Response:
    """Return an answer as a response."""
    if found.body is None:
        return JSONResponse(found.meta)
    return Response(found.body, media_type=found.media_type, headers={"X-Meta": json.dumps(found.meta)})


def application(exploration: Exploration) -> Starlette:
    """Return the application behind the gate."""
    api, page = Api(exploration), static_files()
    description = json.dumps(describe(QUESTIONS)).encode()

    async def show(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in page:
            raise HTTPException(404, "there is no such page")
        found, media_type = page[name]
        return Response(found, media_type=media_type)

    async def openapi(request: Request) -> Response:
        return Response(description, media_type="application/json")

    return Starlette(
        routes=[
            Route("/", show, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            Route("/api/{name}", api.question, methods=list(METHODS)),
            Route("/{name}", show, methods=["GET"]),
        ],
        exception_handlers={HTTPException: refused, ClearheadError: misasked},
    )


async def refused(request: Request, error: Exception) -> Response:
    """Return an HTTP error as JSON."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def misasked(request: Request, error: Exception) -> Response:
    """Return what cannot be answered as a sentence."""
    return JSONResponse({"error": str(error)}, 400)


def static_files() -> dict[str, tuple[bytes, str]]:
    """Return the files of the page by name, with their media types."""
    folder = files("clearhead.explorer") / "web"
    found = {}
    for file in folder.iterdir():
        media_type = MEDIA_TYPES.get(f".{file.name.rpartition('.')[2]}")
        if media_type is not None and file.is_file():
            found[file.name] = file.read_bytes(), media_type
    return found
