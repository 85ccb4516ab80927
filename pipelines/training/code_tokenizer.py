"""Stage 1 once more: training a tokenizer on the codes of another one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from codegrid.codes import Codes, Losses, Moment, describe_layout
from codegrid.data.code_files import AnyCodes, open_to_learn
from codegrid.data.codes import CodeBatch
from codegrid.data.images import evenly_spaced
from codegrid.data.loading import in_batches, load_batches
from codegrid.data.splits import hold_out, warn_of_few
from codegrid.data.views import each_view
from codegrid.errors import InputError
from codegrid.pipelines.drawing.colours import colours_by_number, paint
from codegrid.pipelines.drawing.sheets import make_pairs, to_png
from codegrid.pipelines.evaluation.codes_of_codes import capacity_of, gradient_norms, measure_codes_of_codes
from codegrid.pipelines.generation.tokenizers import LOWER, load_tokenizer, made_by
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.device import choose_compute, place, start_accelerator, without_compiling
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.protocols import Tokenizer
from codegrid.registry import TABLES
from codegrid.stage1_vqvae.gradients import TOO_STRONG, is_too_strong
from codegrid.stage1_vqvae.usage import perplexities

from .first_stage import train_to_the_end
from .initial import check_codebook, load_initial, start_from
from .log import tracker_options
from .loop import Trained, open_run, read_trained
from .objective import Batches, Metrics, Pages, Player
from .trainer import fused_adam, seed_torch

VALIDATED = 1000  # items while training; at the end all
BATCH = 250  # items measured at once
WEIGHED = 64  # items that gradients are compared on
MAX_NORM = 1.0  # of the gradient, as a prior's: the decoder is one
SHOWN, COLUMNS = 16, 8  # grids in a picture
PAINTED = 8  # pixels of a code's side


class CodesObjective:
    """The losses of a tokenizer over codes; its codebooks move after each step."""

    items, num_workers, criterion, keep_best = "grids", 0, "bits_per_image", False

    def __init__(
        self,
        tokenizer: Any,
        codes: Batches,
        validation: Batches,
        settings: TrainTokenizer,
        lower: Tokenizer | None = None,
    ) -> None:
        self.tokenizer, self.dataset, self.validation = tokenizer, codes, validation
        self.lower = lower  # decodes the codes, for pictures
        self.has_whole_batches = settings.accumulate == 1
        self.players = {
            "tokenizer": Player(
                cast(nn.Module, tokenizer),
                fused_adam,
                settings.lr,
                max_norm=MAX_NORM,
                to_compile=[part for part in (tokenizer.encoder, tokenizer.decoder, tokenizer.auxiliary) if part],
            )
        }
        self.buffers: dict[str, torch.Tensor] = {}

    def losses(self, player: str, wrapped: nn.Module, batch: CodeBatch, moment: Moment) -> Losses:
        """Return the tokenizer's losses for a batch of codes."""
        _, codes, losses = wrapped(tuple(grid.to(self.tokenizer.device) for grid in batch.codes), moment=moment)
        usage = perplexities(codes, self.tokenizer.layout) if self.has_whole_batches else {}
        return losses._replace(figures={f"batch_{name}": value for name, value in losses.figures.items()} | usage)

    def after_step(self, step: int, seed: int) -> None:
        """Move the codebooks."""
        self.tokenizer.after_step(step, seed)

    def validate(self) -> dict[str, Any]:
        """Measure up to 1,000 items, and the gradients of the losses."""
        weighed = self.validation.batch(evenly_spaced(len(self.validation), WEIGHED)).codes
        measured = measure_codes_of_codes(self.tokenizer, self.batches(VALIDATED))
        return {**measured, **gradient_norms(self.tokenizer, weighed)}

    def draw(self) -> Pages:
        """Return some validation grids, always the same ones, above those drawn for their few codes.

        They are decoded if the tokenizer that made them is known; else a code has a colour by its number.
        """
        originals = self.validation.batch(evenly_spaced(len(self.validation), SHOWN)).codes
        originals = tuple(grid.to(self.tokenizer.device) for grid in originals)
        pairs = originals, self.tokenizer.reconstruct(originals)
        if self.lower is not None:
            before, after = (self.lower.decode(codes).clamp(-1, 1) for codes in pairs)
            return {"reconstructions": make_pairs(before, after, COLUMNS)}
        pages = {}
        for number, (grid, *codes) in enumerate(zip(self.tokenizer.over, *pairs, strict=True)):
            colours = colours_by_number(grid.num_embeddings)
            before, after = (paint(each, colours, PAINTED) * 2 - 1 for each in codes)
            pages[f"codes_{number}"] = make_pairs(before, after, COLUMNS)
        return pages

    def save(self, folder: Path, history: list[Metrics]) -> None:
        """Write the tokenizer as it is now."""
        self.tokenizer.provenance |= {"step": history[-1]["step"], "history": history}
        self.tokenizer.save_pretrained(folder)

    def batches(self, at_most: int) -> Iterator[Codes]:
        """Yield the codes (b, *shape) of up to `at_most` validation items."""
        some = in_batches(evenly_spaced(len(self.validation), at_most), BATCH)
        return (batch.codes for batch in load_batches(self.validation, some))


def train_on_codes(settings: TrainTokenizer) -> Trained | None:
    """Train a tokenizer on codes; see `train_tokenizer`."""
    accelerator = start_accelerator(settings, **tracker_options(settings))
    compute = choose_compute(settings, accelerator.device)
    codes = open_lower_codes(str(settings.over))
    training, validation = hold_out(codes, settings.validation_codes)
    with accelerator.main_process_first():  # only one downloads
        settings, source = load_initial(settings, "tokenizer", settings.model)
    facts = {"data": codes.fingerprint(), "validation": validation.fingerprint()}
    run = open_run(settings, compute, accelerator, source, **facts)
    if run.finished:
        return read_trained(run)
    run.record[LOWER] = place_of_lower = made_by(Path(str(settings.over)), codes.header.tokenizer_fingerprint)
    lower = load_tokenizer(place_of_lower, accelerator.device) if place_of_lower else None
    tokenizer = build_code_tokenizer(settings, codes)
    check_codebook(tokenizer, source)
    start_from(tokenizer, source, settings.init_from)
    place(cast(nn.Module, tokenizer), accelerator.device)
    print_once(f"{len(training)} × {describe_layout(codes.layout)}, as {describe_layout(tokenizer.layout)}; {compute}")
    for line in warn_of_few(len(validation), "grids"):
        print_once(line)
    objective = CodesObjective(tokenizer, each_view(training), validation, settings, lower)
    found = f"{len(training):,} grids of codes; {len(validation):,} to validate on"
    save = partial(save_with_metrics, objective, settings, run.folder)
    return train_to_the_end(objective, settings, compute, run, accelerator, found, save)


def open_lower_codes(folder: str) -> AnyCodes:
    """Open the codes to learn. Raises `InputError` if they do not say which tokenizer made them."""
    codes = open_to_learn(folder)
    if not codes.header.tokenizer_fingerprint:
        raise InputError(f"`over` {folder} does not name its tokenizer: give codes that export-codes wrote")
    return codes


def build_code_tokenizer(settings: TrainTokenizer, codes: AnyCodes) -> Any:
    """Return the tokenizer to train on these codes, with weights drawn from the seed."""
    seed_torch(settings.seed, "weights")
    tokenizer = TABLES["tokenizer"][settings.model](over=codes.layout, quantizer=settings.quantizer, **settings.options)
    tokenizer.provenance = {
        "tokenizer_fingerprint": codes.header.tokenizer_fingerprint,
        "split": codes.header.split,
        "classes": codes.classes,
        "steps": settings.steps,
        **codes.header.how_viewed,
    }
    return tokenizer


def save_with_metrics(objective: CodesObjective, settings: TrainTokenizer, folder: Path) -> None:
    """Measure a trained tokenizer on all validation codes, and save it with metrics and a picture."""
    tokenizer, count = objective.tokenizer, len(objective.validation)
    with without_compiling():
        metrics = measure_codes_of_codes(tokenizer, objective.batches(count)) | {"capacity": capacity_of(tokenizer)}
        picture = to_png(next(iter(objective.draw().values())))
    tokenizer.provenance["metrics"] = {"items": count, **metrics}
    tokenizer.save_pretrained(folder, picture)
    print_once(
        f"{settings.output}, after {tokenizer.provenance['step']:,} of {settings.steps:,} steps,\n"
        f"  on {count:,} validation grids:\n"
        f"  {metrics['bits_per_image']:.1f} bits given their own codes, "
        f"{metrics['swapped_bits_per_image']:.1f} given those of another image\n"
        f"  (at most {metrics['capacity']:.0f} bits come through); {metrics['distinct']:,} different codes"
    )
    if is_too_strong(tokenizer.provenance["history"][-1]):
        print_once(
            f"the gradient of the commitment loss at the latents is over {TOO_STRONG} times that of the others: train "
            "with a larger --reconstruction-weight or a smaller --commitment-cost"
        )
