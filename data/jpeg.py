"""How often a JPEG goes over its pixels: an honest one in up to twenty scans, one that is to stall in thousands."""

import io
import mmap
import re
from typing import Any

from PIL import Image

MAX_SCANS = 100
END, SCAN = b"\xd9", b"\xda"
# a marker; in the data of a scan 255 is followed by 0, or by the number of a restart
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def has_too_many_scans(picture: Image.Image) -> bool:
    """Whether an open picture is a JPEG whose decoding would take hours: each scan goes over all of it."""
    file: Any = getattr(picture, "fp", None)
    if picture.format not in ("JPEG", "MPO"):
        return False
    in_memory = isinstance(file, io.BytesIO)
    with file.getbuffer() if in_memory else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        scans, place = 0, 2
        while scans <= MAX_SCANS and (marker := MARKER.search(content, place)) and marker[1] != END:
            scans += marker[1] == SCAN
            place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return scans > MAX_SCANS
