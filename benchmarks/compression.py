"""Bytes per image: its codes packed plainly, entropy coded by a prior, and with what the decoder misses.

python -m benchmarks.compression --mnist MNIST --cifar CIFAR --emoji PACKAGES --output runs/compression

MNIST holds MNIST/raw, CIFAR train/CLASS/* and test/CLASS/*, PACKAGES the two npm packages of the data set emoji; sets
that are not given are left out. A tokenizer and a gated PixelCNN without labels are trained first, where they are not
there yet, some minutes each. Then images of the test part, at most --count, are compressed and decompressed again.
Beside them stand PNG and lossless WebP, with a file for each image, and JPEG at the least quality whose error is not
above that of the tokenizer: its file, and without the header that all files of one quality share. Leaves
compression.png.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from codegrid import TwoStagePipeline, load_images
from codegrid.codes import Condition
from codegrid.data.image_files import to_pictures
from codegrid.data.images import to_float
from codegrid.pipelines.compression.packing import Content, pack, unpack
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.stage2_prior.likelihood import measure


class Row(NamedTuple):
    """Images, and how a tokenizer and a prior learn them."""

    dataset: str
    tokenizer: dict[str, Any]
    views: dict[str, Any]  # of the codes to learn
    prior: dict[str, Any]


ROWS = {
    "mnist": Row(
        "mnist", {"steps": 2000, "lr": 0.004, "options": {"num_embeddings": 256, "hidden_channels": 64}}, {},
        {"steps": 2000, "lr": 0.003, "options": {"num_layers": 5}},
    ),
    "cifar": Row("imagefolder", {"steps": 4000}, {}, {"steps": 1500, "options": {"num_layers": 8}}),
    "emoji": Row(
        "emoji", {"steps": 1500, "flip": True, "shift": 4, "options": {"hidden_channels": 64}},
        {"views": 16, "shift": 4, "flip": True}, {"steps": 600, "options": {"num_layers": 8, "dropout": 0.2}},
    ),
}  # fmt: skip
QUALITIES = range(1, 101)  # of a JPEG
BARS = (
    "codes, packed", "codes, entropy coded", "codes and pixels, lossless",
    "PNG", "WebP, lossless", "JPEG of equal error", "the same, no header",
)  # fmt: skip
BATCH = 256


def train(row: Row, root: str, folder: Path, toy: bool) -> None:
    """Train what is missing of a tokenizer and a prior without labels, and encode both parts of the data set."""
    data: dict[str, Any] = {"dataset": row.dataset, "data_root": root}
    common: dict[str, Any] = {"batch_size": 32, "steps": 20} if toy else {"batch_size": 32}
    tokenizer, codes = str(folder / "tokenizer"), {"train": str(folder / "codes"), "test": str(folder / "codes_test")}
    train_tokenizer(TrainTokenizer(**data, output=tokenizer, **{**row.tokenizer, **common}))
    export_codes(ExportCodes(**data, tokenizer=tokenizer, output=codes["train"], **row.views))
    export_codes(ExportCodes(**data, tokenizer=tokenizer, output=codes["test"], split="test"))
    train_prior(
        TrainPrior(
            codes=codes["train"], validation_codes=codes["test"], output=str(folder / "prior"), unconditional=True,
            **{**row.prior, **common},
        )
    )  # fmt: skip


def bytes_as(pictures: list[Image.Image], **settings: Any) -> list[bytes]:
    """Return pictures as the files that Pillow makes of them."""
    files = []
    for picture in pictures:
        file = io.BytesIO()
        picture.save(file, **settings)
        files.append(file.getvalue())
    return files


def as_jpeg(images: torch.Tensor, error: float) -> tuple[float, float, int]:
    """Return the mean bytes of JPEG files, and those without their header, and the quality with the nearest error."""
    pictures = to_pictures(images)
    low, high = QUALITIES[0], QUALITIES[-1]
    while low < high:  # the least quality whose error is at most that
        middle = (low + high) // 2
        shown = [np.array(Image.open(io.BytesIO(file))) for file in _jpegs(pictures, middle)]
        truth = [np.array(picture) for picture in pictures]
        wrong = np.mean([np.square(a.astype(float) - b).mean() for a, b in zip(shown, truth, strict=True)])
        low, high = (low, middle) if wrong <= error else (middle + 1, high)
    files = _jpegs(pictures, low)
    scan = [len(file) - file.index(b"\xff\xda") for file in files]
    return float(np.mean([len(file) for file in files])), float(np.mean(scan)), low


def _jpegs(pictures: list[Image.Image], quality: int) -> list[bytes]:
    return bytes_as(pictures, format="JPEG", quality=quality, optimize=True)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a function returns, and the seconds it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def compare(row: Row, root: str, folder: Path, count: int) -> dict[str, float]:
    """Return the figures of one data set."""
    pipeline = TwoStagePipeline.from_pretrained(folder)
    tokenizer, priors = pipeline.tokenizer, pipeline.priors
    every = load_images(row.dataset, root, "test", tokenizer.signal.size, tokenizer.signal.channels)
    images = every.batch(range(min(count, len(every)))).images
    codes = pipeline.encode(to_float(images), BATCH)
    content, with_pixels = Content(codes), Content(codes, images=images)
    packed, writing = timed(lambda: pack(tokenizer, priors, content, batch_size=BATCH))
    again, reading = timed(lambda: unpack(packed, tokenizer, priors, batch_size=BATCH))
    assert all(map(torch.equal, again.codes, codes))
    exact, writing_all = timed(lambda: pack(tokenizer, priors, with_pixels, batch_size=BATCH))
    back, reading_all = timed(lambda: unpack(exact, tokenizer, priors, batch_size=BATCH))
    assert all(map(torch.equal, back.images, images))
    shown = torch.cat([tokenizer.reconstruct(to_float(some)) for some in images.split(BATCH)]).clamp(-1, 1)
    error = float((127.5 * (shown - to_float(images))).square().mean())
    some = (tuple(grid[first : first + BATCH] for grid in codes) for first in range(0, len(images), BATCH))
    bits = measure(priors[0], ((batch, Condition()) for batch in some))
    jpeg, scan, quality = as_jpeg(images, error)
    pictures, n = to_pictures(images), len(images)
    plain = sum(grid.num_sites * np.ceil(np.log2(grid.num_embeddings)) for grid in tokenizer.layout) / 8
    sizes = [
        plain, len(packed) / n, len(exact) / n, *(
            np.mean([len(file) for file in bytes_as(pictures, **settings)])
            for settings in ({"format": "PNG", "optimize": True}, {"format": "WEBP", "lossless": True, "quality": 100})
        ), jpeg, scan,
    ]  # fmt: skip
    return {
        **dict(zip(BARS, map(float, sizes), strict=True)), "images": n, "error": error, "JPEG quality": quality,
        "prior's own bytes": bits.per_sample / 8,
        "excess in %": 100 * (8 * len(packed) / n / bits.per_sample - 1),
        "images/s in": n / writing, "images/s out": n / reading, "images/s in, pixels": n / writing_all,
        "images/s out, pixels": n / reading_all,
    }  # fmt: skip


def draw(found: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the bytes per image as bars, a panel for each data set."""
    figure = Figure(figsize=(4.2 * len(found), 3.6), layout="constrained")
    for place, (name, at) in enumerate(found.items(), 1):
        axes = figure.add_subplot(1, len(found), place)
        colours = ["tab:orange"] * 3 + ["tab:gray"] * 4
        bars = axes.barh(BARS, [at[bar] for bar in BARS], color=colours)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.set_title(f"{name}: bytes per image", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        if place > 1:
            axes.set_yticklabels([])
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train what is missing, then print a table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ROWS:
        parser.add_argument(f"--{name}", help="where this data set is")
    parser.add_argument("--output", type=Path, default=Path("runs/compression"), help="folder of the runs")
    parser.add_argument("--count", type=int, default=2000, help="images of each set to compress")
    parser.add_argument("--toy", action="store_true", help="a few steps, and a few images, to check that it runs")
    flags = parser.parse_args()
    found = {}
    for name, row in ROWS.items():
        root = getattr(flags, name)
        if root is not None:
            train(row, root, flags.output / name, flags.toy)
            found[name] = compare(row, root, flags.output / name, 8 if flags.toy else flags.count)
    print(f"{'':22}", *(f"{name:>10}" for name in found))
    for what in next(iter(found.values()), {}):
        print(f"{what:22}", *(f"{found[name][what]:10,.1f}" for name in found))
    draw(found, flags.output / "compression.png")


if __name__ == "__main__":
    main()
