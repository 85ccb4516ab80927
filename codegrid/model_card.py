"""The card of a model folder: a README.md that says what the model is and how it is used, as the hub shows it.

Nothing that loads a model depends on it: it may be edited or removed.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

CARD = "README.md"
PICTURE = "reconstructions.png"
FRONT = "---\nlibrary_name: codegrid\n"  # how our cards begin, and no other file does
SHOWN = f"]({PICTURE})"
LARGEST_CARD = LARGEST_PICTURE = 2**24  # bytes
MOST_NAMES = 200  # of classes: a card is read by people
MOST_ROWS = 100  # of a table
LONGEST = 200  # characters of one value
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#.!|~$&:@])")
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Card:
    """What is said of every model of a kind. `usage` is Markdown; `{height}` and `{width}` stand for the code grid."""

    title: str
    what: str
    tags: tuple[str, ...]
    usage: str
    pipeline_tag: str = ""


def render_card(card: Card, config: dict, provenance: dict, fingerprint: str, with_picture: bool) -> str:
    """The text of README.md. What comes from outside, such as names of classes, is shown as it is and never obeyed."""
    front = [f"{FRONT}tags:", *(f"- {tag}" for tag in card.tags)]
    front += [f"pipeline_tag: {card.pipeline_tag}"] if card.pipeline_tag else []
    parts = ["\n".join([*front, "---"]), f"# {card.title}", card.what]
    if with_picture:
        parts.append(f"![Pictures, and below each row its reconstructions{SHOWN}\n\n*Odd rows: pictures that were held "
                     "out. Below each: what is left of it after encoding and decoding.*")  # fmt: skip
    grid = provenance.get("grid_shape")
    known = isinstance(grid, list) and len(grid) == 2 and all(type(side) is int for side in grid)
    height, width = grid if known else ("HEIGHT", "WIDTH")
    parts += ["## Use", card.usage.replace("{height}", str(height)).replace("{width}", str(width))]
    parts += ["## Settings", _table(config), *_training(provenance)]
    parts.append(f"Fingerprint: `{fingerprint}`")
    return "\n\n".join(parts) + "\n"


def _training(provenance: dict) -> list[str]:
    """Sections on what a model was trained on, and how well it did."""
    facts = {"data set": provenance["dataset"]} if "dataset" in provenance else {}
    facts |= {name: provenance[name] for name in ("steps", "step", "tokenizer_fingerprint") if name in provenance}
    parts = ["## Training", _table(facts)] if facts else []
    classes = provenance.get("classes")
    if isinstance(classes, list) and classes:
        names = ", ".join(escape(name) for name in classes[:MOST_NAMES])
        more = f" and {len(classes) - MOST_NAMES:,} more" if len(classes) > MOST_NAMES else ""
        parts.append(f"{len(classes):,} classes: {names}{more}")
    if isinstance(provenance.get("figures"), dict):
        parts += ["### On all held-out data", _table(provenance["figures"])]
    history = provenance.get("history")
    if isinstance(history, list) and history and isinstance(history[-1], dict):
        parts += ["### At the end of training", _table(history[-1])]
    return parts


def _table(values: Mapping) -> str:
    rows = [f"| {escape(name)} | {escape(value)} |" for name, value in islice(values.items(), MOST_ROWS)]
    return "\n".join(["| | |", "|---|---|", *rows])


def escape(value: object) -> str:
    """A value as one line of Markdown that shows it and does nothing else."""
    if isinstance(value, int | float):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    text = str(value)
    text = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    in_one_line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return MARKDOWN.sub(r"\\\1", in_one_line)


def write_card(staging: Path, folder: Path, text: str, picture: bytes) -> None:
    """Add card and picture to the files that are about to be moved into `folder`; a README.md not ours is kept."""
    if (folder / CARD).exists() and not _read(folder / CARD, LARGEST_CARD).startswith(FRONT.encode()):
        return
    (staging / CARD).write_text(text, encoding="utf-8")
    if picture:
        (staging / PICTURE).write_bytes(picture)


def read_picture(folder: Path) -> bytes:
    """The picture that the card in a folder shows; empty where there is none."""
    card = _read(folder / CARD, LARGEST_CARD)
    if not card.startswith(FRONT.encode()) or SHOWN.encode() not in card:
        return b""  # one that lies there may be another model's
    picture = _read(folder / PICTURE, LARGEST_PICTURE)
    return picture if picture.startswith(PNG) else b""


def _read(path: Path, at_most: int) -> bytes:
    """A file's bytes; empty where it cannot be read or is too long."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return b""
        with path.open("rb") as file:
            content = file.read(at_most + 1)
    except OSError:
        return b""
    return content if len(content) <= at_most else b""
