"""Measure a tokenizer, and a prior, on a data set.

python -m pipelines.evaluate --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/figures
"""

from .cli import run_script, say
from .configs import Evaluate


def evaluate(settings: Evaluate) -> None:
    """Write metrics.json, usage.png and reconstructions.png into `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    from pathlib import Path

    from tqdm import tqdm

    from data.images import evenly_spaced, to_float
    from data.sources import load_images
    from stage1_vqvae import VQVAE
    from stage1_vqvae.usage import UsageCounter
    from storage.atomic import write_json
    from storage.errors import InputError

    from .batches import in_order, load_batches
    from .generation import TwoStagePipeline
    from .measure import measure_prior, measure_tokenizer
    from .pictures import save_pairs, save_usage
    from .run_folder import Run
    from .runtime import choose_device

    device = choose_device(settings.device)
    if settings.prior is None:
        prior, tokenizer = None, VQVAE.from_pretrained(settings.tokenizer, device)
    else:
        pipeline = TwoStagePipeline.from_parts(settings.tokenizer, settings.prior, device)
        prior, tokenizer = pipeline.prior, pipeline.tokenizer
    images = load_images(
        settings.dataset, settings.data_root, settings.split, tokenizer.image_size, tokenizer.in_channels
    )
    if prior and prior.num_classes and images.classes != pipeline.classes:
        raise InputError(
            f"the prior knows other classes than {settings.dataset} has: evaluate it on the data it learnt"
        )
    facts = {"tokenizer": tokenizer.fingerprint(), "data": images.identity()}
    run = Run(settings.output, settings, prior=prior.fingerprint() if prior else None, **facts)
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    run.start()

    batches = in_order(len(images), settings.batch_size)
    usage, codes = UsageCounter(tokenizer.num_embeddings), []
    of_images = tqdm(load_batches(images, batches, settings.num_workers), "tokenizer", len(batches))
    figures = measure_tokenizer(tokenizer, of_images, usage, keep=codes if prior else None)
    never_used = (usage.counts == 0).nonzero().flatten().tolist()
    if prior:
        figures |= measure_prior(prior, tqdm(codes, "prior"))
    shown = to_float(images.__getitems__(evenly_spaced(len(images), 48)).images)
    again = tokenizer.decode(tokenizer.encode(shown.to(device)), tokenizer.image_size).cpu()

    def write_results(folder: Path) -> None:
        described = {**figures, "never_used": never_used, "images": len(images), "split": settings.split, **facts}
        write_json(folder / "metrics.json", described)
        save_usage(folder / "usage.png", usage.counts)
        save_pairs(folder / "reconstructions.png", shown, again)

    run.finish_with(write_results)
    for name, value in figures.items():
        say(f"{name:22} {value:.4f}" if isinstance(value, float) else f"{name:22} {value}")


def main() -> None:
    """The command line."""
    run_script(Evaluate, evaluate)


if __name__ == "__main__":
    main()
