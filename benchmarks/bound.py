"""Bits per dimension of CIFAR-10 by a VQ-VAE of ten codes a site, beside a Gaussian VAE and VIMCO on the same networks.

python -m benchmarks.bound --data-root CIFAR --output runs/bound

CIFAR holds train/CLASS/* and test/CLASS/*. Prints a bound on the bits of all test images, and where they are: the rate,
for codes or latents, and the distortion, for the image given them. What is trained already is not trained again, and
what was stopped goes on; `--rows vqvae vae` takes some of the models.

The decoder of each is trained as the same likelihood of 8-bit images, but for that of `vqvae-mse`, which is fitted
afterwards. A VQ-VAE's codes are paid in three ways: all alike; by how often each grid has each code in the training
part; by a gated PixelCNN over all grids. VIMCO decodes `--samples` times for each image: it is for a GPU.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from codegrid import CodeDataset
from codegrid.data.loading import in_order
from codegrid.data.sources import load_images
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.prior import train_prior
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.stage1_vqvae.usage import LayoutUsage

from .latent_models import measure, train_latent_model

LIKELIHOOD = "coupled-logistic"
VQVAES = {
    "vqvae": LIKELIHOOD, "vqvae-logistic": "logistic", "vqvae-mse": "mse", "vqvae-logit-laplace": "logit-laplace"
}  # fmt: skip
CONTENDERS = {"vae": "gaussian-vae", "vimco": "categorical-vae"}
DEFAULT = ("vqvae", "vqvae-mse", "vae")


class Row(NamedTuple):
    """A bound in bits per dimension, and its two parts."""

    name: str
    rate: float
    distortion: float

    def __str__(self) -> str:
        return f"{self.name:50} {self.rate:7.3f} {self.distortion:10.3f} {self.rate + self.distortion:9.3f}"


def measure_vqvae(settings: TrainTokenizer, prior: TrainPrior, folder: Path) -> Iterator[Row]:
    """Train both stages; yield a row for each way to pay for the codes."""
    train_tokenizer(replace(settings, output=str(folder / "tokenizer")))
    train_prior(replace(prior, run=str(folder), codes="", output=str(folder / "prior")))
    metrics = evaluate(Evaluate(
        run=str(folder), output=str(folder / "figures"), dataset=settings.dataset, data_root=settings.data_root
    ))  # fmt: skip
    of_codes, of_image = metrics["bits_per_image"], metrics["decoder_bits_per_image"]
    dimensions = (of_codes + of_image) / metrics["bound_bits_per_dim"]
    for way, bits in {**code_costs(folder), "gated PixelCNN": of_codes}.items():
        yield Row(f"{folder.name}, {way}", bits / dimensions, of_image / dimensions)
    of_grids = [grid["bits_per_code"] for grid in metrics["grids"]]
    print(f"{folder.name}: PSNR {metrics['psnr']:.2f} dB; bits of a code in each grid, by the PixelCNN:",
          *(f"{bits:.2f}" for bits in of_grids))  # fmt: skip


def code_costs(folder: Path) -> dict[str, float]:
    """Bits of a test image's codes, paid alike, or by their frequencies in the training part."""
    train, test = (CodeDataset(folder / name) for name in ("codes", "codes_test"))
    counts = []
    for codes in (train, test):
        usage = LayoutUsage(codes.layout)
        for batch in in_order(len(codes), 1000):
            usage.add(codes.batch(batch).codes)
        counts.append(usage.counts)
    by_frequency = 0.0
    for learnt, seen in zip(*counts, strict=True):
        shares = (learnt.double() + 1) / (learnt + 1).sum()  # none is impossible
        by_frequency -= float((seen * shares.log2()).sum())
    alike = sum(grid.num_sites * math.log2(grid.num_embeddings) for grid in test.layout)
    return {"all codes alike": alike, "by frequency": by_frequency / len(test)}


def measure_contender(settings: TrainTokenizer, folder: Path) -> Row:
    """Train a contender, and measure it on the test part."""
    images, validation = (load_images("imagefolder", settings.data_root, split) for split in ("train", "test"))
    model = train_latent_model(replace(settings, output=str(folder)), images, validation)
    return Row(folder.name, *measure(model, validation, range(len(validation))))


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, default=Path("runs/bound"), help="folder of the runs")
    parser.add_argument("--rows", nargs="+", choices=[*VQVAES, *CONTENDERS], default=DEFAULT, help="models to compare")
    parser.add_argument("--quantizer", default="product", help="of a VQ-VAE")
    parser.add_argument("--embedding-dim", type=int, default=80, help="numbers of a VQ-VAE's latent")
    parser.add_argument("--num-quantizers", type=int, default=10, help="codes a site of a VQ-VAE, and of VIMCO")
    parser.add_argument("--latents", type=int, default=64, help="latents a site of the VAE")
    parser.add_argument("--samples", type=int, default=50, help="samples of VIMCO's bound")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of each tokenizer, VAE and VIMCO")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")
    parser.add_argument("--prior-steps", type=int, default=2000, help="steps of a prior, of 64 images each")
    parser.add_argument("--toy", action="store_true", help="20 steps of narrow networks, to see that it runs")
    flags = parser.parse_args()
    options: dict[str, Any] = {"reconstruction": LIKELIHOOD}
    of_prior: dict[str, Any] = {"dropout": 0.0}  # only likelihood counts here
    if flags.toy:
        options["hidden_channels"], of_prior = 16, {"channels": 8, "num_layers": 2}
        flags.steps = flags.prior_steps = 20
        flags.num_quantizers, flags.samples, flags.rows = 2, 3, [*VQVAES, *CONTENDERS]
    common = TrainTokenizer(
        output="", dataset="imagefolder", data_root=flags.data_root, steps=flags.steps, batch_size=flags.batch_size,
        options=options,
    )  # fmt: skip
    # without labels, which a VAE does not know either
    prior = TrainPrior(
        codes="none yet", steps=flags.prior_steps, batch_size=64, unconditional=True, options=of_prior
    )  # fmt: skip
    contenders = {
        "vae": {"num_latents": flags.latents},
        "vimco": {"codes_per_site": flags.num_quantizers, "num_samples": flags.samples},
    }
    rows: list[Row] = []
    for name in flags.rows:
        if name in VQVAES:
            own = {
                "num_quantizers": flags.num_quantizers, "embedding_dim": flags.embedding_dim,
                "reconstruction": VQVAES[name],
            }  # fmt: skip
            settings = replace(common, quantizer=flags.quantizer, options={**options, **own})
            rows += measure_vqvae(settings, prior, flags.output / name)
        else:
            settings = replace(common, model=CONTENDERS[name], options={**options, **contenders[name]})
            rows.append(measure_contender(settings, flags.output / name))
    print(f"\n{'bits per dimension of the test images':50} {'rate':>7} {'distortion':>10} {'bound':>9}")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
