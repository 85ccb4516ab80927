"""Cards of model folders: a README.md, shown by the hub, that says what the model is and how to use it.

Its text comes from templates in `cards/`: one for each kind of model, with a description from the file of the model's
name. Loading a model does not depend on its card, which may be edited or removed.
"""

import re
from collections.abc import Mapping
from importlib.resources import files
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from .errors import InputError
from .files import read_plain
from .limits import is_list_of
from .registry import BUILT_IN

CARD = "README.md"
OURS = b"library_name: codegrid\n"  # in the front matter of our cards, and of no other file
MAX_BYTES = 2**24  # of a card, and of its picture
MAX_CARD_PIXELS = 2**21  # of all images on it
FACTS = (  # of a training
    "steps", "step", "views", "shift", "flip", "tokenizer_fingerprint", "perceptual", "adversarial"
)  # fmt: skip
MAX_NAMES = 200  # of classes: a card is read by people
MAX_ROWS = 100  # of a table
MAX_LENGTH = 200  # characters of one value
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#.!|~$&:@])")
PLAIN = re.compile(r"[\w ,.:-]{1,100}", re.ASCII)  # texts that stand for themselves in commands and code
PROMPT = "what it should show"
MAX_PROMPTS = 10  # that a card names
BLANK = re.compile(r"\n{3,}")  # left by an empty part
PNG = b"\x89PNG\r\n\x1a\n"

TAGS = {
    "tokenizer": ["vq-vae", "image-tokenizer", "discrete-representation"],
    "prior": ["vq-vae", "discrete-representation", "generative-model"],
    "classifier": [],
}
TASKS = {"tokenizer": None, "prior": "unconditional-image-generation", "classifier": "image-classification"}
PICTURES = {"tokenizer": "reconstructions.png", "prior": "samples.png", "classifier": ""}  # the last has none
# built-in models that are used in another way than others of their kind
OWN_USE = {"codes": "tokenizer-of-codes", "wave": "tokenizer-of-sound"}
CAPTIONS = {
    "tokenizer": "Odd rows: held-out pictures. Below each: the same picture after encoding and decoding.",
    "tokenizer-of-sound": "Odd rows: spectrograms of held-out sound. Below each: those after encoding and decoding.",
    "prior": "New images: the first ones that this prior drew, with no setting changed.",
    "prior-of-sound": "Spectrograms of the first new sounds that this prior drew, with no setting changed.",
    "classifier": "",
}


class Abilities(NamedTuple):
    """Uses of a prior for which its card shows commands."""

    completes: bool = False  # keeps the upper rows of codes
    is_guided: bool = False  # by a label
    needs_label: bool = False  # for each completion
    has_texts: bool = False  # is asked in words
    has_both: bool = False  # is asked in words, for classes, and for both
    of_sound: bool = False  # draws sequences, which stand for sound


TRAINED = "It was trained with Codegrid."
IMPORTED = "It was trained with other software; its weights were imported into Codegrid."

ALONE = Abilities()  # nothing but samples


def abilities_of(model: Any) -> Abilities:
    """Return which uses the card of a prior shows; for a tokenizer, none."""
    if model.kind != "prior":
        return ALONE
    conditions, of_sound = model.conditions, len(model.layout[0].shape) == 1
    has_rows = not of_sound and model.layout[0 if model.keeps == "first" else -1].shape[0] > 1
    return Abilities(
        completes=model.keeps != "none" and has_rows,
        is_guided=conditions.unlabelled and "guidance_scale" in model.controls,
        needs_label=conditions.is_asked and not conditions.unlabelled,
        has_texts=conditions.num_words > 0,
        has_both=conditions.num_words > 0 and conditions.num_classes > 0,
        of_sound=of_sound,
    )


def render_card(fields: Mapping[str, Any], with_picture: bool, abilities: Abilities = ALONE) -> str:
    """Return the text of README.md for the fields of a `config.json`.

    Values from outside, such as the names of classes, are escaped: they appear as plain text, never as Markdown.
    """
    kind, model = fields["kind"], fields["model"]
    task = None if abilities.of_sound else "text-to-image" if abilities.has_texts else TASKS[kind]
    front = ModelCardData(library_name="codegrid", pipeline_tag=task, tags=[*TAGS[kind], model])
    words = _read_template(model) if model in BUILT_IN[kind] else f"{kind.capitalize()} {model}"
    title, _, about = words.partition("\n")
    caption = _caption(fields, abilities)
    text = Template(_read_template(OWN_USE.get(model, kind))).substitute(
        _use_of_prior(fields, abilities) if kind == "prior" else {},
        title=title.removeprefix("# "),
        about=about.strip(),
        origin=IMPORTED if "imported_from" in fields["provenance"] else TRAINED,
        picture=f"![{caption}{_shown(kind)}\n\n*{caption}*" if with_picture else "",
        settings=_table(fields["config"]),
        training="\n\n".join(_training(fields["provenance"])),
        fingerprint=fields["fingerprint"],
    )
    return f"---\n{front.to_yaml()}\n---\n\n" + BLANK.sub("\n\n", text)


def _caption(fields: Mapping[str, Any], abilities: Abilities) -> str:
    """Say what the picture of a model shows."""
    others, classes = _other_grids(fields), bool(fields["config"].get("num_classes"))
    prompts = fields["provenance"].get("prompts")
    if is_list_of(prompts, str) and prompts:
        return f"New images that this prior drew. A row for each of: {'; '.join(map(escape, prompts[:MAX_PROMPTS]))}."
    if not any(others.values()):
        use = "prior-of-sound" if abilities.of_sound else OWN_USE.get(fields["model"], "")
        caption = CAPTIONS.get(use, CAPTIONS[fields["kind"]])
        return caption + " A row for each of its first classes." * classes
    given = ", given the coarser grids of held-out pictures" * others["COARSE"]
    return f"The first codes that this prior drew{given}{', without the finer grids' * others['FINE']}, decoded."


def _other_grids(fields: Mapping[str, Any]) -> dict[str, bool]:
    """Return whether a prior's tokenizer has coarser and finer grids than the prior's; empty if that is unknown."""
    grids, layout = fields["config"].get("grids"), fields["provenance"].get("layout")
    if not (isinstance(grids, list) and isinstance(layout, list) and grids):
        return {}
    return {"COARSE": grids[0] > 0, "FINE": grids[-1] < len(layout) - 1}


def _use_of_prior(fields: Mapping[str, Any], abilities: Abilities) -> dict[str, str]:
    """Return commands and code that draw samples, with the priors of the tokenizer's other grids if it has any."""
    others, names = _other_grids(fields), []
    priors = [name for name in ("COARSE", "MODEL", "FINE") if others.get(name, name == "MODEL")]
    if len(priors) > 1:
        others_named = " and ".join(f"`{name}`" for name in priors if name != "MODEL")
        names.append(f"{others_named}: the priors of the tokenizer's other grids.")
    models = f"codegrid sample --tokenizer TOKENIZER --prior {' '.join(priors)}"
    prompts = fields["provenance"].get("prompts")
    known = prompts if isinstance(prompts, list) else []
    prompt = next((text for text in known if PLAIN.fullmatch(str(text))), PROMPT)
    asked = f'--prompts "{prompt}"' if abilities.has_texts else "--labels :0"
    commands = [f"{models}{f' {asked}' * abilities.has_texts} --output samples"]
    if abilities.is_guided:
        commands.append(f"{models} {asked}{' --labels :0' * abilities.has_both} --guidance-scale 2 --output guided")
        if abilities.has_both or not abilities.has_texts:
            names.append("`:0` is class number 0.")
    if abilities.completes:
        commands.append(f"{models} --complete PICTURES{f' {asked}' * abilities.needs_label} --output completed")
        names.append("`PICTURES` is a folder of pictures, whose upper halves are kept.")
    quoted = ", ".join(f'"{name}"' for name in priors)
    of_words = f'prompts="{prompt}", ' * abilities.has_texts
    call = f'pipeline(16, {of_words}output_type="pil")\nsamples.save("drawn")'
    made = {"made": "images", "extra": "", "call": call}
    if abilities.of_sound:
        made = {"made": "sound", "extra": "[sound]", "call": "pipeline(16)\nwaves = samples.images  # (16, 1, samples)"}
    return {**made, "commands": "\n".join(commands), "priors": f"[{quoted}]", "names": " ".join(names)}


def render_pipeline_card(parts: str) -> str:
    """Return the text of README.md for a folder that holds both stages, described by `parts`."""
    front = ModelCardData(library_name="codegrid", pipeline_tag=TASKS["prior"], tags=TAGS["prior"])
    return f"---\n{front.to_yaml()}\n---\n\n" + Template(_read_template("pipeline")).substitute(parts=parts)


def _read_template(name: str) -> str:
    return (files(__package__) / "cards" / f"{name}.md").read_text(encoding="utf-8")


def _training(provenance: Mapping[str, Any]) -> list[str]:
    """Return the sections that say what a model was trained on, and how well it did."""
    facts = {"data set": provenance["dataset"]} if "dataset" in provenance else {}
    if isinstance(places := provenance.get("places"), list):
        facts["places of the data"] = ", ".join(map(str, places[:MAX_NAMES]))
    facts |= {"imported from": provenance["imported_from"]} if "imported_from" in provenance else {}
    facts |= {name: provenance[name] for name in FACTS if name in provenance}
    parts = ["## Training", _table(facts)] if facts else []
    classes = provenance.get("classes")
    if isinstance(classes, list) and classes:
        names = ", ".join(escape(name) for name in classes[:MAX_NAMES])
        more = f" and {len(classes) - MAX_NAMES:,} more" if len(classes) > MAX_NAMES else ""
        parts.append(f"{len(classes):,} classes: {names}{more}")
    for title, name in (("On all held-out data", "metrics"), ("At the end of training", "history")):
        values = provenance.get(name)
        values = values[-1] if isinstance(values, list) and values else values
        if isinstance(values, dict):
            parts += [f"### {title}", _table(values)]
    return parts


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {escape(name)} | {escape(value)} |" for name, value in islice(values.items(), MAX_ROWS)]
    return "\n".join(["| | |", "|---|---|", *rows])


def escape(value: object) -> str:
    """Return a value as one line of Markdown that shows it literally."""
    if isinstance(value, int | float):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    text = _in_words(value)
    text = text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "…"
    in_one_line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return MARKDOWN.sub(r"\\\1", in_one_line)


def _in_words(value: object) -> str:
    """Return a value as text, without the brackets of nested dicts and lists."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_in_words(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ("; " if any(isinstance(item, dict) for item in value) else " ").join(map(_in_words, value))
    return str(value)


def write_card(staging: Path, folder: Path, text: str, picture: bytes = b"", kind: str = "") -> None:
    """Add a card and its picture to the files about to be moved into `folder`; keep a README.md that is not ours.

    Args:
        kind: that of the model, which decides the picture's file name.
    """
    if (folder / CARD).exists() and not _is_ours(_read(folder / CARD)):
        return
    (staging / CARD).write_text(text, encoding="utf-8")
    if picture:
        (staging / PICTURES[kind]).write_bytes(picture)


def _shown(kind: str) -> str:
    return f"]({PICTURES[kind]})"


def read_picture(folder: Path, kind: str) -> bytes:
    """Return the picture that the card of a tokenizer or prior in a folder shows; empty if there is none."""
    card = _read(folder / CARD)
    if not _is_ours(card) or _shown(kind).encode() not in card:
        return b""  # a picture in the folder may be another model's
    picture = _read(folder / PICTURES[kind])
    return picture if picture.startswith(PNG) else b""


def _is_ours(card: bytes) -> bool:
    """Return whether a file begins with front matter of ours."""
    front = card.replace(b"\r\n", b"\n").partition(b"\n---\n")[0]
    return front.startswith(b"---\n") and OURS in front + b"\n"


def _read(path: Path) -> bytes:
    """Return a file's bytes; empty if it cannot be read, is too long, or is a link.

    The target of a link would be uploaded with the card: in an untrusted folder, it could be any of the user's files.
    """
    try:
        return b"" if path.is_symlink() else read_plain(path, MAX_BYTES)
    except (InputError, OSError):
        return b""
