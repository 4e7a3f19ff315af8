"""Everything a reader can copy works: the blocks of README.md and docs/*.md, and the scripts of examples/.

In a page, every `python` block runs, in order and in one namespace, in an empty folder. In a `console` block every
`$ clearhead ...` line runs and the lines below it are what it must print, where `...` stands for anything, also for
any number of lines when alone; a last line `[exit N]` names an exit code other than 0. Blocks of other kinds
(`bash`, `text`, none) are shown, not run. `<!-- not run: reason -->` above a block excuses it.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))

# A page without a runnable block has usually lost it to a typo in the fence. These have none on purpose.
WITHOUT_BLOCKS = {"api.md": "generated from docstrings", "speed.md": "its commands take minutes and peers"}


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    line: int
    excused: bool


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a Markdown page in order; an unclosed fence raises ValueError."""
    found: list[Block] = []
    lines = page.splitlines()
    start = None
    for number, line in enumerate(lines):
        if start is None and line.startswith("```"):
            start = number
        elif start is not None and line.rstrip() == "```":
            above = next((above for above in reversed(lines[:start]) if above.strip()), "")
            excused = re.fullmatch(r"<!-- not run: .+ -->", above.strip()) is not None
            language = lines[start].removeprefix("```").strip().split(" ")[0]
            found.append(Block(language, "\n".join(lines[start + 1 : number]), start + 1, excused))
            start = None
    if start is not None:
        raise ValueError(f"the fence opened in line {start + 1} is never closed")
    return found


def commands(block: Block) -> list[tuple[str, str]]:
    """Return the `$ clearhead` lines of a console block, each with the text shown below it."""
    pieces = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    pairs = [piece.partition("\n")[::2] for piece in pieces]
    return [(command, shown) for command, shown in pairs if command.startswith("clearhead ")]


def matches(shown: str, printed: str) -> bool:
    """Say whether `printed` is what a page shows: equal lines, `...` for anything, trailing blanks ignored."""
    pattern = ""
    for line in shown.rstrip().splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(part) for part in line.rstrip().split("...")) + r"[ \t]*\n"
    return re.fullmatch(pattern, printed.rstrip() + "\n" if printed.strip() else "") is not None


def check_command(command: str, shown: str, folder: Path) -> None:
    """Run one command line of a page as a reader would, and compare the exit code and the output."""
    expected_code = 0
    if ending := re.search(r"(?:^|\n)\[exit (\d+)\]\s*$", shown):
        expected_code, shown = int(ending[1]), shown[: ending.start()]
    program = str(Path(sys.executable).with_name("clearhead"))  # the script that pip installed beside this Python
    run = subprocess.run(
        [program, *shlex.split(command, comments=True)[1:]],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
    )
    assert run.returncode == expected_code, f"$ {command}\n{run.stdout}"
    assert not shown.strip() or matches(shown, run.stdout), f"$ {command}\nprinted\n{run.stdout}\nshown\n{shown}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runnable = [b for b in blocks(page.read_text(encoding="utf-8")) if b.language in ("python", "console")]
    assert bool(runnable) != (page.name in WITHOUT_BLOCKS), f"{page.name}: {len(runnable)} runnable blocks"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in runnable:
        if block.excused:
            continue
        if block.language == "python":
            # Blank lines in front, so that a traceback points at the page's own line.
            exec(compile("\n" * block.line + block.text, str(page), "exec"), namespace)
        else:
            for command, shown in commands(block):
                check_command(command, shown, tmp_path)


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout


# ---------------------------------------------------------------- the extractor itself


def test_blocks_are_found_with_language_line_and_excuse() -> None:
    page = (
        "# T\n```python\na = 1\n```\n<!-- not run: slow -->\n\n```console title=x\n$ clearhead\n```\n```\ntext\n```\n"
    )
    found = [(b.language, b.text, b.line, b.excused) for b in blocks(page)]
    assert found == [("python", "a = 1", 2, False), ("console", "$ clearhead", 7, True), ("", "text", 10, False)]


def test_an_unclosed_fence_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2"):
        blocks("# T\n```python\na = 1\n")


def test_commands_are_the_clearhead_lines() -> None:
    block = Block("console", "$ make demo\n...\n$ clearhead classify x\npositive 0.9\n$ clearhead see x", 1, False)
    assert commands(block) == [("clearhead classify x", "positive 0.9\n"), ("clearhead see x", "")]


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("a 1\nb 2\n", "a 1\nb 2\n", True),
        ("a ...\nb 2", "a 1.5  x\nb 2", True),
        ("a\n...\nz", "a\nb\nc\nz\n", True),
        ("a\n...\nz", "a\nz", True),
        ("a\n...", "a\nanything", True),
        ("a\nz", "a\nb\nz", False),
        ("positive 0.9", "positive 0.91", False),
        ("a ...", "b 1", False),
    ],
)
def test_shown_output_is_compared_line_by_line(shown: str, printed: str, expected: bool) -> None:
    assert matches(shown, printed) is expected
