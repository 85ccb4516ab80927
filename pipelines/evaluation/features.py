"""Feature extractors by name, for Fréchet distances between images.

Shapes: b batch, c channels, H W image, d features.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from codegrid.data.sources import Images
from codegrid.errors import InputError, import_extra, reason_of
from codegrid.files import CLASSIFIER
from codegrid.model_folder import ModelFolder
from codegrid.pipelines.running.device import environment
from codegrid.registry import import_own

from .classifier import NEEDS_LABELS, describe_classifier, digest_of_weights, has_classes, train_classifier
from .lite0 import PACKAGE, load_lite0

CHOICES = (
    "none, classifier, inception, lite0, or module:function, a function that Python can import and that returns the "
    "network"
)


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

    def keep(self, folder: Path) -> None:
        """Keep a classifier that was trained here in the folder of a run."""
        if isinstance(self.network, ModelFolder) and self.description["name"] == "classifier":
            self.network.save_pretrained(folder / CLASSIFIER)

    @property
    def classifier(self) -> NamesClasses | None:
        """The network if it also names classes, else None."""
        return self.network if isinstance(self.network, NamesClasses) else None


def check_features(name: str, images: Images, dataset: str) -> None:
    """Raise `InputError` if `make_extractor` could not work, before anything has been computed."""
    if name == "classifier":
        if not has_classes(images):
            remedy = "use inception, lite0 or module:function"
            raise InputError(f"`features` classifier: {NEEDS_LABELS} {dataset} has none: {remedy}")
    elif name == "inception":
        import_extra("torch_fidelity", "`features` inception", "fid")
    elif name == "lite0":
        import_extra(PACKAGE, "`features` lite0", "lite0")
    elif name != "none":
        find_function("features", name, CHOICES)


def learns(name: str) -> bool:
    """Return whether an extractor is made from training images."""
    return name == "classifier" or (":" in name and _takes_images(find_function("features", name, CHOICES)))


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
    if name == "classifier" and given is not None:
        trained = train_classifier(given, num_workers, device)
        return Extractor(trained, describe_classifier(trained), None)
    network: nn.Module
    if name == "inception":
        network = _load_inception()
    elif name == "lite0":
        network = load_lite0()
    else:
        network = find_function("features", name, CHOICES)(*[] if given is None else [given])
        if not isinstance(network, nn.Module):
            raise InputError(f"`features` {name}: it returned a {type(network).__name__}, not a torch.nn.Module")
    network = network.to(device).eval()
    described = {"name": name} if given is None else {"name": name, "train_data": given.fingerprint()}
    return Extractor(network, {**described, "weights": digest_of_weights(network)}, 3 if given is None else None)


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


def find_function(parameter: str, name: str, choices: str) -> Callable[..., Any]:
    """Return the function that `module:function` or `FILE.py:function` names, as the value of a parameter.

    Raises `InputError`, with the choices that there are, if there is none.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise InputError(f"`{parameter}` {name}: choose {choices}; files of weights are not loaded")
    try:
        function = getattr(import_own(module_name), function_name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise InputError(
            f"`{parameter}` {name}: it cannot be imported ({error}): check the names, or give its file, "
            "MINE.py:function"
        ) from error
    if not callable(function):
        raise InputError(f"`{parameter}` {name}: it is not a function: give one that returns a torch.nn.Module")
    return function


def _takes_images(function: Callable[..., Any]) -> bool:
    """Return whether a function has a required parameter."""
    return any(parameter.default is parameter.empty for parameter in inspect.signature(function).parameters.values())
