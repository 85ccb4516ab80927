"""Measure a tokenizer, and a prior, on a data set.

python -m pipelines.evaluate --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/figures
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.use_configs import Evaluate

if TYPE_CHECKING:
    from codegrid.pipelines.evaluation.run import Figures


def evaluate(settings: Evaluate) -> None:
    """Write metrics.json, usage.png and reconstructions.png into `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    from pathlib import Path

    from codegrid.data.images import evenly_spaced, to_float
    from codegrid.files import write_json
    from codegrid.pipelines.drawing.pictures import save_pairs, save_usage
    from codegrid.pipelines.evaluation.features import make_extractor
    from codegrid.pipelines.evaluation.run import Figures, load_parts, measure_reconstructions, measure_samples
    from codegrid.pipelines.running.device import choose_device
    from codegrid.pipelines.running.run_folder import Run
    from codegrid.stage1_vqvae.usage import UsageCounter

    device = choose_device(settings.device)
    parts = load_parts(settings, device)
    extractor, facts = None, parts.facts()
    if ":" in settings.features:  # a network of the user's: only its weights tell it from another of that name
        extractor = make_extractor(settings.features, parts.train, settings.num_workers, device)
        facts["features"] = extractor.description["weights"]
    run = Run(settings.output, settings, **facts)
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    run.start()

    tokenizer, images = parts.tokenizer, parts.images
    if settings.features != "none" and extractor is None:
        extractor = make_extractor(settings.features, parts.train, settings.num_workers, device)
    figures, usage = Figures({}, {}), UsageCounter(tokenizer.num_embeddings)
    real = measure_reconstructions(parts, settings, extractor, usage, figures)
    if parts.request:
        measure_samples(parts, settings, real, figures)
    never_used = (usage.counts == 0).nonzero().flatten().tolist()
    shown = to_float(images.__getitems__(evenly_spaced(len(images), 48)).images)
    again = tokenizer.decode(tokenizer.encode(shown.to(device)), tokenizer.image_size).cpu()

    def write_results(folder: Path) -> None:
        described = {"never_used": never_used, "images": len(images), "split": settings.split, **facts}
        write_json(folder / "metrics.json", {**figures.values, **described, "conditions": figures.conditions})
        save_usage(folder / "usage.png", usage.counts)
        save_pairs(folder / "reconstructions.png", shown, again)

    run.finish_with(write_results)
    _say_figures(figures, settings)


def _say_figures(figures: Figures, settings: Evaluate) -> None:
    for name, value in figures.values.items():
        say(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")
    if "ssim" not in figures.values:
        say("no ssim: the images are smaller than its window of 11×11 pixels")
    if settings.prior and "bound_bits_per_dim" not in figures.values:
        say("no bound_bits_per_dim: the decoder's scale is fitted to the training part, measure on --split test")
    for name, conditions in figures.conditions.items():
        if conditions.get("rank_deficient"):
            fewest, dimensions = min(conditions["images_compared"]), conditions["feature_dimensions"]
            say(
                f"{name}: {fewest} images are too few for the covariance of {dimensions} features (rank deficient); "
                "compare it with distances of as many images only"
            )


def main() -> None:
    """The command line."""
    run_script(Evaluate, evaluate)


if __name__ == "__main__":
    main()
