"""Options of models and of their parts: flags made from the registry's tables, so that a new system adds its own.

Nothing here imports torch.
"""

import ast
import inspect
import sys
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import lru_cache
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from codegrid.errors import InputError
from codegrid.limits import AtStart
from codegrid.registry import TABLES, Chosen, names_in, resolve_chosen

from .settings import Command, Training


@dataclass(frozen=True)
class Option:
    """An option that one or more systems have: one flag for all of them."""

    name: str
    hint: Any
    help: str
    systems: dict[str, list[str]] = field(default_factory=dict)  # setting → systems that it chooses, by name
    defaults: dict[str, Any] = field(default_factory=dict)  # system → its default

    @property
    def group(self) -> str:
        """The flags that choose the systems, and their names."""
        return "; ".join(f"--{parameter} {', '.join(systems)}" for parameter, systems in self.systems.items())

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return bare_type(self.hint)[0] is bool

    @property
    def is_of_the_start(self) -> bool:
        """Whether the option only affects how training begins."""
        return any(isinstance(marker, AtStart) for marker in getattr(self.hint, "__metadata__", ()))

    @property
    def unset(self) -> Any:
        """The value of the flag when it is not given."""
        return next(iter(self.defaults.values())) if self.is_switch else None

    @property
    def flag(self) -> Any:
        """The type hint from which the flag is made."""
        words = {system: in_words(value) for system, value in self.defaults.items()}
        if len(set(words.values())) > 1:
            default = ", ".join(f"{system} {value}" for system, value in words.items())
        else:
            default = next(iter(words.values()))
        if self.is_switch:
            return as_flag(tyro.conf.FlagCreatePairsOff[bool], self.help, default)
        return as_flag(self.hint | None, self.help, default)


def flag_of(name: str) -> str:
    """Return the flag of a setting: `--label-dropout` of `label_dropout`, and `--from` of `from_`."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def as_flag(hint: Any, text: str, default: str = "") -> Any:
    """Return the type hint of a flag with its help, its metavar and, if there is one, its default as text."""
    kept, *more = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    bare, many = bare_type(hint)
    metavar = _metavar_of(hint) or getattr(bare, "__name__", str(bare)).upper()
    if get_origin(bare) is Literal:
        metavar = "{" + ",".join(map(str, get_args(bare))) + "}"
    for marker in names_in(hint):
        metavar = "{" + ",".join(TABLES[marker.kind]) + "}"
    metavar += (" [...]" if metavar[0] == "{" else f" [{metavar} ...]") * many
    behaviour = f"(default: {default})" if default else ""
    look = tyro.conf.arg(help=text, metavar=None if bare is bool else metavar, help_behavior_hint=behaviour)
    parts = (kept, look, *more)
    return Annotated[parts]


def choosers(settings_type: type[Command]) -> dict[str, str]:
    """Return the settings that choose a system, each with the kind of system it chooses."""
    hints = get_type_hints(settings_type, include_extras=True)
    return {item.name: marker.kind for item in fields(settings_type) for marker in names_in(hints[item.name])}


def list_options(settings_type: type[Command]) -> dict[str, Option]:
    """Return the options of all systems that the settings can choose, by name.

    Raises `InputError` if an option has the same name as a setting, or as an option of another type.
    """
    taken = {item.name for item in fields(settings_type)} if choosers(settings_type) else set()
    found: dict[str, Option] = {}
    ahead = list(choosers(settings_type).items())
    listed = {kind for _, kind in ahead}
    while ahead:
        parameter, kind = ahead.pop(0)
        for system in TABLES[kind]:
            for item, hint, text in _fields_of(TABLES[kind].options(system)):
                if item.name in taken:
                    raise InputError(f"`{item.name}`, an option of the {kind} {system}, is also a setting: rename it")
                option = found.setdefault(item.name, Option(item.name, hint, text))
                if bare_type(option.hint) != bare_type(hint):
                    other = next(iter(option.defaults))
                    raise InputError(
                        f"`{item.name}`, an option of the {kind} {system}, has another type in {other}: rename it"
                    )
                option.systems.setdefault(parameter, []).append(system)
                option.defaults[system] = _default_of(item)
                # an option may choose a part of yet another kind, which has options of its own
                deeper = [(item.name, marker.kind) for marker in names_in(hint) if marker.kind not in listed]
                ahead += deeper
                listed |= {kind for _, kind in deeper}
    return found


def resolve_options(settings: Training) -> dict[str, Any]:
    """Return the options of the chosen model and of its parts, by name: those given, and defaults for the rest.

    Raises `InputError` if there is no system of a chosen name, or if a given option is out of its range or does not
    belong to the chosen systems.
    """
    first = [Chosen(name, kind, getattr(settings, name)) for name, kind in choosers(type(settings)).items()]
    resolved, chosen = resolve_chosen(first, settings.options)
    for name in settings.options:
        if name not in resolved:
            raise InputError(f"`{name}`: {_why_not(type(settings), name, chosen)}")
    return resolved


def _why_not(settings_type: type[Command], name: str, chosen: list[Chosen]) -> str:
    """Return why the chosen systems do not accept an option, and which systems would."""
    option = list_options(settings_type).get(name)
    if option is None:
        return f"no {' or '.join(choosers(settings_type).values())} has such an option: leave it out"
    having = [one[1:] for one in chosen if one.parameter in option.systems]
    if not having:  # it belongs to a part that another system has
        parameter, systems = next(iter(option.systems.items()))
        return f"only systems with a `{parameter}` {_or(systems)} have such an option: leave it out"
    kind, system = having[-1]
    others = ", or ".join(f"`{parameter}` {_or(systems)}" for parameter, systems in reversed(option.systems.items()))
    return f"the {system} {kind} has no such option: choose {others}, or leave it out"


def _or(names: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstring below each field of a dataclass, as one line."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            docs |= _docs_in(base.__module__).get(base.__qualname__.rpartition(".")[2], {})
    return docs


@lru_cache
def _docs_in(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings below the fields of all classes in a module, by class name and field name."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):  # a module without a source file
        return {}
    docs: dict[str, dict[str, str]] = {}
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for line, below in pairwise(node.body):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
                text = below.value.value if isinstance(below.value, ast.Constant) else ""
                docs.setdefault(node.name, {})[line.target.id] = " ".join(str(text).split())
    return docs


@lru_cache
def _fields_of(options_type: type) -> list[tuple[Field, Any, str]]:
    """Return each field with its type hint and its docstring."""
    hints, docs = get_type_hints(options_type, include_extras=True), field_docs(options_type)
    return [(item, hints[item.name], docs.get(item.name, "")) for item in fields(options_type)]


def _default_of(item: Field) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _metavar_of(hint: Any) -> str:
    """Return the metavar that a type names for its values; empty if it names none."""
    arms = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    said = [getattr(each, "metavar", None) for arm in arms for each in getattr(arm, "__metadata__", ())]
    return next(filter(None, said), "")


def bare_type(hint: Any) -> tuple[Any, bool]:
    """Return the type of one value without its range, and whether there can be several."""
    origin = get_origin(hint)
    if origin is Annotated:
        return bare_type(get_args(hint)[0])
    if origin in (Union, UnionType):
        return bare_type(next(arm for arm in get_args(hint) if arm is not type(None)))
    if origin in (tuple, list):
        return bare_type(get_args(hint)[0])[0], True
    return hint, False


def in_words(value: Any) -> str:
    """Return a default as one would type it; empty if there is none worth showing."""
    if value is None or value is False or value is MISSING:
        return ""
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
