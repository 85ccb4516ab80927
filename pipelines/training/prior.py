"""Stage 2: training a prior on exported codes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from codegrid.codes import Codes, Condition, Losses, Moment, describe_layout
from codegrid.data.code_files import AnyCodes, Assumed, check_fingerprint, open_to_learn
from codegrid.data.codes import CodeBatch
from codegrid.data.images import evenly_spaced
from codegrid.data.loading import in_batches, load_batches
from codegrid.data.splits import hold_out, warn_of_few
from codegrid.data.videos import names_of_actions, see_earlier
from codegrid.data.views import each_view
from codegrid.locks import releasing
from codegrid.model_card import MAX_CARD_PIXELS
from codegrid.noise import Noise
from codegrid.pipelines.drawing.colours import colours_by_number, paint
from codegrid.pipelines.drawing.sheets import lay_out, make_sheet, to_png
from codegrid.pipelines.drawing.shown import as_pictures
from codegrid.pipelines.evaluation.reconstruction import measure_prior, prior_inputs
from codegrid.pipelines.generation.encoding import describe_views, tables_of
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.tokenizers import load_tokenizer
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.device import choose_compute, place, start_accelerator, without_compiling
from codegrid.pipelines.running.options import resolve_options
from codegrid.pipelines.running.processes import broadcast_from_main, shut_down
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.protocols import AdamSettings, Prior, Tokenizer
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior.text_tokenizer import TextTokenizer

from .chosen_prior import make_prior, takes_both
from .initial import load_initial, start_from
from .log import tracker_options
from .loop import Trained, finish, open_run, read_trained, train
from .missing_codes import end_of_views, export_missing, missing_codes, views_of
from .objective import Batches, Metrics, Pages, Player
from .plan import plan_training
from .sharding import check_can_shard
from .texts import choose_texts, some_captions
from .trainer import PLAIN_ADAM, fused_adam

VALIDATED = 1000  # items while training; `evaluate` uses all
PREPARED = 20_000  # items that a prior is shown before training, if it must see some
BATCH = 250  # items measured at once
DRAWN = 16  # samples that a tracker shows
COLUMNS, MAX_ROWS = 8, 10  # of the samples on a model's card
PICTURE_WIDTH = 900  # pixels of a tracker's picture, about
CRITERION = "bits_per_code"


class PriorObjective:
    """The prior's own losses, with a moving average of the weights; `codes` holds all grids of the tokenizer."""

    items, num_workers = "grids", 0

    def __init__(self, prior: Prior, codes: Batches, validation: Batches, settings: TrainPrior) -> None:
        self.prior, self.dataset, self.validation, self.seed = prior, codes, validation, settings.seed
        self.criterion = getattr(prior, "criterion", "") if prior.likelihood == "none" else CRITERION
        self.keep_best = settings.keep == "best" and bool(self.criterion)
        self.players = {
            "prior": Player(
                cast(nn.Module, prior),
                partial(fused_adam, settings=adam_of(prior, settings.weight_decay), module=cast(nn.Module, prior)),
                settings.lr,
                max_norm=settings.max_norm,
                average_decay=settings.ema_decay,
                to_compile=[cast(nn.Module, prior)],
                to_shard=settings.shard,
            )
        }
        self.buffers: dict[str, torch.Tensor] = {}

    def losses(self, player: str, wrapped: nn.Module, batch: CodeBatch, moment: Moment) -> Losses:
        """Return the prior's losses for its grids of a batch, given the coarser ones."""
        losses = wrapped(*prior_inputs(self.prior, batch, moment.noise), moment)
        return losses._replace(figures={f"batch_{name}": value for name, value in losses.figures.items()})

    def after_step(self, step: int, seed: int) -> None:
        """Do nothing: only gradients change a prior."""

    def validate(self) -> dict[str, Any]:
        """Measure bits per code, or what stands for them, on up to 1,000 items."""
        some = in_batches(evenly_spaced(len(self.validation), VALIDATED), BATCH)
        return measure_prior(cast("Prior", self.players["prior"].validated), load_batches(self.validation, some))

    def draw(self) -> Pages:
        """Return samples under the conditions of some validation items, drawn with one colour per code."""
        prior = cast("Prior", self.players["prior"].validated)
        pages, (_, codes) = {}, self._draw_like_some(prior)
        for number, grid, drawn in zip(prior.grids, prior.layout, codes, strict=True):
            scale = max(1, PICTURE_WIDTH // (DRAWN // 2 * grid.shape[-1]))
            painted = paint(drawn, colours_by_number(grid.num_embeddings), scale)
            name = "samples" if len(prior.grids) == 1 else f"samples_{number}"
            pages[name] = lay_out(painted, DRAWN // 2, margin=4, fill=1.0)
        return pages

    def draw_part(self, prior: Prior, tokenizer: Tokenizer) -> bytes:
        """Return a sheet, as a PNG file, of samples with the coarser grids of validation items, and no finer grids."""
        given, drawn = self._draw_like_some(prior)
        known = dict(zip((*prior.given_grids, *prior.grids), (*given.codes, *drawn), strict=True))
        rest = (torch.zeros(DRAWN, *grid.shape, dtype=torch.int64, device=prior.device) for grid in tokenizer.layout)
        codes = tuple(known.get(number, empty) for number, empty in enumerate(rest))
        marks = tuple(torch.full_like(grid, number in known, dtype=torch.bool) for number, grid in enumerate(codes))
        some = slice(max(1, MAX_CARD_PIXELS // math.prod(tokenizer.signal.size)))
        with without_compiling():
            images = tokenizer.preview(tuple(grid[some] for grid in codes), tuple(mark[some] for mark in marks))
        return to_png(make_sheet(as_pictures(tokenizer.signal, images), COLUMNS))

    @torch.no_grad()
    def _draw_like_some(self, prior: Prior) -> tuple[Condition, Codes]:
        """Draw codes under the conditions, labels and coarser grids, of some validation items. Return both."""
        items = evenly_spaced(len(self.validation), DRAWN)
        _, given = prior_inputs(prior, self.validation.batch([items[i % len(items)] for i in range(DRAWN)]))
        noise = Noise(self.seed, 0, DRAWN, prior.device, ("tracker",))
        *_, last = prior.sample(given, noise, SamplingConfig())
        return given, last.codes

    def save(self, folder: Path, history: list[Metrics]) -> None:
        """Write the average as it is now."""
        prior = cast("Prior", self.players["prior"].validated)
        prior.provenance |= {"step": history[-1]["step"], "history": history}
        prior.save_pretrained(folder)


@releasing()
def train_prior(settings: TrainPrior) -> Trained | None:
    """Train the prior and save its model folder in `settings.output`.

    Returns the finished model; of several processes only the first one returns it, the others return None.
    """
    resolve_options(settings)  # refuse impossible options before anything is read
    accelerator = start_accelerator(settings, **tracker_options(settings))
    compute = choose_compute(settings, accelerator.device)
    tokenizer = load_tokenizer(settings.tokenizer, accelerator.device) if settings.tokenizer else None
    with accelerator.main_process_first():  # only one downloads
        settings, source = load_initial(settings, "prior", settings.model)
    missing = broadcast_from_main(accelerator, lambda: missing_codes(settings))
    if tokenizer and missing:
        with torch.device("meta"):  # without weights: what cannot learn these codes is refused before they are made
            make_prior(settings, tokenizer.layout, partial(tables_of, tokenizer))
        settings = export_missing(tokenizer, settings, missing, accelerator)
        if settings.dry_run:
            return None  # the grids are not known yet
    codes = open_codes_to_learn(settings, tokenizer)
    training, validation = hold_out(codes, settings.validation_codes)
    texts = choose_texts(settings, codes, training, validation, source, accelerator)
    facts = {"data": codes.fingerprint(), "validation": validation.fingerprint(), **views_of(codes, settings)}
    facts |= {"text_tokenizer": texts.sha256} if texts else {}
    run = open_run(settings, compute, accelerator, source, **facts)
    if run.finished:
        return read_trained(run)
    prior = build_prior(settings, codes, tokenizer, texts)
    start_from(prior, source, settings.init_from)
    is_sharded = settings.shard and accelerator.num_processes > 1
    if not is_sharded or settings.dry_run:  # a sharded one may be too large for the device
        place(cast(nn.Module, prior), accelerator.device)
    print_once(f"{len(training)} × {what_is_learnt(prior, codes)}; {compute}")
    for line in warn_of_few(len(validation), "grids"):
        print_once(line)
    if is_sharded:
        check_can_shard(accelerator.device)
    elif settings.shard:
        print_once("--shard: one process holds all the weights; start several, for example with torchrun")
    if not settings.dry_run:
        prepare(prior, training)
    seen = each_view(see_earlier(training, prior), end_of_views(settings))
    objective = PriorObjective(prior, seen, see_earlier(validation, prior), settings)
    if settings.dry_run:
        found = f"{len(training):,} grids of codes{describe_views(codes.header)}; {len(validation):,} to validate on"
        plan_training(objective, settings, compute, accelerator, found)
        return None
    if settings.keep == "best" and not objective.keep_best:
        print_once(f"a {settings.model} prior has no likelihood to choose the best by: keeping the last")
    history = train(objective, settings, compute, run, accelerator)
    trained = None
    if accelerator.is_main_process:
        save(objective, history, settings, run.folder, tokenizer)
        trained = finish(run, keep_state=True)  # only the state holds the weights before averaging
    shut_down(accelerator)
    return trained


def adam_of(prior: Prior, weight_decay: float | None = None) -> AdamSettings:
    """Return the Adam that a prior wants, with another weight decay if one is given."""
    own: AdamSettings = getattr(prior, "adam", PLAIN_ADAM)
    return own if weight_decay is None else own._replace(weight_decay=weight_decay)


def open_codes_to_learn(settings: TrainPrior, tokenizer: Tokenizer | None = None) -> AnyCodes:
    """Open the codes, and check that the tokenizer made them, if there is one."""
    if tokenizer is None:
        codes = open_to_learn(settings.codes)
        if not codes.header.tokenizer_fingerprint:
            print_once(
                f"{settings.codes} does not name its tokenizer: read as {describe_layout(codes.layout)}, and the "
                "prior's samples are only codes (to decode them, name one with --tokenizer)"
            )
        return codes
    codes = open_to_learn(settings.codes, Assumed(tokenizer.layout, tokenizer.fingerprint()))
    check_fingerprint(codes.folder, codes.header.tokenizer_fingerprint, tokenizer)
    return codes


def build_prior(
    settings: TrainPrior, codes: AnyCodes, tokenizer: Tokenizer | None = None, texts: TextTokenizer | None = None
) -> Prior:
    """Return the prior to train on these codes, which a tokenizer made, with weights drawn from the seed."""
    only_texts = texts is not None and not takes_both(settings.model)
    classes = [] if settings.unconditional or settings.ignore_labels or only_texts else codes.classes
    tables = codes.tables if tokenizer is None else partial(tables_of, tokenizer)
    actions = names_of_actions(codes)
    prior = make_prior(settings, codes.layout, tables, len(classes), texts, len(actions))
    prior.provenance = {
        "tokenizer_fingerprint": codes.header.tokenizer_fingerprint,
        "layout": [grid.as_json() for grid in codes.layout],
        "split": codes.header.split,
        "classes": classes,
        "steps": settings.steps,
        **codes.header.how_viewed,
        **({"actions": list(actions)} if getattr(prior, "num_actions", 0) else {}),
    }
    return prior


def prepare(prior: Prior, training: Batches) -> None:
    """Show some training codes to a prior that must see them first."""
    look = getattr(prior, "prepare", None)
    if look is not None:
        some = in_batches(evenly_spaced(len(training), PREPARED), BATCH)
        look(prior_inputs(prior, batch)[0] for batch in load_batches(training, some))


def what_is_learnt(prior: Prior, codes: AnyCodes) -> str:
    """Return the grids that a prior learns, and what it is given, in words."""
    classes, words = prior.conditions.num_classes, prior.conditions.num_words
    learnt = [f"{classes} classes"] * (classes > 0) + [f"texts of {words:,} words"] * (words > 0)
    condition = " and ".join(learnt) or "unconditional"
    if frames := getattr(prior, "context_frames", 0):
        condition += f", given up to {frames} earlier frame{'s' * (frames > 1)}"
    if prior.given_grids:
        condition += f", given {describe_layout(tuple(codes.layout[grid] for grid in prior.given_grids))}"
    return f"{describe_layout(prior.layout)}{describe_views(codes.header)}, {condition}"


def save(
    objective: PriorObjective,
    history: list[Metrics],
    settings: TrainPrior,
    folder: Path,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Save the kept average with its history, and with samples if there is a tokenizer to decode them."""
    kept, metrics = cast("Prior", objective.players["prior"].kept.eval()), history[-1]
    if objective.keep_best:
        metrics = min(history, key=lambda each: each[objective.criterion])
    kept.provenance |= {"step": metrics["step"], "history": history}
    if settings.half:
        kept.round_to_half()
    kept.save_pretrained(folder)  # first: a picture may fail
    if tokenizer is not None:
        is_whole = tuple(kept.grids) == tuple(range(len(tokenizer.layout)))
        if is_whole and kept.conditions.num_words:
            kept.provenance["prompts"] = some_captions(kept, objective.validation, rows_on_card(tokenizer))
        drawn = draw_samples(kept, tokenizer, settings.seed) if is_whole else objective.draw_part(kept, tokenizer)
        kept.save_pretrained(folder, drawn)
    at_most, name = "at most " * (kept.likelihood == "bound"), objective.criterion.replace("_", " ")
    bits = f"{at_most}{metrics[objective.criterion]:.3f} {name} on validation codes, " if name else ""
    which = "best" if objective.keep_best else "last"
    print_once(f"{settings.output}: {bits}{which} after {metrics['step']:,} of {settings.steps:,} steps")


def rows_on_card(tokenizer: Tokenizer) -> int:
    """Return the most rows of samples that a model's card shows."""
    return max(1, min(MAX_ROWS, MAX_CARD_PIXELS // (COLUMNS * math.prod(tokenizer.signal.size))))


def draw_samples(prior: Prior, tokenizer: Tokenizer, seed: int) -> bytes:
    """Return a sheet of samples as a PNG file, a row for each prompt that the prior names, or else for each class."""
    prompts = prior.provenance.get("prompts", []) if prior.conditions.num_words else []
    classes = 0 if prompts else prior.conditions.num_classes
    rows = min(classes or len(prompts) or 2, rows_on_card(tokenizer))
    labels = [label for label in range(rows) for _ in range(COLUMNS)] if classes else None
    asked = [prompt for prompt in prompts for _ in range(COLUMNS)] or None
    with without_compiling():
        pipeline = TwoStagePipeline(tokenizer, prior)
        samples = pipeline.sample(COLUMNS * rows, labels, prompts=asked, seed=seed, progress=False)
    return to_png(make_sheet(as_pictures(tokenizer.signal, samples.images), COLUMNS))
