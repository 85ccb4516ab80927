"""On a GPU: cached sampling with and without CUDA graphs, and training steps with their model FLOP utilisation.

python -m benchmarks.gpu

Sampling: float32 without TF32; K 512, 64 channels, 15 layers, kernel 7 then 3, 10 classes; the forward pass is that of
the faster memory format. Training: the steps of `benchmarks.training` with their batch in the CPU's memory; 3×32×32,
256 images, and 64 grids of 8×8 and of 32×32. All contenders of a table take turns in one process; times are medians.
Model FLOPs are those of a step's matrix products and convolutions; the share is of the card's peak by its data sheet:
dense bf16 for bf16, float32 without tensor cores for float32.

Nothing new starts after `--seconds`; contenders that cannot run are left out, with the reason. `--toy` runs on a CPU at
a tiny size: its figures mean nothing.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from codegrid.codes import Condition
from codegrid.stage2_prior import sample

from .interleaved import Here, Timing, measure
from .sampling import Case, build_prior, labels_of, random_codes

PEAKS = {"H100": (989, 67), "H200": (989, 67), "A100": (312, 19.5), "L40S": (362, 91.6), "L4": (121, 30.3)}  # TFLOP/s
CASES = (Case(8, 8, 64), Case(32, 32, 16), Case(32, 32, 64), Case(32, 32, 1024))
TOY_CASES = (Case(4, 5, 4, 16, 8),)
PRECISIONS = {"fp32": ("fp32", False), "bf16": ("bf16", False), "bf16, compiled": ("bf16", True)}
Step = Callable[[], object]


class Run(NamedTuple):
    """Flags of a run."""

    device: torch.device
    rounds: int
    end: float  # on the monotonic clock
    peaks: tuple[float, float]  # TFLOP/s in bf16 and in float32; 0 if unknown
    toy: bool


def waits(step: Step, device: torch.device) -> Step:
    """Return a step that waits until the device has finished it."""
    if device.type == "cpu":
        return step

    def whole() -> None:
        step()
        torch.cuda.synchronize(device)

    return whole


def build_all(run: Run, contenders: dict[str, Callable[[], Step]]) -> dict[str, Here]:
    """Build steps and run each once; leave out, with a message, those that fail or come too late."""
    built = {}
    for name, build in contenders.items():
        if time.monotonic() > run.end:
            print(f"  {name}: left out, since time is up", flush=True)
            continue
        start = time.monotonic()
        try:
            step = waits(build(), run.device)
            step()
        except Exception as error:
            print(f"  {name}: left out: {type(error).__name__}: {str(error)[:500]}", flush=True)
            continue
        print(f"  {name}: ready in {time.monotonic() - start:.1f} s", flush=True)
        built[name] = Here(lambda step=step: step)
    return built


def sampling_contenders(run: Run, case: Case) -> dict[str, Callable[[], Step]]:
    """Return a forward pass in both memory formats, and sampling with both backends."""
    labels = labels_of(case.batch)

    def forward(layout: torch.memory_format) -> Step:
        prior = build_prior(case).to(run.device, memory_format=layout)
        codes, given = tuple(grid.to(run.device) for grid in random_codes(case)), Condition(labels.to(run.device))
        return torch.inference_mode()(lambda: prior.logits(codes, given))

    def new(backend: str) -> Step:
        prior = build_prior(case).to(run.device)
        return lambda: sample(prior, case.batch, labels, batch_size=case.batch, backend=backend)

    return {
        "forward, channels last": partial(forward, torch.channels_last),
        "forward, contiguous": partial(forward, torch.contiguous_format),
        "torch": partial(new, "torch"),
        "graph": partial(new, "graph"),
    }


def compare_sampling(run: Run, cases: tuple[Case, ...]) -> None:
    """Print the times of a forward pass, of cached sampling, and of cached sampling with CUDA graphs."""
    for case in cases:
        print(f"\nsampling {case}", flush=True)
        timings = measure(build_all(run, sampling_contenders(run, case)), run.rounds, steps=1)
        forward = min((timing.seconds for name, timing in timings.items() if "forward" in name), default=0.0)
        for name, (seconds, _) in timings.items():
            passes = f"{seconds / forward:8.2f} passes" if forward else ""
            print(f"{name:24} {1e3 * seconds:9.2f} ms {case.batch / seconds:11,.0f} samples/s {passes}", flush=True)


def compare_codes(run: Run, cases: tuple[Case, ...]) -> None:
    """Print how many samples differ between the backends, because of rounding."""
    for case in cases:
        prior, labels = build_prior(case).to(run.device), labels_of(case.batch)
        for backend, controls in (("torch", {}), ("torch", {"temperature": 0.8, "top_k": 100, "top_p": 0.9}),
                                  ("torch", {"guidance_scale": 2.0}), ("plain", {})):  # fmt: skip
            if time.monotonic() > run.end:
                return
            both = [
                sample(prior, case.batch, labels, batch_size=case.batch, backend=name, **controls)[0]
                for name in ("auto", backend)
            ]
            differ = int((both[0] != both[1]).flatten(1).any(1).sum())
            print(f"{case}, {controls}: {differ} of {case.batch} samples differ from `{backend}`", flush=True)


def training_tables(run: Run) -> Iterator[tuple[str, int, Callable[..., Step]]]:
    """Yield each table's title, its items per step, and a function from precision, `device` and `compile` to a step."""
    from .contenders import prior_step, tokenizer_step  # late: sampling does not need the training's libraries

    images, grids, layers, sides = (4, 4, 2, (8,)) if run.toy else (256, 64, 15, (8, 32))
    yield "tokenizer, 3×32×32", images, partial(tokenizer_step, batch=images)
    for side in sides:
        yield (
            f"prior, {side}×{side}",
            grids,
            lambda precision, side=side, **flags: prior_step(precision, grids, layers, side, **flags),
        )


def compare_training(run: Run) -> None:
    """Print the times of a step of each model in each precision, with its share of the card's peak."""
    for title, items, build in training_tables(run):
        print(f"\na training step of the {title}, {items}", flush=True)
        contenders = {
            name: partial(build, precision, device=str(run.device), compile=compiled)
            for name, (precision, compiled) in PRECISIONS.items()
            if not (compiled and run.toy)
        }
        built = build_all(run, contenders)
        flops = count_flops(built)
        timings = measure(built, run.rounds, steps=3)
        for name, timing in timings.items():
            print(f"{name:16} {describe_step(run, name, timing, items, flops)}", flush=True)


def count_flops(built: dict[str, Here]) -> float:
    """Return the floating-point operations of an uncompiled step; 0 if there is none."""
    for name in ("fp32", "bf16"):
        if name in built:
            with FlopCounterMode(display=False) as counter:
                built[name].run(1)
            return float(counter.get_total_flops())
    return 0.0


def describe_step(run: Run, name: str, timing: Timing, items: int, flops: float) -> str:
    """Return the figures of a step as text."""
    peak = run.peaks[0 if "bf16" in name else 1]
    rate = flops / timing.seconds / 1e12
    share = f", {rate / peak:.1%} of {peak:g}" if peak else ""
    return f"{1e3 * timing.seconds:8.2f} ms {items / timing.seconds:10,.0f} items/s {rate:7.2f} TFLOP/s{share}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender")
    parser.add_argument("--seconds", type=float, default=120, help="start nothing new after this time")
    parser.add_argument("--peak", type=float, nargs=2, metavar="TFLOPS", help="peaks in bf16 and in float32")
    parser.add_argument("--toy", action="store_true", help="a smoke test on a CPU, in seconds")
    flags = parser.parse_args()
    if not flags.toy and not torch.cuda.is_available():
        parser.error("torch sees no GPU here: check with --toy on a CPU that everything runs")
    torch.backends.cudnn.allow_tf32 = False  # as the commands do
    device = torch.device("cpu" if flags.toy else "cuda")
    name = "cpu" if flags.toy else torch.cuda.get_device_name()
    peaks = flags.peak or next((peak for card, peak in PEAKS.items() if card in name), (0.0, 0.0))
    run = Run(device, 1 if flags.toy else flags.rounds, time.monotonic() + flags.seconds, tuple(peaks), flags.toy)
    print(f"torch {torch.__version__}, {name}", flush=True)
    cases = TOY_CASES if flags.toy else CASES
    compare_sampling(run, cases)
    print()
    compare_codes(run, cases[:2])
    compare_training(run)


if __name__ == "__main__":
    main()
