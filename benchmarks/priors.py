"""Priors side by side on the codes of CIFAR-10, each trained for the same minutes of two cores.

python -m benchmarks.priors --data-root CIFAR --output runs/priors

CIFAR holds train/CLASS/* and test/CLASS/*. Tokenizers with grids of 8×8 and of 16×16 codes are trained first, unless
--output holds them. Bits are those of the test images, given their labels. Finished rows are not computed again.
"""

import argparse
from pathlib import Path
from typing import Any

from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer

from .minutes import train_for

MODELS = ("pixelcnn", "pixelsnail")
GRIDS = {"8×8": 4, "16×16": 2}  # side → downsampling


def make_codes(folder: Path, data_root: str, downsampling: int, toy: bool) -> dict[str, Any]:
    """Train a tokenizer, export the codes of both parts, and return the settings that name it and its images."""
    options = {"downsampling": downsampling, **({"hidden_channels": 16} if toy else {})}
    images: dict[str, Any] = {"dataset": "imagefolder", "data_root": data_root}
    train_tokenizer(TrainTokenizer(
        **images, output=str(folder / "tokenizer"), steps=20 if toy else 10_000, batch_size=32, options=options
    ))  # fmt: skip
    images["tokenizer"] = str(folder / "tokenizer")
    for split, name in (("train", "codes"), ("test", "codes_test")):
        export_codes(ExportCodes(**images, split=split, output=str(folder / name)))
    return images


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, default=Path("runs/priors"), help="folder of the runs")
    parser.add_argument("--grids", nargs="+", choices=GRIDS, default=list(GRIDS), help="grids of codes")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="priors to compare")
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each prior")
    parser.add_argument("--toy", action="store_true", help="a few steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    small: dict[str, Any] = {"batch_size": 8, "options": {"channels": 8}} if flags.toy else {"batch_size": 64}
    print(f"{'grid':8} {'prior':12} {'bits per code':>13} {'steps':>7} {'minutes':>8}")
    for grid in flags.grids:
        folder = flags.output / grid.replace("×", "x")
        images = make_codes(folder, flags.data_root, GRIDS[grid], flags.toy)
        codes = {"codes": str(folder / "codes"), "validation_codes": str(folder / "codes_test")}
        for model in flags.models:
            prior = TrainPrior(**codes, **small, model=model, output=str(folder / model))
            trained = train_for(0 if flags.toy else flags.minutes, prior, least=3 if flags.toy else 100)
            metrics = evaluate(Evaluate(
                **images, prior=(str(folder / model),), output=str(folder / f"{model}-figures")
            ))  # fmt: skip
            bits = metrics["bits_per_code"]
            print(f"{grid:8} {model:12} {bits:13.3f} {trained['steps']:7} {trained['minutes']:8.1f}")


if __name__ == "__main__":
    main()
