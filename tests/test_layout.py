"""The house: who imports whom, where a thing may lie, and what setup.cfg promises."""

import ast
import configparser
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from codegrid.command import COMMANDS
from codegrid.data.names import NAMES
from codegrid.registry import BUILT_IN, TABLES

ROOT = Path(__file__).parent.parent
GROUND = "codegrid"
MAY_IMPORT = {
    GROUND: set(),
    "data": {GROUND},
    "stage1_vqvae": {GROUND},
    "stage2_prior": {GROUND},
    "pipelines": {GROUND, "data", "stage1_vqvae", "stage2_prior"},
    "recipes": {GROUND, "data", "stage1_vqvae", "stage2_prior", "pipelines"},
}
FILES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
LOOSE = sorted(path for path in (ROOT / "pipelines").glob("*.py") if path.name != "__init__.py")
FACE = ROOT / GROUND / "__init__.py"  # the names for strangers: those of all rooms, imported when they are used
MAX_LINES = 300


def name_of(path):
    return str(path.relative_to(ROOT))


@cache
def all_nodes(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def nodes_of(path, *kinds):
    return (node for node in all_nodes(path) if isinstance(node, kinds))


def imports_of(path):
    """Absolute imports of a file as (module, names); relative ones stay inside of their folder, or a test fails."""
    for node in nodes_of(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif not node.level:
            yield node.module, [alias.name for alias in node.names]


def test_a_file_imports_only_what_lies_below_it_and_by_the_installed_name():
    for path in FILES:
        package = path.relative_to(ROOT).parts[0]
        for module, names in imports_of(path):
            first, _, rest = module.partition(".")
            bare = first in {*MAY_IMPORT, "tests", "benchmarks"} - {GROUND}
            assert not bare, f"{name_of(path)} imports {module} by a bare name"
            if first == GROUND:
                rooms = [rest.partition(".")[0]] if rest else names
                floors = {room if room in MAY_IMPORT else GROUND for room in rooms}
                assert floors <= {package, *MAY_IMPORT[package]}, f"{name_of(path)} imports {module}"


def test_a_relative_import_stays_in_its_folder():
    for path in FILES:
        for node in nodes_of(path, ast.ImportFrom):
            if node.level and path != FACE:
                where = f"{name_of(path)}, line {node.lineno}"
                assert node.level == 1, f"{where} goes up {node.level - 1} folders: use the installed name"
                assert path not in LOOSE, f"{where}: a command is also a script, with no folder to be relative to"
                room = path.parent / (node.module or "").replace(".", "/")
                assert room == path.parent or room.with_suffix(".py").exists() or room.is_dir(), where
                if path.is_relative_to(ROOT / GROUND):
                    assert (node.module or "").partition(".")[0] not in MAY_IMPORT, where


def test_a_file_is_of_a_size_that_can_be_read():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= MAX_LINES, name_of(path)
        for node in nodes_of(path, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < 50, f"{name_of(path)}: {node.name} is too long"


def test_nobody_takes_the_first_of_several_grids_for_all():
    for path in FILES:
        found = re.findall(r"(?<!len\()\b(?!prior\.)\w+\.(?:grids|codes)\[0\]", path.read_text())
        assert not found, f"{name_of(path)}: loop over the grids"


def test_nobody_spells_the_class_of_a_system_outside_of_its_family():
    homes = [target.split(":") for table in BUILT_IN.values() for target, _ in table.values()]
    for path in FILES:
        if path in (FACE, ROOT / GROUND / "registry.py") or path.name == "__init__.py":
            continue  # the faces of the rooms, and the table
        folder = path.relative_to(ROOT).parent
        family = {name for home, name in homes if Path(*home.split(".")).parent == folder}
        others = {name for _, name in homes} - family
        for node in nodes_of(path, ast.Name, ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert name not in others, f"{name_of(path)}: take {name} from the table"


def test_errors_speak_of_parameters_and_not_of_flags():
    for path in FILES:
        for node in nodes_of(path, ast.Call):
            if getattr(node.func, "id", "") == "InputError":
                found = re.search(r"--[a-z]\S*", ast.unparse(node))
                where = f"{name_of(path)}, line {node.lineno}"
                assert not found, f"{where}: name {found[0]} in backticks, as Python does"


@pytest.mark.parametrize("path", LOOSE, ids=lambda path: path.stem)
def test_a_loose_file_in_pipelines_is_a_command(path):
    tree = ast.parse(path.read_text())
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    command = path.stem.replace("_", "-")
    assert command in COMMANDS and f"codegrid {command}" in ast.get_docstring(tree)
    lines = read_setup()["options.entry_points"]["console_scripts"].replace(" ", "").split()
    assert f"codegrid-{command}=codegrid.pipelines.{path.stem}:main" in lines


def test_no_command_imports_torch_before_its_flags_are_read():
    names = [f"codegrid.pipelines.{path.stem}" for path in LOOSE] + ["codegrid", "codegrid.command", "pipelines.sample"]
    heavy = {"torch", "numpy", "matplotlib", "accelerate", "diffusers", "soundfile"}
    code = f"import sys, {', '.join(names)}\nheavy = {heavy} & {{*sys.modules}}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nsys.exit(', '.join(heavy) or 0)"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_options_of_every_system_are_told_without_torch():
    asks = [f"TABLES[{kind!r}].options({name!r})" for kind, table in BUILT_IN.items() for name in table]
    code = f"import sys\nfrom codegrid.registry import TABLES\n{'; '.join(asks)}\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def read_setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def test_setup_names_exactly_the_packages_that_are_there():
    folders = set()
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("__init__.py"):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            folders.add(name if package == GROUND else f"{GROUND}.{name}")
    assert set(read_setup()["options"]["packages"].split()) == folders
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path.parent} is no package"


def test_setup_takes_the_cards_the_native_sources_and_the_trained_models_along():
    taken = set()
    for package, patterns in read_setup()["options.package_data"].items():
        inside = package.partition(".")[2]
        folder = ROOT / (inside if inside.partition(".")[0] in MAY_IMPORT else package).replace(".", "/")
        taken |= {path for pattern in patterns.split() for path in folder.glob(pattern)}
    sources = [path for package in MAY_IMPORT for ending in ("*.cpp", "*.h") for path in (ROOT / package).rglob(ending)]
    models = [path for path in (ROOT / GROUND / "pretrained").glob("[!_]*/**/*") if path.is_file()]
    loose = {*(ROOT / GROUND / "cards").iterdir(), ROOT / GROUND / "py.typed"}
    assert sources and models and taken == {*loose, *sources, *models}


def test_the_version_is_told_alike_everywhere():
    version = read_setup()["metadata"]["version"]
    newest = re.search("^## (\\S+?),? ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    cited = re.search("^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert version == newest == cited


def test_every_test_that_the_table_of_faults_names_is_there():
    text = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`tests/(\w+\.py)::(\w+)`", text))
    there = {
        (file, node.name)
        for file in {file for file, _ in named}
        for node in nodes_of(ROOT / "tests" / file, ast.FunctionDef)
    }
    assert len(named) > 50 and named <= there
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| kind |")]
    assert all("`tests/" in row for row in rows), "a kind that nothing holds"


def test_every_console_script_leads_to_a_function():
    for line in read_setup()["options.entry_points"]["console_scripts"].strip().splitlines():
        module, function = line.replace(" ", "").partition("=")[2].split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_the_flags_offer_every_data_set():
    sources = pytest.importorskip("codegrid.data.sources")
    assert tuple(sources.SOURCES) == NAMES


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_line_of_the_tables_leads_to_a_class_and_its_options(kind):
    for name in BUILT_IN[kind]:
        assert TABLES[kind].name_of(TABLES[kind][name]) == name
        assert TABLES[kind].options(name).__dataclass_params__.frozen
