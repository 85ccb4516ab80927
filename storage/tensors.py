"""Tensors on disk: safetensors files and the SHA-256 beside them."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .errors import InputError


def sha256(content: bytes | numpy.ndarray) -> str:
    """The SHA-256 of bytes, or of a contiguous array, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digest_of(value: object) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True).encode())


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write `tensors` as a safetensors file and return its SHA-256."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    with ThreadPoolExecutor(1) as aside:  # while it is written: neither needs the interpreter
        checksum = aside.submit(sha256, content)
        path.write_bytes(content)  # plain Python I/O: a full disk raises an OSError that says so
        return checksum.result()


def read_tensors(path: Path, expected_sha256: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file whose bytes must have the given SHA-256."""
    content = path.read_bytes()
    if sha256(content) != expected_sha256:
        raise InputError(f"{path} is damaged (its SHA-256 is not the recorded one): copy or make it again")
    try:
        return load(content)
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error}): copy or make it again") from error


def read_json(path: Path) -> dict:
    """Read a JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:  # wrong encoding is one, too
        raise InputError(f"{path} is damaged (not JSON): copy or make it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged (not a JSON object): copy or make it again")
    return value
