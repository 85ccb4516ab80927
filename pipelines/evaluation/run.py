"""The body of `codegrid evaluate`: metrics of reconstructions, codes and samples, and what each was measured on."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from codegrid.codes import Condition
from codegrid.data.captions import as_column
from codegrid.data.codes import CodeBatch
from codegrid.data.images import evenly_spaced, to_float, to_uint8
from codegrid.data.loading import in_order
from codegrid.data.manifest import CAPTIONS, LABELS
from codegrid.data.shards import Column
from codegrid.files import write_json
from codegrid.locks import releasing
from codegrid.pipelines.drawing.codebook import save_usage
from codegrid.pipelines.drawing.sheets import save_pairs
from codegrid.pipelines.drawing.shown import as_pictures
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.generation.pairing import spoken_by
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.request import Request
from codegrid.pipelines.running.cli import print_once, print_plan
from codegrid.pipelines.running.run_folder import Run, left_open
from codegrid.progress import progress_bar
from codegrid.stage1_vqvae.usage import LayoutUsage
from codegrid.stage2_prior.sampling.backends import backend_of
from codegrid.tensors import read_json

from .carried import measure_carried
from .codes_of_codes import measure_lower_codes
from .cross_entropy import measure_nats
from .frechet import JudgedImages
from .futures import add_futures, see_windows
from .inputs import Inputs, load_inputs
from .judged_codes import add_bits, add_errors, add_ranks
from .likelihood_bound import DecoderLikelihood, fit_scales
from .likeness import Likeness
from .metrics import METRICS_FILE, Metrics, add_agreement, add_distance, mark_judge, mark_seen
from .perceptual import networks_of
from .reconstruction import Reconstruction, measure_tokenizer
from .shifts import measure_shifts
from .speech import add_speech
from .two_sets import compare_pictures

MAX_TO_FIT = 1000  # training images that the decoder's scales, one number per channel, are fitted to
MAX_TO_SHIFT = 256  # windows
OF_REFERENCE = "of the reference"
NUM_SHOWN = 48  # reconstructions on a sheet


@releasing()
def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Write metrics.json, usage.png and reconstructions.png into the output folder, and return the metrics."""
    if settings.images is not None:
        return compare_pictures(settings)
    inputs = load_inputs(settings)
    settings = inputs.settings
    how = {} if inputs.request is None else {"backend": backend_of(inputs.priors, settings.backend)}
    run = Run(settings.output, settings, *left_open(settings), **inputs.depends_on, **how)
    if run.finished:
        print_once(f"{run.shown} is finished: nothing to do")
        return read_json(run.folder / METRICS_FILE)
    if settings.dry_run:
        print_plan(f"{len(inputs.images):,} {inputs.images.found.item}s to measure on; {len(inputs.priors)} priors")
        return {}
    inputs.settings = replace(settings, backend=run.record["settings"].get("backend", settings.backend))
    run.start()
    extractor = inputs.need_extractor()
    if extractor is not None:
        extractor.keep(run.folder)
    inputs.need_rejection(run.folder)
    tokenizer, images = inputs.tokenizer, inputs.images
    metrics, usage = Metrics(notes=inputs.notes(), item=tokenizer.signal.item), LayoutUsage(tokenizer.layout)
    real = measure_reconstructions(inputs, usage, metrics)
    _add_nats(inputs, metrics)
    _add_shifts(inputs, metrics)
    _add_carried(inputs, metrics)
    _add_lower_codes(inputs, metrics)
    if len(tokenizer.stack) == 1:
        add_speech(tokenizer, inputs.train, images, settings.phonemes, metrics, reference=inputs.reference)
    if real is not None and inputs.pipeline is not None and inputs.request is not None:
        measure_samples(inputs, inputs.pipeline, inputs.request, real, metrics)
    numbers = evenly_spaced(len(images), NUM_SHOWN)
    shown, again = reconstruct_some(inputs, numbers)
    shown, again = (as_pictures(tokenizer.signal, x) for x in (shown, again))

    described = {"images": len(images), "split": settings.split, **inputs.depends_on}
    if images.files is not None:  # those in reconstructions.png, row by row
        described["shown_files"] = [images.files[number] for number in numbers]
    results = metrics.as_json(**described)

    def write_results(folder: Path) -> None:
        write_json(folder / METRICS_FILE, results)
        save_usage(folder / "usage.png", usage.counts)
        save_pairs(folder / "reconstructions.png", shown, again)

    run.finish_with(write_results)
    print_once("\n".join(metrics.lines()))
    return results


def measure_reconstructions(inputs: Inputs, usage: LayoutUsage, metrics: Metrics) -> JudgedImages | None:
    """Add the metrics of reconstructions and of codes; return the real images as the extractor sees them."""
    by_likelihood = inputs.pipeline is not None and not inputs.settings.skip_likelihood
    decoder = _make_decoder_likelihood(inputs) if by_likelihood else None
    real, again = (JudgedImages(inputs.extractor), JudgedImages(inputs.extractor)) if inputs.extractor else (None, None)
    codes: list[CodeBatch] = []
    likeness = Likeness(inputs.extractor)
    captions = iter(as_column(inputs.images.captions, 1)) if inputs.images.captions else None

    def watch(batch: Reconstruction) -> None:
        likeness.add(batch)
        if inputs.pipeline:
            columns: dict[str, Column] = {} if batch.labels is None else {LABELS: batch.labels}
            if captions:
                columns[CAPTIONS] = [next(captions) for _ in batch.images]
            codes.append(CodeBatch(tuple(grid.cpu() for grid in batch.codes), columns))
        if decoder:
            decoder.add(batch.images, batch.codes, batch.output, batch.given)
        if real and again:
            real.add(batch.images, batch.labels)
            again.add(to_uint8(batch.output), batch.labels)

    batches = inputs.batches(inputs.images, range(len(inputs.images)), "tokenizer")
    values = measure_tokenizer(inputs.tokenizer, batches, usage, [watch], inputs.images.classes)
    of_grids = zip(inputs.tokenizer.layout, values.pop("grids"), usage.counts, strict=True)
    metrics.grids = [
        {"grid": number, **grid.as_json(), **used, "never_used": (counts == 0).nonzero().flatten().tolist()}
        for number, (grid, used, counts) in enumerate(of_grids)
    ]
    metrics.add(values, reference=inputs.reference)
    seen = mark_seen(networks_of(inputs.tokenizer), real.extractor.description) if real else {}
    likeness.add_to(metrics, inputs.reference, seen)
    if inputs.pipeline:
        add_futures(inputs, codes, metrics)
    if by_likelihood:
        codes = see_windows(inputs, codes)
        add_bits(inputs, codes, decoder, metrics)
        add_ranks(inputs, codes, metrics)
        add_errors(inputs, codes, metrics)
    if real and again:
        add_distance("rfid", again, real, metrics, reference=inputs.reference, **seen)
        add_agreement("reconstruction_agreement", again, real, metrics, reference=inputs.reference)
    return real


def reconstruct_some(inputs: Inputs, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return some images (n, c, *size) in [-1, 1], and what becomes of them."""
    tokenizer, batch = inputs.tokenizer, inputs.images.batch(numbers)
    x = to_float(batch.images)
    given = spoken_by(tokenizer, Condition(batch.labels), inputs.images.classes)
    return x, tokenizer.decode(tokenizer.encode(x.to(tokenizer.device)), tuple(x.shape[2:]), given)


def _add_nats(inputs: Inputs, metrics: Metrics) -> None:
    """Add how likely the data are under a decoder that draws them, given their own codes and those of others."""
    tokenizer, images = inputs.tokenizer, inputs.images
    if len(tokenizer.stack) == 1 and getattr(tokenizer, "draws", False):
        batches = inputs.batches(images, range(len(images)), "nats")
        found = measure_nats(tokenizer, batches, images.classes, every=True)
        metrics.add({name: found[name] for name in found if "nats" in name}, reference=inputs.reference)


def _add_shifts(inputs: Inputs, metrics: Metrics) -> None:
    """Add the share of codes of sound that stay the same under a shift of a few samples."""
    if inputs.tokenizer.signal.kind == "sound":
        numbers = evenly_spaced(len(inputs.images), MAX_TO_SHIFT)
        found = measure_shifts(inputs.tokenizer, inputs.batches(inputs.images, numbers, "shifts"))
        metrics.add(found, reference=inputs.reference, windows=len(numbers))


def _add_carried(inputs: Inputs, metrics: Metrics) -> None:
    """Add what each of several grids carries."""
    carried = measure_carried(inputs.tokenizer, inputs.images, inputs.settings.batch_size)
    if carried is not None:
        for grid, rise in zip(metrics.grids, carried.rises, strict=True):
            grid["error_rise"] = rise
        metrics.measured_on["error_rise"] = {"reference": inputs.reference, "images": carried.num_images}


def _add_lower_codes(inputs: Inputs, metrics: Metrics) -> None:
    """Add what the codes of the uppermost of several tokenizers tell of those below."""
    if len(inputs.tokenizer.stack) == 1:
        return
    batches = inputs.batches(inputs.images, range(len(inputs.images)), "lower codes")
    images = (to_float(batch.images.to(inputs.tokenizer.device)) for batch in batches)
    metrics.add(measure_lower_codes(inputs.tokenizer.stack, images), reference=inputs.reference)


@torch.no_grad()
def _make_decoder_likelihood(inputs: Inputs) -> DecoderLikelihood | None:
    """Return the tokenizer's own likelihood of images, or one fitted to evenly spaced images of the training part.

    Returns None if neither is possible.
    """
    tokenizer, train = inputs.tokenizer.stack[0], inputs.train
    image = to_float(inputs.images.batch([0]).images.to(tokenizer.device))
    if tokenizer.nll(image, tokenizer.encode(image)) is not None:
        term = tokenizer.config.get("reconstruction")
        return DecoderLikelihood(inputs.tokenizer, None, {"likelihood": "of the tokenizer", "reconstruction": term})
    if train is None or inputs.settings.split == "train" or tokenizer.signal.kind != "image":  # 8-bit values
        return None
    numbers = evenly_spaced(len(train), MAX_TO_FIT)
    images = (batch.images.to(tokenizer.device) for batch in inputs.batches(train, numbers, "decoder's scale"))
    scales = fit_scales((batch, tokenizer.reconstruct(to_float(batch))) for batch in images)
    fitted_to = {"split": "train", "images": len(numbers), "fingerprint": inputs.depends_on["train_data"]}
    described = {"likelihood": "discretized logistic", "scales_in_grey_levels": scales.tolist(), "fitted_to": fitted_to}
    return DecoderLikelihood(inputs.tokenizer, scales, described)


@torch.no_grad()
def measure_samples(
    inputs: Inputs, pipeline: TwoStagePipeline, request: Request, real: JudgedImages, metrics: Metrics
) -> None:
    """Draw the samples; add how near they are to the real images, and how often they show their class."""
    rejection = request.rejection
    settings, drawn = inputs.settings, JudgedImages(real.extractor)
    with progress_bar(total=request.num_samples, desc="sampling" + request.chosen, unit="img") as bar:
        for rows in in_order(request.num_samples, settings.batch_size):
            some = pipeline.sample_rows(request, rows, settings.backend)
            labels = None if inputs.labels is None else inputs.labels[rows.start : rows.stop]
            drawn.add(to_uint8(some.images).to(pipeline.device), labels)
            bar.update(len(rows))
    samples: dict[str, Any] = {
        "images": request.num_samples,
        "labels": None if request.labels is None else OF_REFERENCE if request.prompts else "all classes in turn",
        "prompts": f"captions {OF_REFERENCE}" if request.prompts else None,
        "seed": request.seed, "configs": [asdict(config) for config in request.configs],
        "priors": inputs.depends_on["priors"],
    }  # fmt: skip
    measured_on: dict[str, Any] = {"reference": inputs.reference, "samples": samples}
    measured_on |= mark_seen(networks_of(inputs.tokenizer), real.extractor.description)
    if rejection is not None:
        chosen = {"samples": rejection.describe(request.num_samples)}
        measured_on["rejections"] = mark_judge(chosen, real.extractor.description)
    add_distance("gfid", drawn, real, metrics, **measured_on)
    add_agreement("class_agreement", drawn, real, metrics, **measured_on)
    if inputs.train is not None and settings.split != "train":
        # the distance that samples as good as real images would have
        numbers, others = evenly_spaced(len(inputs.train), request.num_samples), JudgedImages(real.extractor)
        for batch in inputs.batches(inputs.train, numbers, "training images"):
            others.add(batch.images.to(pipeline.device), batch.labels)
        train = {"images": len(numbers), "fingerprint": inputs.depends_on["train_data"]}
        add_distance("train_fid", others, real, metrics, reference=inputs.reference, train=train)
