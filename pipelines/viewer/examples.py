"""Images to pick from in the viewer: held-out ones where they are on this machine, otherwise what a run left.

Shapes: n images, c channels, H W image.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from codegrid.data.images import evenly_spaced, to_float
from codegrid.data.names import AT_HAND
from codegrid.data.npz import read_npz
from codegrid.errors import InputError
from codegrid.pipelines.generation.artifacts import load_images_for
from codegrid.pipelines.generation.pipeline import TwoStagePipeline

COUNT = 20
# what lies in the download folder once these data sets are there
DOWNLOADED = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py"}


class Examples(NamedTuple):
    """Some images, and where they come from."""

    images: torch.Tensor  # (n, c, H, W), float in [-1, 1]
    labels: torch.Tensor | None  # (n,) int64
    source: str  # in words


def find_examples(pipeline: TwoStagePipeline, run: Path | None, count: int = COUNT) -> Examples:
    """Return up to `count` images of the tokenizer's size, without asking the network.

    Held-out images of the data set that the tokenizer names; or the run's samples; or, where it left none, new ones.
    """
    dataset = str(pipeline.tokenizer.provenance.get("dataset"))
    downloads = Path.home() / ".cache" / "codegrid"
    with suppress(InputError):  # not on this machine: the next best will do
        if dataset in AT_HAND or (dataset in DOWNLOADED and (downloads / DOWNLOADED[dataset]).is_dir()):
            return _held_out(pipeline, dataset, count)
    with suppress(InputError, OSError):
        if run is not None:
            return _samples_of(pipeline, run / "samples" / "samples.npz", count)
    drawn = pipeline.sample(count, seed=0, progress=False)
    return Examples(drawn.images, drawn.labels, "samples of the prior")


def _held_out(pipeline: TwoStagePipeline, dataset: str, count: int) -> Examples:
    images = load_images_for(pipeline.tokenizer, dataset, None, "test")
    chosen = images.batch(evenly_spaced(len(images), count))
    known = pipeline.classes == images.classes
    return Examples(to_float(chosen.images), chosen.labels if known else None, f"held-out images of {dataset}")


def _samples_of(pipeline: TwoStagePipeline, path: Path, count: int) -> Examples:
    pixels = read_npz(path).get("arr_0") if path.is_file() else None
    signal = pipeline.tokenizer.signal
    if pixels is None or not len(pixels) or pixels.shape[1:] != (*signal.size, signal.channels):
        raise InputError(f"{path} holds no images of this tokenizer's size: sample again")
    chosen = torch.from_numpy(pixels[evenly_spaced(len(pixels), count)])
    return Examples(to_float(chosen.permute(0, 3, 1, 2)), None, "samples of the run")
