"""Drawing arbitrary names: with letters that the font has, in the room that there is."""

import unicodedata
from bisect import bisect_left, bisect_right
from functools import cache
from importlib.metadata import distribution

from PIL import ImageFont

FONT = "matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf"  # the font of figures; Pillow's own has only Latin letters
BOX = "□"  # in place of a letter that the font lacks
NO_LETTER = "\U0010ffff"
MAX_LETTERS = 200
BREAKS = " _-/.,:"  # if a name must be cut, it is cut after one of these


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font in a size in pixels."""
    try:
        return ImageFont.truetype(str(distribution("matplotlib").locate_file(FONT)), size)
    except OSError:  # a system's own matplotlib keeps it elsewhere
        return ImageFont.load_default(size)


def drawable(name: str, number: int | None = None) -> str:
    """Return a name as one line that can be drawn, shortened in the middle if it is very long.

    Args:
        name: any text.
        number: the class's number, put in front if the drawn name alone could be confused with others.

    >>> drawable("two\\nlines"), drawable("犬", 3)
    ('two lines', '3: □')
    """
    kept = (letter for letter in " ".join(name.split()) if unicodedata.category(letter) != "Cf")
    text = shorten("".join(letter if _has(letter) else BOX for letter in kept), MAX_LETTERS)
    if number is None or (text.strip() and BOX not in text):
        return text
    return f"{number}: {text}" if text.strip() else str(number)


def in_figures(name: str, most: int, number: int | None = None) -> str:
    """Return a name for matplotlib, of at most `most` letters, with dollars escaped so that they start no formula."""
    return shorten(drawable(name, number), most).replace("$", r"\$")


def shorten(text: str, most: int) -> str:
    """Shorten a text to at most `most` letters. The middle is left out, since names differ at their ends."""
    return text if len(text) <= most else f"{text[: most - most // 2]}…{text[len(text) - most // 2 + 1 :]}"


def fit(text: str, size: int, width: float) -> list[str]:
    """Return a text in one or two lines of up to `width` pixels; if it is too long, its middle is left out."""
    font = load_font(size)
    if font.getlength(text) <= width:
        return [text]
    cut = max(1, bisect_right(range(len(text) + 1), width, key=lambda count: font.getlength(text[:count])) - 1)
    at_break = 1 + max(text.rfind(letter, 0, cut) for letter in BREAKS)
    if at_break > cut // 2:
        cut = at_break
    first, rest = text[:cut].rstrip(), text[cut:].lstrip()
    if font.getlength(rest) > width:
        start = bisect_left(range(len(rest)), -width, key=lambda start: -font.getlength("…" + rest[start:]))
        rest = "…" + rest[start:]
    return [line for line in (first, rest) if line]


@cache
def _has(letter: str) -> bool:
    """Whether the font has a letter."""
    return letter == " " or (letter.isprintable() and _shape(letter) != _shape(NO_LETTER))


def _shape(letter: str) -> tuple[tuple[int, int], bytes]:
    mask = load_font(16).getmask(letter)
    return mask.size, bytes(mask)
