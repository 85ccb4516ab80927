"""A small classifier of the real images at hand: its features and its verdicts judge generated ones.

Shapes: b batch, c channels, H W image, d features, k classes.
"""

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from codegrid.data.images import to_float
from codegrid.data.loading import StepSampler, load_batches
from codegrid.data.sources import Images
from codegrid.errors import InputError

FEATURES = 64
LARGEST_INPUT = 32  # pixels a side: larger images are averaged down, so that training takes no longer for them
STEPS, BATCH_SIZE, LR, SEED = 1000, 128, 3e-3, 0


class Classifier(nn.Module):
    """Two convolutions and two linear layers; the output of the first linear layer are the features."""

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.size = tuple(min(side, LARGEST_INPUT) for side in image_size)
        height, width = (-(-side // 4) for side in self.size)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(), nn.Linear(32 * height * width, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, c, H, W) uint8 → features (b, d)."""
        pixels = to_float(images)
        if tuple(pixels.shape[2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="area")
        return self.body(pixels.contiguous(memory_format=torch.channels_last))

    def name_classes(self, features: torch.Tensor) -> torch.Tensor:
        """Features (b, d) → the number of the likeliest class (b,)."""
        return self.head(features).argmax(1)


def check_labels(images: Images, dataset: str) -> None:
    """Raise InputError where a classifier has nothing to learn."""
    if images.labels is None or len(images.classes) < 2:
        raise InputError(
            f"--features classifier needs labels of two classes or more, and {dataset} has none: "
            "use --features inception or module:function"
        )


def train_classifier(images: Images, num_workers: int, device: torch.device) -> Classifier:
    """Train on real images (the training part); it follows from them alone, bit for bit on one kind of CPU."""
    with torch.random.fork_rng(devices=[]):  # only the first weights are drawn from it
        torch.default_generator.manual_seed(SEED)
        model = Classifier(images.in_channels, images.image_size, len(images.classes))
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
    steps = StepSampler(len(images), BATCH_SIZE, SEED, 0, STEPS)
    for batch in tqdm(load_batches(images, steps, num_workers), "classifier", STEPS):
        loss = F.cross_entropy(model.head(model(batch.images.to(device))), batch.labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
