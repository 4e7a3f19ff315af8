"""The rules of the house, kept by machine so that nobody has to remember them. CONTRIBUTING.md says them in words.

When one of these fails, the fix is usually in the file it names. Where a rule is wrong for one place, list that place
here with its reason.
"""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import clearhead

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCE = REPOSITORY / "src" / "clearhead"
MODULES = sorted(SOURCE.rglob("*.py"))

# What `import clearhead` promises. A name added or removed here is a decision, and a line in CHANGELOG.md.
PUBLIC = """
    ALiBi Bert BertConfig BertForMaskedLM BertForSequenceClassification BertForTokenClassification Block CAUSAL
    CheckpointError ClearheadError ConfigError Derivation EVERYWHERE Edits Effects EncoderDecoder EncoderDecoderConfig
    FeedForward GPT GPTConfig GPTForCausalLM GatedFeedForward ImageProcessor InputError Interrupted KVCache LayerCache
    LearnedPositions Mask MissingExtra MultiHeadAttention Order RMSNorm Recording RelativeBias Rotary RotaryConfig
    ShapeError SinusoidalPositions Tokenizer TrainingError ViT ViTConfig ViTForImageClassification WatchError attend
    attention_map classify derive edit effect embed estimate fastest find find_word generate load open_recording pack
    post_norm pre_norm run_recipe save watch with_head
""".split()

# Imported only by the rooms that use them: a person who wants attend() should not wait for a terminal library, nor
# `clearhead --help` for torch.
LATE = """
    torch numpy einops jaxtyping transformers tokenizers safetensors huggingface_hub rich tyro
    IPython anywidget matplotlib PIL pandas starlette uvicorn anyio
""".split()

# name -> reason. An entry that is no longer needed fails as well.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {
    "seeing/maps/kernels.py:_pool": "a Triton kernel takes every pointer, size and compile-time choice by itself",
    "seeing/maps/kernels.py:_some_cells": "the same, for the loop that it runs up to three times",
}


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function of a file as `path:name`, nested ones and methods included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(SOURCE)}:{node.name}", node


def imports(path: Path) -> Iterator[str]:
    """Yield the full name of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import; write it in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def pages(nav: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the files of a site's navigation, sections included."""
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages(value)


def tracked() -> list[Path]:
    """Return the files git tracks, or skip where there is no git checkout (an unpacked archive)."""
    try:
        run = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    files = [REPOSITORY / name for name in run.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


# ---------------------------------------------------------------- who may import whom


def test_rooms_import_only_from_rooms_below() -> None:
    run = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_seeing_imports_only_attention_errors_and_json_files() -> None:
    # A contract of import-linter would name a room that has to exist; this one waits for it.
    allowed = re.compile(r"(?!clearhead\b)|clearhead\.(seeing|attention|errors|json_files)\b")
    seen = [(path.name, name) for path in (SOURCE / "seeing").rglob("*.py") for name in imports(path)]
    assert [pair for pair in seen if not allowed.match(pair[1])] == []


def test_importing_clearhead_is_light() -> None:
    code = f"import sys, clearhead; print(*[m for m in {LATE!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


# ---------------------------------------------------------------- the promised names


def test_public_names_are_the_promised_ones() -> None:
    assert sorted(getattr(clearhead, "__all__", [])) == sorted(PUBLIC)


def test_the_reference_has_every_public_name_and_no_other() -> None:
    named = re.findall(r"^::: (clearhead[\w.]*)\.(\w+)$", (REPOSITORY / "docs" / "api.md").read_text(), re.MULTILINE)
    assert {name for home, name in named if home == "clearhead"} == set(PUBLIC)
    for home, name in named:
        assert hasattr(importlib.import_module(home), name), f"{home} has no {name}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_resolves_and_says_what_it_is(name: str) -> None:
    promised = getattr(clearhead, name)
    if callable(promised):
        assert (promised.__doc__ or "").strip(), f"clearhead.{name} has no docstring"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_and_says_what_it_is(path: Path) -> None:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    if parts[-1] == "kernels":
        pytest.importorskip("triton", reason="Triton absent (190 MB): the line for it in tests/peers.txt says how")
    if parts[-1] != "__main__":
        assert (importlib.import_module(name).__doc__ or "").strip(), f"{name} has no docstring"


# ---------------------------------------------------------------- size


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(SOURCE)) for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 320
    }
    assert long == set(LONG_FILES)


def test_functions_are_short() -> None:
    long = set()
    for path in MODULES:
        for name, node in functions(path):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            n_parameters = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
            if length > 60 or n_parameters > 10:
                long.add(name)
    assert long == set(LONG_FUNCTIONS)


# ---------------------------------------------------------------- what must not be there


def test_nothing_unpickles() -> None:
    # A pickle runs code when it is opened. Safetensors, JSON and TOML do not.
    unsafe = re.compile(r"torch\.load$|(c?pickle|dill|joblib|shelve|marshal)\b")
    found = [(path.name, name) for path in MODULES for name in imports(path) if unsafe.match(name)]
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and unsafe.match(ast.unparse(node)):
                found.append((path.name, f"{ast.unparse(node)} in line {node.lineno}"))
    assert found == []


def test_no_file_names_a_place_on_one_machine() -> None:
    place = re.compile(r"(?<![\w.])/(?:wor[k]|far[m]|home/\w+|Users/\w+|root)/|\.\./share[d]\b")
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # weights and pictures
        name = path.relative_to(REPOSITORY)
        found += [f"{name}:{n}: {line.strip()[:80]}" for n, line in enumerate(lines, 1) if place.search(line)]
    assert found == []


def test_everything_in_the_package_is_tracked() -> None:
    # The wheel holds what git tracks: a default model that an ignore rule hides would be missing from it.
    # Files being written right now are fine, ignored ones are not.
    tracked()  # skips outside a checkout
    run = subprocess.run(
        ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "src"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    hidden = [name for name in run.stdout.splitlines() if "__pycache__" not in name]
    assert hidden == []


# ---------------------------------------------------------------- what must be there


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_bench_runs_the_scripts_and_not_what_they_measure_with() -> None:
    run = subprocess.run(["make", "-n", "bench"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    listed = re.search(r"for script in (.*?) ?; do", run.stdout)
    assert listed is not None, run.stdout
    sources = {path: ast.parse(path.read_text(encoding="utf-8")) for path in (REPOSITORY / "bench").glob("*.py")}
    claims = {path for path, tree in sources.items() if isinstance(tree.body[-1], ast.If)}  # if __name__ == "__main__"
    assert {REPOSITORY / name for name in listed[1].split()} == claims != set(sources)


def test_changelog_has_a_section_for_this_version() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert clearhead.__version__ == version
    assert f"## [{version}]" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_tested_versions_satisfy_what_we_ask_for() -> None:
    from packaging.requirements import Requirement

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line and line[0] != "#")
    for requirement in map(Requirement, asked):
        pin = pins.get(requirement.name.lower().replace("_", "-"))
        assert pin is not None, f"{requirement.name} has no tested version in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} is not met by the tested {pin}"


def test_documentation_pages_exist() -> None:
    site = tomllib.loads((REPOSITORY / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = set(pages(site["nav"]))
    assert listed == {str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")}
    assert site["theme"]["font"] is False, "fonts would be fetched from somewhere"
