"""The distance between two sets of pictures, without any model: `codegrid evaluate --images A --against B`."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codegrid.data.folder import FolderImages
from codegrid.data.images import ImageDataset
from codegrid.data.listing import list_folder
from codegrid.data.loading import in_order, load_batches
from codegrid.data.npz import read_npz
from codegrid.data.sources import Images
from codegrid.errors import InputError
from codegrid.files import write_json
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.generation.rejection import read_recorded, read_rejection
from codegrid.pipelines.running.cli import print_once, print_plan
from codegrid.pipelines.running.device import choose_device
from codegrid.pipelines.running.outputs import PICTURES, RUN_FILE
from codegrid.pipelines.running.run_folder import Run
from codegrid.progress import progress_bar
from codegrid.tensors import read_json

from .features import Extractor, check_features, make_extractor
from .frechet import JudgedImages
from .metrics import METRICS_FILE, Metrics, add_distance, mark_judge, mark_seen
from .perceptual import PERCEPTUAL


def compare_pictures(settings: Evaluate) -> dict[str, Any]:
    """Write metrics.json, with the Fréchet distance of `images` to `against`, and return it."""
    device = choose_device(settings)
    if settings.features == "none":
        raise InputError(
            "`features`: name the network that compares the pictures: inception, module:function, or, if `against` has "
            "class folders, classifier"
        )
    ours, others = open_both(str(settings.images), str(settings.against))
    check_features(settings.features, others, str(settings.against))
    make = partial(make_extractor, settings.features, others, settings.num_workers, device)
    extractor = make() if ":" in settings.features else None  # now: its weights identify it, the name does not
    prints = {"images": ours.fingerprint(), "against": others.fingerprint()}
    run = Run(settings.output, settings, **prints, **({"features": extractor.description} if extractor else {}))
    if run.finished:
        print_once(f"{run.shown} is finished: nothing to do")
        return read_json(run.folder / METRICS_FILE)
    if settings.dry_run:
        print_plan(f"{len(ours):,} pictures to compare with {len(others):,}")
        return {}
    run.start()
    extractor, metrics = extractor or make(), Metrics()
    extractor.keep(run.folder)
    found = {name: read_rejection(Path(str(getattr(settings, name)))) for name in prints}
    chosen = {name: rejection for name, rejection in found.items() if rejection is not None}
    marked: dict[str, Any] = {"rejections": mark_judge(chosen, extractor.description)} if chosen else {}
    networks = [each for name in prints for each in read_networks(Path(str(getattr(settings, name))))]
    marked |= mark_seen(networks, extractor.description)
    judged, real = (_judge(each, extractor, settings, device) for each in (ours, others))
    add_distance("frechet_distance", judged, real, metrics, **prints, **marked)
    results = metrics.as_json(images=len(ours), against=len(others))
    run.finish_with(lambda folder: write_json(folder / METRICS_FILE, results))
    print_once("\n".join(metrics.lines()))
    return results


def read_networks(place: Path) -> list[dict[str, Any]]:
    """Return the perceptual networks that trained the tokenizer which decoded the images in a folder or file."""
    found = read_recorded(place, PERCEPTUAL)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def open_both(images: str, against: str) -> tuple[Images, Images]:
    """Open two sets of pictures. Folders are converted to one size: that of an .npz file, or of `against`.

    Raises `InputError` if one cannot be read, or has fewer than two pictures, or they cannot be brought to one size.
    """
    found = [_find("images", Path(images)), _find("against", Path(against))]
    arrays = [each for each in found if isinstance(each, ImageDataset)]
    signal = arrays[0].signal if arrays else _open_folder(Path(against), None, None).signal
    size = (signal.size[0], signal.size[1])
    ours, others = (
        each if isinstance(each, ImageDataset) else _open_folder(each, size, signal.channels) for each in found
    )
    for name, each in ((images, ours), (against, others)):
        if len(each) < 2:
            raise InputError(f"{name} holds fewer than the two pictures that a distance needs: give more")
    if ours.signal != others.signal:
        shapes = ["×".join(map(str, each.signal.shape)) for each in (ours, others)]
        raise InputError(f"{images} holds images of {shapes[0]}, {against} of {shapes[1]}: convert them to one shape")
    return ours, others


def _find(parameter: str, path: Path) -> Path | ImageDataset:
    """Return a folder of pictures, or the images of an .npz file or of those that a run left."""
    if path.is_dir():
        if not (path / RUN_FILE).is_file():
            return path
        if read_json(path / RUN_FILE).get("finished") is not True:
            raise InputError(f"`{parameter}` {path} is not finished: run its command again first")
        for folder in (path / name for name in PICTURES if (path / name).is_dir()):
            return folder
        files = sorted(path.glob("*.npz"))  # its .png files are sheets
    else:
        files = [path] if path.is_file() else []
    if not files:
        raise InputError(f"`{parameter}` {path}: there are no pictures; give a folder of them, or an .npz file")
    parts: list[np.ndarray] = []
    for file in files:
        part = read_npz(file).get("arr_0")
        if part is None or part.dtype != np.uint8 or part.ndim != 4 or part.shape[3] not in (1, 3):
            raise InputError(f"`{parameter}` {file}: arr_0 must be uint8 images of shape (n, H, W, c), c 1 or 3")
        parts.append(part)
        if part.shape[1:] != parts[0].shape[1:]:
            raise InputError(f"`{parameter}` {path}: its files hold images of several shapes: give one file")
    return ImageDataset(torch.from_numpy(np.concatenate(parts).transpose(0, 3, 1, 2).copy()))


def _open_folder(folder: Path, size: tuple[int, int] | None, channels: int | None) -> FolderImages:
    return FolderImages(folder, *list_folder(folder).listing, size, channels)


def _judge(images: Images, extractor: Extractor, settings: Evaluate, device: torch.device) -> JudgedImages:
    judged, batches = JudgedImages(extractor), in_order(len(images), settings.batch_size)
    for batch in progress_bar(load_batches(images, batches, settings.num_workers), "pictures", len(batches)):
        judged.add(batch.images.to(device), None)
    return judged
