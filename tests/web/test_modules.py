"""The modules of the page: their units, and the rules that let them be joined into one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from clearhead.explorer import joining

HERE = Path(__file__).parent
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node here: it runs the modules' units and parses them")
MAX_LINES = 320
MARKUP_OR_ELSEWHERE = "innerHTML outerHTML insertAdjacentHTML document.write eval( Function( http: cdn".split()


def node(*args: str) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    return subprocess.run([NODE, *args], capture_output=True, text=True, cwd=HERE)


@needs_node
def test_units_of_the_modules_pass() -> None:
    run = node("--test", *map(str, sorted(HERE.glob("*.test.js"))))
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]


def test_modules_keep_to_the_rules_for_joining() -> None:
    assert joining.faults(joining.modules()) == []


def test_every_rule_for_joining_is_noticed_when_broken() -> None:
    good = {"a.js": "export const one = 1;\n", "view.js": 'import { one } from "./a.js";\nexport default { render };\n'}
    assert joining.faults(good) == []
    for name, source in (
        ("b.js", "export default 1;\n"),
        ("b.js", 'import * as a from "./a.js";\n'),
        ("b.js", 'import {\n  one,\n} from "./a.js";\n'),
        ("b.js", 'import { two } from "./a.js";\n'),
        ("b.js", 'import { one } from "https://elsewhere/a.js";\n'),
        ("b.js", "const one = 2;\n"),
    ):
        assert len(joining.faults({**good, name: source})) == 1, source
    with pytest.raises(ValueError, match="import each other"):
        joining.in_order({"a.js": 'import { b } from "./b.js";\n', "b.js": 'import { a } from "./a.js";\n'})


@needs_node
def test_the_joined_module_parses_and_exports_what_hosts_need(tmp_path: Path) -> None:
    path = tmp_path / "joined.mjs"
    path.write_text(joining.joined(), encoding="utf-8")
    assert node("--check", str(path)).returncode == 0
    script = f"import({str(path)!r}).then((m) => console.log(Object.keys(m).sort().join(), typeof m.default.render))"
    run = node("--input-type=module", "-e", script)
    assert run.stdout.strip() == "default,embeddedSource,mount function", run.stderr


@pytest.mark.parametrize("path", sorted(joining.WEB.glob("*.js")), ids=lambda path: path.name)
def test_a_module_is_short_and_makes_no_markup_from_text(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    assert source.startswith("// "), "its first lines say what it is"
    for way in MARKUP_OR_ELSEWHERE:
        assert way not in source.replace("http://www.w3.org/2000/svg", ""), way
