"""A command starts soon, and a program that calls `main`, the library and training keep Python's own settings."""

import subprocess
import sys

import pytest

NEEDLESS = ("transformers", "huggingface_hub", "torch._dynamo")


def run(code: str, *argv: str) -> None:
    """Run `code` as a process of its own; a test fails with what it said if it fails."""
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_command_collects_less_often_and_imports_nothing_that_its_answer_does_not_need() -> None:
    run(
        "import gc, sys\nfrom clearhead.cli import main, startup\nassert main() == 0\n"
        "assert gc.get_threshold()[0] == startup.OBJECTS_BETWEEN_COLLECTIONS\n"
        f"assert not set({(*NEEDLESS, 'rich')!r}) & set(sys.modules)\n",
        "classify",
        "attention is not too shabby",
    )


@pytest.mark.parametrize(
    ("code", "argv"),
    [
        ("from clearhead.cli import main\nmain(['models', '--json'])", ()),  # a program that calls it
        ("from clearhead.cli import main\nmain()", ("train", "nowhere.toml")),
        ("import clearhead; clearhead.attend", ()),  # the library
    ],
)
def test_programs_training_and_the_library_are_left_as_they_are(code: str, argv: tuple[str, ...]) -> None:
    run(f"import gc\nbefore = gc.get_threshold()\n{code}\nassert gc.get_threshold() == before", *argv)
