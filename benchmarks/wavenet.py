"""A WaveNet that draws waves sample by sample, compared with one parallel forward pass over the same samples.

python -m benchmarks.wavenet

float32; 256 classes, features of 64 channels at each sample, 2 speakers; the sizes are r residual and s skip channels,
and cycles × layers. Contenders take turns in their own processes; times are medians. "Passes" is how many forward
passes the drawing of all samples takes; one would compute nothing twice. Seconds of sound are those of 16,000 samples.

`--toy` runs every line at a tiny size in one process, in seconds: its figures mean nothing.
"""

import argparse
from typing import NamedTuple

import torch

from codegrid.codes import Condition, Grid
from codegrid.noise import Noise
from codegrid.sampling_config import SamplingConfig
from codegrid.stage2_prior.wavenet.network import WaveNet

from .interleaved import Contender, Here, measure
from .sampling import Step

RATE, CLASSES, FEATURES = 16_000, 256, 64
BATCHES = (1, 16, 64)


class Size(NamedTuple):
    """The size of a WaveNet, and how many samples are drawn."""

    channels: int
    skip_channels: int
    num_cycles: int
    layers_per_cycle: int
    samples: int

    def __str__(self) -> str:
        return f"r {self.channels}, s {self.skip_channels}, {self.num_cycles}×{self.layers_per_cycle}"


SIZES = (Size(32, 64, 2, 8, 1024), Size(64, 128, 2, 9, 1024))
TOY = (Size(4, 4, 1, 2, 12),)


def build(size: Size, batch: int) -> tuple[WaveNet, Condition]:
    """Return a WaveNet, and what a batch of waves is conditioned on."""
    torch.manual_seed(0)
    *shape, samples = size
    options = dict(zip(Size._fields, shape, strict=False))
    prior = WaveNet((Grid((samples,), CLASSES),), num_classes=2, given_features=FEATURES, **options).eval()
    return prior, Condition(torch.arange(batch) % 2, features=(torch.randn(batch, FEATURES, samples),))


def forward_pass(size: Size, batch: int) -> Step:
    """Return a step that computes the logits of all samples at once."""
    prior, given = build(size, batch)
    codes = (torch.randint(0, CLASSES, (batch, size.samples)),)

    def step() -> None:
        with torch.inference_mode():
            prior.logits(codes, given)

    return step


def drawing(size: Size, batch: int) -> Step:
    """Return a step that draws all samples, one after the other, with queues."""
    prior, given = build(size, batch)
    return lambda: list(prior.sample(given, Noise(0, 0, batch), SamplingConfig()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--toy", action="store_true", help="a quick check that it runs")
    flags = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'size, batch':24} {'forward ms':>11} {'drawn ms':>9} {'passes':>7} {'ms a sample':>12} {'sound s/s':>10}")
    start = Here if flags.toy else Contender
    for size in TOY if flags.toy else SIZES:
        for batch in BATCHES:
            contenders = {"forward": (forward_pass, size, batch), "drawn": (drawing, size, batch)}
            timings = measure({name: start(*each) for name, each in contenders.items()}, flags.rounds, steps=1)
            forward, drawn = (timings[name].seconds for name in contenders)
            sound = batch * size.samples / RATE / drawn
            figures = f"{drawn / forward:7.1f} {1e3 * drawn / size.samples:12.3f} {sound:10.3f}"
            print(f"{f'{size}, {batch}':24} {1e3 * forward:11.1f} {1e3 * drawn:9.0f} {figures}", flush=True)


if __name__ == "__main__":
    main()
