"""Output streams that never end a run, whatever happens to the terminal that reads them."""

import errno
import io
import os
import sys
from typing import TextIO


def steady_streams() -> None:
    """Let this process print even if the reader is gone, the stream is closed, or its encoding lacks a character.

    Output that nobody can read is lost; a character that cannot be printed becomes a question mark. Streams that
    someone has replaced, such as those of a notebook, are left alone.
    """
    # a file opened later would otherwise get the number of a closed stream, and receive what is printed
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _steady(1, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _steady(2, sys.stderr)


def _steady(number: int, stream: TextIO | None) -> io.TextIOWrapper:
    if stream is not None:
        stream.flush()
    raw = _Lasting(number, "w", closefd=False)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="replace", line_buffering=True)


class _Lasting(io.FileIO):
    """A file that accepts writes even if its reader or its terminal is gone."""

    def write(self, content) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):  # a full disk must not go unnoticed
                raise
            return memoryview(content).nbytes
