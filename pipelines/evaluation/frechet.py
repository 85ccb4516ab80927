"""The Fréchet distance of two sets of features, from means and covariances in float64.

Shapes: b batch, d features.
"""

import numpy as np
import torch

from codegrid.errors import InputError


class FeatureStatistics:
    """Mean and covariance of features, batch by batch, however they were cut into batches.

    The sums are those of the distances to the first row: features far from zero would lose digits otherwise.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: torch.Tensor) -> None:
        """Count features (b, d)."""
        rows = features.detach().cpu().double().numpy()
        if not np.isfinite(rows).all():
            raise InputError("the feature extractor gave values that are not finite: choose another with --features")
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
        """C (d, d), with n - 1 below the sum. Raises InputError for fewer than two rows."""
        if self.count < 2:
            raise InputError(f"a Fréchet distance needs at least two images on each side, not {self.count}: give more")
        shift = self._sum / self.count
        return (self._products - self.count * np.outer(shift, shift)) / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """‖μ_a - μ_b‖² + tr(C_a + C_b - 2 (C_a C_b)^½), at least 0 but for rounding."""
    squared = np.square(a.mean - b.mean).sum()
    # C_a C_b has the eigenvalues of R C_b R with R = C_a^½. That is symmetric, so they are real, also where too few
    # images leave it without full rank, and the trace of the root is the sum of their roots
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    roots = np.sqrt(np.linalg.eigvalsh(root @ b.covariance @ root).clip(min=0))
    return float(squared + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots.sum())
