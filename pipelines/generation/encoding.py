"""Images → codes, shared by several processes: the body of `codegrid export-codes`.

Shapes: m images of a range, v views, b batch, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from codegrid.budget import in_words
from codegrid.codes import Codes, describe_layout
from codegrid.data.augmentation import check_shift
from codegrid.data.captions import as_column
from codegrid.data.code_writer import missing_ranges, remove_codes, shard_ranges, write_codes
from codegrid.data.codes import CodeBatch, CodeDataset
from codegrid.data.images import to_float
from codegrid.data.loading import load_batches
from codegrid.data.manifest import ACTIONS, CAPTIONS, FILE_COLUMN, FILES, LABELS, VIEWS, CodeHeader, is_whole
from codegrid.data.names import describe_data
from codegrid.data.npz import write_npz
from codegrid.data.parquet import write_parquet
from codegrid.data.shards import Column, smallest_dtype
from codegrid.data.sources import Images
from codegrid.data.views import Views
from codegrid.errors import import_extra
from codegrid.locks import real_path, releasing
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.running.cli import print_once, print_plan, resume_bar
from codegrid.pipelines.running.codes_folder import open_codes_folder
from codegrid.pipelines.running.device import channels_last, place, start_accelerator
from codegrid.pipelines.running.processes import broadcast_from_main, deal, map_across_ranks, shut_down, write_together
from codegrid.pipelines.running.run_folder import Run, save_settings
from codegrid.protocols import Tokenizer

from .artifacts import load_images_for
from .chosen_data import choose_data
from .tokenizers import load_tokenizer, need_images

ONE_VIEW = Views()
COPIES = 2  # of the codes of a shard, while it is put together
STATE = "state"  # folder of a code dataset, from which the .npz or .parquet file is made


@releasing()
def export_codes(settings: ExportCodes) -> None:
    """Write the codes into `settings.output`, shard by shard. Every process encodes its share of each batch."""
    if settings.format == "parquet":
        import_extra("pyarrow", "`format` parquet", "hub")  # now, not after the images are encoded
    settings.check_output()
    accelerator = start_accelerator(settings)
    export_with(load_tokenizer(settings.tokenizer, accelerator.device), settings, accelerator)
    shut_down(accelerator)


@releasing()
def export_with(tokenizer: Tokenizer, settings: ExportCodes, accelerator: Accelerator) -> None:
    """Export codes with a loaded tokenizer; unlike `export_codes`, leave the processes running."""
    shown = settings.output
    settings = replace(settings, output=str(real_path(shown)))  # a link may move while images are encoded
    place(cast(nn.Module, tokenizer), accelerator.device)  # makes it up to a fifth faster on a CPU
    if settings.views > 1:
        need_images(tokenizer, "`views` change")
    check_shift(settings.shift, tokenizer.signal.size)
    settings = choose_data(settings, tokenizer)
    with accelerator.main_process_first():  # only one downloads
        images = load_images_for(
            tokenizer, str(settings.dataset), settings.data_root, settings.split, settings.skip_unreadable,
            settings.captions,
        )  # fmt: skip
    print_once(str(images.found))
    with_files, places = images.files is not None, max(map(len, images.captions or ()), default=0)
    views = {name: getattr(settings, name) for name in VIEWS}
    header = make_header(
        tokenizer, len(images), images.classes, settings.split, images.fingerprint(), with_files, places, images.columns
    )
    header = replace(header, **views)
    described = f"{describe_layout(tokenizer.layout)}{describe_views(header)}"
    count = f"{len(images):,} {images.found.item}s"
    if settings.dry_run:
        return print_plan(f"{count} to encode as {described}", expected_size(header))
    missing = broadcast_from_main(accelerator, lambda: _find_missing(settings, header))
    if missing is None:
        return print_once(f"{shown} is finished: nothing to do")
    with resume_bar(shown, missing, len(images), "encoding") as bar:
        shards = encode_ranges(
            tokenizer, images, missing, settings.batch_size, settings.num_workers, accelerator, bar.update,
            Views(*views.values()),
        )  # fmt: skip
        write_together(partial(_write, settings, tokenizer, header, missing, list(images.actions)), shards, accelerator)
    print_once(f"{shown}: {count} as {described}")


def encode_ranges(
    tokenizer: Tokenizer,
    images: Images,
    ranges: list[range],
    batch_size: int,
    num_workers: int,
    accelerator: Accelerator,
    progress: Callable[[int], object] = lambda count: None,
    views: Views = ONE_VIEW,
) -> Iterator[CodeBatch]:
    """Encode each range of images in turn; every process encodes its share of every batch, and receives all codes.

    Its codes are (m·v, *shape), the views of an image after one another, and its columns (m). One data loader reads the
    shares of all ranges: its workers start once, and keep reading while codes are written.

    Args:
        progress: called with the number of images that all processes have encoded since the last call.
    """
    shares = [share for numbers in ranges for _, share in deal(numbers, batch_size, accelerator)]
    loaded = load_batches(images, shares, num_workers)

    @torch.inference_mode()
    def encode(numbers: range) -> Codes:
        pictures = views.of(next(loaded).images.to(tokenizer.device), numbers.start)
        codes = [tokenizer.encode(channels_last(to_float(view))) for view in pictures]
        return tuple(torch.stack(grids, 1) for grids in zip(*codes, strict=True))  # (b, v, *shape)

    for numbers in ranges:
        batches = map_across_ranks(encode, numbers, batch_size, accelerator, progress)
        codes = tuple(torch.cat(grids).flatten(0, 1) for grids in zip(*batches, strict=True))
        rows = slice(numbers.start, numbers.stop)
        columns: dict[str, Column] = {}
        if images.labels is not None and images.classes:
            columns[LABELS] = images.labels[rows]
        if images.files is not None:
            columns[FILES] = images.files[rows]
        if images.captions:
            columns[CAPTIONS] = as_column(images.captions[rows], max(map(len, images.captions)))
        columns |= {name: column[rows] for name, column in images.columns.items()}
        yield CodeBatch(codes, columns)


def make_header(
    tokenizer: Tokenizer,
    num_images: int,
    classes: list[str],
    split: str,
    source: str,
    with_files: bool = False,
    captions: int = 0,
    numbers: Mapping[str, torch.Tensor] = {},
) -> CodeHeader:
    """Return the header of a dataset of a tokenizer's codes, with labels if there are classes.

    Args:
        captions: most captions of an image.
        numbers: further columns (n, *shape), by name.
    """
    grids = [grid.as_json() for grid in tokenizer.layout]
    columns: dict[str, dict[str, Any]] = {FILES: dict(FILE_COLUMN)} if with_files else {}
    if captions:
        columns[CAPTIONS] = {"kind": "text", "shape": [captions]}
    for name, column in numbers.items():
        kind = "float" if column.is_floating_point() else "int"
        columns[name] = {"kind": kind, "shape": list(column.shape[1:])}
    return CodeHeader(num_images, grids, classes, split, tokenizer.fingerprint(), source, columns=columns)


def describe_views(header: CodeHeader) -> str:
    """Return a few words on the views of each image, to follow its grids; empty if there is only one."""
    if header.views == 1:
        return ""
    shifted = f"shifted by up to {header.shift} pixel{'s' * (header.shift > 1)}"
    ways = [shifted] * (header.shift > 0) + ["mirrored"] * header.flip
    return ", ".join([f", {header.views} views of each", *([" or ".join(ways)] if ways else [])])


def expected_size(header: CodeHeader) -> str:
    """Return the size of a code dataset on disk, and of a shard while it is made."""
    on_disk = sum(grid.num_sites * smallest_dtype(grid.num_embeddings).itemsize for grid in header.layout)
    first, codes = shard_ranges(header.num_images, header.views)[0], sum(grid.num_sites for grid in header.layout)
    return (
        f"disk: about {in_words(header.num_rows * on_disk)} for the codes\n"
        f"memory: about {in_words(COPIES * len(first) * header.views * codes * 8)} for those of a shard, besides "
        "PyTorch, the images and the tokenizer"
    )


def tables_of(tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Return the vectors that codes stand for, `entries.0` (K, D) and so on, as far as they can be listed.

    A quantizer that does more than add them up tells the rest in its method `tables`.
    """
    quantizer = tokenizer.quantizer
    tables = {f"entries.{grid}": quantizer.entries(grid) for grid in range(len(tokenizer.layout))}
    return {name: table for name, table in tables.items() if table is not None} | getattr(quantizer, "tables", dict)()


def _find_missing(settings: ExportCodes, header: CodeHeader) -> list[range] | None:
    """Return the images still to be encoded, a range for each shard; None if the export is finished."""
    if settings.format == "codegrid":
        return open_codes_folder(settings, header).missing
    run = _plain_run(settings, header)
    if run.finished:
        remove_codes(run.folder / STATE)
        return None
    return [] if is_whole(run.folder / STATE) else missing_ranges(run.folder / STATE, header)


def _write(
    settings: ExportCodes,
    tokenizer: Tokenizer,
    header: CodeHeader,
    missing: list[range],
    actions: list[str],
    shards: Iterator[CodeBatch],
) -> None:
    """Write the shards as they come; an .npz or .parquet file is made at the end from a temporary code dataset."""
    provenance: dict[str, Any] = describe_data(str(settings.dataset), settings.data_root)
    if actions:
        provenance[ACTIONS] = actions
    if settings.format == "codegrid":
        save_settings(Path(settings.output), settings)
        return write_codes(settings.output, header, missing, shards, provenance, tables_of(tokenizer))
    run = _plain_run(replace(settings, overwrite=False), header)  # it was emptied before the images were encoded
    run.start()
    if not is_whole(run.folder / STATE):
        write_codes(run.folder / STATE, header, missing, shards, provenance)
    codes = CodeDataset(run.folder / STATE)
    write: Any = {"npz": write_npz, "parquet": write_parquet}[settings.format]
    whole = (
        codes.batch(np.repeat(images, codes.views), np.tile(np.arange(codes.views), len(images)))
        for images in shard_ranges(len(codes), codes.views)
    )
    run.finish_with(lambda folder: write(folder / f"codes.{settings.format}", header, whole))
    remove_codes(run.folder / STATE)


def _plain_run(settings: ExportCodes, header: CodeHeader) -> Run:
    return Run(settings.output, settings, **asdict(header))
