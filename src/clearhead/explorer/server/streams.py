"""Events over HTTP: one JSON object a line, while one question that takes long is answered and one may wait.

Whoever leaves is noticed, and what is going on for them stops: Starlette cancels the answer, which closes the iterator
of events, which stops the job.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
from starlette.responses import StreamingResponse

from clearhead.explorer.jobs import Events

MAX_WAITING = 1
MEDIA_TYPE = "application/x-ndjson"


class Turns:
    """Lets one answer run and one wait."""

    def __init__(self) -> None:
        self.lock, self.n = anyio.Lock(), 0

    def take(self) -> bool:
        """Take a place, running or waiting; False where there is none."""
        if self.n > MAX_WAITING:
            return False
        self.n += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self.n -= 1


def streamed(turns: Turns, events: Events) -> StreamingResponse:
    """Return the response whose lines are events; what makes them begins when it is its turn."""

    async def lines() -> AsyncIterator[bytes]:
        async with turns.lock:
            try:
                while (event := await anyio.to_thread.run_sync(next, events, None, abandon_on_cancel=True)) is not None:
                    yield json.dumps(event).encode() + b"\n"
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(events.close)

    return _Turn(lines(), turns)


class _Turn(StreamingResponse):
    """A response that gives its place back whatever happens to it."""

    def __init__(self, content: AsyncIterator[bytes], turns: Turns) -> None:
        super().__init__(content, media_type=MEDIA_TYPE)
        self.turns = turns

    async def __call__(self, *arguments: Any) -> None:
        try:
            await super().__call__(*arguments)
        finally:
            self.turns.leave()
