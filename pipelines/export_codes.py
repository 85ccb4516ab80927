"""Encode a data set with a trained tokenizer: images → codes.

python -m pipelines.export_codes --tokenizer runs/digits/tokenizer --dataset mnist5k --output runs/digits/codes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .cli import run_script, say
from .configs import ExportCodes

if TYPE_CHECKING:
    from pathlib import Path

    from data.codes import CodeBatch


def export_codes(settings: ExportCodes) -> None:
    """Write the code dataset into `settings.output`. Every process encodes its share of each shard."""
    # imported here, so that --help answers before torch is loaded
    from dataclasses import asdict

    from tqdm import tqdm

    from data.codes import CodeBatch, CodeHeader, is_whole, read_manifest, write_codes
    from data.sources import load_images
    from stage1_vqvae import VQVAE

    from .encoding import encode_images
    from .run_folder import Run, refuse_differences
    from .runtime import leave_together, start_accelerator

    accelerator = start_accelerator(settings.device)
    tokenizer = VQVAE.from_pretrained(settings.tokenizer, accelerator.device)
    with accelerator.main_process_first():  # only one downloads
        images = load_images(
            settings.dataset, settings.data_root, settings.split, tokenizer.image_size, tokenizer.in_channels
        )
    height, width = tokenizer.grid_shape
    header = CodeHeader(
        num_images=len(images),
        grids=[{"height": height, "width": width, "num_embeddings": tokenizer.num_embeddings}],
        classes=images.classes,
        split=settings.split,
        tokenizer_fingerprint=tokenizer.fingerprint(),
        source=images.identity(),
    )

    def encode(numbers: range) -> CodeBatch:
        codes = encode_images(tokenizer, images, numbers, settings.batch_size, settings.num_workers, accelerator)
        bar.update(len(numbers))
        return CodeBatch(codes, None if images.labels is None else images.labels[numbers.start : numbers.stop])

    if settings.format != "npz" and is_whole(settings.output):
        refuse_differences(settings.output, read_manifest(settings.output)["header"], asdict(header))
        return say(f"{settings.output} is finished: nothing to do")
    run = Run(settings.output, settings, **asdict(header)) if settings.format == "npz" else None
    if run and run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    with tqdm(total=len(images), desc="encoding", unit="img", disable=not accelerator.is_main_process) as bar:
        if run is None:
            write_codes(settings.output, header, encode, {"dataset": settings.dataset}, accelerator.is_main_process)
        else:
            batch = encode(range(len(images)))
            if accelerator.is_main_process:
                run.finish_with(lambda folder: _write_npz(folder / "codes.npz", batch))
    say(f"{settings.output}: {len(images)} grids of {height}×{width} codes out of {tokenizer.num_embeddings}")
    leave_together(accelerator)


def _write_npz(path: Path, batch: CodeBatch) -> None:
    import numpy as np

    arrays = {"codes": batch.codes.numpy()} | ({} if batch.labels is None else {"labels": batch.labels.numpy()})
    np.savez_compressed(path, **arrays)


def main() -> None:
    """The command line."""
    run_script(ExportCodes, export_codes)


if __name__ == "__main__":
    main()
