"""Tar shards, on this machine or behind URLs: their indices and their bytes.

A remote shard is fetched whole and kept in a cache folder while there is room: at most half of the disk's free space.
The least recently used shard is removed first. All processes of a machine share the folder.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from codegrid.errors import InputError, reason_of
from codegrid.files import STAGING, as_stamp, open_plain, user_cache, write_folder, write_json
from codegrid.tensors import read_json, sha256

from .tar_index import TarIndex, index_of_json, index_tar
from .tar_places import is_remote, shard_name

FORMAT = "codegrid shard 3"
SHARD, INDEX, LOCK = "shard.tar", "index.json", ".lock"
TRIES, PAUSE = 5, 1.0  # of a download, and seconds before the second, doubled before each further one
TIMEOUT = 60  # seconds without a byte
AGAIN = (408, 425, 429)  # HTTP statuses besides 5xx that are worth another try
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
BLOCK = 2**20  # bytes
ABANDONED = 3600  # seconds without a new byte in a file that is being fetched
Stamp = list[Any]  # bytes, and the stamp of a local file or the SHA-256 of a fetched one


def cache_folder() -> Path:
    """Return the folder for fetched shards and for indices."""
    return user_cache() / "shards"


def cache_room() -> int:
    """Return the bytes that fetched shards may take together: half the sum of what they take now and what is free."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    whole = sum(size for _, size, path in _fetched() if path.parent.name != STAGING)
    return (shutil.disk_usage(folder).free + whole) // 2


def _stamp_of(found: os.stat_result) -> Stamp:
    return [found.st_size, *as_stamp(found)]


class Shard:
    """A tar file.

    Args:
        place: its path or URL.

    Its `index` is made when first needed, and kept in the cache folder.
    """

    def __init__(self, place: str) -> None:
        self.place, self.name, self.is_remote = place, shard_name(place), is_remote(place)
        whole = place if self.is_remote else os.path.abspath(place)
        self.folder = cache_folder() / sha256(os.fsencode(whole))[:32]
        self.path = self.folder / SHARD if self.is_remote else Path(place)
        self.stamp: Stamp = []

    def __str__(self) -> str:
        return self.place

    def index(self) -> TarIndex:
        """Return the index of the shard. Raises `InputError` if it cannot be read."""
        if self.is_remote:
            return self._read_index() or self._fetch_index()
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise InputError(f"{self} cannot be read ({reason_of(error)}): fix it or leave it out") from error
        self.stamp = _stamp_of(found)
        return self._read_index() or self._make_index()

    def open(self) -> BinaryIO:
        """Open the shard, fetching it if needed. Raises `InputError` if it has changed since it was indexed."""
        for _ in range(TRIES):
            if self.is_remote and not self.path.exists():
                self.fetch()
            try:
                file = open_plain(self.path)
            except FileNotFoundError:
                if self.is_remote:
                    continue  # another process has just removed it to make room
                raise InputError(f"{self} is gone: put it back") from None
            found = os.fstat(file.fileno())
            if found.st_size != self.stamp[0] or not (self.is_remote or _stamp_of(found) == self.stamp):
                file.close()
                raise self._changed()
            if self.is_remote:
                with suppress(OSError):
                    os.utime(self.path)  # mark it as used: others are removed first
            return file
        raise self._no_room()

    def fetch(self) -> None:
        """Fetch a remote shard unless it is here; other processes wait for the one that fetches it."""
        with self._alone():
            if not self.path.exists():
                self._fetch()

    def _fetch(self) -> None:
        with write_folder(self.folder) as staging:
            found = self._download(staging / SHARD)
            if self.stamp and found != self.stamp:
                with suppress(OSError):
                    (self.folder / INDEX).unlink()
                raise self._changed()
        self.stamp = found

    def _changed(self) -> InputError:
        return InputError(f"{self} was changed after its index was made: start again with another `output`")

    def _no_room(self) -> InputError:
        return InputError(f"{self} was removed from {cache_folder()} again and again: make room on that disk")

    def _read_index(self) -> TarIndex | None:
        try:
            found = read_json(self.folder / INDEX)
            if found["format"] != FORMAT or (self.stamp and found["stamp"] != self.stamp):
                return None
            index = index_of_json(found)
            self.stamp = [int(found["stamp"][0]), *found["stamp"][1:]]
            return index
        except (OSError, ValueError, TypeError, KeyError, IndexError):  # the index is made again
            return None

    def _fetch_index(self) -> TarIndex:
        for _ in range(TRIES):
            with suppress(FileNotFoundError), self._alone():
                index = self._read_index()  # another process may have made it meanwhile
                if index is None:
                    self._fetch()
                    index = self._make_index()
                return index
        raise self._no_room()

    def _make_index(self) -> TarIndex:
        index = index_tar(self.path)
        with suppress(OSError), write_folder(self.folder, index=INDEX) as staging:  # without room it is made each time
            write_json(staging / INDEX, {"format": FORMAT, "stamp": self.stamp, **index.as_json()})
        return index

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads and processes out of this shard's folder."""
        import filelock  # comes with torch

        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(self.folder / LOCK):
            yield

    def _download(self, target: Path) -> Stamp:
        """Download the shard, trying again if that may help, and return its stamp."""
        reason = ""
        for number in range(TRIES):
            time.sleep(PAUSE * 2 ** (number - 1) if number else 0)
            try:
                return self._download_once(target)
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {error.reason}"
                if error.code < 500 and error.code not in AGAIN:
                    break
            except InputError:
                raise
            except ValueError as error:  # not a valid URL
                reason = reason_of(error)
                break
            except (OSError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) in FULL:
                    raise
                reason = reason_of(getattr(error, "reason", error))
        tried = f", tried {number + 1} times" * bool(number)
        raise InputError(f"cannot fetch {self} ({reason}{tried}): check the address and the network")

    def _download_once(self, target: Path) -> Stamp:
        request = urllib.request.Request(self.place, headers={"User-Agent": "codegrid", "Accept-Encoding": "identity"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, target.open("wb") as file:
            length = answer.headers.get("Content-Length", "")
            if not length.isdecimal():
                words = "the server does not say how long it is"
                raise InputError(f"cannot fetch {self} ({words}): fetch it by hand, and give its path")
            file.truncate(int(length))  # now, so that it counts when other processes make room
            make_room(int(length), str(self))
            done, digest = 0, hashlib.sha256()
            while block := answer.read(min(BLOCK, int(length) - done)):
                file.write(block)
                digest.update(block)
                done += len(block)
            if done < int(length):
                raise ConnectionError(f"it ended after {done:,} of {int(length):,} bytes")
            return [done, digest.hexdigest()]  # a digest: servers' ETags differ between mirrors


def make_room(needed: int, name: str) -> None:
    """Remove fetched shards until there is room for all, including those being fetched now.

    Raises `InputError` if there is no room even for this one, of `needed` bytes.
    """
    room, fetched = cache_room(), sorted(_fetched())
    if needed > room:
        where = f"fetched shards may take {room:,} in {cache_folder()}, half of what is free"
        raise InputError(f"{name} has {needed:,} bytes, but {where}: make room, or set XDG_CACHE_HOME to another disk")
    taken = sum(size for _, size, _ in fetched)
    for used, size, path in fetched:
        if taken <= room:
            break
        if path.parent.name != STAGING or time.time() - used > ABANDONED:
            with suppress(OSError):
                path.unlink()
            taken -= size


def _fetched() -> list[tuple[float, int, Path]]:
    """Return when each fetched shard was last used, its bytes and its path."""
    found = []
    folder = cache_folder()
    # unfinished ones, too, and first: one that another process finishes meanwhile is found in its new place
    for pattern in (f"*/{STAGING}/{SHARD}", f"*/{SHARD}"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
    return found
