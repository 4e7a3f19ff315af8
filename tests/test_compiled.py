"""Runs `tests/compiled/`, each file in a process of its own and without the shape checks.

torch.compile cannot trace through the checks that jaxtyping wraps around every function, and they refuse a wrong shape
before our own message can. They are put in when the package is first imported: the tests that compile, and those that
read what a user would read, need a Python that was started without them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted((REPOSITORY / "tests/compiled").glob("test_*.py")), ids=lambda path: path.stem)
def test_without_shape_checks(path: Path) -> None:
    options = ["-q", "-rs", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    print(run.stdout)  # the skips and their reasons, with -s or -rP
    assert run.returncode == 0, run.stdout + run.stderr
