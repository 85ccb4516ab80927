"""`run.json`: what was run into a folder, so that the same command continues and another one is refused."""

import json
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from codegrid.command import COMMANDS
from codegrid.data.code_writer import missing_ranges
from codegrid.data.manifest import CodeHeader, is_whole, read_manifest
from codegrid.errors import InputError
from codegrid.files import SETTINGS_FILE, write_folder, write_json
from codegrid.limits import short
from codegrid.locks import hold
from codegrid.tensors import digest_of, read_json

from .cli import is_main_process, name_of
from .config import describe_settings
from .options import resolve_options
from .outputs import RUN_FILE, clear_output, open_output, visible
from .settings import Command, Leaves, Training

PACKAGES = ("codegrid", "torch", "torchvision", "numpy")

# Where things are and how fast they go: these may differ when a command is run again. What is read from the
# paths is compared by its own digest.
NEUTRAL = {
    "output", "run", "data_root", "tokenizer", "prior", "codes", "validation_codes", "complete", "device", "backend",
    "compile", "num_workers", "save_every", "log_with", "verbose", "plugin", "quiet", "json", "overwrite", "dry_run",
    "images", "against",
}  # fmt: skip


class Run:
    """One command's run into one folder.

    Args:
        folder: the command's `output`; where that is left out, empty: then `folder` is the one that was chosen.
        settings: the command's settings. Options of the model are recorded beside them, the defaults too.
        facts: what else the result depends on, by name; they replace settings of the same name.

    The main process keeps others out of the folder from here on, and with `overwrite` empties it; a dry run only looks.
    Raises `InputError` where another run uses the folder or has used it.
    """

    def __init__(self, folder: str | Path, settings: Command, **facts: Any) -> None:
        self.folder, self.settings = Path(folder), settings
        recorded = {name: value for name, value in asdict(settings).items() if name not in NEUTRAL}
        if isinstance(settings, Training):
            del recorded["options"]
            recorded |= resolve_options(settings)
        else:
            recorded.pop("batch_size", None)  # of work whose results do not depend on it
        self.record: dict[str, Any] = {
            "command": name_of(type(settings)),
            "settings": {**recorded, **facts},
            "seed": recorded.get("seed"),
            "command_line": _command_line(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "finished": False,
        }
        if folder or not isinstance(settings, Leaves):
            self._open(self.folder)
        else:
            open_output(settings, self._open)

    def _open(self, folder: Path) -> None:
        """Take a folder for this run. Raises `InputError` where that cannot be."""
        self.folder, self.finished = folder, False
        acts = is_main_process() and not getattr(self.settings, "dry_run", False)
        if getattr(self.settings, "overwrite", False):
            if acts:
                clear_output(folder)
                hold(folder)
            return
        self._compare()
        if not self.finished and acts:
            hold(folder)
            self._compare()  # another run may have ended in between

    def _compare(self) -> None:
        path = self.folder / RUN_FILE
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder} is a file: `output` must be a folder")
        if not path.exists():
            if visible(self.folder) - {SETTINGS_FILE}:
                raise InputError(f"{self.folder} already holds other files: choose a new or empty `output`")
            return
        earlier = read_json(path)
        if not isinstance(earlier.get("settings"), dict):
            raise InputError(f"{path} is damaged (it tells no settings): choose another `output`")
        if earlier.get("command") != self.record["command"]:
            raise InputError(f"{self.folder} holds a run of {short(earlier.get('command'))}: choose another `output`")
        self.finished = earlier.get("finished") is True
        if self.finished or visible(self.folder) - {RUN_FILE, SETTINGS_FILE}:  # otherwise there is nothing to lose
            refuse_differences(self.folder, earlier.get("settings", {}), self.record["settings"])

    @property
    def identity(self) -> str:
        """A digest of everything that the result depends on."""
        return digest_of([self.record["command"], self.record["settings"]])

    def start(self) -> None:
        """Note that work into the folder has begun. Called by the main process alone."""
        save_settings(self.folder, self.settings)
        with write_folder(self.folder, index=RUN_FILE) as staging:
            write_json(staging / RUN_FILE, self.record)

    def finish_with(self, write_results: Callable[[Path], None] = lambda staging: None) -> None:
        """Write the results and, last, that the run is finished. Called by the main process alone.

        Args:
            write_results: writes files into the folder it is given; they appear in the run's folder together.
        """
        with write_folder(self.folder) as staging:
            write_results(staging)
        # by itself, so that there is a record at every moment
        with write_folder(self.folder, index=RUN_FILE) as staging:
            write_json(staging / RUN_FILE, {**self.record, "finished": True})


def save_settings(folder: Path, settings: Command) -> None:
    """Write the settings of a run into its folder, as `--config` reads them."""
    with write_folder(folder) as staging:
        text = describe_settings(settings, name_of(type(settings)), folder)
        (staging / SETTINGS_FILE).write_text(text, encoding="utf-8")


def _command_line() -> str:
    """Return the command to paste, however a command was started; called from Python, that program."""
    name = Path(sys.argv[0]).stem.removeprefix("codegrid-").replace("_", "-")
    return shlex.join(["codegrid", name, *sys.argv[1:]] if name in COMMANDS else sys.argv)


class OpenCodes(NamedTuple):
    """A folder of codes that are to be written."""

    folder: Path
    missing: list[range] | None  # the items of each shard that it still lacks; None: it is whole


def open_codes_folder(settings: Leaves, header: CodeHeader, provenance: dict[str, Any] | None = None) -> OpenCodes:
    """Take a folder for a code dataset, and keep other runs out of it.

    Raises `InputError` where the folder holds another one, made with another header or provenance.
    """

    def open_folder(folder: Path) -> OpenCodes:
        if settings.overwrite:
            clear_output(folder)
        return OpenCodes(folder, _missing_codes(folder, header, provenance or {}))

    return open_output(settings, open_folder)


def _missing_codes(folder: Path, header: CodeHeader, provenance: dict[str, Any]) -> list[range] | None:
    if not is_whole(folder):
        missing = missing_ranges(folder, header)  # first: nothing is written into a folder that is refused
        hold(folder)
        return _missing_codes(folder, header, provenance) if is_whole(folder) else missing
    manifest = read_manifest(folder)
    refuse_differences(folder, {name: manifest["provenance"].get(name) for name in provenance}, provenance)
    refuse_differences(folder, manifest["header"], asdict(header))
    return None


def refuse_differences(folder: str | Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise `InputError`, naming what differs, where a folder was made with other settings."""
    as_read = json.loads(json.dumps(now))  # a tuple reads back as a list
    for name in sorted(as_read.keys() | earlier.keys()):
        if name not in earlier:
            raise InputError(f"{folder} was made by a version of codegrid without {name}: choose another `output`")
        if as_read.get(name) != earlier.get(name):
            was, wanted = _short(earlier.get(name)), _short(as_read.get(name))
            raise InputError(
                f"{folder} was made with {name} {was}, not {wanted}: choose another `output`, the earlier settings, or "
                "`overwrite`"
            )


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:12] + "…" if len(text) > 40 else text
