"""The Fréchet distance of two sets of features, from means and covariances in float64.

Shapes: b batch, d features.
"""

import numpy as np
import torch

from codegrid.errors import InputError

from .features import Extractor


class FeatureStatistics:
    """Mean and covariance of features, added batch by batch; the batch sizes do not matter.

    The sums are over differences from the first row: otherwise features far from zero would lose digits. (This is not
    torchmetrics' class, because that takes images rather than features that the classifier has computed anyway, its
    sums lose those digits, and it does not report the rank.)
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: torch.Tensor) -> None:
        """Add features (b, d)."""
        rows = features.detach().cpu().double().numpy()
        if not np.isfinite(rows).all():
            raise InputError("`features`: the network returned values that are not finite: choose another")
        if not self.count:
            self._first = rows[0].copy()
            self._sum = np.zeros(rows.shape[1])
            self._products = np.zeros((rows.shape[1], rows.shape[1]))
        rows = rows - self._first
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    @property
    def dimensions(self) -> int:
        """d, the length of a feature vector."""
        return len(self._first)

    @property
    def rank_deficient(self) -> bool:
        """Whether there are too few rows, n ≤ d, for a covariance of full rank."""
        return self.count <= self.dimensions

    @property
    def mean(self) -> np.ndarray:
        """μ (d,)."""
        return self._first + self._sum / self.count

    @property
    def covariance(self) -> np.ndarray:
        """C (d, d), divided by n - 1. Raises `InputError` for fewer than two rows."""
        if self.count < 2:
            raise InputError(f"a Fréchet distance needs at least two images on each side, not {self.count}: give more")
        shift = self._sum / self.count
        return (self._products - self.count * np.outer(shift, shift)) / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return ‖μ_a - μ_b‖² + tr(C_a + C_b - 2 (C_a C_b)^½), at least 0 up to rounding."""
    squared = np.square(a.mean - b.mean).sum()
    # C_a C_b has the eigenvalues of R C_b R with R = C_a^½. That is symmetric, so they are real, even if too few
    # images leave it rank deficient, and the trace of the root is the sum of their roots
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0))
    return float(squared + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots.sum())


class JudgedImages:
    """A stream of images as a network sees them: their features and, if it names classes, how often it is right."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.statistics = FeatureStatistics()
        self.labels: list[torch.Tensor] = []
        self.right: list[torch.Tensor] = []

    @torch.no_grad()
    def add(self, images: torch.Tensor, labels: torch.Tensor | None) -> None:
        """Add images (b, c, H, W) uint8 and the classes that they should show (b,)."""
        features = self.extractor(images)
        self.statistics.add(features)
        if self.extractor.classifier is not None and labels is not None:
            self.labels.append(labels.cpu())
            self.right.append(self.extractor.classifier.name_classes(features).cpu() == labels.cpu())

    @property
    def agreement(self) -> float | None:
        """The share of the images, 0 ... 1, that are given their own class; None if the network names no classes."""
        return float(torch.cat(self.right).double().mean()) if self.right else None

    @property
    def agreement_by_class(self) -> list[float]:
        """The share that is named correctly, for each class that occurs, in order."""
        labels, right = torch.cat(self.labels), torch.cat(self.right).double()
        return [float(right[labels == label].mean()) for label in labels.unique()]
