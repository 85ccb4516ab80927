"""Checkpoints of other projects as tensors by name, read from files that are not trusted."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml
from safetensors.torch import load as load_safetensors
from torch import Tensor

from codegrid.budget import check_memory, check_not_hollow
from codegrid.errors import InputError, reason_of
from codegrid.files import open_plain, read_plain
from codegrid.tensors import read_json

from .unpickling import Inert, read_pickled, tensors_of

COPIES = 3  # of the weights: the file, its tensors, the model
MAX_CONFIG = 2**20  # bytes
MAX_DEPTH = 20  # of dicts in one another
ZIP, PICKLE, NPZ, SAFETENSORS = b"PK", b"\x80", ".npz", ".safetensors"
# of diffusers: the config, and the names that the weights beside it may have
CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model."
ENDINGS = ("safetensors", "bin", "fp16.safetensors", "fp16.bin")
PAIR = ("encoder.pkl", "decoder.pkl")  # of DALL·E
# under which checkpoints keep their weights, the averaged ones first; other keys are tried after these
KEYS = ("ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "params")
# that wrappers and larger models put in front of the names, up to so many of them
PREFIXES = ("ema_model.", "module.", "_orig_mod.", "model.", "first_stage_model.", "vqvae.", "vae.")
MOST_PREFIXES = 3


Tensors = dict[str, Tensor]  # by name


@dataclass
class Checkpoint:
    """Tensors by name, and the config that lies beside them, if there is one."""

    path: Path
    tensors: Tensors
    config: dict[str, Any] = field(default_factory=dict)
    others: tuple[Tensors, ...] = ()  # what else the file holds, such as the weights that were not averaged

    def take(self, name: str) -> Tensor:
        """Return a tensor in float32. Raises `InputError` if there is none of this name."""
        if name not in self.tensors:
            raise InputError(f"{self.path} holds no {name}, which such a checkpoint needs: is it another model's?")
        return self.tensors[name].float()

    def below(self, prefix: str) -> Tensors:
        """Return the tensors whose names begin with a prefix, without it."""
        return {name: tensor.float() for name, tensor in _below(self.tensors, prefix).items()}

    def views(self) -> list[Checkpoint]:
        """Return the checkpoint, with each of its sets of tensors, and the parts behind prefixes of the names."""
        return [
            Checkpoint(self.path, part, self.config) for tensors in (self.tensors, *self.others)
            for part in _parts(tensors, MOST_PREFIXES)
        ]  # fmt: skip


def _parts(tensors: Tensors, prefixes: int) -> Iterator[Tensors]:
    yield tensors
    for prefix in PREFIXES if prefixes else ():
        if part := _below(tensors, prefix):
            yield from _parts(part, prefixes - 1)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def read_checkpoint(source: str | Path, model_config: str | Path = "") -> Checkpoint:
    """Read a file of torch.save, safetensors or NumPy, or a folder of diffusers or of DALL·E's two files.

    Args:
        source: the file or folder.
        model_config: a file with the configuration of the model, in place of the one beside it.

    Raises `InputError` if there is no such file, it is damaged or holds code, or would not fit in memory.
    """
    found = _read(Path(source))
    return replace(found, config=read_model_config(model_config)) if model_config else found


def read_model_config(source: str | Path) -> dict[str, Any]:
    """Read the configuration of another project's model, a YAML or JSON file.

    Raises `InputError` if it cannot be read, or does not map names to values.
    """
    try:
        found = yaml.safe_load(read_plain(source, MAX_CONFIG))  # JSON is YAML, too
    except OSError as error:
        raise InputError(f"`model_config` {source}: {error.strerror or error}: give a YAML or JSON file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"`model_config` {source}: it cannot be read ({reason_of(error)}): correct it") from error
    if not isinstance(found, dict):
        raise InputError(f"`model_config` {source}: it must map names to values")
    return {str(name): value for name, value in found.items()}


def _read(path: Path) -> Checkpoint:
    if not path.exists():
        raise InputError(f"no file or folder {path}: give a checkpoint")
    if not path.is_dir():
        beside = path.with_name(CONFIG)
        config = read_json(beside) if path.name.startswith(WEIGHTS) and beside.is_file() else {}
        first, *others = _read_file(path)
        return Checkpoint(path, first, config, tuple(others))
    if all((path / name).is_file() for name in PAIR):
        parts = {name.partition(".")[0]: _read_file(path / name)[0] for name in PAIR}
        return Checkpoint(path, {f"{part}.{name}": each for part, held in parts.items() for name, each in held.items()})
    weights = [path / f"{WEIGHTS}{ending}" for ending in ENDINGS]
    if (path / CONFIG).is_file() and (found := next((each for each in weights if each.is_file()), None)):
        return replace(_read(found), path=path)
    wanted = f"{CONFIG} and {weights[0].name} or {' and '.join(PAIR)}"
    raise InputError(f"{path} is a folder that holds neither {wanted}: give the file of a checkpoint")


def _read_file(path: Path) -> list[Tensors]:
    """Return the sets of tensors in a file, the likeliest first. Raises `InputError` if there are none."""
    found = [usable for tensors in _read_tensors(path) if (usable := _usable(path, tensors))]
    if not found:
        raise InputError(f"{path} holds no weights: a dict of tensors by name, as state_dict() gives it, is needed")
    return found


def _read_tensors(path: Path) -> list[Tensors]:
    check_not_hollow(path)
    size = path.stat().st_size
    check_memory(f"the weights of {path}", COPIES * size, "load it on a larger one")
    with open_plain(path) as file:
        start = file.read(9)
    if start[:2] == ZIP:
        _check_zip(path)
    if path.suffix == NPZ:
        return [_guarded(path, _read_npz)]
    if path.suffix.lower() == SAFETENSORS or start[8:] == b"{":  # after the length of its header, whatever its name
        return [_guarded(path, lambda place: load_safetensors(read_plain(place, size)))]
    if start[:2] != ZIP and start[:1] != PICKLE:
        raise InputError(f"{path} is not a checkpoint: it must be a file of torch.save, {SAFETENSORS} or {NPZ}")
    return list(_sets_in(read_pickled(path), set()))


def _guarded(path: Path, read: Callable[[Path], Tensors]) -> Tensors:
    try:
        return read(path)
    except InputError:
        raise
    except Exception as error:  # each library raises its own
        raise InputError(f"{path} is damaged or cut off ({reason_of(error)}): copy or download it again") from error


def _read_npz(path: Path) -> Tensors:
    with numpy.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind in "fiu"}


def _check_zip(path: Path) -> None:
    """Refuse an archive that is damaged, holds a compiled program, or takes more memory than there is."""
    try:
        with zipfile.ZipFile(path) as archive:
            held = archive.infolist()
    except Exception as error:
        raise InputError(f"{path} is damaged or cut off ({reason_of(error)}): copy or download it again") from error
    check_memory(f"the weights of {path}", sum(each.file_size for each in held), "load it on a larger one")
    if any(each.filename.endswith("/constants.pkl") for each in held):
        raise InputError(f"{path} is a program of TorchScript, not weights: save its state_dict() with torch.save")


def _sets_in(found: Any, seen: set[int], depth: int = 0) -> Iterator[Tensors]:
    """Yield the sets of tensors of what a file holds: those of a module, or a dict's own and those inside of it.

    `seen` are the dicts that were looked into: a file may put one into itself.
    """
    if isinstance(found, Inert):
        yield dict(tensors_of(found))
    if not isinstance(found, dict) or id(found) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(found))
    held = {name: each for name, each in dict.items(found) if isinstance(name, str)}
    inner = [name for name, each in held.items() if isinstance(each, dict | Inert)]
    for name in (name for name in KEYS if name in inner):
        yield from _sets_in(held[name], seen, depth + 1)
    yield {name: each for name, each in held.items() if isinstance(each, Tensor)}
    for name in (name for name in inner if name not in KEYS):
        yield from _sets_in(held[name], seen, depth + 1)


def _usable(path: Path, tensors: Tensors) -> Tensors:
    """Return those tensors that hold plain numbers, once they are known to fit in memory."""
    plain = {
        name: each for name, each in tensors.items()
        if each.layout == torch.strided and each.device.type == "cpu" and not (each.is_complex() or each.is_nested)
    }  # fmt: skip
    numbers = sum(each.numel() for each in plain.values())  # a view can claim more than its file holds
    check_memory(f"the weights of {path}", 4 * COPIES * numbers, "load it on a larger one")
    return plain
