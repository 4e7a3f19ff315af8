"""What an index and a fresh environment get: the built wheel and source archive, their metadata, links and licenses."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="the build package is absent: pip install 'clearhead[test]'")
pytest.importorskip("hatch_fancy_pypi_readme", reason="the README plugin is absent: pip install 'clearhead[test]'")

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
HOME = PROJECT["project"]["urls"]["Homepage"]
WEIGHTS = re.compile(r"defaults/(\w+)/model\.safetensors$")
MODELS = {"sentiment", "pictures", "novels", "pronounce"}
LARGEST_WHEEL = 70e6  # bytes


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the source archive of this tree, built as an index would be given them."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", str(folder)]
    run = subprocess.run([*command, str(REPOSITORY)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> "email.message.Message":
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_string(wheel.read(name).decode())


def test_the_wheel_holds_each_model_once_and_fits(built: Path, wheel: zipfile.ZipFile) -> None:
    assert sorted(match[1] for name in wheel.namelist() if (match := WEIGHTS.search(name))) == sorted(MODELS)
    assert next(built.glob("*.whl")).stat().st_size < LARGEST_WHEEL


def test_the_source_archive_holds_each_model_once(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = archive.getnames()
    assert sorted(match[1] for name in names if (match := WEIGHTS.search(name))) == sorted(MODELS)
    assert any(name.endswith("/tests/test_attention.py") for name in names)


def test_the_wheel_names_the_license_of_every_model_and_of_its_data(wheel: zipfile.ZipFile) -> None:
    licenses = {name.rpartition("/licenses/")[2]: name for name in wheel.namelist() if "/licenses/" in name}
    assert {"LICENSE", "NOTICE.md"} <= licenses.keys()
    assert any(name.endswith("LICENSE-cmudict.txt") for name in licenses)
    rows = re.findall(r"^\| `(\w+)` \| ([\w.-]+) \|", wheel.read(licenses["NOTICE.md"]).decode(), re.MULTILINE)
    cards = {}
    for model in MODELS:
        card = wheel.read(f"clearhead/defaults/{model}/README.md").decode()
        cards[model] = re.search(r"^license: (\S+)$", card, re.MULTILINE)[1]  # type: ignore[index]
    assert {name: license.lower() for name, license in rows} == cards


def test_links_of_the_index_page_lead_somewhere(metadata: "email.message.Message") -> None:
    page = metadata.get_payload()
    assert isinstance(page, str)
    links = re.findall(r"\]\(([^)\s]+)\)", page)
    assert links
    for link in links:
        assert link.startswith(("https://", "http://", "#")), f"{link} leads nowhere outside the repository"
        if inside := re.match(rf"{re.escape(HOME)}/(?:blob|raw)/main/([^#]+)", link):
            assert (REPOSITORY / inside[1]).exists(), f"{link}: no such file"


def test_the_projects_home_is_said_once() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    hosts = set(re.findall(r"https://[^/\"'\s]+/clearhead", text))
    assert hosts == {HOME}, "change the home in [project.urls] and in the substitutions of README's links together"


def test_the_citation_names_this_version() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {PROJECT['project']['version']}" in citation.splitlines()


def test_the_wheel_works_in_a_fresh_environment(built: Path, tmp_path: Path) -> None:
    # A new environment that has the wheel and, by path, what the wheel requires: nothing of this checkout.
    place = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        archive.extractall(site)
    required = [path for path in sys.path if path.endswith("site-packages")]
    (site / "required.pth").write_text("\n".join(required), encoding="utf-8")
    code = (
        "import clearhead; from pathlib import Path; print(Path(clearhead.__file__).parent.parent); "
        "from clearhead.cli import main; raise SystemExit(main(['classify', 'attention is not too shabby']))"
    )
    run = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    where, answer = run.stdout.splitlines()
    assert Path(where).resolve() == site.resolve()
    assert answer.startswith("positive")
