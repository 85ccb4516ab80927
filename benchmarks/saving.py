"""What saving the training state costs, at the default interval.

python -m benchmarks.saving

The networks of CIFAR-10 with default settings: the tokenizer, and the prior with its two averages. A state is flushed
to the disk of --folder. Medians; the share is that of the seconds between two states.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from codegrid.pipelines.training.averaging import averaged
from codegrid.pipelines.training.checkpoints import SECONDS, States, Trained
from codegrid.pipelines.training.divergence import limit_gradient
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage2_prior import GatedPixelCNN


def build() -> dict[str, dict[str, torch.nn.Module]]:
    """What the two scripts save, by stage and name."""
    prior = GatedPixelCNN(num_classes=10, label_dropout=0.1)
    best = GatedPixelCNN(num_classes=10, label_dropout=0.1)
    return {
        "tokenizer": {"model": VQVAE(in_channels=3, image_size=(32, 32), data_variance=0.25)},
        "prior": {"model": prior, "average": averaged(prior, 0.999), "best": best},
    }


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def main() -> None:
    """Print a line for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to save; by default a temporary folder")
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    print(f"{'':10} {'MB':>6} {'ms a state':>11} {'share':>7} {'ms to look at the gradient':>27}")
    for stage, modules in build().items():
        model = modules["model"]
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        optimizer.step()
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            states = States(Path(folder), "benchmark", Trained(modules, optimizer), None)
            steps = iter(range(10**6))
            seconds = seconds_of(lambda states=states, steps=steps: states.save(next(steps), []), arguments.repeats)
            megabytes = max(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / 1e6
        looking = seconds_of(lambda model=model: limit_gradient(model, float("inf")).item(), arguments.repeats)
        share = seconds / (SECONDS + seconds)
        print(f"{stage:10} {megabytes:6.1f} {1e3 * seconds:11.1f} {share:7.2%} {1e3 * looking:27.2f}")


if __name__ == "__main__":
    main()
