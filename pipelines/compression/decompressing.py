"""A compressed file → images or codes: the body of `codegrid decompress`, and `decompress`, its Python function.

Shapes: n images, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from codegrid.budget import check_memory, machine_memory
from codegrid.codes import NO_LABEL
from codegrid.data.code_writer import shard_ranges, write_codes
from codegrid.data.codes import CodeBatch
from codegrid.data.image_files import file_names, names_of_labels, to_pictures
from codegrid.data.manifest import FILES, LABELS, MANIFEST
from codegrid.data.shards import Column
from codegrid.errors import InputError
from codegrid.files import SETTINGS_FILE, read_plain, write_folder
from codegrid.limits import BatchSize, check_value
from codegrid.locks import releasing
from codegrid.pipelines.decompress import Decompress
from codegrid.pipelines.generation.artifacts import load_artifacts
from codegrid.pipelines.generation.drawer import Drawer
from codegrid.pipelines.generation.encoding import make_header, tables_of
from codegrid.pipelines.generation.tokenizers import need_images
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.config import describe_settings
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.flags import name_of
from codegrid.pipelines.running.outputs import clear_output, visible
from codegrid.protocols import Prior, Tokenizer
from codegrid.stage2_prior.coding.streams import import_constriction
from codegrid.stage2_prior.conditions import conditions_of

from .packing import Content, unpack
from .predicting import predict

PICTURES = "pictures"  # the folder of the images
MAX_NAME = 200  # bytes of a part of a path, without the ending


def decompress(pipeline: Drawer, packed: bytes, batch_size: int | None = None, source: str = "these bytes") -> Content:
    """Turn what `compress` returned into images (c, H, W) uint8, codes, labels and names again.

    Args:
        pipeline: the same models.
        packed: the bytes, or those of a file that the command wrote.
        batch_size: images computed at once. None: as many as when they were compressed.
        source: what they are, for messages.

    Raises `InputError` if they are damaged, or were made with other models or on a machine of another kind.
    """
    check_value("batch_size", batch_size, BatchSize | None)
    content = unpack(packed, pipeline.tokenizer, pipeline.priors, source, batch_size)
    return content if content.images is not None else _with_images(content, pipeline.tokenizer, pipeline.priors)


def _with_images(content: Content, tokenizer: Tokenizer, priors: Sequence[Prior], batch_size: int = 256) -> Content:
    """Return content with the images that its codes stand for."""
    values = len(content.codes[0]) * torch.Size(tokenizer.signal.shape).numel()
    check_memory(f"{len(content.codes[0]):,} images", 2 * values, "use one with more memory")
    classes = conditions_of(priors).classes
    images = predict(tokenizer, content.codes, content.labels, classes, batch_size, None)
    return content._replace(images=images)


@releasing()
def decompress_file(settings: Decompress) -> None:
    """Write the images, or the codes, into `settings.output`; nothing is written unless all is right."""
    import_constriction()
    settings.check_output()
    output, path = Path(settings.output), Path(settings.file)
    if not path.is_file():
        raise InputError(f"`file` {path}: there is no such file: give one that `codegrid compress` wrote")
    if output.exists() and not output.is_dir():
        raise InputError(f"`output` {output} is a file: it must be a folder")
    if visible(output) and not settings.overwrite:
        raise InputError(f"`output` {output} already holds files: choose a new or empty one, or give `overwrite`")
    found = load_artifacts(choose_device(settings), settings.tokenizer, settings.prior)
    tokenizer, priors = found.tokenizer, found.priors
    assert tokenizer is not None
    if settings.format == "png":
        need_images(tokenizer, "`format` png shows")
    packed, is_png = read_plain(path, machine_memory()), settings.format == "png"
    content = unpack(packed, tokenizer, priors, str(path), settings.batch_size, is_png)
    is_exact = content.images is not None
    if is_png and not is_exact:
        content = _with_images(content, tokenizer, priors, settings.batch_size or 256)
    if visible(output):
        clear_output(output, settings)
    classes = conditions_of(priors).classes
    with write_folder(output, index=SETTINGS_FILE if is_png else MANIFEST) as staging:
        text = describe_settings(settings, name_of(type(settings)), output)
        (staging / SETTINGS_FILE).write_text(text, encoding="utf-8")
        if is_png:
            _write_pictures(staging / PICTURES, content, classes)
        else:
            _write_codes(staging, content, tokenizer, list(classes))
    exact = ", bit for bit" if is_png and is_exact else ""
    print_once(f"{output}: {len(content.codes[0]):,} {tokenizer.signal.item}s as {settings.format}{exact}")


def _write_pictures(folder: Path, content: Content, classes: Sequence[str]) -> None:
    assert content.images is not None
    names = picture_names(content, classes)
    for name, image in zip(names, content.images, strict=True):
        place, (picture,) = folder / name, to_pictures(image[None])
        place.parent.mkdir(parents=True, exist_ok=True)
        picture.save(place, "PNG")


def picture_names(content: Content, classes: Sequence[str]) -> list[str]:
    """Return a path for each image, different for all: that of its file with the ending .png, or number and class."""
    count = len(content.codes[0])
    if content.names is None:
        labels = None if content.labels is None else content.labels.tolist()
        of_labels = names_of_labels(labels, classes, count)
        return file_names(range(count), count, lambda rows: of_labels[rows.start : rows.stop], ".png")
    plain = [PurePosixPath(_safe(name)) for name in content.names]
    renamed = [str(name.with_suffix(".png")) for name in plain]
    folders = {str(parent).casefold() for name in plain for parent in name.parents}
    taken = Counter(folders) + Counter(name.casefold() for name in renamed)
    chosen = []
    for old, new in zip(plain, renamed, strict=True):
        if taken[new.casefold()] > 1:  # x.jpg beside x.png, or X.png, as not every disk tells them apart
            others = (
                str(old.with_name(f"{old.name}{f'-{number}' * (number > 0)}.png")) for number in itertools.count()
            )
            new = next(other for other in others if not taken[other.casefold()])
            taken[new.casefold()] = 1
        chosen.append(new)
    return chosen


def _safe(name: str) -> str:
    """Return an untrusted path that leads nowhere but below the folder that it is used in."""
    kept = "".join(letter if letter.isprintable() and letter not in ":\\" else "_" for letter in name)
    parts = (part.encode()[-MAX_NAME:].decode(errors="ignore") for part in kept.split("/") if part.strip(". "))
    return "/".join(parts) or "picture"


def _write_codes(folder: Path, content: Content, tokenizer: Tokenizer, classes: list[str]) -> None:
    count = len(content.codes[0])
    known = classes if content.labels is not None else []
    strangers = 0 if content.labels is None else int((content.labels == NO_LABEL).sum())
    if strangers:  # a code dataset has a label for each image, or none
        print_once(f"{strangers:,} images are of no class that the prior learnt: the labels are left out")
        known = []
    header = make_header(tokenizer, count, known, "all", "", content.names is not None)

    def batch_of(rows: range) -> CodeBatch:
        here = slice(rows.start, rows.stop)
        columns: dict[str, Column] = {}
        if known and content.labels is not None:
            columns[LABELS] = content.labels[here]
        if content.names is not None:
            columns[FILES] = content.names[here]
        return CodeBatch(tuple(grid[here] for grid in content.codes), columns)

    ranges = shard_ranges(count)
    write_codes(folder, header, ranges, map(batch_of, ranges), {"decompressed": True}, tables_of(tokenizer))
