"""Judges, which say how well a sample shows what was asked for.

Shapes: b samples of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

from codegrid.codes import NO_LABEL, Condition
from codegrid.data.images import to_uint8
from codegrid.errors import InputError
from codegrid.noise import Noise
from codegrid.pipelines.evaluation.classifier import describe_classifier
from codegrid.protocols import Classifier, Prior
from codegrid.stage2_prior.conditions import conditions_of
from codegrid.stage2_prior.ranking import fit
from codegrid.tensors import digest_of

from .request import Request
from .samples import Samples


class Judge(Protocol):
    """Scores samples."""

    @property
    def needs_images(self) -> bool:
        """Whether it looks at images; else at codes alone, which need not be decoded."""

    def scores(self, samples: Samples, request: Request, rows: range) -> torch.Tensor:
        """Return a score (b,) of each of some samples of a request, on the CPU: the higher, the better."""

    def describe(self) -> dict[str, Any]:
        """Return who judges as JSON values: at least a `name`, and a digest of the `weights`."""


class ClassifierJudge(NamedTuple):
    """A classifier that says how clearly an image shows its class."""

    classifier: Classifier

    @property
    def needs_images(self) -> bool:
        """Whether it looks at images: yes."""
        return True

    @torch.no_grad()
    def scores(self, samples: Samples, request: Request, rows: range) -> torch.Tensor:
        """Return ln p / (1 - p) (b,) for p(label | image); without a label, for the likeliest class.

        It orders images as p does, and still tells them apart where p is 1 up to rounding.
        """
        images, labels = to_uint8(samples.images).to(self.classifier.device), samples.labels
        logits = self.classifier.logits(self.classifier(images)).cpu().double()
        asked = logits.argmax(1)
        if labels is not None:
            asked = torch.where(labels.cpu() == NO_LABEL, asked, labels.cpu())
        others = logits.scatter(1, asked[:, None], -math.inf).logsumexp(1)
        return logits.gather(1, asked[:, None])[:, 0] - others

    def describe(self) -> dict[str, Any]:
        """Return the classifier as JSON values."""
        return describe_classifier(self.classifier)


class PriorJudge:
    """The priors themselves, which say how much likelier codes are with their label or prompt than without.

    Raises `InputError` if they cannot tell, or samples are asked for without any label or prompt.
    """

    needs_images = False

    def __init__(self, priors: Sequence[Prior], given: Condition) -> None:
        self.priors = priors
        asked = [prior for prior in priors if prior.conditions.is_asked]
        if not asked:
            raise InputError("`reject_with` likelihood: this prior is unconditional, so all draws fit: leave it out")
        for prior in asked:
            if prior.likelihood == "none":
                raise InputError(f"`reject_with` likelihood: a {type(prior).__name__} has none: give a classifier")
            if not prior.conditions.unlabelled:
                raise InputError(f"`reject_with` likelihood: {prior.conditions.learnt_only}")
        conditions = conditions_of(priors)
        if not conditions.names_any(given):
            raise InputError(f"`reject_with` likelihood: without {conditions.asked_by} all draws fit: give some")

    def scores(self, samples: Samples, request: Request, rows: range) -> torch.Tensor:
        """Return ln p(codes | label or prompt) − ln p(codes | none) (b,), or an estimate of it from two bounds."""
        noise = Noise(request.seed, rows.start, len(rows), self.priors[0].device, ("fit", request.draw))
        return fit(self.priors, samples.codes, request.given(rows), noise).cpu()

    def describe(self) -> dict[str, Any]:
        """Return the priors as JSON values."""
        return {"name": "prior", "weights": digest_of([prior.fingerprint() for prior in self.priors])}
