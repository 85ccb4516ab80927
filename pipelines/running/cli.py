"""From a command line to the function that does the work, and from an error to an exit code.

Nothing here imports torch: flags are parsed before it is loaded.
"""

import errno
import inspect
import io
import os
import re
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import MISSING, field, fields, make_dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import tyro

from codegrid.console import steady_streams
from codegrid.errors import InputError, remedy_for
from codegrid.progress import keep_quiet, progress_bar, say
from codegrid.registry import load_plugin
from codegrid.strict_json import to_json

from .config import check_config, read_config
from .cores import look
from .flag_errors import explain
from .launch import join_launch
from .options import Option, as_flag, field_docs, in_words, list_options, resolve_options
from .settings import Command, Flag, Leaves, Training

Settings = TypeVar("Settings", bound=Command)

CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")
DISK_ERRORS = {
    errno.ENOSPC: "the disk is full: make room and run the same command again",
    errno.EDQUOT: "the disk quota is used up: make room and run the same command again",
    errno.EROFS: "the disk is read-only: choose another folder",
    errno.EPERM: "not permitted: choose another folder, or change its permissions",
    errno.EACCES: "permission denied: choose another folder, or change its permissions",
    errno.ENOTDIR: "part of the path is a file: choose another folder",
    errno.EISDIR: "it is a folder where a file should be: choose another folder",
    errno.ENOENT: "no such file or folder: was it moved or removed?",
    errno.EIO: "the disk reports an error: choose a folder on another disk",
    errno.ESTALE: "the shared disk has lost the file: run the same command again",
    errno.EEXIST: "it is a file where a folder should be: choose another folder",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ELOOP: "its links lead in a circle: choose another folder",
}
ALSO: dict[str, tuple[Any, str, Any]] = {  # flags that are not settings: type, help, default
    "config": (
        Annotated[str | None, tyro.conf.arg(metavar="FILE")],
        "YAML, TOML or JSON file of settings by their names, such as the settings.yaml that each run leaves in its "
        "folder. Flags override it.",
        None,
    ),
    "version": (Flag, "Print the version.", False),
}


class Stopped(BaseException):
    """Raised when a run that was asked to stop has saved its state. Its argument is the signal's number."""


def run_command(settings_type: type[Command], body: str) -> None:
    """Parse the command line into settings and call the function `body`, named as `module:function`, with them.

    An error that the user can fix prints one line, with --verbose after its traceback, and exits with code 2. With
    --json, what the function returns is printed.
    """
    steady_streams()
    argv = sys.argv[1:]
    verbose = not {"-v", "--verbose"}.isdisjoint(argv)
    output = None
    try:
        join_launch()
        settings = parse(settings_type, argv)
        output, as_json = getattr(settings, "output", None), getattr(settings, "json", False)
        keep_quiet(settings.quiet)
        module, _, function = body.partition(":")
        look()  # so that the load of other programs is measured while torch is imported
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            result = getattr(import_module(module), function)(settings)
        if as_json and is_main_process():
            print(to_json(result))
        if code := settings.exit_code(result):
            sys.exit(code)
    except (InputError, OSError, RuntimeError, MemoryError) as error:
        words = str(error) if isinstance(error, InputError) else remedy_for(error)
        if not words and isinstance(error, OSError) and error.errno in DISK_ERRORS:
            where = error.filename or output
            words = f"{where}: {DISK_ERRORS[error.errno]}" if where else DISK_ERRORS[error.errno]
        if not words:  # an OSError that is not about a disk, such as too many open files
            raise
        _fail(with_flags(words, settings_type), verbose)
    except KeyboardInterrupt:
        _end_stopped(signal.SIGINT, "stopped; run the same command again")
    except Stopped as stop:
        _end_stopped(stop.args[0], "stopped and saved; run the same command again to continue")
    finally:
        keep_quiet(False)


def parse(settings_type: type[Settings], argv: Sequence[str]) -> Settings:
    """Return the settings that the flags give; they override those of the files after --config.

    Modules after --plugin are imported first: they add names and flags.

    Raises `InputError` if a flag is unknown, a value has the wrong type or is out of its range, or an option does not
    belong to what was chosen.
    """
    if "--version" in argv:
        print(f"codegrid {version('codegrid')}")
        raise SystemExit(0)
    for module in _values_after("--plugin", argv):
        load_plugin(module)
    defaults = _read_configs(settings_type, _values_after("--config", argv))
    options = list_options(settings_type)
    groups = group_flags(settings_type, options, defaults)
    own = groups.pop("")
    nested = [
        (
            f"group_{number}",
            Annotated[_make_flags(flags), tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=title, help="")],
        )
        for number, (title, flags) in enumerate(groups.items())
    ]
    about = inspect.cleandoc(settings_type.__doc__ or "")
    # shell completion is registered for one word: codegrid-sample, not codegrid sample
    prog = f"codegrid{'-' if argv and argv[0].startswith('--tyro-') else ' '}{name_of(settings_type)}"
    parsed = _ask_tyro(_make_flags(own, nested), list(argv), prog, about)
    values: dict[str, Any] = {}
    for part in (parsed, *(getattr(parsed, name) for name, _ in nested)):
        values |= {item.name: getattr(part, item.name) for item in fields(part) if not item.name.startswith("group_")}
    for name in ALSO:
        values.pop(name)
    given = {name: values.pop(name) for name in options}
    if options:
        values["options"] = {name: value for name, value in given.items() if value != options[name].unset}
    settings = settings_type(**values)
    if isinstance(settings, Leaves):
        settings.check_output()
    if isinstance(settings, Training):
        resolve_options(settings)  # now: an impossible option should not fail only after the images are loaded
    return settings


def _ask_tyro(flags: type, argv: list[str], prog: str, about: str) -> Any:
    """Return the flags of a command line. Raises `InputError` with the first words of tyro's error page."""
    page = io.StringIO()
    try:
        with redirect_stderr(page):
            return tyro.cli(flags, args=argv, prog=prog, description=about)
    except SystemExit:
        if words := explain(page.getvalue(), prog):
            raise InputError(words) from None
        raise  # it was asked for --help


def name_of(settings_type: type[Command]) -> str:
    """Return the name of a command: `train-tokenizer` of `TrainTokenizer`."""
    return CAPITAL.sub("-", settings_type.__name__).lower()


def count_processes() -> int:
    """Return how many processes torchrun started, on all machines; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the first of the processes that were started together, or the only one."""
    # RANK without WORLD_SIZE is left over from something else
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def print_once(line: str) -> None:
    """Print a line once, not once per process, and above the progress bars; with --quiet print nothing."""
    if is_main_process():
        say(line)


def resume_bar(folder: object, missing: Sequence[range], total: int, desc: str) -> Any:
    """Return a progress bar over the missing images of `total`, and say how many an earlier run left, if any."""
    done = total - sum(map(len, missing))
    if done:
        print_once(f"{folder}: continuing, {done:,} of {total:,} are there")
    return progress_bar(total=total, initial=done, desc=desc, unit="img", disable=not is_main_process())


def in_bytes(count: int) -> str:
    """Return a number of bytes in words: `37 MB`, `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"


def print_plan(*lines: str) -> None:
    """Print what a dry run found, and that it wrote nothing."""
    print_once("\n".join([*lines, "dry run: nothing was written"]))


Flags = list[tuple[str, Any, Any]]  # name, type hint, default
NO_DEFAULTS: Mapping[str, Any] = {}


def _read_configs(settings_type: type[Command], files: Sequence[str]) -> dict[str, Any]:
    """Return the settings in files; later files override earlier ones. Plugins that they name are imported."""
    values: dict[str, Any] = {}
    for path in files:
        given = read_config(path)
        plugins = given.get("plugin") or ()
        for module in (plugins,) if isinstance(plugins, str) else plugins:
            load_plugin(str(module))
        types = get_type_hints(settings_type, include_extras=True)
        hints = {item.name: types[item.name] for item in fields(settings_type) if item.name != "options"}
        hints |= {name: option.hint | None for name, option in list_options(settings_type).items()}
        values |= check_config(path, given, hints)
    return values


def group_flags(
    settings_type: type[Command], options: dict[str, Option], defaults: Mapping[str, Any] = NO_DEFAULTS
) -> dict[str, Flags]:
    """Return the flags by the titles of their groups; the command's own come first, without a title.

    `defaults` replace the defaults of the settings.
    """
    hints, docs = get_type_hints(settings_type, include_extras=True), field_docs(settings_type)
    groups: dict[str, Flags] = {"": []}
    shared: dict[str, Flags] = {}
    for item in fields(settings_type):
        title = _title_of(settings_type, item.name)
        flags = shared.setdefault(title, []) if title else groups[""]
        if item.name != "options":
            default = defaults.get(item.name, item.default)
            flags.append((item.name, as_flag(hints[item.name], docs.get(item.name, ""), in_words(default)), default))
    order = list(inspect.get_annotations(settings_type))  # as in the file; otherwise a base class's fields come first
    groups[""].sort(key=lambda flag: order.index(flag[0]))
    for option in options.values():
        default = defaults.get(option.name, option.unset)
        groups.setdefault(option.group, []).append((option.name, option.flag, default))
    shared[Command.title] += [(name, as_flag(hint, text), unset) for name, (hint, text, unset) in ALSO.items()]
    return groups | dict(reversed(shared.items()))


def _title_of(settings_type: type[Command], name: str) -> str:
    """Return the title of the class that a setting comes from; empty for the command's own."""
    kind = next(kind for kind in settings_type.__mro__ if name in inspect.get_annotations(kind))
    return "" if kind is settings_type else vars(kind).get("title", Command.title)


def _make_flags(flags: Flags, more: Sequence[tuple[str, Any]] = ()) -> type:
    """Make a dataclass of flags. It checks nothing: the settings check their values when they are made."""
    columns = [(name, hint, field() if default is MISSING else field(default=default)) for name, hint, default in flags]
    return make_dataclass("Flags", [*columns, *more], kw_only=True, namespace={"__doc__": ""})


def _values_after(flag: str, argv: Sequence[str]) -> list[str]:
    values: list[str] = []
    is_after = False
    for word in argv:
        if word.startswith("-"):
            is_after = word == flag
            values += [word.removeprefix(f"{flag}=")] if word.startswith(f"{flag}=") else []
        elif is_after:
            values.append(word)
    return values


def with_flags(message: str, settings_type: type) -> str:
    """Return a message in which settings and options in backticks are flags: `label_dropout` → --label-dropout."""
    names = {item.name for item in fields(settings_type)}
    with suppress(InputError):  # perhaps the very error that is being reported
        names |= set(list_options(settings_type))

    def as_flag(match: re.Match) -> str:
        return f"--{match[1].replace('_', '-')}" if match[1] in names else match[0]

    return re.sub(r"`(\w+)`", as_flag, message)


def _fail(message: str, verbose: bool) -> NoReturn:
    if verbose:
        traceback.print_exc()
    in_one_line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(message.split()))
    print("error: " + in_one_line, file=sys.stderr)
    sys.exit(2)


def _end_stopped(number: int, words: str) -> None:
    if is_main_process():
        print(f"\n{words}", file=sys.stderr)
    sys.exit(128 + number)  # the exit code that a shell gives for a signal
