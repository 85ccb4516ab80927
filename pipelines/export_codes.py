"""Encode a data set with a trained tokenizer: images → codes.

python -m pipelines.export_codes --tokenizer runs/digits/tokenizer --dataset mnist5k --output runs/digits/codes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.configs import ExportCodes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from codegrid.data.codes import CodeHeader, CodeShard
    from codegrid.pipelines.running.run_folder import Run


def export_codes(settings: ExportCodes) -> None:
    """Write the codes into `settings.output`, shard by shard. Every process encodes its share of each shard."""
    # imported here, so that --help answers before torch is loaded
    import torch
    from tqdm import tqdm

    from codegrid.data.codes import CodeHeader
    from codegrid.data.sources import load_images
    from codegrid.extras import import_extra
    from codegrid.pipelines.generation.encoding import encode_ranges
    from codegrid.pipelines.running.device import decide_on_main, leave_together, start_accelerator
    from codegrid.stage1_vqvae import VQVAE

    if settings.format == "parquet":
        import_extra("pyarrow", "--format parquet")  # now, and not when the images are encoded
    accelerator = start_accelerator(settings.device)
    tokenizer = VQVAE.from_pretrained(settings.tokenizer, accelerator.device)
    tokenizer = tokenizer.to(memory_format=torch.channels_last)  # up to a fifth faster on a CPU
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
    missing = decide_on_main(accelerator, lambda: _find_missing(settings, header))
    if missing is None:
        say(f"{settings.output} is finished: nothing to do")
        return leave_together(accelerator)
    is_main, done = accelerator.is_main_process, len(images) - sum(map(len, missing))
    with tqdm(total=len(images), initial=done, desc="encoding", unit="img", disable=not is_main) as bar:
        shards = encode_ranges(
            tokenizer, images, missing, settings.batch_size, settings.num_workers, accelerator, bar.update
        )
        ties = _write(settings, header, missing, shards) if is_main else _take_part(shards)
    sites = len(images) * height * width
    in_doubt = f"; at {ties:,} of {sites:,} sites two entries tie to within rounding" if ties else ""
    say(f"{settings.output}: {len(images)} grids of {height}×{width} codes out of {tokenizer.num_embeddings}{in_doubt}")
    leave_together(accelerator)


def _find_missing(settings: ExportCodes, header: CodeHeader) -> list[range] | None:
    """The images still to be encoded, a range for each shard; None where the export is finished."""
    from codegrid.data.codes import shard_ranges
    from codegrid.pipelines.running.run_folder import missing_codes

    if settings.format == "codegrid":
        return missing_codes(settings.output, header)
    return None if _plain_run(settings, header).finished else shard_ranges(header.num_images)


def _write(settings: ExportCodes, header: CodeHeader, missing: list[range], shards: Iterator[CodeShard]) -> int:
    """Write the shards as they come; returns the ties of the whole export."""
    from codegrid.data.code_files import write_npz
    from codegrid.data.codes import write_codes
    from codegrid.data.hub import public_name
    from codegrid.data.parquet import write_parquet

    if settings.format == "codegrid":
        return write_codes(settings.output, header, missing, shards, {"dataset": public_name(settings.dataset)})
    run, write = _plain_run(settings, header), {"npz": write_npz, "parquet": write_parquet}[settings.format]
    file = f"codes.{settings.format}"
    # run.json is written after the codes, and so can tell their ties
    run.finish_with(lambda folder: run.record.update(ties=write(folder / file, header, shards)))
    return run.record["ties"]


def _plain_run(settings: ExportCodes, header: CodeHeader) -> Run:
    from dataclasses import asdict

    from codegrid.pipelines.running.run_folder import Run

    return Run(settings.output, settings, **asdict(header))


def _take_part(shards: Iterator[CodeShard]) -> int:
    """What the other processes do: encode their shares for the main process, which writes and counts."""
    for _ in shards:
        pass
    return 0


def main() -> None:
    """The command line."""
    run_script(ExportCodes, export_codes)


if __name__ == "__main__":
    main()
