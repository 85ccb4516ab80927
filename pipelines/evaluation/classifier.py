"""A small classifier of images, trained on real ones: it judges samples, or rejects some of them.

Shapes: b batch, c channels, H W image, d features, k classes.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.codes import Signal
from codegrid.data.images import to_float
from codegrid.data.loading import StepSampler, load_batches
from codegrid.data.sources import Images
from codegrid.errors import InputError
from codegrid.limits import MAX_CLASSES, Range, check_value
from codegrid.model_folder import ModelFolder
from codegrid.pipelines.running.device import channels_last, place
from codegrid.progress import progress_bar
from codegrid.protocols import Classifier
from codegrid.tensors import digest_of, sha256

FEATURES = 64
MAX_INPUT = 32  # pixels a side: larger images are averaged down, so that training takes no longer for them
STEPS, BATCH_SIZE, LR, SEED = 1000, 128, 3e-3, 0  # of the training
RECIPE = ("train_data", "steps", "batch_size", "seed")  # what a trained classifier follows from, up to rounding
NEEDS_LABELS = "it needs labels of two classes or more, and"


class SmallClassifier(ModelFolder, nn.Module):
    """Two convolutions and two linear layers; the features are the output of the first linear layer.

    Args:
        signal: channels and size (H, W) of its images, or a dict of its fields.
        num_classes: k.
    """

    kind: ClassVar[str] = "classifier"

    def __init__(self, signal: Signal | dict[str, Any], num_classes: int) -> None:
        super().__init__()
        self.signal = signal if isinstance(signal, Signal) else Signal(**signal)
        channels, *sides = self.signal.shape
        if len(sides) != 2:
            raise InputError(f"`signal` of shape {self.signal.shape}: a classifier needs images, (channels, H, W)")
        check_value("num_classes", num_classes, Annotated[int, Range(1, MAX_CLASSES)])
        self.size = tuple(min(side, MAX_INPUT) for side in sides)
        height, width = (-(-side // 4) for side in self.size)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(), nn.Linear(32 * height * width, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, num_classes)
        self.config = {"signal": self.signal.as_json(), "num_classes": num_classes}
        self.provenance: dict[str, Any] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (b, d) of images (b, c, H, W) uint8."""
        pixels = to_float(images)
        if tuple(pixels.shape[2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="area")
        return self.body(channels_last(pixels))

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits (b, k) of the classes for features (b, d)."""
        return self.head(features)

    def name_classes(self, features: torch.Tensor) -> torch.Tensor:
        """Return the number (b,) of the likeliest class for features (b, d)."""
        return self.logits(features).argmax(1)


def recipe_of(images: Images) -> dict[str, Any]:
    """Return what a classifier that is trained on images follows from, as JSON values by the names in `RECIPE`."""
    return dict(zip(RECIPE, (images.fingerprint(), STEPS, BATCH_SIZE, SEED), strict=True))


def has_classes(images: Images) -> bool:
    """Return whether a classifier can be trained on images: they have labels of two classes or more."""
    return images.labels is not None and len(images.classes) > 1


def train_classifier(images: Images, num_workers: int, device: torch.device) -> SmallClassifier:
    """Train on real images (the training part); the result depends on them alone, bit for bit on one kind of CPU."""
    with torch.random.fork_rng(devices=[]):  # only the initial weights are drawn from it
        torch.default_generator.manual_seed(SEED)
        model = SmallClassifier(images.signal, len(images.classes))
    place(model, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
    steps = StepSampler(len(images), BATCH_SIZE, SEED, 0, STEPS, order=getattr(images, "order", None))
    for batch in progress_bar(load_batches(images, steps, num_workers), "classifier", STEPS):
        loss = F.cross_entropy(model.logits(model(batch.images.to(device))), batch.labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.provenance = {"classes": list(images.classes), **recipe_of(images)}
    return model.eval()


def describe_classifier(model: Classifier) -> dict[str, Any]:
    """Return, as JSON values, what a classifier was trained on, as far as it is known, and which one it is."""
    known = {name: model.provenance[name] for name in RECIPE if name in model.provenance}
    return {"name": "classifier", **known, "fingerprint": model.fingerprint(), "weights": digest_of_weights(model)}


def digest_of_weights(network: Any) -> str:
    """Return a digest of a network's weights."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return digest_of({key: sha256(value.flatten().view(torch.uint8).numpy()) for key, value in state.items()})


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two descriptions are of one network: of equal weights, or trained alike on the same images."""
    alike = all(name in one and one[name] == other.get(name) for name in ("name", *RECIPE))
    return alike or one.get("weights") == other.get("weights")
