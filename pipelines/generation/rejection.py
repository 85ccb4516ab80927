"""Rejection sampling: of several draws of a sample, a judge keeps the one that best shows what was asked for.

The number of draws is fixed, so that no class can hold up the others, and each draw has random numbers of its own that
follow from the sample's: neither the batch nor the number of samples changes what is kept.

Shapes: b samples of a batch, c channels, H W image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codegrid.codes import Condition
from codegrid.data.sources import Images, load_images
from codegrid.devices import Device
from codegrid.errors import InputError
from codegrid.files import CLASSIFIER
from codegrid.limits import REJECT_KEEP, RejectKeep, check_value
from codegrid.model_folder import load_model
from codegrid.pipelines.evaluation.classifier import (
    NEEDS_LABELS,
    digest_of_weights,
    has_classes,
    recipe_of,
    train_classifier,
)
from codegrid.pipelines.running.run_folder import read_record
from codegrid.protocols import Classifier, Prior, Tokenizer
from codegrid.stage2_prior.conditions import conditions_of
from codegrid.tensors import digest_of
from codegrid.usable import CONFIG

from .chosen_data import learnt_data, skips_unreadable
from .judges import ClassifierJudge, Judge, PriorJudge
from .request import Request
from .samples import Samples
from .tokenizers import need_images

TRAINED, LIKELIHOOD = "classifier", "likelihood"  # in place of a folder: a classifier to train first, or the priors
NUM_WORKERS = 2
REJECTION = "rejection"  # in the record of a run, or the provenance of its codes: who rejected
LEAVE_IMAGES = ("sample", "decode-codes")  # commands
GIVE_ANOTHER = "give `reject_with` the folder of a classifier of the prior's classes and the tokenizer's images"

Tell = Callable[[float], object]


class Rejection(NamedTuple):
    """A judge that keeps one draw of several, and the share that it keeps."""

    judge: Judge
    keep: float

    @property
    def draws(self) -> int:
        """The number of draws of each sample, ⌈1 / keep⌉."""
        return math.ceil(round(1 / self.keep, 6))  # 0.3333333 means a third

    def best(
        self, request: Request, rows: range, draw: Callable[[Request, Tell | None], Samples], tell: Tell | None = None
    ) -> Samples:
        """Return the best draw of each of some samples, the first one of equals.

        Args:
            request: a request with this rejection.
            rows: the samples.
            draw: a request for a single draw, and what to call with the share of it that is done → the samples; without
                images if the judge does not need them.
            tell: called with the share that is done.
        """

        def draw_once(number: int) -> tuple[Samples, torch.Tensor]:
            part = tell and (lambda done: tell((number + done) / self.draws))
            once = request._replace(draw=number, rejection=None)
            samples = draw(once, part)
            return samples, self.judge.scores(samples, once, rows)

        best, scores = draw_once(0)
        for number in range(1, self.draws):
            others, of_others = draw_once(number)
            better = of_others > scores
            scores = torch.where(better, of_others, scores)
            codes = tuple(_choose(better, *pair) for pair in zip(others.codes, best.codes, strict=True))
            images = _choose(better, others.images, best.images) if self.judge.needs_images else best.images
            best = best._replace(images=images, codes=codes)
        return best

    def describe(self, num_samples: int) -> dict[str, Any]:
        """Return, as JSON values, who rejected, the draws of each sample and of all, and the share that was kept."""
        network = self.judge.describe()
        return {"network": network, "keep": self.keep, "draws": self.draws, "drawn": self.draws * num_samples}


class Source(NamedTuple):
    """A judge to reject with, or else the images to train a classifier on."""

    judge: Judge | None
    identity: str  # a digest of its weights, or of the recipe of one that is still to be trained
    images: Images | None = None

    def train_into(self, folder: Path, device: torch.device) -> None:
        """Train the classifier, if there is no judge, and keep it in the folder of a run; one that is there stays."""
        if self.images is None:
            return
        place, recipe = folder / CLASSIFIER, recipe_of(self.images)
        if (place / CONFIG).is_file():
            try:
                earlier = load_model(place, device, "classifier").provenance
            except InputError:  # damaged
                earlier = {}
            if all(earlier.get(name) == value for name, value in recipe.items()):
                return
        self.train(device).save_pretrained(place)

    def train(self, device: torch.device) -> Classifier:
        """Return a classifier that is trained on the images."""
        assert self.images is not None
        return train_classifier(self.images, NUM_WORKERS, device)

    def load_from(self, folder: Path, device: torch.device) -> Judge:
        """Return the judge: the one that was there, or a classifier that was trained into a folder of a run."""
        return self.judge or ClassifierJudge(load_model(folder / CLASSIFIER, device, "classifier"))


def find_source(
    name: str | Path,
    tokenizer: Tokenizer,
    priors: Sequence[Prior],
    device: Device,
    given: Condition,
    images: Images | None = None,
) -> Source:
    """Return the judge that a name stands for: `classifier`, the folder of a saved one, or `likelihood`.

    Args:
        name: `classifier` to train one, `likelihood` for the priors' own, or a folder.
        tokenizer, priors: those that draw.
        device: where a saved one goes.
        given: the condition of the samples.
        images: the training part to train one on. None: that of the tokenizer.

    Raises `InputError` if there is none, or it is one of other classes or images than the priors and the tokenizer.
    """
    if str(name) == LIKELIHOOD:
        return Source(PriorJudge(priors, given), LIKELIHOOD)
    need_images(tokenizer, "classifiers in `reject_with` judge")
    if str(name) != TRAINED:
        saved = load_model(name, device, "classifier")
        _check_fit(str(name), saved.signal.shape, _classes_of(saved), tokenizer, priors)
        return Source(ClassifierJudge(saved), digest_of_weights(saved))
    if images is None:
        dataset, place = learnt_data(tokenizer, remedy=GIVE_ANOTHER)
        size, channels = tokenizer.signal.size, tokenizer.signal.channels
        images = load_images(dataset, place, "train", size, channels, skips_unreadable(tokenizer))
    if not has_classes(images):
        data = images.found.name or "the data set"
        raise InputError(f"`reject_with` classifier: {NEEDS_LABELS} {data} has none: {GIVE_ANOTHER}")
    _check_fit(TRAINED, images.signal.shape, list(images.classes), tokenizer, priors)
    return Source(None, digest_of(recipe_of(images)), images)


def add_rejection(
    request: Request,
    tokenizer: Tokenizer,
    priors: Sequence[Prior],
    reject_with: str | Path | Classifier | None,
    keep: float | None,
) -> Request:
    """Return a request for the best of several draws of each sample; the request unchanged without `reject_with`.

    Args:
        tokenizer, priors: those that draw.
        reject_with: `classifier` to train one on the tokenizer's data set, a folder, a loaded classifier, or
            `likelihood` for the priors' own.
        keep: the share that is kept. None: a quarter.

    Raises `InputError` if the classifier does not fit, or cannot be had.
    """
    if reject_with is None:
        if keep is not None:
            raise InputError("`reject_keep` needs `reject_with`: give it a classifier")
        return request
    keep = REJECT_KEEP if keep is None else keep
    check_value("reject_keep", keep, RejectKeep)
    if isinstance(reject_with, str | Path):
        source = find_source(reject_with, tokenizer, priors, tokenizer.device, request.condition)
        judge = source.judge or ClassifierJudge(source.train(torch.device(tokenizer.device)))
    else:
        classifier, name = reject_with, type(reject_with).__name__
        if getattr(classifier, "kind", "") != "classifier":
            raise InputError(f"`reject_with` {name}: give a classifier, as codegrid.load returns it, or its folder")
        _check_fit(name, classifier.signal.shape, _classes_of(classifier), tokenizer, priors)
        judge = ClassifierJudge(classifier)
    return request._replace(rejection=Rejection(judge, keep))


def read_rejection(place: Path) -> dict[str, Any] | None:
    """Return how the images in a folder or file of a run were chosen, as `Rejection.describe`; None if they were not.

    It is also None for a folder that no run has left.
    """
    found = read_recorded(place, REJECTION)
    is_whole = isinstance(found, dict) and isinstance(found.get("network"), dict) and type(found.get("draws")) is int
    return found if is_whole else None


def read_recorded(place: Path, name: str) -> Any:
    """Return what the run that left the images in a folder or file has recorded under a name; None if nothing."""
    records = (read_record(folder, command) for folder in (place, place.parent) for command in LEAVE_IMAGES)
    return next((record[name] for record in records if name in record), None)


def _check_fit(
    name: str, shape: tuple[int, ...], classes: list[str], tokenizer: Tokenizer, priors: Sequence[Prior]
) -> None:
    """Raise `InputError` if a classifier is one of other images than the tokenizer's, or of other classes."""
    if shape != tokenizer.signal.shape:
        theirs, ours = ("×".join(map(str, each)) for each in (shape, tokenizer.signal.shape))
        raise InputError(f"`reject_with` {name}: it takes images of {theirs}, not {ours}: {GIVE_ANOTHER}")
    conditions = conditions_of(priors)
    known = list(conditions.classes) or [str(number) for number in range(conditions.num_classes)]
    differ = len(classes) != len(known) or (conditions.classes and classes != known)
    if known and differ:
        theirs, ours = (", ".join(names[:5]) + ", ..." * (len(names) > 5) for names in (classes, known))
        raise InputError(f"`reject_with` {name}: it knows the classes {theirs}, the prior {ours}: {GIVE_ANOTHER}")
    if len(classes) < 2:
        raise InputError(f"`reject_with` {name}: it knows a single class, and so cannot choose: {GIVE_ANOTHER}")


def _classes_of(classifier: Classifier) -> list[str]:
    """Return the names of a classifier's classes, or their numbers if they have no names."""
    return classifier.provenance.get("classes") or [str(i) for i in range(classifier.config["num_classes"])]


def _choose(is_first: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the rows (b, ...) of one tensor where `is_first` (b,), else of the other."""
    return torch.where(is_first.to(one.device).view(-1, *[1] * (one.ndim - 1)), one, other)
