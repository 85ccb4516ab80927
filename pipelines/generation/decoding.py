"""Codes → images, into a folder: the body of `codegrid decode-codes`.

Shapes: b batch, c channels, H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from codegrid.codes import Codes
from codegrid.data.code_files import CodeArray, open_codes
from codegrid.data.codes import CodeDataset
from codegrid.data.images import to_uint8
from codegrid.data.loading import in_batches, load_batches
from codegrid.data.npz import ON_A_PAGE, describe, image_files, missing_files, read_first, write_images
from codegrid.model_folder import load_model
from codegrid.noise import Noise
from codegrid.pipelines.decode_codes import DecodeCodes
from codegrid.pipelines.drawing.sheets import save_sheet
from codegrid.pipelines.running.cli import print_once, print_plan, print_resumed
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.run_folder import Run
from codegrid.progress import progress_bar
from codegrid.protocols import Tokenizer


def decode_codes(settings: DecodeCodes) -> None:
    """Write images.npz, in shards where there are many, and images.png into `settings.output`."""
    tokenizer = load_model(settings.tokenizer, choose_device(settings.device), "tokenizer")
    codes = open_codes(settings.codes, tokenizer)
    run = Run(settings.output, settings, tokenizer=tokenizer.fingerprint(), codes=codes.fingerprint())
    if run.finished:
        return print_once(f"{run.folder} is finished: nothing to do")
    if settings.dry_run:
        return print_plan(f"{len(codes):,} items to decode into images of {'×'.join(map(str, tokenizer.signal.shape))}")
    run.start()
    files, labels = image_files("images", len(codes), settings.shard_size), codes.labels
    missing = missing_files(run.folder, files, labels is not None)
    left = sum(map(len, missing.values()))
    print_resumed(run.folder, len(codes) - left, len(codes))
    with progress_bar(total=len(codes), initial=len(codes) - left, desc="decoding", unit="img") as bar:
        for file, numbers in missing.items():
            images = decode_rows(tokenizer, codes, numbers, settings.batch_size, bar)
            of_these = None if labels is None else labels[numbers.start : numbers.stop]
            write_images(run.folder, file, (len(numbers), *tokenizer.signal.shape), images, of_these)
    run.finish_with(lambda folder: save_sheet(folder / "images.png", read_first(run.folder, files, ON_A_PAGE)))
    print_once(f"{run.folder}: {len(codes):,} images in {describe(files)}, some in images.png")


def decode_rows(
    tokenizer: Tokenizer, codes: CodeDataset | CodeArray, numbers: range, batch_size: int, bar: Any
) -> Iterator[torch.Tensor]:
    """Decode some items of a code dataset, batch by batch: (b, c, H, W) uint8."""
    batches = in_batches(numbers, batch_size)
    for rows, batch in zip(batches, load_batches(codes, batches), strict=True):
        grids: Codes = tuple(grid.to(tokenizer.device) for grid in batch.codes)
        # the noise of a decoder that draws: an item's does not depend on its batch
        images = tokenizer.decode(grids, noise=Noise(0, rows.start, len(rows), tokenizer.device))
        yield to_uint8(images.cpu())
        bar.update(len(rows))
