"""A classifier of real MNIST digits, and the Fréchet distance of its features: what judges generated digits.

Shapes: n images, f features.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.images import ImageDataset, to_float

FEATURES = 128


class DigitClassifier(nn.Module):
    """Two convolutions, two linear layers; the first linear layer's output are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 49, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.classes = nn.Linear(FEATURES, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1, 28, 28) in [-1, 1] → logits (n, 10)."""
        return self.classes(F.dropout(self.features(images), 0.5, self.training))


def train_classifier(digits: ImageDataset, steps: int = 3000, batch_size: int = 128) -> DigitClassifier:
    """Train on real digits only."""
    torch.manual_seed(0)
    model = DigitClassifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    bar = tqdm(range(steps), desc="classifier", leave=False)
    for _ in bar:
        batch = digits.__getitems__(torch.randint(len(digits), (batch_size,)).numpy())
        loss = F.cross_entropy(model(to_float(batch.images)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def judge(model: DigitClassifier, images: torch.Tensor) -> tuple[torch.Tensor, np.ndarray]:
    """uint8 images (n, 1, 28, 28) → the classes it names (n,), and features (n, f)."""
    features = torch.cat([model.features(to_float(piece)) for piece in images.split(500)])
    return model.classes(features).argmax(1), features.double().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """‖μ_a − μ_b‖² + tr(C_a + C_b − 2 (C_a C_b)^½) of two sets of features (n, f)."""
    mean = np.square(a.mean(0) - b.mean(0)).sum()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # the trace of the root is the sum of the roots of the eigenvalues, which are real and not negative
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0))
    return float(mean + np.trace(cov_a) + np.trace(cov_b) - 2 * roots.sum())
