"""`run.json` records what was run into a folder, so that the same command continues and any other is refused."""

import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from codegrid.command import COMMANDS
from codegrid.data.names import Places, as_places, make_absolute
from codegrid.errors import InputError
from codegrid.files import SETTINGS_FILE, write_folder, write_json
from codegrid.limits import MAX_THREADS, is_list_of, short
from codegrid.locks import hold, real_path
from codegrid.tensors import digest_of, read_json

from .cli import count_processes, is_main_process, print_once
from .config import describe_settings, read_config
from .drawing import Drawing
from .flags import name_of
from .options import resolve_options
from .outputs import RUN_FILE, clear_output, open_output, visible
from .settings import Command, Leaves, Training, UsesImages

PACKAGES = ("codegrid", "torch", "torchvision", "numpy")

# Where things are, and how fast they are computed, may differ when a command is run again; data has its own digest.
NEUTRAL = {
    "output", "run", "data_root", "tokenizer", "prior", "codes", "validation_codes", "over", "complete", "mask",
    "device", "backend", "compile", "threads", "num_workers", "save_every", "finish_now", "log_with", "verbose",
    "plugin", "skip_unreadable", "quiet", "json", "overwrite", "dry_run", "images", "against", "input", "strict",
    "shard", "pretrained", "model_config",
}  # fmt: skip


# why some settings, and facts that follow from them, cannot be others
BECAUSE = {
    "steps": "unless `lr_schedule` is constant, each step's learning rate depends on it",
    "images_as_views": "of `steps`, a share are steps of views",
    "quantizer_steps": "the quantizer cools over all `steps`",
}


class Run:
    """One command's run into one folder.

    Args:
        folder: the command's `output`. A link is resolved once, and everything is written to its target. If it is
            empty, a folder is chosen. `shown` is its name for messages.
        settings: the command's settings. Options of the model, including defaults, are recorded beside them.
        left_open: facts that the settings leave to this machine; a continued run keeps its own.
        facts: what else the result depends on, by name; they replace settings of the same name.

    From here on the main process keeps others out of the folder, and with `overwrite` empties it; a dry run only reads.
    A run whose results are gone is not finished. A training at a constant learning rate may continue for more steps:
    `is_longer` says that it had finished with fewer.

    Raises `InputError` if another run uses the folder or has used it, or it holds an input that would go with it.
    """

    def __init__(self, folder: str | Path, settings: Command, *left_open: str, **facts: Any) -> None:
        self.settings, self._left_open = settings, left_open
        recorded = {name: value for name, value in asdict(settings).items() if name not in NEUTRAL}
        if isinstance(settings, Training):
            del recorded["options"]
            recorded |= resolve_options(settings)
        else:
            recorded.pop("batch_size", None)  # outside training, results do not depend on it
        self.record: dict[str, Any] = {
            "command": name_of(type(settings)),
            "settings": {**recorded, **facts},
            "seed": recorded.get("seed"),
            "command_line": _command_line(),
            "threads": torch.get_num_threads(),
            "processes": count_processes(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
            "finished": False,
            "files": {},  # sizes of the results by name
        }
        if isinstance(settings, UsesImages) and settings.dataset:
            self.record["data"] = make_absolute(settings.dataset, settings.data_root)
            self.record["skip_unreadable"] = settings.skip_unreadable
        if folder or not isinstance(settings, Leaves):
            self._open(Path(folder))
        else:
            open_output(settings, self._open)

    def _open(self, folder: Path) -> None:
        """Take a folder for this run. Raises `InputError` if another run has it."""
        self.folder, self.shown = real_path(folder), folder
        self.finished, self.is_longer, self._lost = False, False, ""
        acts = is_main_process() and not getattr(self.settings, "dry_run", False)
        if getattr(self.settings, "overwrite", False):
            if acts:
                clear_output(self.folder, self.settings)
                hold(self.folder)
            return
        self._compare()
        if not self.finished and acts:
            hold(self.folder)
            self._compare()  # another run may have ended in between
        if self._lost:
            print_once(f"{self.folder} was finished, but {self._lost} is gone or was changed: making it again")

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
            raise InputError(f"{path} is damaged (it holds no settings): choose another `output`")
        if earlier.get("command") != self.record["command"]:
            raise InputError(f"{self.folder} holds a run of {short(earlier.get('command'))}: choose another `output`")
        was_finished, before = earlier.get("finished") is True, earlier["settings"]
        now = {**self.record["settings"], **{name: before[name] for name in self._left_open if name in before}}
        longer = _is_longer(before, now)
        before = {**before, "steps": now["steps"]} if longer else before
        self.is_longer = was_finished and longer
        self._lost = _first_lost(self.folder, earlier.get("files")) if was_finished and not longer else ""
        self.finished = was_finished and not longer and not self._lost
        if was_finished:  # until it is finished again: by them `overwrite` knows what is a run's
            self.record["files"] = earlier.get("files")
        if was_finished or visible(self.folder) - {RUN_FILE, SETTINGS_FILE}:  # otherwise there is nothing to lose
            hint = f" with `init_from` {self.folder}" * isinstance(self.settings, Training)
            refuse_differences(self.folder, before, now, hint)
        self.record["settings"] = now  # not before: a folder that is refused must leave nothing behind

    @property
    def identity(self) -> str:
        """A digest of everything that the result depends on."""
        settings = self.record["settings"]
        if _is_constant(settings):  # each step is the same, however many follow
            settings = {name: value for name, value in settings.items() if name != "steps"}
        return digest_of([self.record["command"], settings])

    def start(self) -> None:
        """Record in the folder that work has begun. Called by the main process alone."""
        save_settings(self.folder, self.settings)
        with write_folder(self.folder, index=RUN_FILE) as staging:
            write_json(staging / RUN_FILE, self.record)

    def finish_with(
        self, write_results: Callable[[Path], None] = lambda staging: None, written: Iterable[str] = ()
    ) -> None:
        """Write the results, and then record that the run is finished. Called by the main process alone.

        Args:
            write_results: writes files into the folder it is given; they appear in the run's folder together.
            written: names of results that were written earlier.
        """
        with write_folder(self.folder) as staging:
            write_results(staging)
            results = [*written, *(path.name for path in staging.iterdir())]
        files = {name: (self.folder / name).stat().st_size for name in sorted(results)}
        # separately, so that a record exists at every moment
        with write_folder(self.folder, index=RUN_FILE) as staging:
            write_json(staging / RUN_FILE, {**self.record, "finished": True, "files": files})


def _first_lost(folder: Path, files: object) -> str:
    """Return the name of the first result that is gone or has changed its size; empty if there is none."""
    for name, size in files.items() if isinstance(files, dict) else ():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            return str(name)
    return ""


def _is_constant(settings: dict[str, Any]) -> bool:
    """Return whether a training's steps are independent of how many follow."""
    return settings.get("lr_schedule") == "constant"


def _is_longer(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether a training asks for more steps than before, and its learning rate allows that."""
    steps = before.get("steps")
    return _is_constant(before) and _is_constant(now) and type(steps) is int and now["steps"] > steps


def save_settings(folder: Path, settings: Command) -> None:
    """Write the settings of a run into its folder, in the format that `--config` reads."""
    with write_folder(folder) as staging:
        text = describe_settings(settings, name_of(type(settings)), folder)
        (staging / SETTINGS_FILE).write_text(text, encoding="utf-8")


def read_setting(folder: Path, name: str) -> Any:
    """Return a setting of the run that has begun in a folder; None if it is not recorded."""
    try:
        return read_config(str(folder / SETTINGS_FILE)).get(name)
    except InputError:
        return None


def left_open(settings: Drawing) -> list[str]:
    """Return the names of the facts that the settings of a sampling run leave to the machine, for `Run`."""
    return ["backend"] if settings.backend == "auto" else []


def read_threads(settings: Command) -> int | None:
    """Return the number of threads of the run that these settings continue; None if it is unknown.

    It is also None for another number of processes: that changes the last digits, whatever the threads.
    """
    output = getattr(settings, "output", None)
    if not output or getattr(settings, "overwrite", False):
        return None
    record = read_record(Path(output), name_of(type(settings)))
    threads = record.get("threads")
    is_sound = type(threads) is int and 1 <= threads <= MAX_THREADS and record.get("processes") == count_processes()
    return threads if is_sound else None


def read_record(folder: Path, command: str) -> dict[str, Any]:
    """Return the content of a folder's run.json; empty unless it records a run of this command."""
    try:
        record = read_json(folder / RUN_FILE)
    except (InputError, OSError):
        return {}
    settings = record.get("settings")
    record["settings"] = settings if isinstance(settings, dict) else {}
    return record if record.get("command") == command else {}


def read_data(folder: Path) -> tuple[str, Places] | None:
    """Return the name and the places of the images that the tokenizer in a folder learns; None if not recorded."""
    data = read_record(folder, "train-tokenizer").get("data")
    if not isinstance(data, list) or len(data) != 2 or not isinstance(data[0], str):
        return None
    return data[0], as_places(data[1]) if isinstance(data[1], str) or is_list_of(data[1], str) else ()


def _command_line() -> str:
    """Return the command line to paste, however the command was started; if called from Python, that program's."""
    name = Path(sys.argv[0]).stem.removeprefix("codegrid-").replace("_", "-")
    return shlex.join(["codegrid", name, *sys.argv[1:]] if name in COMMANDS else sys.argv)


def refuse_differences(folder: str | Path, earlier: dict[str, Any], now: dict[str, Any], hint: str = "") -> None:
    """Raise `InputError`, naming what differs, if a folder was made with other settings.

    `hint` says how a run into another `output` can use this folder.
    """
    as_read = json.loads(json.dumps(now))  # a tuple reads back as a list
    for name in sorted(as_read.keys() | earlier.keys()):
        if name not in earlier:
            raise InputError(f"{folder} was made by a version of codegrid without {name}: choose another `output`")
        if as_read.get(name) != earlier.get(name):
            was, wanted = _short(earlier.get(name)), _short(as_read.get(name))
            why = f" ({BECAUSE[name]})" if name in BECAUSE else ""
            raise InputError(
                f"{folder} was made with {name} {was}, not {wanted}{why}: choose another `output`{hint}, the earlier "
                "settings, or `overwrite`"
            )


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text[:12] + "…" if len(text) > 40 else text
