"""README and the pages of docs/: their Python runs, their commands are understood, their links lead somewhere."""

import doctest
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from codegrid import registry
from codegrid.pipelines.running.flags import parse

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [(page, *block) for page in PAGES for block in FENCE.findall(page.read_text(encoding="utf-8"))]
MODULES = {
    titled[1]: text for _, _, about, text in BLOCKS if (titled := re.search(r'title="(\w+)\.py"', about))
}  # that a page tells its readers to write
COMMANDS = dict.fromkeys(
    line
    for _, _, _, text in BLOCKS
    for line in text.replace("\\\n", " ").splitlines()
    if line.startswith("codegrid ") or " -m codegrid.pipelines." in line
)
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)([^)\s:#]+)[^)]*\)|<img src=\"([^\":]+)\"")
PACKAGES = ("codegrid", "data", "stage1_vqvae", "stage2_prior", "pipelines", "recipes")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
EXAMPLES = [path for path in SOURCES if ">>> " in path.read_text(encoding="utf-8")]


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.fixture
def written(small_run, tmp_path, monkeypatch):
    """The folders of runs and the files that the pages speak of."""
    (tmp_path / "runs").mkdir()
    for name in {"demo", *re.findall(r"runs/([\w-]+)", " ".join(COMMANDS))}:
        (tmp_path / "runs" / name).symlink_to(small_run)
    Image.new("RGB", (64, 48)).save(tmp_path / "digit.jpg")
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_registered", {kind: dict(named) for kind, named in registry._registered.items()})
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("page", sorted({page for page, language, *_ in BLOCKS if language == "python"}), ids=name_of)
def test_its_python_runs(page, written):
    for where, language, about, text in BLOCKS:
        if where == page and language == "python" and "title=" not in about:
            exec(compile(text, page.name, "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_are_understood(line, written):
    if line.startswith("codegrid "):
        _, name, *flags = shlex.split(line, comments=True)
    else:
        name, *flags = shlex.split(line.partition(" -m codegrid.pipelines.")[2], comments=True)
    module = import_module(f"codegrid.pipelines.{name.replace('-', '_')}")
    settings = getattr(module, "".join(word.capitalize() for word in re.split("[-_]", name)))
    parse(settings, flags)


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"], ids=name_of
)  # fmt: skip
def test_its_links_lead_to_files_that_are_there(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [next(filter(None, match.groups())) for match in LINK.finditer(text)]
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_the_examples_in_docstrings_run(path):
    place = path.relative_to(ROOT).with_suffix("").parts
    module = import_module(".".join(place if place[0] == "codegrid" else ("codegrid", *place)))
    if not all(
        find_spec(getattr(each, "package", "torch")) for each in vars(module).values() if isinstance(each, type)
    ):
        pytest.skip("it needs an extra that is not installed")
    outcome = doctest.testmod(module)
    assert not outcome.failed


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_nobody_else(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {str(page.relative_to(tmp_path)): page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    assert "--label-dropout FLOAT" in pages["reference/commands/train-prior.html"]
    assert 'id="codegrid.VQVAE.encode"' in pages["reference/api.html"]
    foreign = re.compile(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"?(?:https?:)?//")
    assert not [name for name, text in pages.items() if foreign.search(text)]
