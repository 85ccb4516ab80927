"""Stage 1: train a VQ-VAE on images.

python -m pipelines.train_tokenizer --dataset mnist5k --output runs/digits/tokenizer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codegrid.pipelines.running.cli import run_script, say
from codegrid.pipelines.running.configs import TrainTokenizer

if TYPE_CHECKING:
    from codegrid.data.sources import Images
    from codegrid.stage1_vqvae import VQVAE


def train_tokenizer(settings: TrainTokenizer) -> None:
    """Train the tokenizer and save its model folder in `settings.output`."""
    # imported here, so that --help answers before torch is loaded
    import torch

    from codegrid.data.augmentation import Augmentation
    from codegrid.data.images import evenly_spaced
    from codegrid.data.loading import in_batches, load_batches
    from codegrid.data.sources import load_images
    from codegrid.pipelines.evaluation.reconstruction import measure_tokenizer
    from codegrid.pipelines.running.device import choose_execution, leave_together, start_accelerator
    from codegrid.pipelines.running.run_folder import Run
    from codegrid.pipelines.training.loop import Stage, finish, train
    from codegrid.pipelines.training.trackers import draw_reconstructions, tracker_options
    from codegrid.stage1_vqvae.usage import perplexity

    accelerator = start_accelerator(settings.device, **tracker_options(settings))
    execution = choose_execution(settings, accelerator.device)
    with accelerator.main_process_first():  # only one downloads
        images = load_images(settings.dataset, settings.data_root, "train", settings.image_size)
        held_out = load_images(settings.dataset, settings.data_root, "test", images.image_size, images.in_channels)
    check_size(settings, images)
    options = quantizer_options(settings)
    facts = {
        "precision": execution.precision,
        "data": images.identity(),
        "revival_threshold": options["revival_threshold"],
    }
    run = Run(settings.output, settings, **facts)
    if run.finished:
        return say(f"{settings.output} is finished: nothing to do")
    say(f"{len(images)} images of {images.in_channels}×{'×'.join(map(str, images.image_size))}; {execution}")

    tokenizer = build_tokenizer(settings, images).to(accelerator.device, memory_format=execution.memory_format)
    augment = Augmentation(settings.flip, settings.shift, settings.crop)

    def loss(model: torch.nn.Module, batch: object) -> dict[str, torch.Tensor]:
        pixels = augment(batch.images.to(accelerator.device)).contiguous(memory_format=execution.memory_format)
        result = model(pixels)
        figures = {"loss": result.loss, "reconstruction": result.reconstruction_loss}
        if settings.accumulate == 1:  # that of a piece would look like a dying codebook
            hits = torch.bincount(result.codes.flatten(), minlength=settings.num_embeddings)
            figures["batch_perplexity"] = perplexity(hits)
        return figures

    some = in_batches(evenly_spaced(len(held_out), 1000), 250)  # while training; all of them in the end
    stage = Stage(
        tokenizer, images, loss, lambda model: measure_tokenizer(model, load_batches(held_out, some)),
        num_workers=settings.num_workers, to_compile=[tokenizer.encoder, tokenizer.decoder],
        announce=lambda more_follow: setattr(tokenizer.quantizer, "postpone_update", more_follow),
        draw=draw_reconstructions(held_out),
    )  # fmt: skip
    tokenizer.provenance["history"] = train(stage, settings, execution, run, accelerator)
    leave_together(accelerator)  # the others need not wait for the rest
    if accelerator.is_main_process:
        save_with_figures(tokenizer, held_out, settings)
        finish(run)


def check_size(settings: TrainTokenizer, images: Images) -> None:
    """Raise InputError where the images are too small for the settings."""
    from codegrid.errors import InputError

    shorter, longer = min(images.image_size), max(images.image_size)
    if longer < settings.downsampling:
        raise InputError(f"--downsampling {settings.downsampling}: the images are only {longer} wide")
    if settings.shift >= shorter:
        raise InputError(f"--shift {settings.shift}: nothing is left of images that are {shorter} wide")


def save_with_figures(tokenizer: VQVAE, held_out: Images, settings: TrainTokenizer) -> None:
    """Save the trained tokenizer, measure it on all held-out images, and save it again with the figures."""
    from tqdm import tqdm

    from codegrid.data.loading import in_order, load_batches
    from codegrid.pipelines.evaluation.reconstruction import measure_tokenizer
    from codegrid.pipelines.running.device import without_compiling

    tokenizer.save_pretrained(settings.output)  # first: what is measured may turn out to be unreadable
    batches = in_order(len(held_out), 250)
    bar = tqdm(load_batches(held_out, batches, settings.num_workers), "held-out images", len(batches))
    with without_compiling():
        figures = measure_tokenizer(tokenizer.eval(), bar)
        tokenizer.picture = draw_pairs(tokenizer, held_out)
    tokenizer.provenance["figures"] = {"images": len(held_out), **figures}
    tokenizer.save_pretrained(settings.output)
    say(
        f"{settings.output}, on {len(held_out)} held-out images: "
        f"reconstruction error {figures['reconstruction_error']:.4f}, PSNR {figures['psnr']:.2f} dB, "
        f"perplexity {figures['perplexity']:.1f}, {figures['unused_entries']} of the "
        f"{settings.num_embeddings} codebook entries never used"
    )


def draw_pairs(tokenizer: VQVAE, held_out: Images) -> bytes:
    """A page, as the bytes of a PNG file, of some held-out images above their reconstructions."""
    import tempfile
    from pathlib import Path

    from codegrid.data.images import evenly_spaced, to_float
    from codegrid.pipelines.drawing.pictures import save_pairs

    height, width = held_out.image_size
    at_most = max(1, min(24, 2**21 // (height * width)))  # a page for a card, and not a poster
    shown = to_float(held_out.__getitems__(evenly_spaced(len(held_out), at_most)).images)
    codes = tokenizer.encode(shown.to(next(tokenizer.parameters()).device))
    with tempfile.TemporaryDirectory() as folder:
        save_pairs(Path(folder) / "pairs.png", shown, tokenizer.decode(codes).cpu())
        return (Path(folder) / "pairs.png").read_bytes()


def build_tokenizer(settings: TrainTokenizer, images: Images) -> VQVAE:
    """The tokenizer to be trained on these images, with weights that follow from the seed."""
    import torch

    from codegrid.data.hub import public_name
    from codegrid.errors import InputError
    from codegrid.stage1_vqvae import VQVAE

    variance = images.variance()
    if not variance:
        raise InputError(f"all training images of {settings.dataset} are of one and the same colour: nothing to learn")
    torch.manual_seed(settings.seed)
    tokenizer = VQVAE(
        in_channels=images.in_channels,
        image_size=images.image_size,
        hidden_channels=settings.hidden_channels,
        downsampling=settings.downsampling,
        data_variance=variance,
        quantizer=settings.quantizer,
        **quantizer_options(settings),
    )
    tokenizer.provenance = {
        "dataset": public_name(settings.dataset),
        "classes": images.classes,
        "steps": settings.steps,
    }
    return tokenizer


def quantizer_options(settings: TrainTokenizer) -> dict[str, Any]:
    """The settings that the chosen quantizer has, with its defaults for what is left open."""
    from codegrid.errors import InputError
    from codegrid.stage1_vqvae.quantizers import QUANTIZERS

    names = ("num_embeddings", "embedding_dim", "commitment_cost", "decay", "distance", "kmeans_steps")
    options = {name: getattr(settings, name) for name in names}
    default = QUANTIZERS[settings.quantizer].default_revival
    options["revival_threshold"] = default if settings.revival_threshold is None else settings.revival_threshold
    of_anchors = {"anchors": settings.anchors, "anchor_once": settings.anchor_once}
    for name, value in of_anchors.items():
        if value and not settings.quantizer.startswith("clustered"):
            flag = name.replace("_", "-")
            raise InputError(f"--{flag}: the {settings.quantizer} quantizer has no anchors: add --quantizer clustered")
    return options | {name: value for name, value in of_anchors.items() if value}


def main() -> None:
    """The command line."""
    run_script(TrainTokenizer, train_tokenizer)


if __name__ == "__main__":
    main()
