"""Does the codebook stay alive? Usage after 300 steps and at the end of a run, with small and large batches.

python -m benchmarks.liveness --dataset mnist --data-root FOLDER --output runs/liveness/digits

Every other setting of `train-tokenizer` has its default. Metrics are over up to 1,000 test images.
"""

import argparse
from pathlib import Path

from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.tensors import read_json

STEPS = {32: 3000, 1024: 500}  # by batch size


def main() -> None:
    """Train the missing runs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist5k", help="as for train-tokenizer")
    parser.add_argument("--data-root", help="folder of the data set")
    parser.add_argument("--image-size", type=int, help="side of the images, if their sizes differ")
    parser.add_argument("--quantizers", nargs="+", default=["ema"], help="ema, gradient, clustered, ...")
    parser.add_argument("--batch-sizes", nargs="+", type=int, choices=STEPS, default=list(STEPS))
    parser.add_argument("--steps", type=int, choices=(300, 500, 600, 1000, 1500, 3000), help="default: 3000 or 500")
    parser.add_argument("--output", type=Path, default=Path("runs/liveness/mnist5k"), help="folder of the runs")
    parser.add_argument("--toy", action="store_true", help="20 steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    options = {"hidden_channels": 16} if flags.toy else {}
    rows = []
    for quantizer in flags.quantizers:
        for batch_size in flags.batch_sizes:
            folder = flags.output / f"{quantizer}-{batch_size}"
            train_tokenizer(
                TrainTokenizer(
                    output=str(folder), dataset=flags.dataset, data_root=flags.data_root,
                    image_size=(flags.image_size,) if flags.image_size else (),
                    quantizer=quantizer, batch_size=batch_size, options=options,
                    steps=20 if flags.toy else flags.steps or STEPS[batch_size],
                )
            )  # fmt: skip
            history = read_json(folder / "config.json")["provenance"]["history"]
            early = next(report for report in history if report["step"] == 300 or flags.toy)
            rows.append((quantizer, batch_size, early, history[-1]))
    print(f"{'codebook':18} {'batch':>5}   perplexity, unused at 300      at the end")
    for quantizer, batch_size, *reports in rows:
        told = "".join(
            f"{report['perplexity']:8.0f} {report['unused_entries']:4} ({report['step']:4})    " for report in reports
        )
        print(f"{quantizer:18} {batch_size:5}   {told}")


if __name__ == "__main__":
    main()
