"""Standard output and errors that end no run, whatever becomes of the terminal that reads them."""

import errno
import io
import os
import sys
from typing import TextIO


def steady_streams() -> None:
    """Let this process print on where the reader is gone, the stream is closed, or its encoding lacks a letter.

    What nobody can read is lost; a letter that cannot be printed is a question mark. Streams that someone has put in
    the place of the usual ones, a notebook for example, stay as they are.
    """
    # a file that is opened later would otherwise get the number of a closed stream, and what is printed into it
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
    """A file that takes what it is given, also where its reader or its terminal is gone."""

    def write(self, content) -> int:  # type: ignore[no-untyped-def]  # noqa: ANN001
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):  # on a full disk something may be missed
                raise
            return memoryview(content).nbytes
