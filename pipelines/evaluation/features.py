"""Feature extractors by name, for Fréchet distances between images; one of them is a small classifier.

Shapes: b batch, c channels, H W image, d features, k classes.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn

from codegrid.data.images import to_float
from codegrid.data.loading import StepSampler, load_batches
from codegrid.data.sources import Images
from codegrid.errors import InputError, import_extra, reason_of
from codegrid.pipelines.running.device import channels_last, environment, place
from codegrid.progress import progress_bar
from codegrid.registry import import_own
from codegrid.tensors import digest_of, sha256

from .lite0 import PACKAGE, load_lite0

FEATURES = 64
MAX_INPUT = 32  # pixels a side: larger images are averaged down, so that training takes no longer for them
STEPS, BATCH_SIZE, LR, SEED = 1000, 128, 3e-3, 0  # of the classifier's training


@runtime_checkable
class NamesClasses(Protocol):
    """A network that also names classes."""

    def name_classes(self, features: torch.Tensor) -> torch.Tensor:
        """Return the number (b,) of the likeliest class for features (b, d)."""


class Extractor(NamedTuple):
    """A network that maps images to features, and the description that is recorded with a metric."""

    network: nn.Module
    description: dict[str, Any]  # JSON
    in_channels: int | None  # channels that it expects; None: those of the data set

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (b, d) of images (b, c, H, W) uint8, grey ones repeated if it needs colours."""
        if self.in_channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        features = self.network(images)
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(images):
            what = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InputError(
                f"`features` {self.description['name']}: it returned {what} for {len(images)} images: "
                "return a tensor with one row of features per image"
            )
        return features

    @property
    def classifier(self) -> NamesClasses | None:
        """The network if it also names classes, else None."""
        return self.network if isinstance(self.network, NamesClasses) else None


def check_features(name: str, images: Images, dataset: str) -> None:
    """Raise `InputError` if `make_extractor` could not work, before anything has been computed."""
    if name == "classifier":
        if images.labels is None or len(images.classes) < 2:
            raise InputError(
                f"`features` classifier: it needs labels of two classes or more, and {dataset} has none: "
                "use inception, lite0 or module:function"
            )
    elif name == "inception":
        import_extra("torch_fidelity", "`features` inception", "fid")
    elif name == "lite0":
        import_extra(PACKAGE, "`features` lite0", "lite0")
    elif name != "none":
        _find_function(name)


def learns(name: str) -> bool:
    """Return whether an extractor is made from training images."""
    return name == "classifier" or (":" in name and _takes_images(_find_function(name)))


def make_extractor(name: str, images: Images | None, num_workers: int, device: torch.device) -> Extractor:
    """Make an extractor.

    Args:
        name: `classifier`, `inception`, `lite0`, or `module:function` that returns a network. A function with a
            parameter is given the training images; a network with a method `name_classes` judges classes, too.
        images: the training part, where the extractor `learns` from it.
        num_workers: processes that read images.
        device: where the network goes.
    """
    given = images if learns(name) else None
    described: dict[str, Any] = {"name": name} if given is None else {"name": name, "train_data": given.fingerprint()}
    if name == "classifier" and given is not None:
        network: nn.Module = train_classifier(given, num_workers, device)
        described |= {"steps": STEPS, "batch_size": BATCH_SIZE, "seed": SEED}
    elif name == "inception":
        network = _load_inception()
    elif name == "lite0":
        network = load_lite0()
    else:
        network = _find_function(name)(*[] if given is None else [given])
        if not isinstance(network, nn.Module):
            raise InputError(f"`features` {name}: it returned a {type(network).__name__}, not a torch.nn.Module")
    network = network.to(device).eval()
    return Extractor(network, {**described, "weights": _digest(network)}, 3 if given is None else None)


class Classifier(nn.Module):
    """Two convolutions and two linear layers; the features are the output of the first linear layer."""

    def __init__(self, in_channels: int, image_size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.size = tuple(min(side, MAX_INPUT) for side in image_size)
        height, width = (-(-side // 4) for side in self.size)
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(), nn.Linear(32 * height * width, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (b, d) of images (b, c, H, W) uint8."""
        pixels = to_float(images)
        if tuple(pixels.shape[2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="area")
        return self.body(channels_last(pixels))

    def name_classes(self, features: torch.Tensor) -> torch.Tensor:
        """Return the number (b,) of the likeliest class for features (b, d)."""
        return self.head(features).argmax(1)


def train_classifier(images: Images, num_workers: int, device: torch.device) -> Classifier:
    """Train on real images (the training part); the result depends on them alone, bit for bit on one kind of CPU."""
    with torch.random.fork_rng(devices=[]):  # only the initial weights are drawn from it
        torch.default_generator.manual_seed(SEED)
        model = Classifier(images.in_channels, images.image_size, len(images.classes))
    place(model, device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS)
    steps = StepSampler(len(images), BATCH_SIZE, SEED, 0, STEPS, order=getattr(images, "order", None))
    for batch in progress_bar(load_batches(images, steps, num_workers), "classifier", STEPS):
        loss = F.cross_entropy(model.head(model(batch.images.to(device))), batch.labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _digest(network: nn.Module) -> str:
    """Return a digest of a network's weights."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return digest_of({key: sha256(value.flatten().view(torch.uint8).numpy()) for key, value in state.items()})


def _load_inception() -> nn.Module:
    """Load the Inception-v3 of the FID's authors, (b, 3, H, W) uint8 → (b, 2048), downloading its weights once."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        with environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"):  # whatever the library asks for, nothing is unpickled
            return NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    except Exception as error:  # a download can fail with many types
        raise InputError(
            f"`features` inception: its weights cannot be had ({reason_of(error)}): connect to the network once, "
            "or use classifier or lite0"
        ) from error


def _find_function(name: str) -> Callable[..., Any]:
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise InputError(
            f"`features` {name}: choose none, classifier, inception, lite0, or module:function, a function that "
            "Python can import and that returns the network; files of weights are not loaded"
        )
    try:
        function = getattr(import_own(module_name), function_name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise InputError(
            f"`features` {name}: it cannot be imported ({error}): check the names, or give its file, MINE.py:function"
        ) from error
    if not callable(function):
        raise InputError(f"`features` {name}: it is not a function: give one that returns a torch.nn.Module")
    return function


def _takes_images(function: Callable[..., Any]) -> bool:
    """Return whether a function has a required parameter."""
    return any(parameter.default is parameter.empty for parameter in inspect.signature(function).parameters.values())
