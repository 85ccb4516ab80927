"""All checks, one after the other.

Shapes: n grids, h w code grid, K num_embeddings.
"""

from collections.abc import Iterator

from codegrid.data import CodeDataset
from codegrid.data.codes import CodeBatch
from codegrid.data.held_out import Part
from codegrid.data.images import evenly_spaced
from codegrid.data.loading import in_batches, in_order, load_batches
from codegrid.pipelines.running.use_configs import Doctor
from codegrid.stage1_vqvae.usage import UsageCounter

from .codebook import find_collapse, measure_codebook
from .decoder import find_blur, measure_decoder
from .finding import Figures, Finding, by_importance
from .likelihood import find_faults_of_learning, measure_likelihood
from .pairing import find_strangers
from .parts import Parts
from .samples import draw_like, find_faults_of_samples, measure_memory, measure_samples

MOST_IMAGES = 1000  # that are reconstructed: the figures move by less than a per cent with more
MOST_GRIDS = 1000  # that the prior's bits are measured on, of each kind
MOST_CODES = 20_000_000  # that frequencies are counted over: what a small machine holds
MOST_COMPARED = 50_000_000_000  # pairs of codes that are compared for copies: a minute or so
BATCH = 256


def examine(parts: Parts, settings: Doctor) -> tuple[list[Finding], Figures]:
    """What is wrong, the most important first, and every figure that was looked at."""
    findings = find_strangers(parts)
    figures = _measure_tokenizer(parts, settings)
    findings += find_collapse(figures) + find_blur(figures)
    if parts.prior is not None:
        kept = parts.prior.provenance
        figures |= _measure_prior(parts, settings)
        findings += find_faults_of_learning(figures, _is_last(kept)) + find_faults_of_samples(figures)
    return by_importance(findings), figures


def _is_last(provenance: dict) -> bool:
    """Whether the prior that was kept is that of the end of its training."""
    history = provenance.get("history")
    try:
        return history[-1]["step"] == provenance.get("step")
    except (TypeError, KeyError, IndexError):  # a stranger's provenance can be anything
        return True


def _measure_tokenizer(parts: Parts, settings: Doctor) -> Figures:
    figures, usage = {}, None
    if parts.tokenizer is not None and parts.images is not None:
        usage = UsageCounter(parts.tokenizer.num_embeddings)
        chosen = in_batches(evenly_spaced(len(parts.images), MOST_IMAGES), BATCH)
        figures = measure_decoder(parts.tokenizer, load_batches(parts.images, chosen), usage)
    if parts.codes is not None:
        usage = UsageCounter(parts.codes.num_embeddings)
        for batch in _batches(parts.codes):
            usage.add(batch.codes)
    return {**figures, **(measure_codebook(usage.counts) if usage else {})}


def _measure_prior(parts: Parts, settings: Doctor) -> Figures:
    """Bits, and samples against held-out grids, as far as there are grids that fit the prior."""
    training, held_out = parts.grids()
    known = None
    if training is not None:
        height, width = training.__getitems__([0]).codes.shape[1:]
        known = _read(training, max(MOST_GRIDS, MOST_CODES // (height * width)))
    others = None if held_out is None else _read(held_out, MOST_GRIDS)
    figures = measure_likelihood(parts.prior, known, others)
    if others is None or settings.num_samples is None:
        return figures
    real = _read(held_out, settings.num_samples)
    samples = draw_like(parts.prior, real, settings.seed)
    figures |= measure_samples(parts.prior, samples, real, known)
    if training is None:
        return figures
    if len(training) * 2 * samples.codes.numel() > MOST_COMPARED:
        parts.left_out.append("copies of training grids, which would take long: give a smaller --num-samples")
        return figures
    return figures | measure_memory(samples, real, _batches(training))


def _read(grids: CodeDataset | Part, at_most: int) -> CodeBatch:
    return grids.__getitems__(evenly_spaced(len(grids), at_most))


def _batches(grids: CodeDataset | Part) -> Iterator[CodeBatch]:
    return load_batches(grids, in_order(len(grids), 4096))
