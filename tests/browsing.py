"""The explorer's page as a test sees it: a server's address, and a visit that waits until the page has settled.

Set CLEARHEAD_SCREENSHOTS to a folder to keep a picture of every view.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clearhead.explorer.exploration import Exploration
from clearhead.explorer.scene import Scene

SETTLED = "#explorer[data-settled]"


@dataclass
class Site:
    """The address of a server, and the scenes that it shows."""

    address: str
    token: str
    exploration: Exploration
    scenes: dict[str, Scene]
    ids: dict[str, str] = field(default_factory=dict)

    def url(self, view: str = "v=1", scene: str = "sentiment") -> str:
        """Return the address of a view."""
        return f"{self.address}/#token={self.token}&{view}&scene={self.ids[scene]}"


@dataclass
class Visit:
    """One page, and what it did that it should not have."""

    page: Any
    site: Site
    faults: list[str] = field(default_factory=list)

    def open(self, view: str = "v=1", scene: str = "sentiment") -> Any:
        """Open a view and wait until nothing is out."""
        self.page.goto("about:blank")
        self.page.goto(self.site.url(view, scene))
        return self.settle()

    def settle(self) -> Any:
        """Wait until no request is out and no frame is due."""
        self.page.wait_for_selector(SETTLED, state="attached")
        return self.page

    def keep(self, name: str) -> None:
        """Keep a picture of the page, where somebody wants to look at it."""
        if folder := os.environ.get("CLEARHEAD_SCREENSHOTS"):
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
