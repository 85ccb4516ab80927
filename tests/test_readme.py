"""README: its Python runs, and its commands are understood, as are those of docs/large.md."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

import codegrid.pipelines.running.cli as cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LARGE = (ROOT / "docs/large.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT + LARGE, re.DOTALL)
COMMANDS = [
    line
    for _, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("codegrid ") or line.startswith("python -m codegrid.")
]


@pytest.fixture(autouse=True)
def runs(small_run, tmp_path, monkeypatch):
    """The folders of runs that it speaks of."""
    (tmp_path / "runs").mkdir()
    for name in ("demo", "digits", "mine", "imagenet"):
        (tmp_path / "runs" / name).symlink_to(small_run)
    Image.new("RGB", (64, 48)).save(tmp_path / "digit.jpg")
    monkeypatch.chdir(tmp_path)


def test_its_python_runs():
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_are_understood(line):
    _, name, *flags = shlex.split(line, comments=True)
    module = import_module(f"codegrid.pipelines.{name.replace('-', '_')}")
    settings = getattr(module, "".join(word.capitalize() for word in name.split("-")))
    cli.parse(settings, flags)
