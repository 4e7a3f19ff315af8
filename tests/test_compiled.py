"""Runs `tests/compiled/`, each file in a process of its own and without the shape checks.

torch.compile cannot trace through the checks that jaxtyping wraps around every function, and they are put in when the
package is first imported: the tests that compile need a Python that was started without them.
"""

import subprocess
import sys
from pathlib import Path

import pytest

COMPILED = Path(__file__).resolve().parent / "compiled"


@pytest.mark.parametrize("path", sorted(COMPILED.glob("test_*.py")), ids=lambda path: path.stem)
def test_compiled(path: Path, compiler: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", path],
        cwd=COMPILED.parent.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
