"""Stage 1: training a tokenizer on images."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from codegrid.codes import Losses, Moment
from codegrid.data.augmentation import Augmentation, check_shift
from codegrid.data.images import ImageBatch, evenly_spaced, to_float
from codegrid.data.loading import in_batches, in_order, load_batches
from codegrid.data.names import public_name
from codegrid.data.sources import Images, load_images
from codegrid.data.splits import warn_of_few
from codegrid.errors import InputError
from codegrid.locks import releasing
from codegrid.model_card import MAX_CARD_PIXELS
from codegrid.pipelines.drawing.sheets import make_pairs, pairs_png
from codegrid.pipelines.evaluation.carried import measure_carried
from codegrid.pipelines.evaluation.perceptual import PERCEPTUAL, Perceptual, check_perceptual, load_perceptual
from codegrid.pipelines.evaluation.reconstruction import measure_tokenizer
from codegrid.pipelines.generation.chosen_data import choose_data
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.device import channels_last, choose_compute, place, start_accelerator, without_compiling
from codegrid.pipelines.running.options import resolve_options
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.progress import progress_bar
from codegrid.protocols import Tokenizer
from codegrid.registry import TABLES
from codegrid.stage1_vqvae.usage import perplexities

from .code_tokenizer import train_on_codes
from .first_stage import train_to_the_end
from .initial import check_codebook, load_initial, start_from
from .log import tracker_options
from .loop import Trained, open_run, read_trained
from .objective import Metrics, Pages, Player
from .sharpening import DISCRIMINATOR, Sharpening, schedule_of
from .sound import train_on_sound
from .trainer import fused_adam, seed_torch

VALIDATED = 1000  # images while training; at the end all
BATCH = 250  # images measured at once
SWAPPED = 256  # images decoded while training to see what each of several grids carries
MAX_ON_CARD = 24  # images


class TokenizerObjective:
    """The tokenizer's own losses, and the terms of sharp pictures; its codebooks move after each step."""

    items, keep_best = "images", False

    def __init__(
        self,
        tokenizer: Tokenizer,
        images: Images,
        validation: Images,
        settings: TrainTokenizer,
        perceptual: Perceptual | None = None,
    ) -> None:
        self.tokenizer, self.dataset, self.validation = tokenizer, images, validation
        self.num_workers = settings.num_workers
        self.augment = Augmentation(settings.flip, settings.shift, settings.crop)
        self.has_whole_batches = settings.accumulate == 1
        self.sharpening = Sharpening(tokenizer, settings, perceptual)
        # a discriminator raises the error: the model with the lowest one is that from before it began
        self.criterion = "" if self.sharpening.players else "reconstruction_error"
        of_tokenizer = Player(
            cast(nn.Module, tokenizer), fused_adam, settings.lr, to_compile=self.sharpening.compilable()
        )
        self.players = {"tokenizer": of_tokenizer, **self.sharpening.players}
        self.buffers = self.sharpening.buffers

    def losses(self, player: str, wrapped: nn.Module, batch: ImageBatch, moment: Moment) -> Losses:
        """Return the tokenizer's losses for augmented images, or the discriminator's for their reconstructions."""
        if player == DISCRIMINATOR:
            return self.sharpening.judge(wrapped)
        x = channels_last(self.augment(batch.images.to(self.tokenizer.device), moment.noise.of("augment")))
        output, codes, losses = wrapped(x, moment=moment)
        losses = self.sharpening.add(losses, output, x, moment)
        # a piece uses fewer codes than a batch: that would look like a dying codebook
        figures = (
            losses.figures | perplexities(codes, self.tokenizer.layout) if self.has_whole_batches else losses.figures
        )
        return losses._replace(figures=figures)

    def after_step(self, step: int, seed: int) -> None:
        """Move the codebooks, and set the adaptive weight."""
        self.tokenizer.after_step(step, seed)
        self.sharpening.after_step(step)

    def validate(self) -> dict[str, Any]:
        """Measure the reconstructions of up to 1,000 images, the usage of the codebooks, and what each grid carries.

        `perceptual_distance` is that of the network which training uses, if there is one.
        `error_rise_0` is how much the reconstruction error rises with the first of several grids of another image.
        """
        some = in_batches(evenly_spaced(len(self.validation), VALIDATED), BATCH)
        distances: list[torch.Tensor] = []
        measured = measure_tokenizer(
            self.tokenizer, load_batches(self.validation, some), watchers=[self.sharpening.watch(distances)]
        )
        if distances:
            measured["perceptual_distance"] = float(torch.cat(distances).mean())
        at_most = SWAPPED // (1 + len(self.tokenizer.layout))
        carried = measure_carried(self.tokenizer, self.validation, max_images=at_most)
        rises = () if carried is None else carried.rises
        return measured | {f"error_rise_{grid}": rise for grid, rise in enumerate(rises)}

    def draw(self) -> Pages:
        """Return eight validation images, always the same ones, above their reconstructions."""
        originals, again = reconstruct_some(self.tokenizer, self.validation, 8)
        return {"reconstructions": make_pairs(originals, again, columns=8)}

    def save(self, folder: Path, history: list[Metrics]) -> None:
        """Write the tokenizer as it is now."""
        self.tokenizer.provenance |= {"step": history[-1]["step"], "history": history}
        self.tokenizer.save_pretrained(folder)


@releasing()
def train_tokenizer(settings: TrainTokenizer) -> Trained | None:
    """Train the tokenizer, on images or on codes, and save its model folder in `settings.output`.

    Returns the finished model; of several processes only the first one returns it, the others return None.
    """
    resolve_options(settings)  # refuse impossible options before anything is read
    train = TRAINED_ON[kind_of_data(settings)]
    if settings.perceptual_weight:
        check_perceptual(settings.perceptual)
    return train(settings)


def train_on_images(settings: TrainTokenizer) -> Trained | None:
    """Train a tokenizer of images; see `train_tokenizer`."""
    settings = choose_data(settings)
    accelerator = start_accelerator(settings, **tracker_options(settings))
    compute = choose_compute(settings, accelerator.device)
    with accelerator.main_process_first():  # only one downloads
        settings, source = load_initial(settings, "tokenizer", settings.model)
        images, validation = load_parts(settings)
    print_once(str(images.found))
    check_shift(settings.shift, images.image_size)
    perceptual = load_perceptual(settings.perceptual, accelerator.device) if settings.perceptual_weight else None
    run = open_run(settings, compute, accelerator, source, data=images.fingerprint(), **facts_of(settings, perceptual))
    if run.finished:
        return read_trained(run)
    shape = "×".join(map(str, images.signal.shape))
    print_once(f"{len(images)} images of {shape}; {compute}")
    for line in warn_of_few(len(validation), "images"):
        print_once(line)

    tokenizer = build_tokenizer(settings, images)
    check_codebook(tokenizer, source)
    start_from(tokenizer, source, settings.init_from)
    place(cast(nn.Module, tokenizer), accelerator.device)
    objective = TokenizerObjective(tokenizer, images, validation, settings, perceptual)
    found = f"{len(images):,} images of {shape}; {len(validation):,} to validate on"
    save = partial(save_with_metrics, tokenizer, validation, settings, run.folder)
    return train_to_the_end(objective, settings, compute, run, accelerator, found, save)


def facts_of(settings: TrainTokenizer, perceptual: Perceptual | None) -> dict[str, Any]:
    """Return what a run depends on besides its settings: the network behind a name, and defaults that follow from
    `steps`, so that a longer run keeps them.
    """
    schedule = schedule_of(settings)
    steps = {} if schedule is None else {f"discriminator_{name}": value for name, value in schedule._asdict().items()}
    return steps | ({} if perceptual is None else {PERCEPTUAL: perceptual.description})


TRAINED_ON = {"images": train_on_images, "codes": train_on_codes, "sound": train_on_sound}


def kind_of_data(settings: TrainTokenizer) -> str:
    """Return what the tokenizer to train learns, a key of `TRAINED_ON`.

    Raises `InputError` if the settings give it something else, or have a setting that is for something else.
    """
    learns = getattr(TABLES["tokenizer"][settings.model], "learns", "images")
    if learns == "codes" and settings.over is None:
        raise InputError(f"`model` {settings.model} learns another tokenizer's codes: give their folder as `over`")
    if learns != "codes" and settings.over is not None:
        raise InputError(f"`over`: a {settings.model} tokenizer learns {learns}: give `model` codes, or leave it out")
    if settings.over is None:
        settings.check_data(learns)
    return learns


def load_parts(settings: TrainTokenizer) -> tuple[Images, Images]:
    """Load the images to train and to validate on, of one size and number of channels."""
    dataset, root, skip = str(settings.dataset), settings.data_root, settings.skip_unreadable
    images = load_images(dataset, root, "train", settings.image_size, skip_unreadable=skip)
    validation = load_images(dataset, root, "test", images.image_size, images.in_channels, skip)
    images.found = replace(images.found, others={"test": len(validation)})
    if hasattr(images, "shuffle_buffer"):
        images.shuffle_buffer = settings.shuffle_buffer
    return images, validation


def build_tokenizer(settings: TrainTokenizer, images: Images) -> Tokenizer:
    """Return the tokenizer to train on these images, with weights drawn from the seed."""
    variance = images.variance()
    if not variance:
        raise InputError(f"all training images of {settings.dataset} are of a single colour: choose another `dataset`")
    seed_torch(settings.seed, "weights")
    tokenizer = TABLES["tokenizer"][settings.model](
        signal=images.signal, data_variance=variance, quantizer=settings.quantizer, **settings.options
    )
    if all(grid.num_sites == 1 for grid in tokenizer.layout):
        size = "×".join(map(str, images.image_size))
        smaller = "smaller `levels`" if "levels" in tokenizer.config else "a smaller `downsampling`"
        raise InputError(f"images of {size} would become a single code each: choose {smaller}")
    tokenizer.provenance = {
        "dataset": public_name(str(settings.dataset)),
        "classes": images.classes,
        "steps": settings.steps,
    }
    return tokenizer


def save_with_metrics(tokenizer: Tokenizer, validation: Images, settings: TrainTokenizer, folder: Path) -> None:
    """Measure a trained tokenizer on all validation images, and save it with metrics and a picture."""
    batches = in_order(len(validation), BATCH)
    bar = progress_bar(load_batches(validation, batches, settings.num_workers), "validation images", len(batches))
    with without_compiling():
        metrics = measure_tokenizer(tokenizer, bar)
        carried = measure_carried(tokenizer, validation)
        at_most = max(1, min(MAX_ON_CARD, MAX_CARD_PIXELS // math.prod(validation.image_size)))
        picture = pairs_png(*reconstruct_some(tokenizer, validation, at_most))
    swapped = ""
    if carried is not None:
        for grid, rise in zip(metrics["grids"], carried.rises, strict=True):
            grid["error_rise"] = rise
        rises = f"{min(carried.rises):.4f} to {max(carried.rises):.4f}"
        swapped = f",\n  error {rises} higher with another {tokenizer.signal.item}'s codes in one grid"
    tokenizer.provenance["metrics"] = {"images": len(validation), **metrics}
    tokenizer.save_pretrained(folder, picture)
    each = [grid["perplexity"] for grid in metrics["grids"]]
    perplexities = f"{min(each):.1f}" if len(each) == 1 else f"{min(each):.1f} to {max(each):.1f} in {len(each)} grids"
    print_once(
        f"{settings.output}, after {tokenizer.provenance['step']:,} of {settings.steps:,} steps,\n"
        f"  on {len(validation):,} validation images:\n"
        f"  reconstruction error {metrics['reconstruction_error']:.4f}, PSNR {metrics['psnr']:.2f} dB,\n"
        f"  perplexity {perplexities}, {metrics['unused_entries']} of the "
        f"{sum(grid.num_embeddings for grid in tokenizer.layout)} codes never used{swapped}"
    )


def reconstruct_some(tokenizer: Tokenizer, images: Images, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up to `count` evenly spaced images, and their reconstructions, (n, c, H, W) in [-1, 1] on the CPU."""
    originals = to_float(images.batch(evenly_spaced(len(images), count)).images)
    return originals, tokenizer.reconstruct(originals.to(tokenizer.device)).cpu().clamp(-1, 1)
