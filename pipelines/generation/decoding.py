"""Codes → images or sound, into a folder: the body of `codegrid decode-codes`.

Shapes: b batch, c channels, *size an item's sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from codegrid.codes import Codes, Condition
from codegrid.data.code_files import CodeArray, files_of, open_codes
from codegrid.data.codes import CodeDataset
from codegrid.data.image_files import make_files, names_of_files, names_of_labels
from codegrid.data.images import to_stored
from codegrid.data.loading import in_batches
from codegrid.data.manifest import FILES, FILES_JSON
from codegrid.data.npz import ON_A_PAGE
from codegrid.errors import InputError
from codegrid.files import write_json
from codegrid.locks import releasing
from codegrid.noise import Noise
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.drawing.blocks import save_by_class
from codegrid.pipelines.drawing.shown import as_pictures
from codegrid.pipelines.evaluation.perceptual import PERCEPTUAL, networks_of
from codegrid.pipelines.running.cli import print_once, print_plan, resume_bar
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.run_folder import Run
from codegrid.protocols import Tokenizer

from .pairing import spoken_by
from .rejection import REJECTION
from .tokenizers import load_tokenizer


@releasing()
def decode_codes(settings: DecodeCodes) -> None:
    """Write the images, in shards if there are many, and a sheet of the first ones into `settings.output`.

    If the codes record the files that they were made from, files.json has their names, in the order of the images.
    """
    tokenizer = load_tokenizer(settings.tokenizer, choose_device(settings))
    codes = open_codes(settings.codes, tokenizer)
    if settings.view >= codes.views:
        held = f"{codes.views} views, numbered from 0" if codes.views > 1 else "only view 0"
        raise InputError(f"`view` {settings.view}: of each image {settings.codes} holds {held}: give one of these")
    run = Run(settings.output, settings, tokenizer=tokenizer.fingerprint(), codes=codes.fingerprint())
    if run.finished:
        return print_once(f"{run.shown} is finished: nothing to do")
    run.record[PERCEPTUAL] = networks_of(tokenizer)
    if isinstance(codes, CodeDataset) and REJECTION in codes.provenance:
        run.record[REJECTION] = codes.provenance[REJECTION]
    signal, labels = tokenizer.signal, codes.labels
    items = f"{signal.kind}s"
    if settings.dry_run:
        sides = "×".join(map(str, signal.shape))
        return print_plan(f"{len(codes):,} items to decode into {items} of {sides}")
    shape, names = (len(codes), *signal.shape), partial(names_of_rows, codes)
    files = make_files(settings.format, run.folder, items, shape, labels, names, settings.shard_size, signal.rate)
    run.start()
    missing = files.missing()
    with resume_bar(run.shown, missing, len(codes), "decoding") as bar:
        for numbers in missing:
            files.write(numbers, decode_rows(tokenizer, codes, numbers, settings.batch_size, bar, settings.view))
    of_files = files_of(codes, range(len(codes)))

    def write_results(folder: Path) -> None:
        first, classes = files.read_first(ON_A_PAGE), getattr(codes, "classes", [])
        save_by_class(folder / f"{items}.png", as_pictures(signal, first), len(codes), labels, classes)
        if of_files is not None:
            write_json(folder / FILES_JSON, of_files)

    run.finish_with(write_results, written=files.results())
    print_once(f"{run.shown}: {len(codes):,} {items} in {files}, some in {items}.png")


def names_of_rows(codes: CodeDataset | CodeArray, rows: range) -> list[str]:
    """Return names for the files of some rows, as far as known: the name of the original picture, or its class."""
    batch, classes = codes.batch(rows), getattr(codes, "classes", [])
    files = batch.columns.get(FILES)
    return names_of_labels(batch.labels, classes, len(rows)) if files is None else names_of_files(files)


def decode_rows(
    tokenizer: Tokenizer, codes: CodeDataset | CodeArray, numbers: range, batch_size: int, bar: Any, view: int = 0
) -> Iterator[torch.Tensor]:
    """Decode a view of some items of a code dataset, batch by batch: (b, c, *size), as the signal is stored."""
    for rows in in_batches(numbers, batch_size):
        batch = codes.batch(rows, view)
        grids: Codes = tuple(grid.to(tokenizer.device) for grid in batch.codes)
        # noise for a stochastic decoder: that of an item does not depend on its batch
        noise = Noise(0, rows.start, len(rows), tokenizer.device)
        given = spoken_by(tokenizer, Condition(batch.labels), getattr(codes, "classes", []))
        decoded = tokenizer.decode(grids, given=given, noise=noise)
        yield to_stored(tokenizer.signal.kind, decoded.cpu())
        bar.update(len(rows))
