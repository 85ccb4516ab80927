"""Checkpoints of other projects as tensors by name, read from files that are not trusted."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from codegrid.tensors import check_finite, read_json

from .unpickling import Inert, read_pickled, tensors_of

COPIES = 3  # of the weights: the file, its tensors, the model
MAX_CONFIG = 2**20  # bytes
ZIP, PICKLE, NPZ = b"PK", b"\x80", ".npz"
DIFFUSERS = ("config.json", "diffusion_pytorch_model.safetensors")
PAIR = ("encoder.pkl", "decoder.pkl")  # of DALL·E
# under which checkpoints keep their weights, the averaged ones first
KEYS = ("ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "params")
# that wrappers and larger models put in front of the names
PREFIXES = ("module.", "_orig_mod.", "model.", "first_stage_model.", "vqvae.", "vae.")


@dataclass
class Checkpoint:
    """Tensors by name, and the config that lies beside them, if there is one."""

    path: Path
    tensors: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)

    def take(self, name: str) -> Tensor:
        """Return a tensor in float32. Raises `InputError` if there is none of this name."""
        if name not in self.tensors:
            raise InputError(f"{self.path} holds no {name}, which such a checkpoint needs: is it another model's?")
        return self.tensors[name].float()

    def below(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with a prefix, without it."""
        return {name: tensor.float() for name, tensor in _below(self.tensors, prefix).items()}

    def views(self) -> list[Checkpoint]:
        """Return the checkpoint, and those of the parts that stand behind a prefix of the names."""
        parts = [_below(self.tensors, prefix) for prefix in PREFIXES]
        return [self, *(Checkpoint(self.path, part, self.config) for part in parts if part)]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def read_checkpoint(source: str | Path, model_config: str | Path = "") -> Checkpoint:
    """Read a file of torch.save, safetensors or NumPy, or a folder of diffusers or of DALL·E's two files.

    Args:
        source: the file or folder.
        model_config: a file with the configuration of the model, in place of the one beside it.

    Raises `InputError` if there is no such file, it is damaged or holds code, or would not fit in memory.
    """
    found = _read(Path(source))
    return Checkpoint(found.path, found.tensors, read_model_config(model_config)) if model_config else found


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
        return Checkpoint(path, _checked(path, _read_file(path)))
    if all((path / name).is_file() for name in PAIR):
        parts = {name.partition(".")[0]: _read_file(path / name) for name in PAIR}
        tensors = {f"{part}.{name}": each for part, held in parts.items() for name, each in held.items()}
        return Checkpoint(path, _checked(path, tensors))
    if all((path / name).is_file() for name in DIFFUSERS):
        config, weights = (path / name for name in DIFFUSERS)
        return Checkpoint(path, _checked(path, _read_file(weights)), read_json(config))
    wanted = " or ".join(" and ".join(names) for names in (DIFFUSERS, PAIR))
    raise InputError(f"{path} is a folder that holds neither {wanted}: give the file of a checkpoint")


def _read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name."""
    check_not_hollow(path)
    size = path.stat().st_size
    check_memory(f"the weights of {path}", COPIES * size, "load it on a larger one")
    with open_plain(path) as file:
        start = file.read(2)
    if start == ZIP:
        _check_zip(path)
    if path.suffix == NPZ:
        return _guarded(path, _read_npz)
    if path.suffix == ".safetensors":
        return _guarded(path, lambda place: load_safetensors(read_plain(place, size)))
    if start != ZIP and start[:1] != PICKLE:
        raise InputError(f"{path} is not a checkpoint: it must be a file of torch.save, .safetensors or .npz")
    return _weights_in(path, read_pickled(path))


def _guarded(path: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return read(path)
    except InputError:
        raise
    except Exception as error:  # each library raises its own
        raise InputError(f"{path} is damaged or cut off ({reason_of(error)}): copy or download it again") from error


def _read_npz(path: Path) -> dict[str, Tensor]:
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


def _weights_in(path: Path, found: Any) -> dict[str, Tensor]:
    """Return the tensors by name of what a file holds: a state dict, one inside of a dict, or a whole module."""
    if isinstance(found, Inert):
        return dict(tensors_of(found))
    if isinstance(found, Mapping):
        own = {str(name): each for name, each in found.items() if isinstance(each, Tensor)}
        inner = (found[key] for key in KEYS if isinstance(found.get(key), Mapping | Inert))
        for each in inner:
            if weights := _weights_in(path, each):
                return weights
        if own:
            return own
    raise InputError(f"{path} holds no weights: a dict of tensors by name, as state_dict() gives it, is needed")


def _checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors, once they are known to fit in memory, and to be finite."""
    numbers = sum(each.numel() for each in tensors.values())  # a view can claim more than its file holds
    check_memory(f"the weights of {path}", 4 * COPIES * numbers, "load it on a larger one")
    floats = {name: each for name, each in tensors.items() if each.layout == torch.strided and not each.is_complex()}
    check_finite(path, floats)
    return floats
