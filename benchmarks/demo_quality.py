"""How good are the demo's digits? A classifier trained on real MNIST judges 1,000 samples, 100 a class.

python -m benchmarks.demo_quality --run runs/demo --mnist FOLDER      (FOLDER/MNIST/raw; about 3 minutes on 2 cores)
"""

import argparse
import json
from pathlib import Path

from benchmarks.digits import judge, train_classifier
from codegrid.data import CodeDataset
from codegrid.data.images import evenly_spaced, to_uint8
from codegrid.data.sources import load_images
from codegrid.pipelines import TwoStagePipeline
from codegrid.pipelines.evaluation.frechet import frechet_distance


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="runs/demo", help="folder that the demo left")
    parser.add_argument("--mnist", required=True, help="folder that holds MNIST/raw")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    flags = parser.parse_args()

    train, test = (load_images("mnist", flags.mnist, split) for split in ("train", "test"))
    classifier = train_classifier(train)
    named, of_test = judge(classifier, test.images)
    print(f"classifier: {(named == test.labels).float().mean():.4f} of the {len(test)} test digits right")

    pipeline = TwoStagePipeline.from_pretrained(flags.run)
    labels = [i % 10 for i in range(1000)]
    samples = pipeline.sample(1000, labels, temperature=1.0, seed=flags.seed, batch_size=250)
    named, of_samples = judge(classifier, to_uint8(samples.images))
    right = named == samples.labels
    codes = CodeDataset(Path(flags.run) / "codes")
    known = {grid.numpy().tobytes() for grid in codes.__getitems__(range(len(codes))).codes}
    copies = sum(grid.numpy().tobytes() in known for grid in samples.codes)

    real = train.images[evenly_spaced(len(train), 1000)]
    rebuilt = pipeline.reconstruct(real.float() / 127.5 - 1)
    named_rebuilt, of_rebuilt = judge(classifier, to_uint8(rebuilt))
    real_labels = train.labels[evenly_spaced(len(train), 1000)]
    history = json.loads((Path(flags.run) / "prior" / "config.json").read_text())["provenance"]["history"]
    rows = {
        "samples named as the class asked for": f"{right.float().mean():.1%}",
        "  class by class": " ".join(f"{right[samples.labels == c].float().mean():.2f}" for c in range(10)),
        "reconstructed real digits named right": f"{(named_rebuilt == real_labels).float().mean():.1%}",
        "Fréchet distance to the test digits": f"{frechet_distance(of_samples, of_test):.1f}",
        "  of 1,000 reconstructed training digits": f"{frechet_distance(of_rebuilt, of_test):.1f}",
        "  of 1,000 real training digits": f"{frechet_distance(judge(classifier, real)[1], of_test):.1f}",
        "sampled grids that are training grids": f"{copies / len(samples.codes):.1%}",
        "validation bits per code": f"{history[-1]['bits_per_code']:.3f}",
    }
    for name, value in rows.items():
        print(f"{name:42} {value}")


if __name__ == "__main__":
    main()
