"""Questions over HTTP: every question of the table is one address, checked by the table and answered in a thread.

    GET  /api/{name}?parameters      answered at once: JSON, or bytes with a small JSON in the header X-Meta
    GET  /  /{file}                  the page, read once when the server starts: no request reaches the file system

An error is `{"error": sentence}`. Next: `serving.py`.
"""

import json
from importlib.resources import files
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clearhead.errors import ClearheadError
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.questions import QUESTIONS
from clearhead.explorer.server.openapi import describe
from clearhead.explorer.table import Answer, Question

MAX_QUERY_BYTES = 2_000
MAX_OUT = 64  # questions that wait for an answer at the same time; a page asks four
N_THREADS = 2  # that answer questions; a model runs in one of its own
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Api:
    """Answers requests about one exploration."""

    def __init__(self, exploration: Exploration) -> None:
        self.exploration, self.out = exploration, 0
        self.limiter = anyio.CapacityLimiter(N_THREADS)

    async def question(self, request: Request) -> Response:
        """Answer a question that is answered at once."""
        question = QUESTIONS.get(request.path_params["name"])
        if question is None:
            raise HTTPException(404, f"there is no question {request.path_params['name'][:40]!r}")
        if request.method != question.method:
            raise HTTPException(405, f"{question.name} is asked with {question.method}", {"Allow": question.method})
        if self.out >= MAX_OUT:
            raise HTTPException(429, f"{MAX_OUT} questions are waiting already: ask again when some are answered")
        if len(request.scope["query_string"]) > MAX_QUERY_BYTES:
            raise HTTPException(413, f"a question has at most {MAX_QUERY_BYTES:,} letters")
        self.out += 1
        try:
            return await self.at_once(question, request)
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
        body, media_type = page[name]
        return Response(body, media_type=media_type)

    async def openapi(request: Request) -> Response:
        return Response(description, media_type="application/json")

    everything = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "QUERY"]
    return Starlette(
        routes=[
            Route("/", show, methods=["GET"]),
            Route("/openapi.json", openapi, methods=["GET"]),
            Route("/api/{name}", api.question, methods=everything),
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
