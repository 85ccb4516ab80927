"""The body of `codegrid plot`: a PNG for each figure that was asked for, or that the given parts allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from codegrid.errors import InputError
from codegrid.locks import releasing
from codegrid.pipelines.generation.artifacts import load_artifacts, load_images_for
from codegrid.pipelines.generation.chosen_data import choose_data
from codegrid.pipelines.generation.tokenizers import need_images
from codegrid.pipelines.running.cli import print_once, print_plan
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.run_folder import Run
from codegrid.progress import progress_bar

from .codebook import import_umap, listed_entries, plot_codebook, plot_histogram
from .comparison import load_others, plot_comparison
from .curves import history_of, plot_curves
from .grids import plot_grids
from .images import plot_codes, plot_reconstructions, plot_samples
from .material import Material
from .places import plot_places

if TYPE_CHECKING:
    from codegrid.pipelines.plot import Plot

# by the names that `what` accepts
FIGURES: dict[str, Callable[[Material, Plot], Figure]] = {
    "reconstructions": plot_reconstructions,
    "comparison": plot_comparison,
    "codes": plot_codes,
    "codebook": plot_codebook,
    "histogram": plot_histogram,
    "places": plot_places,
    "grids": plot_grids,
    "curves": plot_curves,
    "samples": plot_samples,
}


@releasing()
def plot(settings: Plot) -> None:
    """Write a PNG for each figure into `settings.output`."""
    artifacts = load_artifacts(choose_device(settings), settings.tokenizer, settings.prior, settings.codes)
    assert artifacts.tokenizer is not None
    need_images(artifacts.tokenizer, "plot shows")
    settings = choose_data(settings, artifacts.tokenizer)
    artifacts.images = load_images_for(
        artifacts.tokenizer, str(settings.dataset), settings.data_root, settings.split, settings.skip_unreadable
    )
    print_once(str(artifacts.images.found))
    others = load_others(settings.beside, artifacts.tokenizer, artifacts.device)
    material = Material(artifacts, settings.batch_size, settings.num_workers, others)
    names = choose(settings.what, material)
    if settings.projection == "umap" and "codebook" in names:
        import_umap()  # now: if it is missing, fail before minutes of work
    compared = {"beside": [each.fingerprint() for each in others.values()]} if others else {}
    run = Run(settings.output, settings, what=names, **artifacts.facts(), **compared)
    if run.finished:
        return print_once(f"{run.shown} is finished: nothing to do")
    if settings.dry_run:
        return print_plan(f"figures: {', '.join(names)}")
    run.start()

    def write_figures(folder: Path) -> None:
        for name in progress_bar(names, "figures"):
            FIGURES[name](material, settings).savefig(folder / f"{name}.png")

    run.finish_with(write_figures)
    print_once(f"{run.shown}: {', '.join(f'{name}.png' for name in names)}")


def choose(wanted: tuple[str, ...], material: Material) -> list[str]:
    """Return the names of the figures to draw: the wanted ones, or all that the given parts allow.

    Raises `InputError` if the parts do not allow a wanted figure.
    """
    models = [material.tokenizer, *material.artifacts.priors]
    lacking = {}
    if len(material.tokenizer.layout) == 1:
        lacking["grids"] = "this tokenizer has a single grid, which carries everything: leave it out"
    elif len(material.images) == 1:
        lacking["grids"] = "there is a single image, and grids are taken from another one: leave it out"
    if not material.others:
        lacking["comparison"] = "other tokenizers are compared with: add `beside`"
    if not material.artifacts.priors:
        lacking["samples"] = "a prior draws them: add `prior`"
    if not any(history_of(model) for model in models):
        lacking["curves"] = "these models have no training history: leave it out"
    if not listed_entries(material.tokenizer):
        lacking["codebook"] = "this quantizer's entries cannot be listed, or are too many to plot: leave it out"
    for name in wanted:
        if name in lacking:
            raise InputError(f"`what` {name}: {lacking[name]}")
    return [name for name in FIGURES if name in (wanted or FIGURES) and name not in lacking]
