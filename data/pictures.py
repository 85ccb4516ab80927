"""Reading of picture files into upright 8-bit pixels. What Pillow would silently guess or drop is refused or reported.

Every format that the installed Pillow reads, with its plugins, is accepted, except for those that are not pictures.
"""

from __future__ import annotations

import io
import mmap
import re
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from codegrid.errors import InputError, reason_of

from .images import MAX_PIXELS, Size

# a global filter, not one around each call: pictures are decoded in threads
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# films, documents, tables of measurements; and formats for which Pillow starts another program
NO_PICTURES = {
    "BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG", "PDF", "SPIDER", "WMF", "XVTHUMB",
}  # fmt: skip
OF_OTHERS = {"MPO": "JPEG"}  # formats that another format's reader reads
FRAMED = {"MPO", "PSD"}  # their further frames are previews and layers, not separate pictures
# how many samples of a TIFF pixel are colours, by the tag PhotometricInterpretation
TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
PHOTOMETRIC, SAMPLES, EXTRA_SAMPLES, BITS = 262, 277, 338, 258
ALPHA = (1, 2, 999)  # of EXTRA_SAMPLES; the last one is Corel Draw's

SMALL = 2**16  # bytes of a file
MAX_SCANS = 100  # of a JPEG: an honest one has up to twenty, one made to stall its readers has thousands
END, SCAN = b"\xd9", b"\xda"
# a marker of a JPEG; in the data of a scan 255 is followed by 0, or by the number of a restart
MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")

DEEP = "with more than 8 bits (the upper 8 are kept)"
SEVERAL = "with several pages or frames (the first is read)"
TRANSPARENT = "with transparent parts (laid on white)"
INKS = "in CMYK (converted to RGB)"
LAB = "in LAB (converted to RGB)"


class Unreadable(InputError):
    """Error that a picture cannot be read, or not without guessing; the message names the picture."""


class Picture(NamedTuple):
    """A decoded picture."""

    image: Image.Image  # L or RGB, upright
    told: tuple[str, ...]  # notes on what was lost or converted, among the texts above


def formats() -> dict[str, bool]:
    """Return the formats that are read, by Pillow's names, and whether the first bytes of a file identify them."""
    _load_plugins()
    return {name: accept is not None for name, (_, accept) in Image.OPEN.items() if name not in NO_PICTURES}


def endings() -> dict[str, str]:
    """Return the endings of picture files, such as `.png`, and the format of each."""
    known = formats()
    named = {ending: OF_OTHERS.get(name, name) for ending, name in Image.registered_extensions().items()}
    return {ending: name for ending, name in sorted(named.items()) if name in known}


@cache
def _load_plugins() -> None:
    Image.init()
    with suppress(ImportError):  # optional
        import pillow_heif

        pillow_heif.register_heif_opener()


def open_picture(path: Any) -> Image.Image:
    """Read the header of a picture: a file, or anything with an `open()` that Pillow can read from.

    Raises `Unreadable` if that fails, or the picture is too large.
    """
    try:
        picture = _open_named(path) if isinstance(path, Path) else Image.open(path.open(), formats=_tried())
    except InputError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    if picture.width * picture.height > MAX_PIXELS:
        picture.close()
        words = f"at most {MAX_PIXELS:,} are read: make it smaller or remove it"
        raise Unreadable(f"{path} has {picture.height}×{picture.width} pixels, {words}")
    if _has_too_many_scans(picture):
        picture.close()
        raise Unreadable(f"{path} is a JPEG with more than {MAX_SCANS} scans: save it again or remove it")
    return picture


def _open_named(path: Path) -> Image.Image:
    """Open a file, trying first the format of its ending, which is nearly always right."""
    _load_plugins()
    of_name = Image.EXTENSION.get(path.suffix.lower())
    if of_name not in NO_PICTURES and Image.OPEN.get(str(of_name), (None, None))[1] is not None:
        with suppress(UnidentifiedImageError):
            return Image.open(_read_small(path) or path, formats=(str(of_name),))
    return Image.open(path, formats=_tried(of_name))


def _read_small(path: Path) -> io.BytesIO | None:
    """Return the bytes of a small file, from which Pillow's many small reads are faster; None for a large one."""
    with open(path, "rb") as file:
        content = file.read(SMALL + 1)
    return io.BytesIO(content) if len(content) <= SMALL else None


def _tried(of_name: str | None = None) -> list[str]:
    # a format without identifying first bytes would accept damaged files of other formats
    return [name for name, is_told in formats().items() if is_told or name == of_name]


def look_at(path: Any) -> tuple[bool, Size] | None:
    """Return whether a picture is grey, and its upright size (H, W); None if it is damaged."""
    try:
        with open_picture(path) as picture:
            on_its_side = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            size = (picture.width, picture.height) if on_its_side else (picture.height, picture.width)
            return picture.mode in ("1", "L", "I") or picture.mode.startswith("I;16"), size
    except Exception:  # damage raises many types of errors; it is reported when the picture is read
        return None


def read_picture(path: Any, channels: int, at_least: Size | None = None) -> Picture:
    """Decode a picture with 1 or 3 channels.

    Args:
        at_least: the needed (H, W): large JPEGs decode faster at a fraction of their size.

    Raises `Unreadable` if that is not possible without guessing.
    """
    with open_picture(path) as picture:
        try:
            told = _check_bands(path, picture)
            if at_least:
                picture.draft("RGB", (2 * at_least[1], 2 * at_least[0]))
            image, is_seen = flatten(path, picture)
            told += [TRANSPARENT] * is_seen
            return Picture(image.convert("L" if channels == 1 else "RGB"), tuple(told))
        except InputError:
            raise
        except Exception as error:  # a damaged picture raises many types of errors
            raise _damaged(path, error) from error


def flatten(path: Any, picture: Image.Image) -> tuple[Image.Image, bool]:
    """Return a picture upright, with 8 bits and without transparency, and whether white shows through it."""
    picture.load()  # first: some formats store the orientation after the pixels
    is_turned = picture.getexif().get(ExifTags.Base.Orientation, 1) != 1
    image = _as_8_bit(path, ImageOps.exif_transpose(picture) if is_turned else picture, picture.format)
    return _on_white(image) if image.has_transparency_data else (image, False)


def _check_bands(path: Any, picture: Image.Image) -> list[str]:
    """Return notes on what Pillow drops from a picture. Raises `Unreadable` if the meaning of its bands is unknown."""
    tags, extra = getattr(picture, "tag_v2", None) if picture.format == "TIFF" else None, 0
    coded = [tile[3] for tile in getattr(picture, "tile", ())]  # how the pixels are coded, in the reader's terms
    bits = 16 * (picture.mode.startswith(("I", "F")) or any(";16" in str(words) for words in coded))
    if tags is not None:
        bits = max(tags.get(BITS, (1,)))
        extra = tags.get(SAMPLES, 1) - TIFF_COLOURS.get(tags.get(PHOTOMETRIC), 1)
        alphas = [kind for kind in tags.get(EXTRA_SAMPLES, ()) if kind in ALPHA]
        extra -= bool(alphas)
    elif picture.format == "JPEG2000":  # Pillow treats a fourth band as alpha, whatever the file says
        extra = len(picture.getbands()) in (2, 4) and picture.mode != "CMYK"
    elif picture.format == "PPM":
        bits = max([bits, *(16 for words in coded if isinstance(words, tuple) and words[1] > 255)])
    if extra > 0:
        words = "and does not say that they are transparency (near infrared?): save it with 1 or 3 bands"
        raise Unreadable(f"{path} has more bands than colours, {words}")
    several = getattr(picture, "is_animated", False) and picture.format not in FRAMED
    inks, lab = (picture.mode == mode for mode in ("CMYK", "LAB"))
    return [DEEP] * (bits > 8) + [SEVERAL] * several + [INKS] * inks + [LAB] * lab


def _as_8_bit(path: Any, picture: Image.Image, file_format: str | None) -> Image.Image:
    """Scale 16-bit grey down to 8 bits: PIL's own conversion clips it, to white."""
    # PIL keeps the 16 bits of some formats in 32
    if picture.mode.startswith("I;16") or (picture.mode == "I" and file_format in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise Unreadable(f"{path} has values of 32 bits, whose range is unknown: save it with 8 or 16")
    return picture


def _on_white(picture: Image.Image) -> tuple[Image.Image, bool]:
    """Make transparent parts white, and return whether there are any: without alpha, most would be black."""
    picture = picture.convert("RGBA")
    is_seen = bool((np.asarray(picture.getchannel("A")) < 255).any())
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture), is_seen


def _damaged(path: Any, error: Exception) -> Unreadable:
    return Unreadable(f"{path} is not a readable picture ({reason_of(error)}): fix or remove it")


def _has_too_many_scans(picture: Image.Image) -> bool:
    """Return whether an open picture is a JPEG that would take hours to decode: each scan covers all of it."""
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
