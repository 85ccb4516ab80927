"""The one exception for what a user can fix, and short reasons of other libraries' errors."""

import importlib
from types import ModuleType


class InputError(ValueError):
    """Something that came from outside cannot be used.

    The message is one line that says what is wrong and what to do. It names parameters in backticks, as Python knows
    them; a command line shows those that are its own as flags: `` `label_dropout` `` becomes --label-dropout. Commands
    print the line without a traceback and exit with code 2.
    """


def reason_of(error: BaseException) -> str:
    """Return what an error of another library says, in one short line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def import_extra(module: str, use: str, extra: str) -> ModuleType:
    """Import a module that only some uses need.

    Raises `InputError` that says what `use` needs, and which extra of this package brings it, where it is missing.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise InputError(f'{use} needs the {package} package: pip install "codegrid[{extra}]"') from error
