"""The page's modules as one: what a notebook's widget and an exported file are made of.

The page itself loads the files of `web/` as they are. A widget and a file have to be one piece of text, so the modules
are put one after the other and their imports and exports taken out. That is sound because the modules keep to rules,
which are checked here: imports are named and on one line, only `view.js` has a default export, no two modules have a
name at the top level in common, and no two import each other.
"""

import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

WEB = Path(__file__).with_name("web")
PAGE_ONLY = frozenset({"page.js"})  # what the page alone needs: it takes the token out of the address
LAST = "view.js"

IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./(\w+\.js)";$', re.M)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const|let) )", re.M)
TOP_LEVEL = re.compile(r"^(?:export )?(?:async )?(?:function\*?|class|const|let) (\w+)", re.M)


def modules() -> dict[str, str]:
    """Return the source of every module that is joined, by its file's name."""
    return {
        path.name: path.read_text(encoding="utf-8") for path in sorted(WEB.glob("*.js")) if path.name not in PAGE_ONLY
    }


def in_order(sources: dict[str, str]) -> list[str]:
    """Return the names of the modules, each behind those that it imports; ValueError where two import each other."""
    try:
        return list(TopologicalSorter({name: _imported(source) for name, source in sources.items()}).static_order())
    except CycleError as error:
        raise ValueError(f"modules import each other: {' -> '.join(error.args[1])}") from error


def _imported(source: str) -> list[str]:
    return [name for _, name in IMPORT.findall(source)]


def faults(sources: dict[str, str]) -> list[str]:
    """Return what in the modules would not survive being joined, in sentences."""
    found = []
    homes: dict[str, str] = {}
    for name, source in sources.items():
        plain = IMPORT.sub("", source)
        found += [f"{name}: not a named import on one line: {line}" for line in re.findall(r"^import\b.*", plain, re.M)]
        rest = EXPORT.sub("", source)
        allowed = {"export default { render };"} if name == LAST else set()
        found += [f"{name}: {line}" for line in re.findall(r"^export\b.*", rest, re.M) if line not in allowed]
        for top in TOP_LEVEL.findall(source):
            if top in homes:
                found.append(f"{name} and {homes[top]} both have {top} at the top level")
            homes[top] = name
        for names, home in IMPORT.findall(source):
            for one in names.split(", "):
                if home not in sources or not re.search(
                    rf"^export (?:async )?(?:function|class|const|let) {one}\b", sources[home], re.M
                ):
                    found.append(f"{name} imports {one}, which {home} does not export")
    return found


@cache
def joined() -> str:
    """Return all modules as one, whose exports are those of `view.js` and `embeddedSource`."""
    sources = modules()
    parts = []
    for name in in_order(sources):
        source = IMPORT.sub("", sources[name])
        parts.append(EXPORT.sub("", source).strip())
    return "\n\n".join(parts) + "\n\nexport { embeddedSource, mount };\n"


@cache
def style() -> str:
    """Return the style sheet of the explorer."""
    return (WEB / "style.css").read_text(encoding="utf-8")
