"""The inputs of `codegrid evaluate`: models, images, samples to draw, and a network that judges them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import torch

from codegrid.data.images import ImageBatch, evenly_spaced
from codegrid.data.loading import in_batches, load_batches
from codegrid.data.sources import Images
from codegrid.data.splits import warn_of_few
from codegrid.errors import InputError
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.generation.artifacts import load_artifacts, load_images_for
from codegrid.pipelines.generation.chosen_data import choose_data
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.rejection import LIKELIHOOD, Rejection, Source, find_source
from codegrid.pipelines.generation.request import Request, make_request
from codegrid.pipelines.generation.tokenizers import need_images
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.device import choose_device
from codegrid.progress import progress_bar
from codegrid.protocols import Prior, Tokenizer
from codegrid.stage2_prior.conditions import conditions_of

from .features import Extractor, check_features, learns, make_extractor
from .speech import check_phonemes


@dataclass
class Inputs:
    """Everything that is measured, loaded and checked."""

    settings: Evaluate
    tokenizer: Tokenizer
    pipeline: TwoStagePipeline | None  # with priors
    images: Images  # the split that is measured on
    train: Images | None  # the training part, if anything is fitted to it or compared with it
    request: Request | None  # the samples to draw, at least 2
    labels: torch.Tensor | None  # (n,) int64 classes that they should show, if that is known
    depends_on: dict[str, Any]  # fingerprints of all parts: what the metrics depend on besides the settings
    extractor: Extractor | None = None
    source: Source | None = None  # the classifier that rejects samples

    @property
    def priors(self) -> Sequence[Prior]:
        """The priors, coarse to fine; none without a pipeline."""
        return self.pipeline.priors if self.pipeline else ()

    @property
    def reference(self) -> dict[str, Any]:
        """The real images that are measured on, as JSON values."""
        return {
            "dataset": self.settings.dataset, "split": self.settings.split, "images": len(self.images),
            "fingerprint": self.depends_on["data"],
        }  # fmt: skip

    def notes(self) -> list[str]:
        """Return sentences on what weakens the metrics."""
        notes = warn_of_few(len(self.images), f"{self.images.found.item}s") if self.settings.split == "test" else []
        if any(prior.conditions.num_words for prior in self.priors) and not self.images.captions:
            notes.append("bits and samples are those without a text: give --captions to measure with them")
        learnt = [prior.provenance.get("split") for prior in self.priors]
        if self.settings.split == "test" and ("all" in learnt or "test" in learnt):
            unseen = f"unseen {self.images.found.item}s"
            notes.append(f"bits are not those of {unseen}: the prior was trained on codes of the test part")
        return notes

    def batches(self, images: Images, numbers: Sequence[int], name: str) -> Iterator[ImageBatch]:
        """Return batches of some images, with a progress bar."""
        lists = in_batches(numbers, self.settings.batch_size)
        return iter(progress_bar(load_batches(images, lists, self.settings.num_workers), name, len(lists)))

    def need_extractor(self) -> Extractor | None:
        """Make the extractor that the settings name, once, which may train a classifier."""
        if self.extractor is None and self.settings.features != "none":
            self.extractor = make_extractor(
                self.settings.features, self.train, self.settings.num_workers, self.tokenizer.device
            )
        return self.extractor

    def need_rejection(self, folder: Path) -> None:
        """Let the classifier that the settings name reject samples; one that is trained is kept in the run's folder."""
        if self.source is None or self.request is None or self.settings.reject_keep is None:
            return
        device = torch.device(self.tokenizer.device)
        self.source.train_into(folder, device)
        rejection = Rejection(self.source.load_from(folder, device), self.settings.reject_keep)
        self.request = self.request._replace(rejection=rejection)


def load_inputs(settings: Evaluate) -> Inputs:
    """Load what the settings name. Raises `InputError` if it does not fit together."""
    found = load_artifacts(choose_device(settings), settings.tokenizer, settings.prior)
    tokenizer, pipeline = found.tokenizer, found.pipeline if found.priors else None
    assert tokenizer is not None
    if settings.phonemes:
        check_phonemes(tokenizer, settings.split)
    request = _make_request(settings, found.priors)  # before images are read: it can fail without them
    labels = None if request is None else request.labels
    settings = choose_data(settings, tokenizer)
    dataset = str(settings.dataset)

    def load(split: str) -> Images:
        place, skip = settings.data_root, settings.skip_unreadable
        return load_images_for(tokenizer, dataset, place, split, skip, settings.captions)

    images = found.images = load(settings.split)
    print_once(str(images.found))
    if pipeline and pipeline.classes and list(pipeline.classes) != list(images.classes):
        raise InputError(f"the prior knows other classes than {dataset} has: evaluate it on the data it learnt")
    if settings.features != "none":
        need_images(tokenizer, "`features` compare")
    if pipeline and pipeline.conditions.num_words:
        _check_captions(settings, pipeline, images)
        if request is not None:
            request, labels = _ask_for_captions(settings, pipeline, images)
    check_features(settings.features, images, dataset)
    if settings.features != "none" and len(images) < 2:
        raise InputError(f"the {settings.split} part holds a single image: `features` needs at least 2")
    train = None
    probed = settings.phonemes or (tokenizer.signal.kind == "sound" and len(images.classes) > 1)
    if learns(settings.features) or settings.reject_with or ((pipeline or probed) and settings.split != "train"):
        train = images if settings.split == "train" else load("train")
    source = None
    if settings.reject_with is not None and request is not None:
        source = find_source(settings.reject_with, tokenizer, found.priors, tokenizer.device, request.condition, train)
    facts = {**found.facts(), "train_data": train.fingerprint() if train else None}
    facts |= {} if source is None else {"reject_with": source.identity}
    inputs = Inputs(settings, tokenizer, pipeline, images, train, request, labels, facts, source=source)
    if ":" in settings.features and (extractor := inputs.need_extractor()):
        facts["features"] = extractor.description["weights"]  # another network could have the same name
    return inputs


def _check_captions(settings: Evaluate, pipeline: TwoStagePipeline, images: Images) -> None:
    """Raise `InputError` if images have no captions, but something that is measured needs them."""
    for prior in pipeline.priors:
        if not all(images.captions or [()]) and prior.conditions.num_words and not prior.conditions.unlabelled:
            raise InputError(f"`captions`: {prior.conditions.learnt_only}, or give one for each image")
    if not settings.num_samples or images.captions:
        return
    if settings.reject_with == LIKELIHOOD:
        raise InputError(f"`reject_with` {LIKELIHOOD}: without `captions` all draws fit: give some")
    configs = settings.configs(len(pipeline.priors))
    if any(config.guided for config in configs):
        scales = " ".join(str(config.guidance_scale) for config in configs)
        raise InputError(f"`guidance_scale` {scales}: guidance needs `captions` to guide to")


def _ask_for_captions(
    settings: Evaluate, pipeline: TwoStagePipeline, images: Images
) -> tuple[Request, torch.Tensor | None]:
    """Return a request for the first captions of the images in turn, evenly spaced, and the classes of these images.

    A prior that knows classes, too, is asked for both. Without captions, it is asked for all classes in turn, or
    nothing.
    """
    count, configs = settings.num_samples or 0, settings.configs(len(pipeline.priors))
    if not images.captions:
        request = make_request(pipeline.priors, count, None, settings.seed, configs)
        return request, request.labels
    first = [texts[0] if texts else "" for texts in images.captions or ()]
    readable = list(compress(range(len(images)), pipeline.conditions.reads(first)))
    if not readable:
        raise InputError(f"the prior can read none of the captions of {settings.dataset}: evaluate it on others")
    chosen = [readable[number] for number in evenly_spaced(len(readable), count)]
    chosen = [chosen[number % len(chosen)] for number in range(count)]
    prompts = [first[number] for number in chosen]
    labels = None if images.labels is None else images.labels[chosen]
    asked = labels if pipeline.conditions.num_classes else None
    return make_request(pipeline.priors, count, asked, settings.seed, configs, prompts=prompts), labels


def _make_request(settings: Evaluate, priors: Sequence[Prior]) -> Request | None:
    count, configs = settings.num_samples, settings.configs(len(priors))
    if count is None:
        for prior, config in zip(priors, configs, strict=True):  # a bound depends on the number of steps
            config.check_controls(prior)
        return None
    if not priors:
        raise InputError(f"`num_samples` {count}: it needs a `prior` to draw them from")
    if settings.features == "none":
        raise InputError(f"`num_samples` {count}: it needs `features` to judge them by: classifier, for example")
    if count < 2:
        raise InputError(f"`num_samples` {count}: a Fréchet distance needs at least 2")
    has_texts = conditions_of(priors).tokenizer is not None  # the images' captions, once these are read
    return make_request(priors, count, None, settings.seed, configs, prompts="a" if has_texts else None)
