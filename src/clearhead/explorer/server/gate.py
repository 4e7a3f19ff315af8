"""What a request has to show before anything is looked at: the right host, the right origin, the token.

The server is bound to the loopback interface, which other programs and every web page in the browser can reach, too.

    another web page        may not send the token, which no cookie carries; `Sec-Fetch-Site` names it as another site
    DNS rebinding           a page whose name suddenly means 127.0.0.1 still sends its own name as Host
    another user            does not know the token: 32 random bytes, printed once, sent in a header, never logged

`Gate` is the outermost ASGI callable: what it refuses, no other code sees. It refuses WebSockets altogether.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Gate:
    """An ASGI application in front of another.

    Args:
        app: What answers requests that pass.
        token: What requests under /api have to carry as `Authorization: Bearer TOKEN`.
        port: Our port, part of every right Host.
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self.app, self.token = app, f"Bearer {token}".encode()
        self.hosts = frozenset(f"{name}:{port}".encode() for name in LOOPBACK)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif (refused := self.refusal(scope)) is not None:
            await respond(send, *refused)
        else:
            await self.app(scope, receive, _with_headers(send))

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the sentence with which a request is refused, or None where it may pass."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        host = headers.get(b"host", [])
        if len(host) != 1 or host[0].lower() not in self.hosts:
            return 421, "this server answers to its own loopback address and port only"
        api = scope["path"].startswith("/api")
        followed = not api and headers.get(b"sec-fetch-mode") == [b"navigate"] and scope["method"] == "GET"
        if any(site not in (b"none", b"same-origin") for site in headers.get(b"sec-fetch-site", [])) and not followed:
            return 403, "this server answers its own page only, and the request comes from another site"
        if api:
            given = headers.get(b"authorization", [b""])
            if len(given) != 1 or not hmac.compare_digest(given[0], self.token):
                return 401, "the token is missing or wrong: open the address that `clearhead explore` printed"
        return None


def _with_headers(send: Send) -> Send:
    """Return a `send` that adds our headers to every answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *HEADERS]
        await send(message)

    return sending


async def respond(send: Send, status: int, sentence: str) -> None:
    """Send an error as JSON."""
    body = json.dumps({"error": sentence}).encode()
    more = [(b"www-authenticate", b"Bearer")] if status == 401 else []
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more, *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
