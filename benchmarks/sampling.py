"""Cached sampling against the least it can cost: one parallel forward pass of the same prior over the same grids.

python -m benchmarks.sampling

float32; K 512, 64 channels, 15 layers, kernel 7 then 3, 10 classes. Every contender runs in a process of its own, all
of them in turn; times are medians, memory is the peak beyond what the process held after its imports. The forward pass
is that of the faster memory format. Naive sampling is timed at the last 4 sites of its grids, all others known, and
multiplied. Then: what a site costs in small and large grids, what guidance costs, and how many samples differ between
the cached and the plain sampler, or between batch sizes, because of float32's rounding.
"""

import argparse
from collections.abc import Callable

import torch

from codegrid.stage2_prior import GatedPixelCNN, sample_cached, sample_plain

from .interleaved import Contender, measure

CASES = {"8×8, 64": (8, 8, 64), "32×32, 16": (32, 32, 16), "32×32, 64": (32, 32, 64)}
NAIVE_SITES = 4
Step = Callable[[], object]


def build_prior() -> GatedPixelCNN:
    """The same weights in every process; as decided as those of a trained prior."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(512, 64, 15, num_classes=10, label_dropout=0.1)
    with torch.no_grad():
        prior.head[3].weight *= 20
    return prior.eval()


def labels_of(batch: int) -> torch.Tensor:
    """All classes in turn."""
    return torch.arange(batch) % 10


def forward_pass(layout: torch.memory_format, height: int, width: int, batch: int) -> Step:
    """All sites at once."""
    prior = build_prior().to(memory_format=layout)
    codes, labels = torch.randint(0, 512, (batch, height, width)), labels_of(batch)

    def step() -> None:
        with torch.inference_mode():
            prior(codes, labels)

    return step


def cached_pass(height: int, width: int, batch: int, **controls: float) -> Step:
    """New grids, as the scripts draw them."""
    prior, labels = build_prior(), labels_of(batch)
    return lambda: sample_cached(prior, batch, height, width, labels, **controls)


def naive_sites(height: int, width: int, batch: int) -> Step:
    """The last sites of new grids, a forward pass each."""
    prior, labels = build_prior(), labels_of(batch)
    known = torch.randint(0, 512, (batch, height * width - NAIVE_SITES))
    return lambda: sample_plain(prior, batch, height, width, labels, known=known)


def compare_with_forward(rounds: int) -> None:
    """Forward, cached and naive, case by case."""
    print(f"{'grid, batch':12} {'forward ms':>11} {'cached ms':>10} {'passes':>7} {'naive, passes':>14}"
          f" {'MB: forward':>12} {'cached':>7} {'naive':>6}")  # fmt: skip
    for name, case in CASES.items():
        timings = measure(
            {
                "channels_last": Contender(forward_pass, torch.channels_last, *case),
                "contiguous": Contender(forward_pass, torch.contiguous_format, *case),
                "cached": Contender(cached_pass, *case),
                "naive": Contender(naive_sites, *case),
            },
            rounds,
            steps=1,
        )
        cached, naive = timings["cached"], timings["naive"]
        forward = min(timings["channels_last"], timings["contiguous"])
        height, width, _ = case
        passes = naive.seconds * height * width / NAIVE_SITES / forward.seconds
        ratio = cached.seconds / forward.seconds
        print(f"{name:12} {1e3 * forward.seconds:11.1f} {1e3 * cached.seconds:10.1f} {ratio:7.2f} {passes:14,.0f}"
              f" {forward.megabytes:12.0f} {cached.megabytes:7.0f} {naive.megabytes:6.0f}",
              flush=True)  # fmt: skip


def compare_sites(rounds: int) -> None:
    """What a site costs, whatever the grid, and with guidance."""
    grids = {"16×16": (16, 16, 16), "64×64": (64, 64, 16)}
    timings = measure({name: Contender(cached_pass, *case) for name, case in grids.items()}, rounds, steps=1)
    sites = {name: height * width * batch for name, (height, width, batch) in grids.items()}
    costs = {name: 1e6 * timings[name].seconds / sites[name] for name in grids}
    print("\na site, batch 16: " + ", ".join(f"{cost:.1f} µs in {name} ({timings[name].megabytes:.0f} MB)"
          for name, cost in costs.items()) + f": {costs['64×64'] / costs['16×16']:.2f} times")  # fmt: skip
    guided = Contender(guided_pass, 8, 8, 64)
    timings = measure({"without": Contender(cached_pass, 8, 8, 64), "guided": guided}, rounds, steps=1)
    print(f"guidance, 8×8, 64: {timings['guided'].seconds / timings['without'].seconds:.2f} times as long as without")


def guided_pass(height: int, width: int, batch: int) -> Step:
    """With classifier-free guidance: every site is asked for twice."""
    return cached_pass(height, width, batch, guidance_scale=2.0)


def count_differences(count: int = 256) -> None:
    """Samples of 8×8 that rounding changes."""
    prior, labels = build_prior(), labels_of(count)
    cached = sample_cached(prior, count, 8, 8, labels)
    plain = sample_plain(prior, count, 8, 8, labels)
    pieces = [
        sample_cached(prior, 16, 8, 8, labels[first : first + 16], first_index=first) for first in range(0, count, 16)
    ]
    double = sample_cached(prior.double(), count, 8, 8, labels)
    for name, other in (("plain sampling", plain), ("batches of 16", torch.cat(pieces)), ("float64", double)):
        differ = int((other != cached).flatten(1).any(1).sum())
        print(f"samples that differ from {name}: {differ} of {count}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contender")
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    compare_with_forward(rounds)
    compare_sites(rounds)
    count_differences()


if __name__ == "__main__":
    main()
