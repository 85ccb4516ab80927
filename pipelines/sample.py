"""Draw new images: prior → codes → decoder.

python -m pipelines.sample --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/new --num-samples 100
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.use_configs import Sample

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from tqdm import tqdm

    from codegrid.pipelines.generation.completion import Pictures
    from codegrid.pipelines.generation.pipeline import TwoStagePipeline
    from codegrid.pipelines.generation.request import Request


def sample(settings: Sample) -> None:
    """Draw the samples into `settings.output`, shard by shard; several processes share each batch."""
    # imported here, so that --help answers before torch is loaded
    from codegrid.errors import InputError
    from codegrid.pipelines.generation.completion import read_pictures
    from codegrid.pipelines.generation.pipeline import TwoStagePipeline
    from codegrid.pipelines.running.device import leave_together, require_compiler, start_accelerator

    accelerator = start_accelerator(settings.device)
    if settings.keep_rows is not None and settings.complete is None:
        raise InputError("--keep-rows goes with --complete: give that a folder of pictures")
    pipeline = TwoStagePipeline.from_parts(settings.tokenizer, settings.prior, accelerator.device)
    if settings.compile:
        require_compiler(accelerator.device)
        pipeline.prior.compile_sampling()
    pictures = None
    if settings.complete is not None:
        pictures = read_pictures(settings.complete, pipeline.tokenizer, accelerator.device)
    request = _make_request(settings, pipeline, pictures)
    leave = _leave_codes if settings.format == "codegrid" else _leave_images
    leave(settings, pipeline, pictures, request, accelerator)
    leave_together(accelerator)


def _make_request(settings: Sample, pipeline: TwoStagePipeline, pictures: Pictures | None) -> Request:
    from codegrid.pipelines.generation.request import complete_codes, make_request

    if pictures:
        keep_rows = pipeline.tokenizer.grid_shape[0] // 2 if settings.keep_rows is None else settings.keep_rows
        of_each = 4 if settings.num_samples is None else settings.num_samples
        return complete_codes(
            pipeline.prior, pictures.codes, keep_rows, of_each, settings.labels, settings.seed, settings.controls
        )
    several = len(settings.labels) if len(settings.labels) > 1 else 100
    num_samples = several if settings.num_samples is None else settings.num_samples
    return make_request(pipeline.prior, num_samples, settings.labels, settings.seed, settings.controls)


def _leave_images(
    settings: Sample, pipeline: TwoStagePipeline, pictures: Pictures | None, request: Request, accelerator: Accelerator
) -> None:
    """Images in .npz files, and a page of the first ones."""
    import numpy as np
    import torch

    from codegrid.data.images import to_uint8
    from codegrid.data.npz import ON_A_PAGE, describe, image_files, missing_files, read_first, write_images
    from codegrid.pipelines.drawing.pictures import save_grid
    from codegrid.pipelines.generation.completion import save_completions
    from codegrid.pipelines.running.device import decide_on_main
    from codegrid.pipelines.running.processes import make_together
    from codegrid.pipelines.running.run_folder import Run

    name = "completions" if pictures else "samples"
    files = image_files(name, request.num_samples, settings.shard_size)

    def start() -> Run:
        run = Run(settings.output, settings, **_facts(pipeline, pictures))
        if not run.finished:
            run.start()
        return run

    run = decide_on_main(accelerator, start)
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    missing = decide_on_main(accelerator, lambda: missing_files(settings.output, files, request.labels is not None))

    def make(rows: range) -> torch.Tensor:
        return to_uint8(pipeline.decode(pipeline.draw_codes(request, rows)))

    image_shape = (pipeline.tokenizer.in_channels, *pipeline.tokenizer.image_size)
    with _bar(request, sum(map(len, missing.values())), accelerator) as bar:
        for file, numbers in missing.items():
            images = make_together(make, numbers, settings.batch_size, accelerator, bar.update)
            if accelerator.is_main_process:
                labels = None if request.labels is None else np.array(request.labels[numbers.start : numbers.stop])
                write_images(settings.output, file, (len(numbers), *image_shape), images, labels)
            else:
                deque(images, maxlen=0)  # only take part

    def write_page(folder: Path) -> None:
        page = folder / f"{name}.png"
        if pictures:
            shown = min(len(pictures.shown), max(1, ON_A_PAGE // request.of_each))
            completions = read_first(settings.output, files, min(request.of_each * shown, ON_A_PAGE))
            save_completions(page, pipeline.tokenizer, pictures, shown, request.num_known, completions)
        else:
            save_grid(page, read_first(settings.output, files, ON_A_PAGE))

    if accelerator.is_main_process:
        run.finish_with(write_page)
    say(f"{settings.output}: {request.num_samples:,} {name} in {describe(files)}, a page of them in {name}.png")


def _leave_codes(
    settings: Sample, pipeline: TwoStagePipeline, pictures: Pictures | None, request: Request, accelerator: Accelerator
) -> None:
    """The codes alone, as a code dataset."""
    import torch

    from codegrid.data.codes import CodeHeader, CodeShard, write_codes
    from codegrid.pipelines.running.device import decide_on_main
    from codegrid.pipelines.running.processes import make_together
    from codegrid.pipelines.running.run_folder import missing_codes
    from codegrid.stage2_prior import NO_LABEL
    from codegrid.tensors import digest_of

    tokenizer = pipeline.tokenizer
    height, width = tokenizer.grid_shape
    labels = None if request.labels is None or NO_LABEL in request.labels else torch.tensor(request.labels)
    controls = {
        "seed": request.seed, "labels": list(settings.labels), **request.controls, "num_known": request.num_known,
        "prior": pipeline.prior.fingerprint(),
    }  # fmt: skip
    header = CodeHeader(
        num_images=request.num_samples,
        grids=[{"height": height, "width": width, "num_embeddings": tokenizer.num_embeddings}],
        classes=[] if labels is None else pipeline.classes,
        split="sampled",
        tokenizer_fingerprint=tokenizer.fingerprint(),
        source=digest_of({**controls, **_facts(pipeline, pictures)}),
    )
    missing = decide_on_main(accelerator, lambda: missing_codes(settings.output, header, controls))
    if missing is None:
        return say(f"{settings.output} is finished: nothing to do")
    with _bar(request, sum(map(len, missing)), accelerator) as bar:

        def make_shard(numbers: range) -> CodeShard:
            drawn = make_together(
                lambda rows: pipeline.draw_codes(request, rows), numbers, settings.batch_size, accelerator, bar.update
            )
            of_these = None if labels is None else labels[numbers.start : numbers.stop]
            return CodeShard(torch.cat(list(drawn)), of_these, ties=0)

        shards = map(make_shard, missing)
        if accelerator.is_main_process:
            write_codes(settings.output, header, missing, shards, controls)
        else:
            deque(shards, maxlen=0)  # only take part
    say(f"{settings.output}: {request.num_samples:,} grids of {height}×{width} codes")


def _facts(pipeline: TwoStagePipeline, pictures: Pictures | None) -> dict[str, str | None]:
    """What the samples depend on beside the settings."""
    return {
        "tokenizer": pipeline.tokenizer.fingerprint(),
        "prior": pipeline.prior.fingerprint(),
        "complete": pictures.identity if pictures else None,
    }


def _bar(request: Request, missing: int, accelerator: Accelerator) -> tqdm:
    from tqdm import tqdm

    return tqdm(
        total=request.num_samples, initial=request.num_samples - missing, desc="sampling", unit="img",
        disable=not accelerator.is_main_process,
    )  # fmt: skip


def main() -> None:
    """The command line."""
    run_script(Sample, sample)


if __name__ == "__main__":
    main()
