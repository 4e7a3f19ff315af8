"""Draw docs/explorer.png, the picture of the explorer in the README: a screenshot of an exported page.

    python docs/page_picture.py [--chromium /usr/bin/chromium]

Needs playwright (pip install 'clearhead[test]') and a Chromium.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from clearhead.cli.opening import open_for
from clearhead.explorer.exploration import Exploration
from clearhead.explorer.export import export
from clearhead.explorer.runner import Runner

TEXT = "attention is not too shabby"


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default=shutil.which("chromium"), help="the browser")
    asked = parser.parse_args()
    runner = Runner(["sentiment"], lambda name: open_for("explore", name))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_file = Path(folder) / "page.html"
        export(Exploration([runner.read("sentiment", TEXT)]), page_file)
        browser = playwright.chromium.launch(executable_path=asked.chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1180, "height": 860}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.wait_for_selector("#explorer[data-settled]", state="attached")
        page.screenshot(path=Path(__file__).with_name("explorer.png"), full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
