"""One tokenizer with and without a perceptual distance and a discriminator, for the same time: how sharp is it?

python -m benchmarks.sharpness --data-root CIFAR --output runs/sharpness

CIFAR, or any folder of pictures, holds train/CLASS/* and test/CLASS/*; for pictures of other sizes give `--image-size`.
`plain` has neither term, `perceptual` the first, `both` both. Prints a table over the test part, and leaves
comparison.png: originals and reconstructions, enlarged. Distances by lite0 are marked with *, where training used
it: compare those by the classifier. Finished parts are not computed again.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from codegrid.pipelines.drawing.run import plot
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.plot import Plot
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.tensors import read_json

from .minutes import train_for

# row → settings of the two terms
ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "perceptual": {"perceptual_weight": 1.0},
    "both": {"perceptual_weight": 1.0, "adversarial_weight": 0.5},
}
FEATURES = {"lite0": "lite0", "classifier": "benchmarks.judges:classifier"}
# column of the table → metric of `evaluate`; those that it does not return are left out
COLUMNS = {"error": "reconstruction_error", "PSNR": "psnr", "SSIM": "ssim", "lite0 distance": "lite0_distance"}


def judge(settings: TrainTokenizer, by: Sequence[str]) -> dict[str, str]:
    """Return the cells of a trained tokenizer's row, by their columns: figures by several networks."""
    cells: dict[str, str] = {}
    for name in by:
        place = Path(f"{settings.output}-by-{name}")
        if not (place / "metrics.json").exists():
            evaluate(Evaluate(
                dataset=settings.dataset, data_root=settings.data_root, tokenizer=settings.output,
                features=FEATURES[name], output=str(place),
            ))  # fmt: skip
        found = read_json(place / "metrics.json")
        wanted = {**COLUMNS, f"rFID, {name}": "rfid"}
        for column, metric in wanted.items():
            if metric in found:
                is_seen = found["measured_on"][metric].get("seen_in_training")
                cells[column] = f"{found[metric]:.4f}{'*' if is_seen else ''}"
    return cells


def main() -> None:
    """Train what is missing, then print the table and leave the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, default=Path("runs/sharpness"), help="folder of the runs")
    parser.add_argument("--minutes", type=float, default=20.0, help="of each training")
    parser.add_argument("--image-size", type=int, nargs="+", default=[], help="resize pictures to this size")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="tokenizers to compare")
    parser.add_argument("--network", default="paper", help="network of the tokenizers")
    parser.add_argument("--quantizer", default="ema", help="quantizer of the tokenizers")
    parser.add_argument(
        "--features", nargs="+", choices=FEATURES, default=list(FEATURES), help="judges; a classifier needs classes"
    )
    parser.add_argument("--toy", action="store_true", help="a few steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    narrow = {"hidden_channels": 16} if flags.toy else {}
    common = TrainTokenizer(
        output="", dataset="imagefolder", data_root=flags.data_root, image_size=tuple(flags.image_size), batch_size=32,
        steps=100, quantizer=flags.quantizer, options={"network": flags.network, **narrow},
    )  # fmt: skip
    minutes, least = (0.0, 12) if flags.toy else (flags.minutes, 100)
    rows: dict[str, dict[str, str]] = {}
    for name in flags.rows:
        own = {**ROWS[name], **({"discriminator_channels": 8} if flags.toy and name == "both" else {})}
        settings = replace(common, output=str(flags.output / name), **own)
        trained = train_for(minutes, settings, least, train_tokenizer)
        cells = judge(settings, flags.features[: 1 if flags.toy else None])
        rows[name] = {"steps": f"{trained['steps']:,}", "minutes": f"{trained['minutes']:.1f}", **cells}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    print(f"{'terms':12}", *(f"{column:>16}" for column in columns), sep="")
    for name, row in rows.items():
        print(f"{name:12}", *(f"{row.get(column, ''):>16}" for column in columns), sep="")
    first, *others = (str(flags.output / name) for name in flags.rows)
    if not others:
        return
    plot(Plot(
        dataset=common.dataset, data_root=common.data_root, tokenizer=first, beside=tuple(others), what=("comparison",),
        output=str(flags.output / "pictures"),
    ))  # fmt: skip
    print(f"{flags.output / 'pictures' / 'comparison.png'}: originals and reconstructions, enlarged")


if __name__ == "__main__":
    main()
