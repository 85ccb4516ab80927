"""The house: who imports whom, and what setup.cfg promises."""

import ast
import configparser
import importlib
from pathlib import Path
from typing import get_args

import pytest

from codegrid.data.sources import SOURCES
from codegrid.pipelines.running import configs
from codegrid.stage1_vqvae.quantizers import QUANTIZERS

ROOT = Path(__file__).parent.parent
GROUND = "codegrid"
MAY_IMPORT = {
    GROUND: set(),
    "data": {GROUND},
    "stage1_vqvae": {GROUND},
    "stage2_prior": {GROUND},
    "pipelines": {GROUND, "data", "stage1_vqvae", "stage2_prior"},
}


def read_setup():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_lies_before_it(package):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                first, _, rest = name.partition(".")
                assert first not in {*MAY_IMPORT, "tests", "benchmarks"} - {GROUND}, f"{path} imports {name}"
                if first == GROUND:
                    room = rest.partition(".")[0]
                    floor = room if room in MAY_IMPORT else GROUND
                    assert floor in {package, *MAY_IMPORT[package]}, f"{path} imports {name}"


def test_setup_names_exactly_the_packages_that_are_there():
    folders = {
        ".".join([] if package == GROUND else [GROUND])
        + "." * (package != GROUND)
        + str(path.parent.relative_to(ROOT)).replace("/", ".")
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(read_setup()["options"]["packages"].split()) == folders


def test_every_console_script_leads_to_a_function():
    lines = read_setup()["options.entry_points"]["console_scripts"].strip().splitlines()
    for line in lines:
        name, _, target = line.replace(" ", "").partition("=")
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert name == "codegrid-" + module.removeprefix("codegrid.pipelines.").replace("_", "-")


def test_the_flags_offer_every_data_set_and_every_quantizer():
    assert set(configs.DATASETS) == {*SOURCES, "hf:NAME"}
    offered = configs.TrainTokenizer.__annotations__["quantizer"]
    assert set(get_args(offered)) == set(QUANTIZERS)
