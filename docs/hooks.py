"""The site's own steps: pages that are made from the sources, and links that lead out of docs/.

A page for each command comes from its settings, the table of recipes and the API from docstrings, and two files of the
repository are pages as they stand. Nothing of it is written down twice.
"""

import configparser
import inspect
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from dataclasses import MISSING
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from codegrid.command import COMMANDS
from codegrid.pipelines.running.flags import group_flags
from codegrid.pipelines.running.options import list_options
from codegrid.pipelines.running.settings import Command
from codegrid.recipes.run import RECIPES

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "build" / "docs"  # where mkdocstrings reads; mkdocs.yml names it too
ALSO_PAGES = {"benchmarks/README.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")


def on_startup(command: str, dirty: bool) -> None:
    """Lay the packages out as they are installed: the reader of docstrings cannot follow setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    shutil.rmtree(SOURCES, ignore_errors=True)
    for line in setup["options"]["package_dir"].strip().splitlines():
        package, folder = line.replace(" ", "").split("=")
        shutil.copytree(ROOT / folder, SOURCES / package.replace(".", os.sep), dirs_exist_ok=True)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each command, one of all recipes, and the files of the repository that are pages too."""
    files.append(File.generated(config, "reference/recipes.md", content=describe_recipes()))
    for name in COMMANDS:
        files.append(File.generated(config, f"reference/commands/{name}.md", content=describe_command(name)))
    for path, page in ALSO_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links of the site; to a file that is no page, into its name."""
    source = page.file.src_uri
    here = next((path for path, of_site in ALSO_PAGES.items() if of_site == source), f"docs/{source}")

    def moved(match: re.Match[str]) -> str:
        picture, words, target, part = match[1], match[2], match[3], match[4] or ""
        place = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        inside = ALSO_PAGES.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else "")
        if not inside:
            return words
        return f"{picture}[{words}]({posixpath.relpath(inside, posixpath.dirname(source) or '.')}{part})"

    return LINK.sub(moved, markdown)


def describe_command(name: str) -> str:
    """Return the page of a command: its docstring, and every flag with its values, default, range and help."""
    module = import_module(f"codegrid.pipelines.{name.replace('-', '_')}")
    settings: type[Command] = getattr(module, "".join(word.capitalize() for word in name.split("-")))
    about = inspect.cleandoc(settings.__doc__ or "")
    about = re.sub(r"^codegrid .*$", lambda line: f"```\n{line[0]}\n```", about, flags=re.MULTILINE)
    lines = [f"# codegrid {name}", "", f"Usage: `codegrid {name} [FLAGS]`, or `codegrid-{name} [FLAGS]`", "", about, ""]
    for title, flags in group_flags(settings, list_options(settings)).items():
        lines += [f"## {_heading(title)}", "", *(line for flag in flags for line in _describe_flag(*flag))]
    return "\n".join(lines)


def describe_recipes() -> str:
    """Return the page of all recipes: a table of what each makes, its command, and the figures that were measured."""
    lines = ["# Recipes", "", "`codegrid recipe NAME` runs one from images to figures.", ""]
    lines += ["| recipe | what it makes | command | minutes, machine | figures |", "|---|---|---|---|---|"]
    for name, make in RECIPES.items():
        about, _, claim = (inspect.getdoc(make) or "").partition("\nCommand: ")
        command, _, measured = claim.partition("\n")
        told = dict(re.findall(r"^(Machine|Minutes|Figures): (.*?)(?=^\w+: |\Z)", measured, re.DOTALL | re.MULTILINE))
        when = f"{told['Minutes'].strip()}; {told['Machine']}" if told else "not measured"
        cells = (f"`{name}`", about, f"`{command.partition(',')[0]}`", when, told.get("Figures", "not measured"))
        lines.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
    return "\n".join(lines)


def _heading(title: str) -> str:
    """The title of a group of flags: none for the command's own, `--quantizer ema, gradient` for options of some."""
    if title.startswith("--"):
        chooser, _, systems = title.partition(" ")
        return f"Options of {chooser.removeprefix('--')} {systems}"
    return f"{title.capitalize()} flags" if title else "Flags of its own"


def _describe_flag(name: str, hint: Any, default: Any) -> Iterator[str]:
    """Yield the lines of one flag, as an entry of a list of definitions."""
    look = next(marker for marker in hint.__metadata__ if getattr(marker, "help", None) is not None)
    others = [marker for marker in hint.__metadata__ if marker is not look]  # what the type itself says of its values
    values = next((marker.metavar for marker in others if getattr(marker, "metavar", None)), look.metavar)
    flag = f"--{name.replace('_', '-')}"
    aliases = [alias for marker in others for alias in getattr(marker, "aliases", None) or ()]
    words = " ".join(filter(None, (", ".join([*aliases, flag]), values)))
    facts = [look.help_behavior_hint.strip("()")] if look.help_behavior_hint else []
    facts += ["required"] if default is MISSING else []
    facts += [f"each {words}" if values.endswith("...]") else words for words in dict.fromkeys(_ranges(hint))]
    yield f"`{words}`{{ #{flag.removeprefix('--')} }}"
    yield f":   {look.help}" + (f" *{'; '.join(facts).capitalize()}.*" if facts else "")
    yield ""


def _ranges(hint: Any) -> Iterator[str]:
    """Yield the ranges that stand anywhere in a type hint, in words."""
    for marker in getattr(hint, "__metadata__", ()):
        if hasattr(marker, "holds"):
            yield marker.words(int in _types(hint))
    for part in get_args(hint):
        yield from _ranges(part)


def _types(hint: Any) -> set[Any]:
    parts = get_args(hint)
    return set().union(*map(_types, parts)) if parts else {hint} if isinstance(hint, type) else set()
