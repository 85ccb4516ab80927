"""A hierarchy of two grids beside a flat grid of as many bits, on CIFAR-10: reconstructions, priors, samples.

python -m benchmarks.hierarchies --data-root CIFAR --output runs/hierarchies

CIFAR holds train/CLASS/* and test/CLASS/*. `pyramid` has grids of 4×4 and 8×8 codes of 512, 720 bits; `flat` has 8×8
codes of 2,435, also 720 bits; `flat-576` has 8×8 codes of 512. Tokenizers take 10,000 steps of 32 images. Priors take
ten minutes: of the pyramid two for the coarse grid, a PixelSNAIL, and eight for the fine one, a gated PixelCNN given
the coarse codes; of a flat grid ten for a gated PixelCNN, and the minutes besides that its tokenizer took less. So both
whole systems take the same time. Images are compared by the features of lite0 and by those of a classifier.
Finished parts are not computed again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codegrid.files import write_json
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

from .minutes import minutes_of_a_step, train_for

# row → model and options of the tokenizer
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "pyramid": ("vqvae2", {"levels": (4, 2), "num_embeddings": 512}),
    "flat": ("vqvae", {"num_embeddings": 2435}),
    "flat-576": ("vqvae", {"num_embeddings": 512}),
}
MINUTES, COARSE = 10.0, 0.2  # of all priors; the coarse one's share
FEATURES = ("lite0", "classifier")
SAMPLES = 2000


def train_first(folder: Path, settings: TrainTokenizer) -> float:
    """Train a tokenizer, export the codes of both parts, and return the minutes that its training takes."""
    place, note = folder / "tokenizer", folder / "tokenizer-minutes.json"
    if not note.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(note, {"minutes": settings.steps * minutes_of_a_step(train_tokenizer, settings)})
    train_tokenizer(replace(settings, output=str(place)))
    for split, name in (("train", "codes"), ("test", "codes_test")):
        export_codes(ExportCodes(
            dataset=settings.dataset, data_root=settings.data_root, tokenizer=str(place), split=split,
            output=str(folder / name),
        ))  # fmt: skip
    return float(read_json(note)["minutes"])


def train_second(folder: Path, minutes: float, coarse: bool, common: TrainPrior) -> tuple[str, ...]:
    """Train a prior, or one for a coarse grid and one for the finer, and return the folders, coarse to fine."""
    codes = {"codes": str(folder / "codes"), "validation_codes": str(folder / "codes_test")}
    least = common.steps
    if not coarse:
        train_for(minutes, replace(common, **codes, output=str(folder / "prior")), least)
        return (str(folder / "prior"),)
    places = str(folder / "prior-0"), str(folder / "prior-1")
    of_top = {**common.options, "layers_per_block": 3} if common.steps > 10 else common.options
    train_for(
        COARSE * minutes,
        replace(common, **codes, output=places[0], model="pixelsnail", grid=(0,), options=of_top),
        least,
    )
    train_for((1 - COARSE) * minutes, replace(common, **codes, output=places[1], grid=(1,)), least)
    return places


def judge(
    folder: Path, settings: TrainTokenizer, priors: tuple[str, ...], num_samples: int, by: Sequence[str]
) -> dict[str, Any]:
    """Return the metrics of a whole system, by several kinds of features, and leave a sheet of samples."""
    images: dict[str, Any] = {"dataset": settings.dataset, "data_root": settings.data_root}
    images["tokenizer"] = str(folder / "tokenizer")
    found: dict[str, Any] = {}
    for features in by:
        metrics = evaluate(Evaluate(
            **images, prior=priors, features=features, num_samples=num_samples, output=str(folder / f"by-{features}")
        ))  # fmt: skip
        found |= metrics | {f"{name}, {features}": metrics[name] for name in ("rfid", "gfid")}
    sample(Sample(tokenizer=images["tokenizer"], prior=priors, num_samples=100, output=str(folder / "samples")))
    return found


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, default=Path("runs/hierarchies"), help="folder of the runs")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="systems to compare")
    parser.add_argument("--toy", action="store_true", help="a few steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    narrow = {"hidden_channels": 16} if flags.toy else {}
    small = {"channels": 8} if flags.toy else {}
    tokenizer = TrainTokenizer(
        output="", dataset="imagefolder", data_root=flags.data_root, steps=20 if flags.toy else 10_000, batch_size=32
    )
    prior = TrainPrior(codes="none yet", output="", steps=3 if flags.toy else 100, batch_size=64, options=small)
    minutes: dict[str, float] = {}
    settings = {}
    for name in flags.rows:
        model, options = ROWS[name]
        settings[name] = replace(tokenizer, model=model, options={**options, **narrow})
        minutes[name] = train_first(flags.output / name, settings[name])
    longest = max(minutes.values())
    print(f"{'system':10} {'error':>7} {'error of swapped grids':>24} {'bits':>7}", end="")
    by = FEATURES[: 1 if flags.toy else 2]  # the classifier takes a minute to train
    print(*(f" {kind:>6} {features:10}" for features in by for kind in ("rFID", "gFID")), "classes named", sep="")
    for name in flags.rows:
        folder = flags.output / name
        of_priors = 0.0 if flags.toy else MINUTES + longest - minutes[name]
        priors = train_second(folder, of_priors, ROWS[name][0] == "vqvae2", prior)
        at = judge(folder, settings[name], priors, 20 if flags.toy else SAMPLES, by)
        rises = ", ".join(f"+{grid['error_rise']:.3f}" for grid in at["grids"] if "error_rise" in grid)
        distances = "".join(
            f" {at[f'{kind}, {features}']:6.2f} {'':10}" for features in by for kind in ("rfid", "gfid")
        )
        print(f"{name:10} {at['reconstruction_error']:7.4f} {rises:>24} {at['bits_per_image']:7.1f}{distances}", end="")
        print(f" {100 * at.get('class_agreement', 0):.1f} %")


if __name__ == "__main__":
    main()
