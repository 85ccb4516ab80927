"""The cost of saving the training state, at the default interval.

python -m benchmarks.saving

The networks of CIFAR-10 with default settings: the tokenizer, and the prior with its two averages. States are flushed
to the disk of --folder. Medians; the share is of the seconds between two states.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from codegrid.codes import Grid
from codegrid.pipelines.training.checkpoints import SECONDS, Checkpoints, Trainable
from codegrid.pipelines.training.objective import Player
from codegrid.pipelines.training.trainer import fused_adam, limit_gradient
from codegrid.registry import TABLES


def build() -> dict[str, Player]:
    """Return the players whose states the two commands save, by stage."""
    prior = TABLES["prior"]["pixelcnn"](layout=(Grid((8, 8), 512),), num_classes=10)
    players = {
        "tokenizer": Player(TABLES["tokenizer"]["vqvae"](data_variance=0.25), fused_adam, 1e-3),
        "prior": Player(prior, fused_adam, 1e-3, average_decay=0.999),
    }
    players["prior"].remember()  # the best average is saved too
    return players


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call."""
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
    parser.add_argument("--repeats", type=int, default=25, help="states of each stage")
    parser.add_argument("--toy", action="store_true", help="one state of each stage, to check that it runs")
    arguments = parser.parse_args()
    repeats = 1 if arguments.toy else arguments.repeats
    print(f"{'':10} {'MB':>6} {'ms a state':>11} {'share':>7} {'ms to check the gradient':>27}")
    for stage, player in build().items():
        for parameter in player.module.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = player.make_optimizer(player.module.parameters())
        optimizer.step()
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            states = Checkpoints(Path(folder), "benchmark", Trainable(player.modules(), {stage: optimizer}, {}), None)
            steps = iter(range(10**6))
            seconds = seconds_of(lambda states=states, steps=steps: states.save(next(steps), []), repeats)
            megabytes = max(path.stat().st_size for path in Path(folder).rglob("*.safetensors")) / 1e6
        module = player.module
        looking = seconds_of(lambda module=module: limit_gradient(module, math.inf).item(), repeats)
        share = seconds / (SECONDS + seconds)
        print(f"{stage:10} {megabytes:6.1f} {1e3 * seconds:11.1f} {share:7.2%} {1e3 * looking:27.2f}")


if __name__ == "__main__":
    main()
