"""From an exploration to an address in the browser: a socket on the loopback interface, a token, and uvicorn."""

import secrets
import socket
from collections.abc import Callable

import uvicorn

from clearhead.errors import InputError
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.server.api import application
from clearhead.explorer.server.gate import Gate

HOST = "127.0.0.1"
MAX_CONNECTIONS = 128
LONGEST_HEADER = 16_384  # bytes of a request before its body


def listen(port: int) -> socket.socket:
    """Return a socket that listens on the loopback interface; port 0 is any free one.

    Raises:
        InputError: The port is taken, or may not be used.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(MAX_CONNECTIONS)
    except OSError as error:
        listening.close()
        raise InputError(
            f"port {port} of this machine cannot be used: {error.strerror or error}. Give another with --port, or none "
            f"for any that is free"
        ) from error
    return listening


def configured(exploration: Exploration, token: str, port: int) -> uvicorn.Config:
    """Return what uvicorn is told: our application behind the gate, no logs of requests, bounded in everything."""
    return uvicorn.Config(
        Gate(application(exploration), token, port),
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        h11_max_incomplete_event_size=LONGEST_HEADER,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )


def serve(exploration: Exploration, listening: socket.socket, ready: Callable[[str], None], view: str = "") -> None:
    """Answer requests until a signal ends it.

    Args:
        exploration: What is explored.
        listening: The socket of `listen`.
        ready: Called with the address, token included, once it can be opened.
        view: Where the page begins, as the page itself writes it behind the `#`.
    """
    port, token = listening.getsockname()[1], secrets.token_urlsafe(32)
    server = uvicorn.Server(configured(exploration, token, port))
    ready(f"http://{HOST}:{port}/#token={token}" + (f"&{view}" if view else ""))
    server.run(sockets=[listening])
