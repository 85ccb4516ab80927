"""Cached sampling compared with its ideal cost: one parallel forward pass of the same prior over the same grids.

python -m benchmarks.sampling
python -m benchmarks.sampling --model transformer --channels 128

float32; K 512, 64 channels, 10 classes, the rest as by default: a gated PixelCNN of 15 layers, kernel 7 then 3. Every
contender runs in its own process, all of them in turn; times are medians, memory is the peak beyond what the process
held after its imports. The forward pass uses the faster memory format; `torch` and, if the prior has it, `native` are
the backends that compute nothing twice. Naive sampling is timed at the last 4 sites of its grids, with all others
known, and multiplied; of a prior that draws many sites at once it is a whole sample. Such a prior has no cache if it
draws them in any order: `torch` is then its steps, each of them a forward pass. A next-scale prior draws grids of 1×1,
2×2, 4×4 and so on to the size that is named. Then: top-k and top-p; the cost of a site in small and large grids, with
guidance and with two codes; and how many samples differ between the cached and the plain sampler, or between batch
sizes, because of float32's rounding.

`--toy` runs every line at a tiny size in one process, in seconds: its figures mean nothing.
"""

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from codegrid.codes import Condition, Grid, Known
from codegrid.pipelines.running.device import place
from codegrid.protocols import Prior
from codegrid.registry import TABLES
from codegrid.scales import shapes_of
from codegrid.stage2_prior import sample

from .interleaved import Contender, Timing, measure

NAIVE_SITES = 4
SPREAD = 0.02  # of weights that are 0 in a new prior
Step = Callable[[], object]


class Case(NamedTuple):
    """The sizes of grids, of the prior, and of the batch."""

    height: int
    width: int
    batch: int
    num_embeddings: int = 512
    channels: int = 64
    codes_a_site: int = 1
    model: str = "pixelcnn"

    @property
    def layout(self) -> tuple[Grid, ...]:
        """One grid for each code of a site; of a prior over scales, one for each of them and code of a site."""
        shapes, sides = [(self.height, self.width)], [1]
        if self.model == "next-scale":
            while sides[-1] < max(shapes[0]):
                sides.append(min(2 * sides[-1], max(shapes[0])))
            shapes = shapes_of(shapes[0], sides)
        return tuple(Grid(shape, self.num_embeddings) for shape in shapes for _ in range(self.codes_a_site))

    @property
    def naive_draws(self) -> float:
        """How often the sites that are drawn naively make up all sites."""
        in_raster_order = TABLES["prior"][self.model].keeps == "first"
        return self.height * self.width / NAIVE_SITES if in_raster_order else 1

    @property
    def cached(self) -> tuple[str, ...]:
        """The backends of the prior that compute nothing twice."""
        return ("torch", "native") if hasattr(TABLES["prior"][self.model], "why_not_native") else ("torch",)

    def __str__(self) -> str:
        return f"{self.height}×{self.width}, {self.batch}"


class Plan(NamedTuple):
    """The cases of a run, and the number of its rounds."""

    compared: tuple[Case, ...]
    small: Case
    large: Case
    guided: Case
    differences: Case
    rounds: int
    toy: bool = False


def full_plan(rounds: int, model: str, channels: int) -> Plan:
    """Return the plan of the tables in benchmarks/README.md."""
    first = Case(8, 8, 64, channels=channels, model=model)
    sized = [first._replace(height=side, width=side, batch=batch)
             for side, batch in ((16, 64), (32, 16), (32, 64), (64, 16), (16, 16))]  # fmt: skip
    return Plan((first, *sized[:4]), sized[4], sized[3], first, first._replace(batch=256), rounds)


def toy_plan(model: str) -> Plan:
    """Return a plan that takes seconds."""
    case = Case(4, 5, 4, 16, 8, model=model)
    return Plan((case,), case, case._replace(height=8), case, case, rounds=1, toy=True)


def build_prior(case: Case) -> Prior:
    """Return a prior with the same weights in every process, and logits as decisive as a trained prior's."""
    torch.manual_seed(0)
    prior = TABLES["prior"][case.model](case.layout, num_classes=10, channels=case.channels)
    with torch.no_grad():
        for head in prior.network.heads:
            if not head[-1].weight.any():
                head[-1].weight.normal_(0, SPREAD)
            head[-1].weight *= 20
    return prior.eval()


def labels_of(batch: int) -> torch.Tensor:
    """Return all classes in turn."""
    return torch.arange(batch) % 10


def random_codes(case: Case) -> tuple[torch.Tensor, ...]:
    """Return random codes (b, h, w) of each grid."""
    return tuple(torch.randint(0, grid.num_embeddings, (case.batch, *grid.shape)) for grid in case.layout)


def forward_pass(as_trained: bool, case: Case) -> Step:
    """Return a step that computes all sites at once, with kernels in the memory format of training or the plain one."""
    prior = build_prior(case)
    if as_trained:
        place(prior, prior.device)
    codes, given = random_codes(case), Condition(labels_of(case.batch))
    run = prior.logits if hasattr(prior, "logits") else prior.hidden_logits

    def step() -> None:
        with torch.inference_mode():
            run(codes, given)

    return step


def cached_pass(case: Case, backend: str, controls: dict[str, float] | None = None) -> Step:
    """Return a step that draws new grids, as the commands do."""
    prior, labels = build_prior(case), labels_of(case.batch)
    return lambda: sample(prior, case.batch, labels, batch_size=case.batch, backend=backend, **(controls or {}))


def naive_sites(case: Case) -> Step:
    """Return a step that draws the last sites of grids with a pass for each, or all if many are drawn at once."""
    if case.naive_draws == 1:
        return cached_pass(case, "plain")
    prior, labels = build_prior(case), labels_of(case.batch)
    sites = case.height * case.width
    mask = (torch.arange(sites) < sites - NAIVE_SITES).view(case.height, case.width)
    known = Known(random_codes(case), (mask,) * case.codes_a_site)
    return lambda: sample(prior, case.batch, labels, batch_size=case.batch, known=known, backend="plain")


def time_all(contenders: dict[str, tuple], plan: Plan) -> dict[str, Timing]:
    """Time steps in turn, each built by its function from its arguments: in their own processes, except for a toy."""
    if not plan.toy:
        started = {name: Contender(*contender) for name, contender in contenders.items()}
        return measure(started, plan.rounds, steps=1)
    timings = {}
    for name, (build, *arguments) in contenders.items():
        step, start = build(*arguments), time.perf_counter()
        step()
        timings[name] = Timing(time.perf_counter() - start, 0.0)
    return timings


def forwards(case: Case) -> dict[str, tuple]:
    """Return the forward pass in both memory formats."""
    return {name: (forward_pass, name == "channels_last", case) for name in ("channels_last", "contiguous")}


def compare_with_forward(plan: Plan) -> None:
    """Compare forward pass, cached and naive sampling, case by case."""
    cached = plan.guided.cached
    print(f"{'grid, batch':12} {'forward ms':>11}", *(f"{name + ' ms':>10} {'passes':>7}" for name in cached),
          f"{'naive, passes':>14} {'MB: forward':>12}", *(f"{name:>7}" for name in (*cached, "naive")))  # fmt: skip
    for case in plan.compared:
        contenders = {**forwards(case), **{name: (cached_pass, case, name) for name in cached}}
        timings = time_all({**contenders, "naive": (naive_sites, case)}, plan)
        drawn, naive = [timings[name] for name in cached], timings["naive"]
        forward = min(timings["channels_last"], timings["contiguous"])
        passes = naive.seconds * case.naive_draws / forward.seconds
        print(f"{case!s:12} {1e3 * forward.seconds:11.1f}",
              *(f"{1e3 * each.seconds:10.1f} {each.seconds / forward.seconds:7.2f}" for each in drawn),
              f"{passes:14,.0f} {forward.megabytes:12.0f}", *(f"{each.megabytes:7.0f}" for each in (*drawn, naive)),
              flush=True)  # fmt: skip


def compare_controls(plan: Plan) -> None:
    """Compare sampling with top-k and top-p."""
    controls = {"top-k 100": {"top_k": 100}, "top-p 0.9": {"top_p": 0.9}, "both": {"top_k": 100, "top_p": 0.9}}
    contenders = {
        f"{name}, {backend}": (cached_pass, plan.guided, backend, controls[name])
        for name in controls for backend in plan.guided.cached
    }  # fmt: skip
    timings = time_all({**forwards(plan.guided), **contenders}, plan)
    forward = min(timings["channels_last"], timings["contiguous"])
    print()
    for name in contenders:
        print(f"{name}, {plan.guided}: {timings[name].seconds / forward.seconds:.2f} passes")


def compare_sites(plan: Plan) -> None:
    """Compare the cost of a site in small and large grids, with guidance, and with two codes per site."""
    cases = {"small": plan.small, "large": plan.large}
    cached = plan.small.cached
    contenders = {
        f"{name}, {backend}": (cached_pass, case, backend) for name, case in cases.items() for backend in cached
    }
    timings = time_all(contenders, plan)
    print()
    for backend in cached:
        small, large = (
            1e6 * timings[f"{name}, {backend}"].seconds / (case.height * case.width * case.batch)
            for name, case in cases.items()
        )
        print(f"a site, {backend}: {small:.1f} µs in {plan.small}, {large:.1f} µs in {plan.large}:"
              f" {large / small:.2f} times")  # fmt: skip
    several = plan.guided._replace(codes_a_site=2)
    for backend in cached:
        timings = time_all(
            {
                "plainly": (cached_pass, plan.guided, backend),
                "guided": (cached_pass, plan.guided, backend, {"guidance_scale": 2.0}),
                "two codes": (cached_pass, several, backend),
            },
            plan,
        )
        for name in ("guided", "two codes"):
            ratio = timings[name].seconds / timings["plainly"].seconds
            print(f"{name}, {backend}, {plan.guided}: {ratio:.2f} times as long")


def count_differences(case: Case) -> None:
    """Count the samples that rounding changes."""
    prior, labels, count = build_prior(case), labels_of(case.batch), case.batch
    whole, pieces = (
        {name: sample(prior, count, labels, batch_size=size, backend=name) for name in case.cached}
        for size in (count, max(1, count // 16))
    )
    plain = sample(prior, count, labels, batch_size=count, backend="plain")
    double = sample(prior.double(), count, labels, batch_size=count, backend="torch")
    for backend in case.cached:
        for name, other in (("plain sampling", plain), ("smaller batches", pieces[backend]), ("float64", double)):
            differs = [(one != two).flatten(1) for one, two in zip(other, whole[backend], strict=True)]
            differ = int(torch.cat(differs, dim=1).any(1).sum())
            print(f"samples of {backend} that differ from {name}: {differ} of {count}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pixelcnn", choices=list(TABLES["prior"]), help="kind of prior")
    parser.add_argument("--channels", type=int, default=64, help="channels of the prior")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every contender")
    parser.add_argument("--toy", action="store_true", help="a smoke test in seconds")
    flags = parser.parse_args()
    plan = toy_plan(flags.model) if flags.toy else full_plan(flags.rounds, flags.model, flags.channels)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    compare_with_forward(plan)
    compare_controls(plan)
    compare_sites(plan)
    count_differences(plan.differences)


if __name__ == "__main__":
    main()
