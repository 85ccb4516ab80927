"""Feature extractors by name: what Fréchet distances compare images by.

Shapes: b batch, c channels, H W image, d features.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from codegrid.data.sources import Images
from codegrid.errors import InputError, reason_of
from codegrid.tensors import digest_of, sha256

from .classifier import BATCH_SIZE, SEED, STEPS, Classifier, check_labels, train_classifier


class Extractor(NamedTuple):
    """A network that maps images to features, and what is said of it beside a figure."""

    network: nn.Module
    description: dict[str, Any]  # JSON
    in_channels: int | None  # what it takes; None: what the data set has

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, c, H, W) uint8, grey ones repeated where the network takes colours → features (b, d)."""
        if self.in_channels == 3 and images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        features = self.network(images)
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(images):
            what = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InputError(
                f"--features {self.description['name']} gave {what} for {len(images)} images: "
                "a tensor of one row of features for each is needed"
            )
        return features

    @property
    def classifier(self) -> Classifier | None:
        """The network, where it names classes too."""
        return self.network if isinstance(self.network, Classifier) else None


def check_features(name: str, images: Images, dataset: str) -> None:
    """Raise InputError where `make_extractor` could not work, before anything has been computed."""
    if name == "classifier":
        return check_labels(images, dataset)
    if name == "inception":
        return _check_inception()
    if name != "none":
        _find_callable(name)


def make_extractor(name: str, images: Images, num_workers: int, device: torch.device) -> Extractor:
    """Make an extractor.

    Args:
        name: `classifier`, `inception`, or `module:function` that returns a network.
        images: the training part, which the classifier learns from.
    """
    if name == "classifier":
        network = train_classifier(images, num_workers, device)
        training = {"train_data": images.identity(), "steps": STEPS, "batch_size": BATCH_SIZE, "seed": SEED}
        return Extractor(network, {"name": name, **training, "weights": _digest(network)}, None)
    network = (_load_inception() if name == "inception" else _call(name)).to(device).eval()
    return Extractor(network, {"name": name, "weights": _digest(network)}, 3)


def _digest(network: nn.Module) -> str:
    """Tells two networks of one kind apart."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return digest_of({key: sha256(value.flatten().view(torch.uint8).numpy()) for key, value in state.items()})


def _check_inception() -> None:
    if importlib.util.find_spec("torch_fidelity") is None:
        raise InputError('--features inception needs torch-fidelity: install it with pip install -e ".[fid]"')


def _load_inception() -> nn.Module:
    """The Inception-v3 of the FID's authors, (b, 3, H, W) uint8 → (b, 2048); its weights are downloaded once."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        with _without_pickles():
            return NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    except Exception as error:  # of the download: there are many types
        reason = reason_of(error)
        raise InputError(
            f"--features inception: its weights cannot be had ({reason}): connect to the network once, "
            "or use --features classifier"
        ) from error


@contextmanager
def _without_pickles() -> Iterator[None]:
    """Let torch.load read tensors alone, whatever the library that calls it asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _find_callable(name: str) -> Callable[[], Any]:
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise InputError(
            f"--features {name}: choose none, classifier, inception, or module:function, a function that "
            "Python can import and that returns the network; files of weights are not loaded"
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise InputError(
            f"--features {name}: it cannot be imported ({error}): check the names, or set PYTHONPATH to its folder"
        ) from error
    if not callable(function):
        raise InputError(f"--features {name} is no function: give one that returns a torch.nn.Module")
    return function


def _call(name: str) -> nn.Module:
    network = _find_callable(name)()
    if not isinstance(network, nn.Module):
        raise InputError(f"--features {name} returned a {type(network).__name__}: it must return a torch.nn.Module")
    return network
