"""Judgements of priors on the codes of images: bits, how often an image's own caption is the likeliest, errors."""

import math
from typing import Any

from codegrid.data.codes import CodeBatch
from codegrid.progress import progress_bar
from codegrid.protocols import Prior
from codegrid.stage2_prior.likelihood import Bits, measure, measure_error

from .captions import measure_captions
from .inputs import Inputs
from .likelihood_bound import DecoderLikelihood
from .metrics import Metrics
from .reconstruction import prior_inputs

NO_BOUND = {
    "image": "the decoder's scale is fitted to the training part; measure on the test part",
    "sound": "this decoder has no likelihood",
}
OF_BITS = "bits_per_code, bits_per_image, bound_bits_per_dim"


def add_bits(inputs: Inputs, codes: list[CodeBatch], decoder: DecoderLikelihood | None, metrics: Metrics) -> None:
    """Add the bits of codes, of each prior and grid and in total, and the bound that both stages give together.

    If a prior gives a bound, it is that of the steps in which it draws; `bits_per_code_bound` and
    `bits_per_image_bound` are the lowest bounds, those of drawing one site at each step.
    """
    per_image, lowest, kinds = 0.0, 0.0, set()
    configs = zip(inputs.priors, inputs.settings.configs(len(inputs.priors)), strict=True)
    steps = [config.completed_by(prior).num_inference_steps for prior, config in configs]
    most = [getattr(prior, "max_inference_steps", None) for prior in inputs.priors]
    for number, prior in enumerate(inputs.priors):
        name = "prior" if len(inputs.priors) == 1 else f"prior {number}"
        bits = best = _measure(prior, codes, name, inputs.settings.seed, steps[number])
        kinds.add("none" if bits is None else prior.likelihood)
        if bits is not None and most[number] not in (None, steps[number]):
            best = _measure(prior, codes, f"{name}, site by site", inputs.settings.seed, most[number])
        for place, grid in enumerate(prior.grids):
            own = {}
            if bits is not None:
                per_code = bits.of_grids[place]
                own = {"bits_per_code": per_code, "bits_per_image": per_code * prior.layout[place].num_sites}
            metrics.grids[grid] |= {"prior": number, "likelihood": prior.likelihood, **own}
        if bits is None or best is None:
            metrics.left_out.append(f"no {OF_BITS}: the {name} has no likelihood")
        else:
            per_image, lowest = per_image + bits.per_sample, lowest + best.per_sample
    if "none" in kinds:
        return
    conditions: dict[str, Any] = {
        "reference": inputs.reference, "given_labels": any(prior.conditions.num_classes for prior in inputs.priors),
        "given_texts": bool(inputs.images.captions) and any(prior.conditions.num_words for prior in inputs.priors),
        "likelihood": "bound" if "bound" in kinds else "exact",
    }  # fmt: skip
    sites = sum(grid.num_sites for grid in inputs.tokenizer.layout)
    drawn = {"num_inference_steps": steps} if "bound" in kinds else {}
    metrics.add({"bits_per_code": per_image / sites, "bits_per_image": per_image}, **conditions, **drawn)
    if any(most):
        bounds = {"bits_per_code_bound": lowest / sites, "bits_per_image_bound": lowest}
        metrics.add(bounds, **conditions, num_inference_steps=most)
    if decoder is None:
        metrics.left_out.append(f"no bound_bits_per_dim: {NO_BOUND[inputs.tokenizer.signal.kind]}")
        return
    of_decoder = decoder.bits_per_image
    per_dim = (of_decoder + per_image) / math.prod(inputs.tokenizer.signal.shape)
    metrics.add({"decoder_bits_per_image": of_decoder}, reference=inputs.reference, decoder=decoder.description)
    metrics.add({"bound_bits_per_dim": per_dim}, **conditions, **drawn, decoder=decoder.description)


def add_ranks(inputs: Inputs, codes: list[CodeBatch], metrics: Metrics) -> None:
    """Add how often an image's own caption is the likeliest of many, with priors over texts."""
    if not any(prior.conditions.num_words for prior in inputs.priors):
        return
    if any(prior.conditions.num_words and prior.likelihood == "none" for prior in inputs.priors):
        metrics.left_out.append("no caption_ranked_first: the prior has no likelihood")
        return
    found = measure_captions(inputs.priors, codes, inputs.settings.batch_size, inputs.settings.seed)
    if found is None:
        metrics.left_out.append(
            "no caption_ranked_first: there are not two images with different captions (`captions`)"
        )
    else:
        share, count = found
        metrics.add({"caption_ranked_first": share}, reference=inputs.reference, captions=count)


def add_errors(inputs: Inputs, codes: list[CodeBatch], metrics: Metrics) -> None:
    """Add the measures that priors without a likelihood have instead, by name and, of several priors, by number."""
    for number, prior in enumerate(inputs.priors):
        if prior.likelihood == "none":
            which = f"_of_prior_{number}" * (len(inputs.priors) > 1)
            batches = (prior_inputs(prior, batch) for batch in progress_bar(codes, f"error{which.replace('_', ' ')}"))
            errors = measure_error(prior, batches, inputs.settings.seed)
            given = {"reference": inputs.reference, "given_labels": bool(prior.conditions.num_classes)}
            metrics.add({f"{name}{which}": error for name, error in errors.items()}, **given)


def _measure(prior: Prior, codes: list[CodeBatch], words: str, seed: int, steps: int | None) -> Bits | None:
    """Return the bits of codes under a prior, or a bound on them, with a progress bar."""
    batches = (prior_inputs(prior, batch) for batch in progress_bar(codes, words))
    return measure(prior, batches, seed, steps)
