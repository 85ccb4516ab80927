"""Draw new images: prior → codes → decoder.

python -m pipelines.sample --tokenizer runs/demo/tokenizer --prior runs/demo/prior --output runs/new --num-samples 100
"""

from .cli import run_script, say
from .configs import Sample


def sample(settings: Sample) -> None:
    """Write samples.png and samples.npz into `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    import numpy as np
    import torch

    from data.images import to_uint8

    from .generation import TwoStagePipeline
    from .image_files import write_images
    from .run_folder import Run
    from .runtime import choose_device

    pipeline = TwoStagePipeline.from_parts(settings.tokenizer, settings.prior, choose_device(settings.device))
    fingerprints = {"tokenizer": pipeline.tokenizer.fingerprint(), "prior": pipeline.prior.fingerprint()}
    run = Run(settings.output, settings, **fingerprints)
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    run.start()
    several = len(settings.labels) if len(settings.labels) > 1 else 100
    num_samples = several if settings.num_samples is None else settings.num_samples
    images, labels = [], []
    for batch in pipeline.sample_batches(
        num_samples, settings.labels, settings.temperature, settings.seed, settings.batch_size, progress=True
    ):
        images.append(to_uint8(batch.images))
        labels.append(batch.labels)
    names = None if labels[0] is None else torch.cat(labels).numpy().astype(np.int64)
    run.finish_with(lambda folder: write_images(folder, "samples", torch.cat(images), names))
    say(f"{settings.output}: {num_samples} samples in samples.npz, a page of them in samples.png")


def main() -> None:
    """The command line."""
    run_script(Sample, sample)


if __name__ == "__main__":
    main()
