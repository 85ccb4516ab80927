"""Draw what there is to see of a tokenizer, its codes and a prior.

python -m pipelines.plot --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/pictures
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.use_configs import Plot

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from codegrid.pipelines.drawing.material import Material


def plot(settings: Plot) -> None:
    """Write a PNG for each picture into `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    from pathlib import Path

    from tqdm import tqdm

    from codegrid.pipelines.drawing.codebook import require_umap
    from codegrid.pipelines.running.run_folder import Run

    material = gather(settings)
    names = choose(settings, material)
    if settings.projection == "umap" and "codebook" in names:
        require_umap()  # first: it would be a pity after minutes
    facts = {
        "what": names,
        "tokenizer": material.tokenizer.fingerprint(),
        "prior": material.pipeline.prior.fingerprint() if material.pipeline else None,
        "codes": material.exported.identity() if material.exported else None,
        "data": material.dataset.identity(),
    }
    run = Run(settings.output, settings, **facts)
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    run.start()
    draw = pictures()

    def write_pictures(folder: Path) -> None:
        for name in tqdm(names, "pictures"):
            draw[name](material, settings).savefig(folder / f"{name}.png")

    run.finish_with(write_pictures)
    say(f"{settings.output}: {', '.join(f'{name}.png' for name in names)}")


def gather(settings: Plot) -> Material:
    """Load the parts; `InputError` where they do not fit together."""
    from codegrid.data.code_files import open_codes
    from codegrid.data.sources import load_images
    from codegrid.pipelines.drawing.material import Material
    from codegrid.pipelines.generation.pipeline import TwoStagePipeline
    from codegrid.pipelines.running.device import choose_device
    from codegrid.stage1_vqvae import VQVAE

    device, pipeline = choose_device(settings.device), None
    if settings.prior is not None:
        pipeline = TwoStagePipeline.from_parts(settings.tokenizer, settings.prior, device)
    tokenizer = pipeline.tokenizer if pipeline else VQVAE.from_pretrained(settings.tokenizer, device)
    codes = open_codes(settings.codes, tokenizer) if settings.codes else None
    images = load_images(
        settings.dataset, settings.data_root, settings.split, tokenizer.image_size, tokenizer.in_channels
    )
    return Material(tokenizer, pipeline, images, codes, settings.batch_size, settings.num_workers)


def choose(settings: Plot, material: Material) -> list[str]:
    """The names of the pictures to draw: those asked for, or all that the given parts allow."""
    from codegrid.errors import InputError
    from codegrid.pipelines.drawing.curves import history_of

    models = [material.tokenizer, material.pipeline.prior if material.pipeline else None]
    lacking = {}
    if not material.pipeline:
        lacking["samples"] = "a prior draws them: add --prior"
    if not any(history_of(model) for model in models):
        lacking["curves"] = "these models remember no training: leave it out"
    for name in settings.what:
        if name in lacking:
            raise InputError(f"--what {name}: {lacking[name]}")
    wanted = settings.what or [name for name in pictures() if name not in lacking]
    return [name for name in pictures() if name in wanted]


def pictures() -> dict[str, Callable[[Material, Plot], Figure]]:
    """What can be drawn, by the names that `--what` takes."""
    from codegrid.pipelines.drawing import codebook, curves, images, places

    return {
        "reconstructions": images.draw_reconstructions,
        "codes": images.draw_codes,
        "codebook": codebook.draw_codebook,
        "histogram": codebook.draw_histogram,
        "places": places.draw_places,
        "curves": curves.draw_curves,
        "samples": images.draw_samples,
    }


def main() -> None:
    """The command line."""
    run_script(Plot, plot)


if __name__ == "__main__":
    main()
