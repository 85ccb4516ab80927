"""How near to real images does an hour of two cores come, beside the usual assembly of public parts?

python -m benchmarks.fidelity --data-root CIFAR --output runs/fidelity
python -m benchmarks.fidelity --data-root PICTURES --image-size 64 --output runs/fidelity-64

CIFAR, or any folder of pictures, holds train/CLASS/* and test/CLASS/*. `codegrid` is our recipe; `public` an EMA
tokenizer as in the notebooks and a masked PixelCNN, in float32, trained by plain loops for the same time. Both are
judged alike: error of reconstructions, bits, Fréchet distances by a classifier and by lite0, and how many samples the
classifier names as asked, at the guidance with the least distance by it, if a contender has guidance at all. Leaves
samples.png: real images and samples of each. What is finished is not computed again.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from codegrid import CodeDataset, TwoStagePipeline, load_images
from codegrid.data.images import evenly_spaced, to_float
from codegrid.files import write_json
from codegrid.pipelines.drawing.blocks import Block, draw_blocks
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.generation.sampling import sample
from codegrid.pipelines.sample import Sample
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.tensors import read_json

from .judges import Judgement, Reference
from .minutes import train_for
from .public_parts import train_public_prior, train_public_tokenizer

NAMES = ("codegrid", "public")
FEATURES = ("benchmarks.judges:classifier", "lite0")
GUIDANCE = (1.0, 1.5, 2.0, 3.0)
ON_SHEET, ACROSS = 60, 6
VIEWS = {"views": 2, "flip": True}  # of our recipe


def export(folder: Path, images: dict[str, Any], views: dict[str, Any]) -> None:
    """Write the codes of both parts."""
    for split, name in (("train", "codes"), ("test", "codes_test")):
        more = views if split == "train" else {}
        export_codes(ExportCodes(
            dataset=images["dataset"], data_root=images["data_root"], tokenizer=(str(folder / "tokenizer"),),
            split=split, output=str(folder / name), **more,
        ))  # fmt: skip


def train_ours(folder: Path, images: dict[str, Any], minutes: tuple[float, float], toy: bool) -> list[int]:
    """Train both stages by our recipe, and return their steps."""
    least = 12 if toy else 100
    narrow = {"hidden_channels": 16} if toy else {}
    first = train_for(minutes[0], TrainTokenizer(
        **images, output=str(folder / "tokenizer"), batch_size=32, steps=100, options=narrow,
    ), least, train_tokenizer)  # fmt: skip
    export(folder, images, VIEWS)
    second = train_for(minutes[1], TrainPrior(
        model="transformer", codes=str(folder / "codes"), validation_codes=str(folder / "codes_test"),
        output=str(folder / "prior"), batch_size=8 if toy else 64, steps=100, options={"channels": 8} if toy else {},
    ), least)  # fmt: skip
    return [int(trained["steps"]) for trained in (first, second)]


def train_public(folder: Path, images: dict[str, Any], minutes: tuple[float, float], toy: bool) -> list[int]:
    """Train both stages by plain loops, unless they are there, and return their steps."""
    folder.mkdir(parents=True, exist_ok=True)
    small = {"channels": 8, "num_layers": 2} if toy else {}
    if not (folder / "tokenizer" / "config.json").exists():
        training = load_images(images["dataset"], images["data_root"], image_size=images["image_size"])
        train_public_tokenizer(training, folder / "tokenizer", minutes[0], 16 if toy else 128, images["dataset"])
    export(folder, images, {})
    if not (folder / "prior" / "config.json").exists():
        train_public_prior(CodeDataset(folder / "codes"), folder / "prior", minutes[1], small)
    return [read_json(folder / stage / "config.json")["provenance"]["steps"] for stage in ("tokenizer", "prior")]


def reconstruct(folder: Path, images: dict[str, Any], by: tuple[str, ...]) -> tuple[dict[str, Any], list[float]]:
    """Return what `evaluate` says of both stages without samples, and the rFID by each of the features."""
    models: dict[str, Any] = {"tokenizer": (str(folder / "tokenizer"),)}
    data = {name: images[name] for name in ("dataset", "data_root")}
    stages = evaluate(Evaluate(**data, **models, prior=(str(folder / "prior"),), output=str(folder / "stages")))
    again = [
        evaluate(Evaluate(**data, **models, features=name, output=str(folder / f"again-by-{name.partition(':')[0]}")))
        for name in by
    ]
    return stages, [found["rfid"] for found in again]


def draw(folder: Path, scale: float, num: int, reference: Callable[[], Reference]) -> Judgement:
    """Draw samples at a guidance scale, and judge them."""
    note = folder / f"{scale:g}-{num}.json"
    if not note.exists():
        pipeline = TwoStagePipeline.from_parts(folder / "tokenizer", folder / "prior")
        write_json(note, reference().judge(pipeline.sample(num, seed=0, guidance_scale=scale))._asdict())
    return Judgement(**read_json(note))


def save_sheet(path: Path, images: dict[str, Any], folders: Sequence[Path]) -> None:
    """Save real images and the samples of each contender beside each other."""
    real = load_images(**images, split="test")
    shown = {"real": real.batch(evenly_spaced(len(real), ON_SHEET))}
    for folder in folders:
        shown[folder.name] = load_images(str(folder / "samples" / "samples.npz"), split="all").batch(range(ON_SHEET))
    draw_blocks([[Block(name, to_float(batch.images), ACROSS) for name, batch in shown.items()]]).save(path)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, default=Path("runs/fidelity"), help="folder of the runs")
    parser.add_argument("--image-size", type=int, nargs="+", default=[], help="resize pictures to this size")
    parser.add_argument("--minutes", type=float, nargs=2, default=(20.0, 40.0), help="of tokenizer and prior")
    parser.add_argument("--samples", type=int, default=2000, help="drawn of each, at each guidance scale")
    parser.add_argument("--rows", nargs="+", choices=NAMES, default=NAMES, help="contenders")
    parser.add_argument("--toy", action="store_true", help="a few steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    images = {"dataset": "imagefolder", "data_root": flags.data_root, "image_size": tuple(flags.image_size)}
    minutes = (0.0, 0.0) if flags.toy else tuple(flags.minutes)
    by, num = (("lite0",), 20) if flags.toy else (FEATURES, flags.samples)
    data = str(images["dataset"]), flags.data_root
    reference = cache(partial(Reference, *data, by[0], *by, image_size=images["image_size"]))
    print(
        f"{'':10} {'steps':>15} {'error':>7} {'bits':>7} {'guidance':>8} {'named':>7}  rFID and gFID by {', '.join(by)}"
    )
    for name in flags.rows:
        folder = flags.output / name
        trained = (train_ours if name == "codegrid" else train_public)(folder, images, minutes, flags.toy)
        stages, rfids = reconstruct(folder, images, by)
        scales = GUIDANCE[: 2 if flags.toy else None] if name == "codegrid" else (1.0,)
        drawn = {scale: draw(folder, scale, num, reference) for scale in scales}
        best = min(drawn, key=lambda scale: drawn[scale].distances[0])
        sample(Sample(
            tokenizer=(str(folder / "tokenizer"),), prior=(str(folder / "prior"),), guidance_scale=(best,),
            num_samples=ON_SHEET, output=str(folder / "samples"),
        ))  # fmt: skip
        agreement, gfids = drawn[best]
        named = "" if agreement is None else f"{100 * agreement:.1f} %"
        print(f"{name:10} {'{:,} {:,}'.format(*trained):>15} {stages['reconstruction_error']:7.4f} "
              f"{stages['bits_per_image']:7.1f} {best:8} {named:>7} ",
              *(f"{rfid:8.2f} {gfid:8.2f}" for rfid, gfid in zip(rfids, gfids, strict=True)))  # fmt: skip
    save_sheet(flags.output / "samples.png", images, [flags.output / name for name in flags.rows])


if __name__ == "__main__":
    main()
