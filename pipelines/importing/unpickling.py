"""Reading of pickled checkpoints without running anything that is in them.

torch reads what holds nothing but weights itself (`weights_only`). Other checkpoints hold whole modules, or what a
trainer left. For these every class that the file names is replaced by an inert one, which keeps what it is given and
does nothing; only tensors are made.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from torch import Tensor

from codegrid.errors import InputError, reason_of
from codegrid.files import open_plain
from codegrid.limits import short

MAX_MODULES = 100_000
PARTS = ("_parameters", "_buffers", "_modules")  # of a module
# of the standard library, what checkpoints hold that are no attacks
HARMLESS = {
    "argparse", "builtins", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "logging", "math", "pathlib", "re", "time", "types", "typing", "uuid", "_codecs",
}  # fmt: skip
DATA = {
    "Ellipsis", "NotImplemented", "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
    "object", "range", "set", "slice", "str", "tuple", "type",
}  # fmt: skip


class Refused(Exception):
    """Raised when a file asks for something to be run."""


class Inert:
    """Stand-in for an object of another class: it keeps its state, and does nothing."""

    state: Any = None

    def __new__(cls, *args: Any, **options: Any) -> Inert:
        """Take any arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Keep the state as it is."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an item."""

    def append(self, item: Any) -> None:
        """Ignore an item."""

    def extend(self, items: Any) -> None:
        """Ignore items."""


class Items(dict[Any, Any]):
    """Stand-in for a dict with attributes of its own, which are left out: they could replace its methods."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the attributes."""


class Unpickler(pickle._Unpickler):
    """An unpickler that makes tensors and plain data, and an `Inert` of everything else.

    It is the one written in Python: the other allocates whatever a file claims to refer to.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return what makes a tensor or plain data, or else an inert class of that name.

        Raises `Refused` if it is part of the standard library, and not one of the classes that data are made of.
        """
        # files are written with the names of Python 2
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        maker = MAKERS.get((module, name))
        if maker is not None:
            return maker
        if module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        top = module.partition(".")[0]
        is_code = top == "builtins" and name not in DATA
        if is_code or (top in sys.stdlib_module_names and top not in HARMLESS):
            raise Refused(f"{module}.{name}")
        return type(name.rpartition(".")[2] or "Inert", (Inert,), {})


def load_pickle(file: IO[bytes], **options: Any) -> Any:
    """Return the object in a file, made by `Unpickler`."""
    return Unpickler(file, **options).load()


def _rebuild(storage: Any, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    tensor: Tensor = torch._utils._rebuild_tensor(storage, offset, size, stride)
    return tensor


def _pass_on(tensor: Any, *_: Any) -> Any:
    return tensor


MAKERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Items,
    ("torch._utils", "_rebuild_tensor"): lambda *args: _rebuild(*args),
    ("torch._utils", "_rebuild_tensor_v2"): lambda *args: _rebuild(*args),
    ("torch._utils", "_rebuild_parameter"): lambda *args: _pass_on(*args),
    ("torch._utils", "_rebuild_parameter_with_state"): lambda *args: _pass_on(*args),
    ("torch", "Size"): tuple,
    ("builtins", "set"): set,
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "tuple"): tuple,
}
# what torch needs of a module like `pickle`
AS_MODULE = SimpleNamespace(Unpickler=Unpickler, load=load_pickle, __name__="codegrid.unpickling")


def read_pickled(path: Path) -> Any:
    """Return what torch.save wrote into an untrusted file: tensors and plain data, and inert objects for all else.

    Raises `InputError` if it cannot be read, or asks for something to be run.
    """
    try:
        with open_plain(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files by other versions
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass  # more than weights
    except InputError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    try:
        with open_plain(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=AS_MODULE)
    except Refused as error:
        words = f"it holds code: it would run {short(str(error))}, which no weights need; nothing was run"
        raise InputError(f"{path} is refused ({words}): get the weights from elsewhere") from error
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged, cut off, or not a checkpoint ({reason_of(error)}): copy or download it again"
    )


def tensors_of(module: Inert) -> Iterator[tuple[str, Tensor]]:
    """Return the tensors of a module that was pickled as a whole, by the names that its state dict has.

    Raises `InputError` if it holds more modules than any has: a file may put one into itself.
    """
    pending: list[tuple[str, Any]] = [("", module)]
    for _ in range(MAX_MODULES):
        if not pending:
            return
        prefix, found = pending.pop()
        state = found.state if isinstance(found, Inert) else None
        parts = [state.get(part) for part in PARTS] if isinstance(state, dict) else []
        for held in parts:
            for name, value in dict.items(held) if isinstance(held, dict) else ():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
                elif held is parts[-1]:
                    pending.append((f"{prefix}{name}.", value))
    raise InputError(f"a checkpoint holds more than {MAX_MODULES:,} modules in one another, as no model has")
