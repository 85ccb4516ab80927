"""What `evaluate` measures, and under which conditions each figure was had.

Shapes: b batch, c channels, H W image, h w code grid.
"""

import math
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from codegrid.data.codes import CodeBatch
from codegrid.data.images import evenly_spaced, to_float, to_uint8
from codegrid.data.loading import in_batches, in_order, load_batches
from codegrid.data.sources import Images, load_images
from codegrid.errors import InputError
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.request import Request, make_request
from codegrid.pipelines.running.use_configs import Evaluate
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage1_vqvae.usage import UsageCounter

from .features import Extractor, check_features
from .frechet import FeatureStatistics, frechet_distance
from .likelihood_bound import bits_per_dim, fit_scales, image_nats
from .reconstruction import Reconstructed, measure_prior, measure_tokenizer
from .similarity import DATA_RANGE, structural_similarity

MOST_TO_FIT = 1000  # training images that the decoder's scales are fitted to: a number or three, from as many pixels


class Parts(NamedTuple):
    """What is measured, and on what."""

    tokenizer: VQVAE
    pipeline: TwoStagePipeline | None  # with a prior
    images: Images  # the split that is measured on
    train: Images | None  # the training part, where something is learnt from it
    request: Request | None  # the samples to draw, at least 2
    device: torch.device
    data: str  # the identity of `images`
    train_data: str | None  # that of `train`

    def facts(self) -> dict[str, Any]:
        """What the figures depend on beside the settings."""
        return {
            "tokenizer": self.tokenizer.fingerprint(),
            "prior": self.pipeline.prior.fingerprint() if self.pipeline else None,
            "data": self.data,
            "train_data": self.train_data,
        }


class RealFeatures:
    """What an extractor makes of the real images: statistics and, of a classifier, how often it is right."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.statistics = FeatureStatistics()
        self.hits = 0

    @torch.no_grad()
    def add(self, images: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Count images (b, c, H, W) uint8 and their labels (b,)."""
        features = self.extractor(images)
        self.statistics.add(features)
        if self.extractor.classifier:
            self.hits += int((self.extractor.classifier.name_classes(features).cpu() == labels).sum())

    @property
    def accuracy(self) -> float:
        """The share of the real images, 0 ... 1, that the classifier names as their class."""
        return self.hits / self.statistics.count


class Figures(NamedTuple):
    """Figures by name, and for each of them what it depends on."""

    values: dict[str, float]
    conditions: dict[str, dict[str, Any]]

    def add(self, values: dict[str, float], /, **conditions: Any) -> None:
        """Add figures that were had under the same conditions."""
        self.values.update(values)
        self.conditions.update({name: conditions for name in values})


def load_parts(settings: Evaluate, device: torch.device) -> Parts:
    """Load what the settings name. Raises `InputError` where it does not fit together."""
    if settings.prior is None:
        pipeline, tokenizer = None, VQVAE.from_pretrained(settings.tokenizer, device)
    else:
        pipeline = TwoStagePipeline.from_parts(settings.tokenizer, settings.prior, device)
        tokenizer = pipeline.tokenizer
    request = _make_request(settings, pipeline)

    def load(split: str) -> Images:
        size, channels = tokenizer.image_size, tokenizer.in_channels
        return load_images(settings.dataset, settings.data_root, split, size, channels)

    images = load(settings.split)
    if pipeline and pipeline.prior.num_classes and images.classes != pipeline.classes:
        raise InputError(
            f"the prior knows other classes than {settings.dataset} has: evaluate it on the data it learnt"
        )
    check_features(settings.features, images, settings.dataset)
    if settings.features != "none" and len(images) < 2:
        raise InputError(f"the {settings.split} part holds a single image: --features needs at least 2")
    train = None
    if settings.features == "classifier" or (pipeline and settings.split != "train"):
        train = images if settings.split == "train" else load("train")
    identities = images.identity(), train.identity() if train else None
    return Parts(tokenizer, pipeline, images, train, request, device, *identities)


def _make_request(settings: Evaluate, pipeline: TwoStagePipeline | None) -> Request | None:
    if settings.num_samples is None:
        return None
    if pipeline is None:
        raise InputError(f"--num-samples {settings.num_samples} needs a --prior to draw them from")
    if settings.features == "none":
        raise InputError(
            f"--num-samples {settings.num_samples} needs --features to judge them by: classifier, for example"
        )
    if settings.num_samples < 2:
        raise InputError("--num-samples 1: a Fréchet distance needs at least 2")
    return make_request(pipeline.prior, settings.num_samples, None, settings.seed, settings.controls)


def measure_reconstructions(
    parts: Parts, settings: Evaluate, extractor: Extractor | None, usage: UsageCounter, figures: Figures
) -> RealFeatures | None:
    """Add the figures of reconstructions and of codes; returns what the extractor makes of the real images."""
    tokenizer, images = parts.tokenizer, parts.images
    reference = describe_reference(parts, settings)
    scales = _fit_scales(parts, settings) if parts.pipeline and settings.split != "train" else None
    codes, similarities, nats = [], [], []
    real, again = RealFeatures(extractor) if extractor else None, FeatureStatistics()

    def watch(batch: Reconstructed) -> None:
        similarity = structural_similarity(to_float(batch.images), batch.outputs.clamp(-1, 1))
        if similarity is not None:
            similarities.append(similarity.cpu())
        if parts.pipeline:
            codes.append(CodeBatch(batch.codes.cpu(), batch.labels))
        if scales is not None:
            nats.append(image_nats(batch.images, batch.outputs, scales).cpu())
        if real:
            real.add(batch.images, batch.labels)
            again.add(extractor(to_uint8(batch.outputs)))

    batches = in_order(len(images), settings.batch_size)
    bar = tqdm(load_batches(images, batches, settings.num_workers), "tokenizer", len(batches))
    figures.add(measure_tokenizer(tokenizer, bar, usage, [watch]), reference=reference)
    if similarities:
        in_detail = {"data_range": DATA_RANGE, "pixel_range": [-1, 1], "torchmetrics": version("torchmetrics")}
        figures.add({"ssim": float(torch.cat(similarities).mean())}, reference=reference, **in_detail)
    if parts.pipeline:
        _add_likelihoods(parts, reference, codes, nats, scales, figures)
    if real:
        _add_distance("rfid", again, real, figures, reference=reference)
    return real


def _add_likelihoods(
    parts: Parts,
    reference: dict[str, Any],
    codes: list[CodeBatch],
    nats: list[torch.Tensor],
    scales: torch.Tensor | None,
    figures: Figures,
) -> None:
    """Bits per code, and the bound that both stages together give."""
    conditional = bool(parts.pipeline.prior.num_classes)
    of_codes = measure_prior(parts.pipeline.prior, tqdm(codes, "prior"))
    figures.add(of_codes, reference=reference, given_labels=conditional)
    if scales is None:
        return
    sites = math.prod(parts.tokenizer.grid_shape)
    total = float(torch.cat(nats).sum()) + of_codes["bits_per_code"] * math.log(2) * sites * len(parts.images)
    shape = (parts.tokenizer.in_channels, *parts.tokenizer.image_size)
    figures.add(
        {"bound_bits_per_dim": bits_per_dim(total, len(parts.images), shape)},
        reference=reference,
        given_labels=conditional,
        decoder={
            "likelihood": "discretized logistic", "scales_in_grey_levels": scales.tolist(),
            "fitted_to": {"split": "train", "images": min(len(parts.train), MOST_TO_FIT),
                          "identity": parts.train_data},
        },
    )  # fmt: skip


@torch.no_grad()
def _fit_scales(parts: Parts, settings: Evaluate) -> torch.Tensor:
    """The scales of the decoder's likelihood, from evenly spaced images of the training part."""
    batches = in_batches(evenly_spaced(len(parts.train), MOST_TO_FIT), settings.batch_size)
    bar = tqdm(load_batches(parts.train, batches, settings.num_workers), "decoder's scale", len(batches))

    def pair(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = parts.tokenizer.encode(to_float(images))
        return images, parts.tokenizer.decode(codes, parts.tokenizer.image_size)

    return fit_scales(pair(batch.images.to(parts.device)) for batch in bar)


@torch.no_grad()
def measure_samples(parts: Parts, settings: Evaluate, real: RealFeatures, figures: Figures) -> None:
    """Draw the samples, and add how near they are to the real images and how often they are of their class."""
    request, pipeline, extractor, drawn, hits = parts.request, parts.pipeline, real.extractor, FeatureStatistics(), 0
    classifier = extractor.classifier if request.labels is not None else None
    with tqdm(total=request.num_samples, desc="sampling", unit="img") as bar:
        for rows in in_order(request.num_samples, settings.batch_size):
            features = extractor(to_uint8(pipeline.decode(pipeline.draw_codes(request, rows))))
            drawn.add(features)
            if classifier:
                asked = torch.tensor(request.labels[rows.start : rows.stop])
                hits += int((classifier.name_classes(features).cpu() == asked).sum())
            bar.update(len(rows))
    reference = describe_reference(parts, settings)
    samples = {
        "images": request.num_samples, "labels": None if request.labels is None else "all classes in turn",
        "seed": request.seed, **request.controls, "prior": pipeline.prior.fingerprint(),
    }  # fmt: skip
    _add_distance("gfid", drawn, real, figures, reference=reference, samples=samples)
    if classifier:
        figures.add(
            {"class_agreement": hits / request.num_samples}, reference=reference, samples=samples,
            extractor=extractor.description, accuracy_on_reference=real.accuracy,
        )  # fmt: skip


def _add_distance(name: str, ours: FeatureStatistics, real: RealFeatures, figures: Figures, **conditions: Any) -> None:
    theirs = real.statistics
    figures.add(
        {name: frechet_distance(ours, theirs)},
        **conditions,
        extractor=real.extractor.description,
        images_compared=[ours.count, theirs.count],
        feature_dimensions=theirs.dimensions,
        rank_deficient=ours.rank_deficient or theirs.rank_deficient,
    )


def describe_reference(parts: Parts, settings: Evaluate) -> dict[str, Any]:
    """The real images that the figures are of."""
    return {
        "dataset": settings.dataset, "split": settings.split, "images": len(parts.images),
        "identity": parts.data,
    }  # fmt: skip
