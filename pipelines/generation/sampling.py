"""Drawing new images, or their codes, into a folder: the body of `codegrid sample`.

Shapes: n samples, b samples of a batch, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator

from codegrid.budget import in_words
from codegrid.codes import NO_LABEL, Codes, describe_layout
from codegrid.data.code_writer import write_codes
from codegrid.data.codes import CodeBatch
from codegrid.data.image_files import ImageFiles, make_files, names_of_files, names_of_labels
from codegrid.data.images import to_stored
from codegrid.data.manifest import CAPTIONS, FILES, FILES_JSON, LABELS
from codegrid.data.npz import ON_A_PAGE
from codegrid.data.shards import Column
from codegrid.files import write_json
from codegrid.locks import releasing
from codegrid.pipelines.drawing.blocks import save_by_class
from codegrid.pipelines.drawing.shown import as_pictures
from codegrid.pipelines.evaluation.perceptual import PERCEPTUAL, networks_of
from codegrid.pipelines.running.cli import print_once, print_plan, resume_bar
from codegrid.pipelines.running.codes_folder import open_codes_folder
from codegrid.pipelines.running.device import start_accelerator
from codegrid.pipelines.running.processes import broadcast_from_main, map_across_ranks, shut_down, write_together
from codegrid.pipelines.running.run_folder import Run, left_open, read_setting, save_settings
from codegrid.pipelines.running.settings import Backend
from codegrid.pipelines.sample import Sample
from codegrid.stage2_prior.sampling.backends import backend_of
from codegrid.tensors import digest_of

from .completion import Pictures, read_pictures, save_completions
from .encoding import make_header, tables_of
from .futures import draw_futures
from .pipeline import TwoStagePipeline
from .rejection import REJECTION, Rejection, Source, find_source
from .request import Request, complete_codes, make_request

DEFAULT_SAMPLES, DEFAULT_COMPLETIONS, DEFAULT_OF_PROMPT = 100, 4, 8
PROMPTS_JSON = "prompts.json"  # a list of the prompts, beside images


class Job(NamedTuple):
    """One call of the command, on one of its processes."""

    settings: Sample
    pipeline: TwoStagePipeline
    pictures: Pictures | None  # to complete
    request: Request
    accelerator: Accelerator
    backend: str  # how the priors compute; `auto` is resolved to what this machine chooses
    source: Source | None  # the classifier that rejects

    @property
    def name(self) -> str:
        """Return what the results and their files are called."""
        return "completions" if self.pictures else "samples"

    @property
    def words(self) -> str:
        """Return the number of the results, and of the draws that each was chosen from."""
        return f"{self.request.num_samples:,} {self.name}" + (self.request.chosen and f"{self.request.chosen},")

    def files_of(self, rows: range) -> list[str] | None:
        """Return, for each of some samples, the file of the picture that it completes; None without pictures."""
        return self.pictures and [self.pictures.files[row // self.request.of_each] for row in rows]

    def facts(self) -> dict[str, Any]:
        """Return what the samples depend on besides the settings."""
        return {
            "tokenizer": self.pipeline.tokenizer.fingerprint(),
            "priors": [prior.fingerprint() for prior in self.pipeline.priors],
            "complete": self.pictures and self.pictures.fingerprint,
            "reject_with": self.source and self.source.identity,
        }

    def with_rejection(self, folder: Path) -> Job:
        """Return the job with its classifier, which may be trained first, and is then kept in the folder of the run."""
        if self.source is None or self.settings.reject_keep is None:
            return self
        source, device = self.source, self.accelerator.device
        broadcast_from_main(self.accelerator, lambda: source.train_into(folder, device))
        rejection = Rejection(source.load_from(folder, device), self.settings.reject_keep)
        return self._replace(request=self.request._replace(rejection=rejection))

    @property
    def rejection(self) -> dict[str, Any] | None:
        """Return who rejects, for the record of the results; None without rejection."""
        rejection = self.request.rejection
        return None if rejection is None else rejection.describe(self.request.num_samples)

    def with_backend(self, backend: str) -> Job:
        """Return the job with the backend of a continued run. Raises `InputError` if it does not work here."""
        return self._replace(backend=backend_of(self.pipeline.priors, backend))

    def names_of(self, rows: range) -> list[str]:
        """Return names for the files of some samples: that of the picture that each completes, or its class."""
        if (files := self.files_of(rows)) is not None:
            return names_of_files(files)
        return names_of_labels(self.request.given(rows).labels, self.pipeline.classes, len(rows))


@releasing()
def sample(settings: Sample) -> None:
    """Draw the samples into `settings.output`, shard by shard; several processes share each batch."""
    accelerator = start_accelerator(settings)
    pipeline = TwoStagePipeline.from_parts(settings.tokenizer, settings.prior, accelerator.device)
    if settings.start is not None:
        draw_futures(settings, pipeline, accelerator)
        return shut_down(accelerator)
    backend = backend_of(pipeline.priors, settings.backend)  # now, before a folder is begun
    pictures = None
    if settings.complete is not None:
        kept = settings.keep_rows, settings.mask, settings.paste
        pictures = read_pictures(settings.complete, pipeline, *kept)
    request, source = _ask(settings, pipeline, pictures), None
    if settings.reject_with is not None:
        with accelerator.main_process_first():  # only one downloads
            parts = pipeline.tokenizer, pipeline.priors, accelerator.device
            source = find_source(settings.reject_with, *parts, request.condition)
    job = Job(settings, pipeline, pictures, request, accelerator, backend, source)
    if settings.dry_run:
        plan_sampling(job)
    elif settings.format == "codegrid":
        leave_codes(job)
    else:
        leave_images(job)
    shut_down(accelerator)


def _ask(settings: Sample, pipeline: TwoStagePipeline, pictures: Pictures | None) -> Request:
    """Return the request that the settings make."""
    configs, labels = settings.configs(len(pipeline.priors)), list(settings.labels) or None
    if pictures is None and settings.prompts:
        of_each = DEFAULT_OF_PROMPT if settings.num_samples is None else settings.num_samples
        pairs = [pair for pair in product(settings.prompts, labels or [""]) for _ in range(of_each)]
        prompts, of_class = ([pair[place] for pair in pairs] for place in range(2))
        labels = of_class if labels else None
        return make_request(pipeline.priors, len(pairs), labels, settings.seed, configs, prompts=prompts)
    if pictures is None:
        default = len(settings.labels) if len(settings.labels) > 1 else DEFAULT_SAMPLES
        num_samples = default if settings.num_samples is None else settings.num_samples
        return make_request(pipeline.priors, num_samples, labels, settings.seed, configs)
    of_each = DEFAULT_COMPLETIONS if settings.num_samples is None else settings.num_samples
    given = pictures.codes, pictures.part.masks
    asked = complete_codes(pipeline.priors, *given, of_each, labels, settings.seed, configs, settings.prompts or None)
    return asked._replace(paste=pictures.paste)


def plan_sampling(job: Job) -> None:
    """Print how many samples would be drawn, and the memory for the keys and values of priors with attention."""
    request, layout = job.request, job.pipeline.layout
    at_once = min(job.settings.batch_size, request.num_samples)
    lines = [f"{job.words} to draw as {describe_layout(layout)}, {at_once:,} at once", f"backend: {job.backend}"]
    for prior, config in zip(job.pipeline.priors, request.configs, strict=True):
        if each := getattr(prior, "bytes_per_sample", 0):
            each *= 1 + config.guided
            held = f"{in_words(each * at_once)} at once, {each:,} bytes a sample"
            lines.append(f"memory: keys and values of grid {prior.grids[0]}: {held}")
    print_plan(*lines)


def leave_images(job: Job) -> None:
    """Write the images to files, and a sheet of the first ones."""
    settings, request = job.settings, job.request
    facts = {**job.facts(), "backend": job.backend}
    run = broadcast_from_main(job.accelerator, lambda: Run(settings.output, settings, *left_open(settings), **facts))
    if run.finished:
        return print_once(f"{run.shown} is finished: nothing to do")
    run.record[PERCEPTUAL] = networks_of(job.pipeline.tokenizer)
    job = job.with_backend(run.record["settings"]["backend"])
    labels = None if request.labels is None else request.labels.numpy()
    signal, places = job.pipeline.tokenizer.signal, (run.folder, job.name)
    shape = (request.num_samples, *signal.shape)
    files = make_files(settings.format, *places, shape, labels, job.names_of, settings.shard_size, signal.rate)
    if job.source is not None:
        broadcast_from_main(job.accelerator, run.start)  # first: the folder of a run may hold a classifier
        job = job.with_rejection(run.folder)
        run.record[REJECTION] = job.rejection

    def start() -> list[range]:
        run.start()
        return files.missing()

    missing = broadcast_from_main(job.accelerator, start)
    with resume_bar(run.shown, missing, request.num_samples, "sampling" + job.request.chosen) as bar:
        for numbers in missing:
            write_together(partial(files.write, numbers), _draw_images(job, numbers, bar), job.accelerator)
    if job.accelerator.is_main_process:
        run.finish_with(lambda folder: _save_sheet(job, files, folder / f"{job.name}.png"), written=files.results())
    print_once(f"{run.shown}: {job.words} in {files}, some in {job.name}.png")


def _draw_images(job: Job, numbers: range, bar: Any) -> Iterator[torch.Tensor]:
    """Draw some samples on all processes: (b, c, *size), batch by batch, as the signal is stored."""
    kind = job.pipeline.tokenizer.signal.kind

    def draw(rows: range) -> tuple[torch.Tensor]:
        return (to_stored(kind, job.pipeline.sample_rows(job.request, rows, job.backend).images),)

    for (images,) in map_across_ranks(draw, numbers, job.settings.batch_size, job.accelerator, bar.update):
        yield images


def _save_sheet(job: Job, files: ImageFiles, path: Path) -> None:
    """Save a sheet of the first samples by class, or of completions beside their pictures."""
    request, classes = job.request, job.pipeline.classes
    if request.prompts:
        write_json(path.with_name(PROMPTS_JSON), request.prompts)
    if job.pictures is None:
        shown = as_pictures(job.pipeline.tokenizer.signal, files.read_first(ON_A_PAGE))
        of = "prompts" if request.prompts else "classes"
        return save_by_class(path, shown, request.num_samples, *request.headings(classes), of)
    count = min(len(job.pictures.shown), max(1, ON_A_PAGE // request.of_each))
    images = files.read_first(min(request.of_each * count, ON_A_PAGE))
    save_completions(path, job.pipeline.tokenizer, request, job.pictures, images, classes)
    write_json(path.with_name(FILES_JSON), job.files_of(range(request.num_samples)))


def leave_codes(job: Job) -> None:
    """Write the codes only, as a code dataset."""
    settings, request, pipeline = job.settings, job.request, job.pipeline
    if left_open(settings) and settings.output and not settings.overwrite:
        earlier = broadcast_from_main(job.accelerator, lambda: read_setting(Path(settings.output), "backend"))
        job = job.with_backend(earlier or job.backend)
    labels = None if request.labels is None or NO_LABEL in request.labels else request.labels
    if labels is None and request.labels is not None and bool((request.labels != NO_LABEL).any()):
        print_once(
            "the labels are left out: some samples have none, and a code dataset has one for each sample, or none"
        )
    configs = [asdict(config) for config in request.configs]
    drawing = {
        "seed": request.seed, "labels": list(settings.labels), "num_known": request.num_known,
        **{name: [config[name] for config in configs] for name in configs[0]},
        "priors": [prior.fingerprint() for prior in pipeline.priors], "backend": job.backend,
        "reject_with": job.facts()["reject_with"], "reject_keep": settings.reject_keep,
        **({"prompts": list(settings.prompts)} if request.prompts else {}),
    }  # fmt: skip
    source = digest_of({**drawing, **job.facts()})
    classes = [] if labels is None else pipeline.classes or list(map(str, range(pipeline.conditions.num_classes)))
    with_files = job.pictures is not None
    header = make_header(
        pipeline.tokenizer, request.num_samples, classes, "sampled", source, with_files, int(bool(request.prompts))
    )
    folder, shown, missing = broadcast_from_main(job.accelerator, lambda: open_codes_folder(settings, header, drawing))
    if missing is None:
        return print_once(f"{shown} is finished: nothing to do")
    if job.accelerator.is_main_process:
        save_settings(folder, replace(settings, backend=cast(Backend, job.backend)))
    job = job.with_rejection(folder)
    provenance = {**drawing, **({REJECTION: job.rejection} if job.rejection else {})}
    tables = tables_of(pipeline.tokenizer)
    with resume_bar(shown, missing, request.num_samples, "sampling" + job.request.chosen) as bar:
        shards = (_draw_shard(job, numbers, labels, bar) for numbers in missing)
        write = partial(write_codes, folder, header, missing, provenance=provenance, tables=tables)
        write_together(write, shards, job.accelerator)
    print_once(f"{shown}: {job.words} as {describe_layout(pipeline.layout)}")


def _draw_shard(job: Job, numbers: range, labels: torch.Tensor | None, bar: Any) -> CodeBatch:
    """Draw the codes of some samples on all processes."""

    def draw(rows: range) -> Codes:
        return job.pipeline.sample_codes(job.request, rows, job.backend)

    batches = map_across_ranks(draw, numbers, job.settings.batch_size, job.accelerator, bar.update)
    codes = tuple(map(torch.cat, zip(*batches, strict=True)))
    columns: dict[str, Column] = {} if labels is None else {LABELS: labels[numbers.start : numbers.stop]}
    if prompts := job.request.prompts[numbers.start : numbers.stop]:
        columns[CAPTIONS] = [[prompt] for prompt in prompts]
    files = job.files_of(numbers)
    return CodeBatch(codes, columns if files is None else columns | {FILES: files})
