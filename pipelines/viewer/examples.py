"""Images to pick from in the viewer: those asked for, or held-out ones on this machine, or samples of the run.

Shapes: n images, c channels, H W image.
"""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from codegrid.codes import Condition
from codegrid.data.images import evenly_spaced, to_float
from codegrid.data.names import Places, as_places, public_name
from codegrid.data.npz import read_npz
from codegrid.errors import InputError
from codegrid.pipelines.drawing.images import class_names
from codegrid.pipelines.generation.artifacts import load_images_for
from codegrid.pipelines.generation.chosen_data import data_at_hand, learnt_data
from codegrid.pipelines.generation.pairing import spoken_by
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.protocols import Tokenizer

from .actions import decode
from .media import medium_of

COUNT = 20


class Examples(NamedTuple):
    """Some images, and where they come from."""

    images: torch.Tensor  # (n, c, H, W), float in [-1, 1]
    source: str  # in words
    labels: torch.Tensor | None = None  # (n,) int64, as the priors number the classes
    names: list[str] | None = None  # of each image's class
    speakers: torch.Tensor | None = None  # (n,) int64, as the tokenizer numbers those who speak


def find_examples(
    tokenizer: Tokenizer,
    pipeline: TwoStagePipeline | None,
    run: Path | None,
    dataset: str | None = None,
    data_root: str | Places = (),
    count: int = COUNT,
) -> Examples:
    """Return up to `count` images of the tokenizer's size. Only a data set that is asked for may be downloaded.

    Without one, these are held-out images of the tokenizer's data set, if it is on this machine; or the run's samples;
    or, if there are none, new ones; or, without a prior, images decoded from random codes.
    """
    if dataset is not None:
        return _held_out(tokenizer, pipeline, dataset, data_root, count)
    if data_root:
        return _held_out(tokenizer, pipeline, *learnt_data(tokenizer, data_root), count)
    with suppress(InputError):  # damaged or moved: use the next best
        if (at_hand := data_at_hand(tokenizer)) is not None:
            return _held_out(tokenizer, pipeline, *at_hand, count)
    with suppress(InputError, OSError):
        if run is not None:
            return _samples_of(tokenizer, run / "samples" / "samples.npz", count)
    if pipeline is not None:
        drawn = pipeline.sample(count, seed=0, progress=False)
        names = class_names(pipeline.priors)
        of_each = None if drawn.labels is None else [names[label] for label in drawn.labels.tolist()]
        speakers = spoken_by(tokenizer, Condition(drawn.labels), names).labels
        return Examples(drawn.images, "samples of the prior", drawn.labels, of_each, speakers)
    random = torch.Generator().manual_seed(0)
    codes = tuple(
        torch.randint(grid.num_embeddings, (count, *grid.shape), generator=random) for grid in tokenizer.layout
    )
    return Examples(decode(tokenizer, codes), f"{medium_of(tokenizer.signal).items} made of random codes")


def _held_out(
    tokenizer: Tokenizer, pipeline: TwoStagePipeline | None, dataset: str, data_root: str | Places, count: int
) -> Examples:
    """Return held-out images of a data set, or, where none can be held out, some of all."""
    held_out = "held-out "
    try:
        images = load_images_for(tokenizer, dataset, data_root, "test")
    except InputError:
        images, held_out = load_images_for(tokenizer, dataset, data_root, "all"), ""
    chosen = images.batch(evenly_spaced(len(images), count))
    known = pipeline is not None and bool(images.classes) and pipeline.classes == images.classes
    names = None
    if chosen.labels is not None and images.classes:
        names = [images.classes[label] for label in chosen.labels.tolist()]
    places = ", ".join(Path(place).name for place in as_places(data_root))
    source = f"{held_out}{medium_of(tokenizer.signal).items} of {places or public_name(dataset)}"
    speakers = spoken_by(tokenizer, Condition(chosen.labels), images.classes).labels
    return Examples(to_float(chosen.images), source, chosen.labels if known else None, names, speakers)


def _samples_of(tokenizer: Tokenizer, path: Path, count: int) -> Examples:
    pixels = read_npz(path).get("arr_0") if path.is_file() else None
    signal = tokenizer.signal
    if pixels is None or not len(pixels) or pixels.shape[1:] != (*signal.size, signal.channels):
        raise InputError(f"{path} holds no images of this tokenizer's size: sample again")
    chosen = torch.from_numpy(pixels[evenly_spaced(len(pixels), count)])
    return Examples(to_float(chosen.permute(0, 3, 1, 2)), "samples of the run")
