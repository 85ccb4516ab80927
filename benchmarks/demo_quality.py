"""The quality of the demo's digits: `evaluate` and `doctor` on 1,000 samples, 100 per class, and real MNIST digits.

python -m benchmarks.demo_quality --run runs/demo --mnist FOLDER      (FOLDER/MNIST/raw; about 4 minutes on 2 cores)

Samples are judged twice: without guidance, and with guidance as the demo draws them.
"""

import argparse
import tempfile

from benchmarks import digits
from codegrid.pipelines.diagnosis.run import doctor
from codegrid.pipelines.doctor import Doctor
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate

GUIDANCE = (1.0, 1.5)
ROWS = {
    "class_agreement": ("samples named as the class asked for", ".1%"),
    "gfid": ("Fréchet distance of the samples to the test digits", ".1f"),
    "reconstruction_agreement": ("reconstructed test digits named correctly", ".1%"),
    "rfid": ("Fréchet distance of the reconstructed test digits", ".1f"),
    "train_fid": ("  of as many real training digits", ".1f"),
    "sample_copies": ("sampled grids that are training grids", ".1%"),
    "bits_per_code": ("bits per code of the test digits", ".3f"),
}
OF_SAMPLES = ("class_agreement", "gfid")  # what guidance changes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/demo", help="folder that the demo left")
    parser.add_argument("--mnist", "--data-root", dest="data_root", help="folder that holds MNIST/raw")
    parser.add_argument("--dataset", default="mnist", help="the real images; others than MNIST only for a trial")
    parser.add_argument("--seed", type=int, default=0, help="seed of the samples")
    parser.add_argument("--toy", action="store_true", help="a trial in seconds; its figures mean nothing")
    flags = parser.parse_args()
    if flags.toy:
        digits.STEPS = 20
    num_samples = 20 if flags.toy else 1000
    by_scale = []
    with tempfile.TemporaryDirectory() as folder:
        for scale in GUIDANCE:
            by_scale.append(evaluate(
                Evaluate(
                    tokenizer=f"{flags.run}/tokenizer", prior=(f"{flags.run}/prior",), output=f"{folder}/{scale}",
                    dataset=flags.dataset, data_root=flags.data_root, features="benchmarks.digits:classifier",
                    num_samples=num_samples, seed=flags.seed, guidance_scale=(scale,),
                )
            ))  # fmt: skip
        answer = doctor(Doctor(run=flags.run, num_samples=num_samples, seed=flags.seed))
    plain, guided = by_scale
    (prior,) = answer["priors"]
    found = {**prior["metrics"], **plain}
    print(f"\n{'':52} {'plain':>8} {'guided':>8}")
    for name, (words, style) in ROWS.items():
        if name in found:
            also = f" {guided[name]:8{style}}" if name in OF_SAMPLES else ""
            print(f"{words:52} {found[name]:8{style}}{also}")
    for words, metrics in (("plain", plain), ("guided", guided)):
        shares = " ".join(f"{share:.2f}" for share in metrics["class_agreement_by_class"])
        print(f"{'samples named correctly, class by class, ' + words:52} {shares}")
    right = plain["measured_on"]["class_agreement"]["accuracy_on_reference"]
    print(f"{'real test digits that the classifier names correctly':52} {right:.1%}")


if __name__ == "__main__":
    main()
