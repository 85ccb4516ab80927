"""The body of `codegrid doctor`: all checks, one after the other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codegrid.codes import Layout
from codegrid.data.images import evenly_spaced
from codegrid.data.loading import in_batches, in_order, load_batches
from codegrid.files import write_json
from codegrid.locks import releasing
from codegrid.pipelines.doctor import Doctor
from codegrid.pipelines.evaluation.carried import Carried, measure_carried
from codegrid.pipelines.generation.artifacts import Artifacts, find_artifacts
from codegrid.pipelines.running.cli import print_once, with_flags
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.run_folder import Run, read_record
from codegrid.protocols import Prior, Tokenizer
from codegrid.stage1_vqvae.usage import LayoutUsage

from . import codebook, decoder, likelihood, samples, training
from .finding import Metrics, Subject, Table, by_importance
from .pairing import find_strangers
from .parts import BATCH, all_rows, code_dataset, codes_for, read_rows
from .report import Report

MAX_IMAGES = 1000  # to reconstruct: with more, the metrics change by less than a per cent
MAX_ROWS = 1000  # of training grids, and of held-out grids, that the prior's bits are measured on
MAX_CODES = 20_000_000  # to count frequencies over: what a small machine can hold
MAX_COMPARED = 50_000_000_000  # pairs of codes compared for copies: about a minute


@releasing()
def doctor(settings: Doctor) -> dict[str, Any]:
    """Print what is wrong with the parts of a run, and return the report; with `output` also write doctor.json."""
    found = find_artifacts(
        choose_device(settings), settings.run, settings.tokenizer, settings.prior, settings.codes,
        settings.validation_codes, settings.dataset, settings.data_root, settings.skip_unreadable,
    )  # fmt: skip
    run = Run(settings.output, settings, **found.facts()) if settings.output else None
    if run and not run.finished:
        run.start()
    report = examine(found, settings.num_samples, settings.seed)
    report.left_out = [with_flags(words, Doctor) for words in report.left_out]

    def write_results(folder: Path) -> None:
        write_json(folder / "doctor.json", report.as_json())

    if run and not run.finished:
        run.finish_with(write_results)
    print_once(report.as_text())
    return report.as_json()


def examine(found: Artifacts, num_samples: int | None = 256, seed: int = 0) -> Report:
    """Return what is wrong with the parts of a run, the most important first, and every metric that was measured.

    Args:
        found: the parts of a run.
        num_samples: samples to draw from each prior and compare with as many held-out grids. None: none.
        seed: of the samples.
    """
    report = Report(find_strangers(found), left_out=list(found.left_out), looked_at=dict(found.folders))
    report.images = "" if found.images is None else str(found.images.found)
    _examine_tokenizer(found, report)
    for name, prior in zip(found.prior_names, found.priors, strict=True):
        _examine_prior(found, name, prior, num_samples, seed, report)
    report.findings = by_importance(report.findings)
    return report


def _examine_tokenizer(found: Artifacts, report: Report) -> None:
    """Check the reconstructions, if there are images, and the usage of the exported codes or else the images' codes."""
    config: Mapping[str, Any] = {} if found.tokenizer is None else found.tokenizer.config
    codes = code_dataset(found)
    if found.tokenizer is not None:
        record = read_record(Path(found.folders["tokenizer"]), "train-tokenizer")
        if codes is not None and codes.header.source == record.get("settings", {}).get("data"):
            record.setdefault("items", codes.header.num_images)
        report.metrics |= _examine_training(
            found.tokenizer, record, Subject("The tokenizer", "tokenizer", config), report
        )
    layout: Layout = ()
    usage: LayoutUsage | None = None
    carried: Carried | None = None
    if found.tokenizer is not None and found.images is not None:
        layout = found.tokenizer.layout
        usage = LayoutUsage(layout)
        chosen = in_batches(evenly_spaced(len(found.images), MAX_IMAGES), BATCH)
        report.metrics |= decoder.measure_decoder(found.tokenizer, load_batches(found.images, chosen), usage)
        carried = measure_carried(found.tokenizer, found.images)
    if codes is not None:
        carried = carried if layout == codes.layout else None  # those of a stranger
        layout = codes.layout
        usage = LayoutUsage(layout)
        for batch in load_batches(codes, in_order(len(codes), 4096)):
            usage.add(batch.codes)
    if usage is not None:
        _examine_grids(layout, usage, carried, config, report)
    report.findings += decoder.find_blur(report.metrics, config)
    report.tables.append(Table("Decoder", decoder.ROWS, report.metrics))


def _examine_grids(
    layout: Layout, usage: LayoutUsage, carried: Carried | None, config: Mapping[str, Any], report: Report
) -> None:
    """Look at how the codes of each grid are used, and at what each of several grids carries, if that is known."""
    for number, (grid, counts) in enumerate(zip(layout, usage.counts, strict=True)):
        metrics = codebook.measure_codebook(counts)
        if carried is not None:
            metrics |= {"error": carried.error, "error_rise": carried.rises[number]}
        is_one, of = len(layout) == 1, f"grid {number}"
        name = "The codebook" if is_one else f"The codebook of {of}"
        dead = codebook.find_collapse(metrics, Subject(name, of, config))
        idle = codebook.find_idle(metrics, Subject(of.capitalize(), of, config), number == len(layout) - 1)
        report.findings += dead or idle
        report.grids.append({"grid": number, **grid.as_json(), **metrics})
        title = "Codebook" if is_one else f"Codebook of {of}, {grid}"
        report.tables.append(Table(title, codebook.ROWS, metrics, of))


def _examine_prior(
    found: Artifacts, name: str, prior: Prior, num_samples: int | None, seed: int, report: Report
) -> None:
    """Check a prior's bits, and its samples against held-out codes, as far as there are codes that fit it."""
    is_one = len(found.priors) == 1
    settings = {**prior.config, **dict.fromkeys(prior.controls)}
    subject = Subject("The prior" if is_one else f"The prior {found.folders[name]}", name, settings)
    title = "" if is_one else f" {found.folders[name]}"
    training, held_out = codes_for(found, name, prior)
    sites = sum(grid.num_sites for grid in prior.layout)
    known = None if training is None else read_rows(training, prior, max(MAX_ROWS, MAX_CODES // sites))
    others = None if held_out is None else read_rows(held_out, prior, MAX_ROWS)
    record = read_record(Path(found.folders[name]), "train-prior")
    if training is not None:
        record.setdefault("items", len(training))
    metrics = _examine_training(prior, record, subject, report)
    of_prior, of_grids = likelihood.measure_likelihood(prior, known, others)
    metrics |= of_prior | likelihood.measure_use(prior, others) | likelihood.measure_errors(prior, known, others)
    if prior.likelihood == "none":
        own = "".join(f" and its {name.replace('_', ' ')}" for name in [getattr(prior, "criterion", "")] if name)
        report.left_out.append(f"no bits of {name}: it has no likelihood, and is judged by its samples{own}")
    elif prior.likelihood == "bound":
        report.left_out.append(f"no exact bits of {name}: its likelihood is a bound, and so are the bits below")
    if held_out is not None and num_samples is not None:
        real = read_rows(held_out, prior, num_samples)
        drawn = samples.sample_like(prior, real, seed)
        metrics |= samples.measure_samples(prior, drawn, real, known)
        if "accuracy" not in metrics:
            report.left_out.append(f"no guessed codes of {name}: it does not predict codes one at a time")
        if training is not None and training.views * len(training) * 2 * drawn.flat.numel() > MAX_COMPARED:
            report.left_out.append("copies of training grids: this would take long (give a smaller `num_samples`)")
        elif training is not None:
            metrics |= samples.measure_memory(drawn, real, all_rows(training, prior))
    report.tables.append(Table(f"Prior{title}", likelihood.ROWS, metrics, name))
    for number, grid, of_grid in zip(prior.grids, prior.layout, of_grids, strict=False):
        report.findings += likelihood.find_nothing_to_learn(of_grid, Subject(f"Grid {number}", name))
        if len(of_grids) > 1:
            report.tables.append(Table(f"Grid {number}, {grid}", likelihood.OF_GRID, of_grid, f"{name} grid {number}"))
    report.tables.append(Table(f"Samples{title}", samples.ROWS, metrics, name))
    report.findings += likelihood.find_faults_of_learning(metrics, subject)
    report.findings += samples.find_faults_of_samples(metrics, subject)
    by_grid = [{"grid": number, **of_grid} for number, of_grid in zip(prior.grids, of_grids, strict=False)]
    report.priors.append({"prior": name, "likelihood": prior.likelihood, "metrics": metrics, "grids": by_grid})


def _examine_training(model: Tokenizer | Prior, record: Mapping[str, Any], subject: Subject, report: Report) -> Metrics:
    """Check how long a model was trained, and return the metrics.

    Args:
        model: the model to check.
        record: run.json of its folder, with the number of items it learnt, and the number per step.
        subject: its name for sentences.
        report: receives the findings.
    """
    settings = record.get("settings", {})
    metrics = training.measure_training(model.provenance, settings.get("batch_size"), record.get("items"))
    if "epochs" not in metrics:
        report.left_out.append(f"no epochs of {subject.of}: its folder does not record how much there was to learn")
    title = f"Training of {subject.name[0].lower()}{subject.name[1:]}"
    report.tables.append(Table(title, training.ROWS, metrics, subject.of))
    report.findings += training.find_faults_of_training(metrics, subject)
    return metrics
