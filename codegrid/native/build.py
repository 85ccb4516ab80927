"""Native libraries: compiled on the machine where they run, when they are first used, and kept for this user.

A file's name holds two digests. The first covers the sources, the flags, and what the compiler reports about itself and
the processor: a home folder that different machines share holds a library for each kind. The second covers the file's
own content, so that a damaged library is found before it is loaded, and compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from codegrid.errors import InputError, reason_of
from codegrid.files import user_cache

HEADERS = Path(__file__).parent  # that all libraries may include
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300  # that a compiler may take
# the compiler's flag for "this very processor"
THIS_PROCESSOR = "-march=native" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "-mcpu=native"
FLAGS = ("-O2", "-std=c++17", "-ffp-contract=fast", "-fvisibility=hidden", "-shared", "-fPIC")


class Library(NamedTuple):
    """A native library of one stage."""

    source: Path  # its C++ file, which may include headers beside it and those of this folder
    declare: Callable[[ctypes.CDLL], ctypes.CDLL]  # sets the argument types of its functions, and returns it
    flags: tuple[str, ...] = ()  # that follow those of all libraries


def load_library(library: Library, *flags: str) -> ctypes.CDLL:
    """Return a library compiled for this processor, or with other flags instead.

    Raises `InputError`, saying why, if it cannot be compiled or loaded.
    """
    if sys.platform == "win32":
        raise InputError("native code needs GCC or Clang, which Codegrid does not look for on Windows")
    try:
        path = _find_or_compile(library.source, (*FLAGS, *library.flags, *(flags or (THIS_PROCESSOR,))))
        return library.declare(ctypes.CDLL(str(path)))
    except OSError as error:  # the disk's, or the loader's
        raise InputError(f"native code cannot be kept or loaded ({reason_of(error)})") from error


@cache
def library_or_reason(library: Library) -> ctypes.CDLL | str:
    """Return a library for this processor, or the reason why there is none; the answer is cached."""
    try:
        return load_library(library)
    except InputError as error:
        return str(error)


def cache_folder() -> Path:
    """Return this user's folder for compiled libraries, created if missing, which nobody else can write into.

    Raises `InputError` if there can be no such folder.
    """
    try:
        folder = user_cache()
    except RuntimeError as error:
        raise InputError(f"there is no home folder to keep native code in ({reason_of(error)})") from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # raises the error that kept it from being created
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{folder} is not a folder: remove it, or set XDG_CACHE_HOME to another place")
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InputError(f"others can write into {folder}: remove it, or set XDG_CACHE_HOME to a place of your own")
    return folder


def _find_or_compile(source: Path, flags: tuple[str, ...]) -> Path:
    compiler = _find_compiler()
    folder = cache_folder()
    key = _digest_of_all(source, compiler, flags)
    for path in folder.glob(f"{key}-*.so"):
        if _is_whole(path):
            return path
        with suppress(OSError):  # someone else has removed it
            path.unlink()
    descriptor, aside = tempfile.mkstemp(".so", ".", folder)
    os.close(descriptor)
    try:
        run_compiler([*compiler, *flags, "-I", str(HEADERS), "-o", aside, str(source)])
        path = folder / f"{key}-{_digest(Path(aside).read_bytes())}.so"
        os.replace(aside, path)
    finally:
        Path(aside).unlink(missing_ok=True)
    return path


def _find_compiler() -> list[str]:
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        words = shlex.split(name)
        if words and shutil.which(words[0]):
            return words
    raise InputError("native code needs a C++ compiler: install one, g++ for example")


def _digest_of_all(source: Path, compiler: list[str], flags: tuple[str, ...]) -> str:
    """Return a digest of everything that a library depends on."""
    # predefined macros: they show the compiler's version, and each instruction set that it would use here
    macros = run_compiler([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])
    headers = [path for folder in (source.parent, HEADERS) for path in sorted(folder.glob("*.h"))]
    sources = [path.read_bytes() for path in (source, *headers)]
    return _digest(b"\0".join([*sources, *map(str.encode, flags), macros]))


def _is_whole(path: Path) -> bool:
    """Return whether a library is one that we compiled, and unchanged since."""
    with suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid():
            return path.stem.rpartition("-")[2] == _digest(path.read_bytes())
    return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def run_compiler(command: list[str]) -> bytes:
    """Return what a compiler prints. Raises `InputError`, with its first error message, if it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"native code was not compiled: {command[0]} takes more than {SECONDS} s") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        complaint = next((line for line in lines if "error" in line.lower()), f"exit code {done.returncode}")
        raise InputError(f"native code was not compiled: {command[0]} fails ({complaint.strip()[:200]})")
    return done.stdout
