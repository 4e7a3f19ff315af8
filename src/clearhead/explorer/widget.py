"""The explorer in a notebook: an anywidget whose questions are answered by the kernel.

    seen.show()                # in JupyterLab, VS Code, Colab or marimo

The page's modules are joined into one (`joining.py`). They send their questions over the notebook's own channel: one
message holds all questions of a moment, one message their answers, with the bytes of tiles as buffers. Jupyter may call
the handler from a second thread while a cell runs, so the picture stays alive; `Exploration` lets one thread at a time
read the recordings. A notebook that is opened again, or shown on a code host, has no kernel: it shows the picture of
all heads that is stored with the widget.

Only this module imports anywidget, an extra: `pip install 'clearhead[notebook]'`.
"""

import threading
from collections.abc import Iterator
from typing import Any

import anywidget
import traitlets

from clearhead.errors import ClearheadError
from clearhead.explorer import joining
from clearhead.explorer.exploration import Exploration

MAX_ASKS = 64  # questions in one message; the page sends at most 16
MAX_STREAMS = 4  # long questions that are answered at the same time


class ExplorerWidget(anywidget.AnyWidget):
    """The explorer as a widget.

    Args:
        exploration: What is explored.
        view: Where to begin, as the part of an explorer's address behind the `#`, e.g. "v=1&page=head&l=2&h=0".

    Attributes:
        view: What is shown now; it follows the page and may be set.
    """

    _esm = joining.joined()
    style = traitlets.Unicode().tag(sync=True)
    view = traitlets.Unicode().tag(sync=True)

    def __init__(self, exploration: Exploration, view: str = "") -> None:
        super().__init__(style=joining.style(), view=view)
        self.exploration = exploration
        self._streams: dict[int, Iterator[dict[str, Any]]] = {}
        self.on_msg(self._hear)

    def _hear(self, _: object, message: Any, buffers: object) -> None:
        """Answer a message of the page; what is not a message of the page is ignored."""
        if not isinstance(message, dict):
            return
        if message.get("kind") == "cancel":
            self._streams.pop(_whole(message.get("id")), None)  # its thread notices
        elif message.get("kind") == "ask" and isinstance(asks := message.get("asks"), list):
            self._answer([ask for ask in asks[:MAX_ASKS] if isinstance(ask, dict)])

    def _answer(self, asks: list[dict[str, Any]]) -> None:
        """Answer short questions in one message, and begin to answer long ones."""
        answers: list[dict[str, Any]] = []
        bodies: list[bytes] = []
        for ask in asks:
            number = _whole(ask.get("id"))
            name, given = str(ask.get("name")), ask.get("body", ask.get("parameters"))
            given = {key: value for key, value in (given if isinstance(given, dict) else {}).items()}
            try:
                if "body" in ask:
                    self._begin(number, name, given)
                    continue
                found = self.exploration.ask(name, **{key: value for key, value in given.items() if value is not None})
            except ClearheadError as error:
                answers.append({"id": number, "error": str(error)})
                continue
            answers.append({"id": number, "meta": found.meta, "buffer": None if found.body is None else len(bodies)})
            if found.body is not None:
                bodies.append(found.body)
        if answers:
            self.send({"answers": answers}, bodies)

    def _begin(self, number: int, name: str, given: dict[str, Any]) -> None:
        """Answer a long question in a thread of its own, event by event; InputError where it is none."""
        if len(self._streams) >= MAX_STREAMS:
            raise ClearheadError(f"{MAX_STREAMS} long questions are being answered: wait for one, or leave it")
        events = self.exploration.stream(name, **given)
        self._streams[number] = events
        threading.Thread(target=self._stream, args=(number, events), daemon=True).start()

    def _stream(self, number: int, events: Iterator[dict[str, Any]]) -> None:
        """Send the events of a long question until the last one, or until the page gives it up."""
        try:
            for event in events:
                if number not in self._streams:
                    return
                last = event.get("event") in ("done", "error")
                self.send({"answers": [{"id": number, "event": event, "last": last}]})
        except ClearheadError as error:
            self.send({"answers": [{"id": number, "error": str(error)}]})
        finally:
            self._streams.pop(number, None)
            close = getattr(events, "close", None)
            if close is not None:
                close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Return the widget for a notebook, with a picture and a line of text for where there is no kernel."""
        from clearhead.explorer.figures.heads import heads_svg

        found = super()._repr_mimebundle_(**kwargs)
        data, *rest = found if isinstance(found, tuple) else (found,)
        _, scene = self.exploration.scene()
        data = {**(data or {}), "image/svg+xml": heads_svg(self.exploration), "text/plain": repr(scene.seen)}
        return (data, *rest) if rest else data


def _whole(value: Any) -> int:
    """Return a question's number, or -1 for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else -1
