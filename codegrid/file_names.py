"""Untrusted names of files and folders: how they are printed and sorted."""

import re
import unicodedata

UNWRITABLE = {"Cc", "Cs", "Zl", "Zp"}  # control characters, bytes that are not text, ends of lines and paragraphs
TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # change the direction of text
NUMBER = re.compile("([0-9]+)")


def printable(name: object) -> str:
    r"""Return a name as text that every file and terminal accepts; different names stay different.

    A byte that is not UTF-8 becomes `\xe9`, a control character its Python escape, and a backslash is doubled.

    >>> printable(b"caf\xe9".decode(errors="surrogateescape"))
    'caf\\xe9'
    """
    text = str(name)
    if text.isascii() and text.isprintable() and "\\" not in text:  # nearly all are
        return text
    return "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python keeps a byte of a file name that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if letter == "\\":
        return "\\\\"
    if letter < "\x7f" and letter.isprintable():
        return letter
    if unicodedata.category(letter) not in UNWRITABLE and not TURNING.match(letter):
        return letter
    # not \x80 ... \xff, which are bytes
    return letter.encode("unicode_escape").decode() if letter < "\x80" else f"\\u{ord(letter):04x}"


def natural_key(name: str) -> tuple[tuple[str | tuple[int, str], ...], str]:
    """Return a sort key that puts 2 before 10; different names have different keys."""
    parts = NUMBER.split(name)  # alternating texts and numbers
    return tuple(_size_of(part) if place % 2 else part for place, part in enumerate(parts)), name


def _size_of(digits: str) -> tuple[int, str]:
    """Return a sort key of a number of any length; Python turns no more than some thousand digits into an int."""
    digits = digits.lstrip("0")
    return len(digits), digits
