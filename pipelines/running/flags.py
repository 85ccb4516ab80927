"""From the words of a command line to the settings of a command.

Nothing here imports torch: flags are parsed before it is loaded.
"""

import inspect
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, field, fields, make_dataclass
from importlib.metadata import version
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro

from codegrid.errors import InputError
from codegrid.registry import load_plugin

from .config import check_config, read_config
from .flag_errors import explain
from .options import Option, as_flag, field_docs, flag_of, in_words, list_options, resolve_options
from .settings import Command, Flag, Leaves, Training

Settings = TypeVar("Settings", bound=Command)
Flags = list[tuple[str, Any, Any]]  # name, type hint, default
NO_DEFAULTS: Mapping[str, Any] = {}

CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")
ALSO: dict[str, tuple[Any, str, Any]] = {  # flags that are not settings: type, help, default
    "config": (
        Annotated[str | None, tyro.conf.arg(metavar="FILE")],
        "YAML, TOML or JSON file of settings by their names, such as the settings.yaml that each run leaves in its "
        "folder. Flags override it.",
        None,
    ),
    "version": (Flag, "Print the version.", False),
}


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
    values = _parse_named(groups, list(argv)) or _parse_all(groups, list(argv), settings_type)
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


def _parse_named(groups: Mapping[str, Flags], argv: list[str]) -> dict[str, Any] | None:
    """Return the values of all flags by name, or None if the command line asks for help, or is wrong.

    Of 100 flags that it could meet, tyro takes a tenth of a second to learn them: it is told those that are there.
    """
    flags = {flag_of(flag[0]): flag for of_group in groups.values() for flag in of_group}
    words = {word.partition("=")[0] for word in argv if word.startswith("-") and not word[1:2].isdigit()}
    if not words <= flags.keys():
        return None
    told = [flag for word, flag in flags.items() if word in words or flag[2] is MISSING]
    try:
        with redirect_stderr(io.StringIO()):
            parsed: Any = tyro.cli(_make_flags(told), args=argv)
    except SystemExit:
        return None
    return {name: default for name, _, default in flags.values()} | vars(parsed)


def _parse_all(groups: Mapping[str, Flags], argv: list[str], settings_type: type[Command]) -> dict[str, Any]:
    """Return the values of all flags by name; print help, or raise `InputError`, where these are asked for."""
    own, *others = groups.items()
    nested = [
        (
            f"group_{number}",
            Annotated[_make_flags(flags), tyro.conf.OmitArgPrefixes, tyro.conf.arg(name=title, help="")],
        )
        for number, (title, flags) in enumerate(others)
    ]
    about = inspect.cleandoc(settings_type.__doc__ or "")
    # shell completion is registered for one word: codegrid-sample, not codegrid sample
    prog = f"codegrid{'-' if argv and argv[0].startswith('--tyro-') else ' '}{name_of(settings_type)}"
    parsed = _ask_tyro(_make_flags(own[1], nested), argv, prog, about)
    values: dict[str, Any] = {}
    for part in (parsed, *(getattr(parsed, name) for name, _ in nested)):
        values |= {item.name: getattr(part, item.name) for item in fields(part) if not item.name.startswith("group_")}
    return values


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
