"""A classifier of real MNIST digits, which judges generated ones.

Shapes: n images.
"""

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from codegrid.data.images import ImageDataset, to_float
from codegrid.pipelines.evaluation.frechet import FeatureStatistics

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
def judge(model: DigitClassifier, images: torch.Tensor) -> tuple[torch.Tensor, FeatureStatistics]:
    """uint8 images (n, 1, 28, 28) → the classes it names (n,), and what Fréchet distances know of the features."""
    features = torch.cat([model.features(to_float(piece)) for piece in images.split(500)])
    statistics = FeatureStatistics()
    statistics.add(features)
    return model.classes(features).argmax(1), statistics
