"""Stage 1 on sound: training a tokenizer on windows of recordings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from codegrid.codes import Condition, Losses, Moment
from codegrid.data.images import ImageBatch, evenly_spaced, to_float
from codegrid.data.loading import in_batches, load_batches
from codegrid.data.names import describe_data
from codegrid.data.sources import Images, load_images
from codegrid.data.splits import warn_of_few
from codegrid.errors import InputError
from codegrid.pipelines.drawing.sheets import make_pairs, to_png
from codegrid.pipelines.drawing.shown import as_pictures
from codegrid.pipelines.evaluation.cross_entropy import measure_nats
from codegrid.pipelines.evaluation.reconstruction import measure_tokenizer
from codegrid.pipelines.generation.chosen_data import choose_data
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.device import choose_compute, place, start_accelerator, without_compiling
from codegrid.pipelines.running.options import resolve_options
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.registry import TABLES
from codegrid.stage1_vqvae.gradients import CHECKED, TOO_STRONG, is_too_strong
from codegrid.stage1_vqvae.usage import perplexities

from .first_stage import train_to_the_end
from .initial import check_codebook, load_initial, start_from
from .log import tracker_options
from .loop import Trained, open_run, read_trained
from .objective import Metrics, Pages, Player
from .trainer import fused_adam, seed_torch

VALIDATED, BATCH = 256, 32  # windows while training, and at once
SHOWN, COLUMNS = 8, 4  # windows in a picture
MAX_NORM = 1.0  # of the gradient, if a prior draws the samples


class SoundObjective:
    """The losses of a tokenizer of sound; its codebooks move after each step."""

    items, num_workers, keep_best = "windows", 0, False

    def __init__(self, tokenizer: Any, sound: Images, validation: Images, settings: TrainTokenizer) -> None:
        self.tokenizer, self.dataset, self.validation = tokenizer, sound, validation
        self.has_whole_batches = settings.accumulate == 1
        measure = measure_nats if tokenizer.draws else measure_tokenizer
        self.measure = partial(measure, classes=sound.classes)
        self.criterion = "nats" if tokenizer.draws else "reconstruction_error"
        parts = (tokenizer.encoder, tokenizer.decoder, tokenizer.prior)
        self.players = {
            "tokenizer": Player(
                cast(nn.Module, tokenizer),
                fused_adam,
                settings.lr,
                max_norm=MAX_NORM if tokenizer.draws else math.inf,
                to_compile=[part for part in parts if part is not None],
            )
        }
        self.buffers: dict[str, torch.Tensor] = {}
        self.noted = CHECKED
        self._warned = False

    def losses(self, player: str, wrapped: nn.Module, batch: ImageBatch, moment: Moment) -> Losses:
        """Return the tokenizer's losses for a batch of windows and their speakers."""
        given = Condition(batch.labels, lengths=batch.lengths).to(self.tokenizer.device)
        _, codes, losses = wrapped(to_float(batch.images.to(self.tokenizer.device)), given, moment)
        usage = perplexities(codes, self.tokenizer.layout) if self.has_whole_batches else {}
        self._warn_of_collapse(losses.figures, moment.step)
        return losses._replace(figures=losses.figures | usage)

    def after_step(self, step: int, seed: int) -> None:
        """Move the codebooks."""
        self.tokenizer.after_step(step, seed)

    def validate(self) -> dict[str, Any]:
        """Measure up to 256 windows: their reconstructions, or how likely they are if the decoder draws."""
        return self.measure(self.tokenizer, self.batches(VALIDATED))

    def draw(self) -> Pages:
        """Return spectrograms of some validation windows, always the same ones, above those of what is decoded."""
        batch = self.validation.batch(evenly_spaced(len(self.validation), SHOWN))
        x = to_float(batch.images).to(self.tokenizer.device)
        again = self.tokenizer.decode(self.tokenizer.encode(x), tuple(x.shape[2:]), Condition(batch.labels))
        before, after = (as_pictures(self.tokenizer.signal, waves) for waves in (x, again))
        return {"reconstructions": make_pairs(before, after, COLUMNS)}

    def save(self, folder: Path, history: list[Metrics]) -> None:
        """Write the tokenizer as it is now."""
        self.tokenizer.provenance |= {"step": history[-1]["step"], "history": history}
        self.tokenizer.save_pretrained(folder)

    def _warn_of_collapse(self, figures: Mapping[str, torch.Tensor], step: int) -> None:
        """Say once if the commitment term pulls the latents much harder than all others."""
        if step not in CHECKED or self._warned:
            return
        self._warned = is_too_strong({name: float(norm) for name, norm in figures.items()})
        if self._warned:
            print_once(
                f"step {step}: the gradient of the commitment loss at the latents is over {TOO_STRONG} times that of\n"
                "  the others: the codes may collapse to a few; give a lower --commitment-cost"
            )

    def batches(self, at_most: int) -> Iterator[ImageBatch]:
        """Yield up to `at_most` validation windows."""
        return load_batches(self.validation, in_batches(evenly_spaced(len(self.validation), at_most), BATCH))


def train_on_sound(settings: TrainTokenizer) -> Trained | None:
    """Train a tokenizer of sound; see `codegrid.pipelines.training.tokenizer.train_tokenizer`."""
    if resolve_options(settings).get("frozen_codes") and settings.init_from is None:
        raise InputError("`frozen_codes` needs `init_from`: give the tokenizer whose codes the decoder is to learn")
    settings = choose_data(settings)
    accelerator = start_accelerator(settings, **tracker_options(settings))
    compute = choose_compute(settings, accelerator.device)
    with accelerator.main_process_first():
        settings, source = load_initial(settings, "tokenizer", settings.model)
        sound, validation = load_parts(settings)
    print_once(str(sound.found))
    run = open_run(settings, compute, accelerator, source, data=sound.fingerprint())
    if run.finished:
        return read_trained(run)
    length, rate = sound.image_size[0], sound.signal.rate
    print_once(f"{len(sound):,} windows of {length:,} samples at {rate:,g} Hz; {compute}")
    for line in warn_of_few(len(validation), "windows"):
        print_once(line)
    tokenizer = build_tokenizer(settings, sound)
    check_codebook(tokenizer, source)
    start_from(tokenizer, source, settings.init_from)
    place(cast(nn.Module, tokenizer), accelerator.device)
    objective = SoundObjective(tokenizer, sound, validation, settings)
    found = f"{len(sound):,} windows of {length:,} samples; {len(validation):,} to validate on"
    save = partial(save_with_metrics, objective, settings, run.folder)
    return train_to_the_end(objective, settings, compute, run, accelerator, found, save)


def load_parts(settings: TrainTokenizer) -> tuple[Images, Images]:
    """Load the windows to train and to validate on; clips shorter than a code are left out."""
    shortest = math.prod(resolve_options(settings).get("strides", (1,)))
    size = () if settings.window is None else (settings.window,)
    load = partial(
        load_images, str(settings.dataset), settings.data_root, image_size=size, rate=settings.sampling_rate,
        skip_unreadable=settings.skip_unreadable, shortest=shortest,
    )  # fmt: skip
    sound, validation = load(split="train"), load(split="test")
    sound.found = replace(sound.found, others={"test": len(validation)})
    return sound, validation


def build_tokenizer(settings: TrainTokenizer, sound: Images) -> Any:
    """Return the tokenizer to train on this sound, with weights drawn from the seed."""
    seed_torch(settings.seed, "weights")
    tokenizer: Any = TABLES["tokenizer"][settings.model](
        signal=sound.signal, data_variance=sound.variance(), quantizer=settings.quantizer,
        num_classes=len(sound.classes), **settings.options,
    )  # fmt: skip
    if all(grid.num_sites == 1 for grid in tokenizer.layout):
        raise InputError("a window would become a single code: choose a longer `window`, or fewer `strides`")
    tokenizer.provenance = {
        **describe_data(str(settings.dataset), settings.data_root), "classes": sound.classes, "steps": settings.steps,
    }  # fmt: skip
    return tokenizer


def save_with_metrics(objective: SoundObjective, settings: TrainTokenizer, folder: Path) -> None:
    """Measure a trained tokenizer on all validation windows, and save it with metrics and spectrograms."""
    tokenizer, count = objective.tokenizer, len(objective.validation)
    with without_compiling():
        metrics = objective.measure(tokenizer, objective.batches(count))
        picture = to_png(next(iter(objective.draw().values())))
    tokenizer.provenance["metrics"] = {"windows": count, **metrics}
    tokenizer.save_pretrained(folder, picture)
    if tokenizer.draws:
        told = f"{metrics['nats']:.4f} nats a sample given its own codes, {metrics['swapped_nats']:.4f} given others"
    else:
        told = f"reconstruction error {metrics['reconstruction_error']:.4f}, PSNR {metrics['psnr']:.2f} dB"
    print_once(
        f"{settings.output}, after {tokenizer.provenance['step']:,} of {settings.steps:,} steps,\n"
        f"  on {count:,} validation windows:\n  {told},\n"
        f"  perplexity {metrics['perplexity']:.1f}, {metrics['unused_entries']} of the "
        f"{sum(grid.num_embeddings for grid in tokenizer.layout)} codes never used"
    )
