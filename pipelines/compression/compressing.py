"""Images or exported codes → a compressed file: the body of `codegrid compress`, and `compress`, its Python function.

Shapes: n images, b batch, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegrid.codes import NO_LABEL, describe_layout
from codegrid.data.arrays import holds_floats
from codegrid.data.code_files import files_of, open_codes
from codegrid.data.conversion import as_images
from codegrid.data.folder import FolderImages
from codegrid.data.images import to_float
from codegrid.data.loading import in_order, load_batches
from codegrid.data.names import find_data
from codegrid.data.pictures import DEEP, INKS, LAB, SEVERAL, TRANSPARENT, Unreadable, look_at, read_picture
from codegrid.data.sources import find_images
from codegrid.errors import InputError
from codegrid.files import open_plain, write_file
from codegrid.limits import BatchSize, check_name, check_value, is_list_of
from codegrid.locks import real_path
from codegrid.pipelines.compress import Compress
from codegrid.pipelines.generation.artifacts import load_artifacts, load_images_for
from codegrid.pipelines.generation.chosen_data import choose_data
from codegrid.pipelines.generation.drawer import Drawer
from codegrid.pipelines.generation.samples import Images as Given
from codegrid.pipelines.generation.tokenizers import encode_batches
from codegrid.pipelines.running.cli import print_once, print_plan
from codegrid.pipelines.running.device import choose_device
from codegrid.progress import progress_bar
from codegrid.protocols import Prior, Tokenizer
from codegrid.stage2_prior.coding.coding import BACKENDS, choose_coding
from codegrid.stage2_prior.coding.streams import import_constriction
from codegrid.stage2_prior.conditions import conditions_of
from codegrid.stage2_prior.written import Labels, as_list, check_count

from .container import MAGIC, split
from .packing import Content, pack

LOST = (DEEP, INKS, LAB, SEVERAL, TRANSPARENT)  # notes on pictures that reading changes


def compress(
    pipeline: Drawer,
    images: Given,
    labels: Labels | None = None,
    names: Sequence[str] | None = None,
    lossless: bool = False,
    backend: str = "auto",
    batch_size: int = 256,
) -> bytes:
    """Compress images with a tokenizer and its priors; `decompress` turns the bytes into images again.

    Args:
        pipeline: as `TwoStagePipeline.from_pretrained` returns it.
        images: (n, c, H, W) uint8, or anything else that `codegrid.as_images` accepts.
        labels: (n,) numbers or names of classes, or one for all, for priors that learnt some; None: none in particular.
        names: (n) of the images' files, to be kept.
        lossless: keep everything, so that the images come back bit for bit.
        backend: native (the same bits on every machine), torch or plain; auto: native if the priors have it.
        batch_size: images computed at once.

    Raises `InputError` if a prior cannot drive a coder, or the images do not fit the tokenizer.
    """
    check_value("batch_size", batch_size, BatchSize)
    check_name("backend", backend, BACKENDS)
    tokenizer = pipeline.tokenizer
    given = images.cpu() if isinstance(images, torch.Tensor) and images.dtype == torch.uint8 else None
    if given is None and lossless:
        raise InputError("`lossless` needs `images` as a tensor (n, c, H, W) uint8: give one")
    floats = (
        to_float(given) if given is not None else as_images(images, tokenizer.signal.size, tokenizer.signal.channels)
    )
    if tuple(floats.shape[1:]) != tokenizer.signal.shape:
        raise InputError(
            f"`images` of shape {tuple(floats.shape)}: this tokenizer takes (n, *{tokenizer.signal.shape})"
        )
    if not len(floats):
        raise InputError("`images`: there are none")
    if names is not None and (len(names) != len(floats) or not is_list_of(list(names), str)):
        raise InputError(f"`names`: {len(names)} for {len(floats)} images: give a text for each")
    own, known = None, conditions_of(pipeline.priors)
    if labels is not None and known.num_classes:
        check_count("labels", len(as_list(labels)), len(floats), "images")
        own = known.resolve(labels, len(floats), "images").labels
    codes = encode_batches(tokenizer, floats.split(batch_size))
    content = Content(codes, own, None if names is None else list(names), given if lossless else None)
    return pack(tokenizer, pipeline.priors, content, backend, batch_size)


def compress_data(settings: Compress) -> None:
    """Write the compressed file `settings.output`."""
    import_constriction()  # now, not after everything is encoded
    settings.check_output()
    output = Path(settings.output)
    _check_place(output, settings.overwrite)
    found = load_artifacts(choose_device(settings), settings.tokenizer, settings.prior)
    tokenizer, priors = found.tokenizer, found.priors
    assert tokenizer is not None
    backend = choose_coding(priors, settings.backend)
    content = _read(settings, tokenizer, priors)
    count, items = len(content.codes[0]) if content.codes else 0, f"{tokenizer.signal.item}s"
    if settings.dry_run:
        return print_plan(f"{count or 'all'} {items} as {describe_layout(tokenizer.layout)} to compress by {backend}")
    packed = pack(tokenizer, priors, content, backend, settings.batch_size)
    write_file(real_path(output), packed)
    where = "on this kind of machine only" if split(packed, str(output)).header.machine else "on every machine"
    print_once(
        f"{output}: {count:,} {items} in {len(packed):,} bytes, {len(packed) / count:,.1f} each; it can be "
        f"decompressed {where}"
    )


def _check_place(output: Path, overwrite: bool) -> None:
    """Raise `InputError` if a compressed file cannot be written there, or would replace anything but another one."""
    if output.is_dir():
        raise InputError(f"`output` {output} is a folder: give the name of a file")
    if not output.exists():
        return
    with open_plain(output) as file:
        if file.read(len(MAGIC)) != MAGIC:
            words = "is there, and no file that compress wrote, and `overwrite` replaces no other"
            raise InputError(f"`output` {output} {words}: choose another name")
    if not overwrite:
        raise InputError(f"`output` {output} is already there: choose another name, or give `overwrite`")


def _read(settings: Compress, tokenizer: Tokenizer, priors: Sequence[Prior]) -> Content:
    """Return the codes to compress: those of `settings.codes`, or of the images of the data set."""
    if settings.codes is not None:
        exported = open_codes(settings.codes, tokenizer)
        batch = exported.batch(range(len(exported)))
        return Content(
            batch.codes,
            _labels_for(priors, batch.labels, getattr(exported, "classes", [])),
            files_of(exported, range(len(exported))),
        )
    settings = choose_data(settings, tokenizer)
    place = str(settings.dataset), settings.data_root, settings.split
    images = load_images_for(tokenizer, *place, settings.skip_unreadable)
    print_once(str(images.found))
    originals = _read_originals(settings, tokenizer, images) if settings.lossless else None
    if settings.dry_run:
        return Content(())
    loads = in_order(len(images), settings.batch_size)
    batches = progress_bar(load_batches(images, loads, settings.num_workers), "encoding", len(loads))
    codes = encode_batches(tokenizer, (to_float(batch.images) for batch in batches))
    return Content(codes, _labels_for(priors, images.labels, images.classes), images.files, originals)


def _read_originals(settings: Compress, tokenizer: Tokenizer, images: Any) -> Sequence[torch.Tensor]:
    """Return the images (c, H, W) uint8 as they are stored, each in its own size.

    Raises `InputError` if they are not 8-bit grey or RGB pictures: these would not come back bit for bit.
    """
    if tokenizer.signal.kind != "image":
        raise InputError(f"`lossless` keeps pixels, but the tokenizer is one of {tokenizer.signal.kind}: leave it out")
    dataset, places = find_data(settings.dataset, settings.data_root)
    if dataset == "npz" and holds_floats(Path(places[0]).expanduser()):
        raise InputError(f"`lossless`: {places[0]} holds floats, which would be rounded: save it as uint8")
    own, originals = find_images(dataset, places, settings.split, settings.skip_unreadable), list[torch.Tensor]()
    if not isinstance(own, FolderImages):
        return [own.batch([number]).images[0] for number in range(len(own))]
    for number in progress_bar(range(len(own)), "reading originals"):
        try:
            originals.append(_read_original(own.paths[number]))
        except Unreadable:
            if not settings.skip_unreadable:
                raise
    if len(originals) != len(images):
        raise InputError(f"{settings.dataset} changed while it was read: compress it again")
    return originals


def _read_original(path: Any) -> torch.Tensor:
    """Return a picture (c, H, W) uint8 as it is stored. Raises `InputError` if that is not 8-bit grey or RGB."""
    look = look_at(path)
    picture = read_picture(path, 1 if look and look[0] else 3)
    if lost := next((words for words in picture.told if any(kind in words for kind in LOST)), ""):
        raise InputError(f"`lossless`: {path} is a picture {lost}: save it as an 8-bit grey or RGB picture first")
    pixels = np.array(picture.image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def _labels_for(priors: Sequence[Prior], labels: torch.Tensor | None, classes: Sequence[str]) -> torch.Tensor | None:
    """Return labels as the priors know them, by the names of the classes; None if no prior knows any."""
    known = conditions_of(priors)
    if not known.num_classes:
        return None
    if labels is None or (known.classes and not set(known.classes) & set(classes)):
        if not known.unlabelled:
            raise InputError(f"`prior`: {known.learnt_only}, or compress only the classes that it learnt")
        return None
    if not known.classes:
        return labels
    numbers = [known.classes.index(name) if name in known.classes else NO_LABEL for name in classes]
    found = torch.from_numpy(np.array([*numbers, NO_LABEL]))[labels]  # NO_LABEL, -1, is the last one
    if not known.unlabelled and bool((found == NO_LABEL).any()):
        raise InputError(f"`prior`: {known.learnt_only}, or compress only the classes that it learnt")
    return found
