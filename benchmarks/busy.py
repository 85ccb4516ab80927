"""Training steps beside other programs: with all threads, and with the number that a run chooses at its start.

python -m benchmarks.busy

Half of the cores are kept busy by endless processes, and left alone, in turn. "kept" is the speed beside them, as a
share of the speed of all threads without them; half of the machine would give one half. Medians.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from codegrid.pipelines.running.cores import choose_threads
from codegrid.pipelines.running.device import environment

from .contenders import Step, prior_step, tokenizer_step
from .interleaved import Contender

STAGES = {"tokenizer": tokenizer_step, "prior": prior_step}


@contextmanager
def others(count: int) -> Iterator[None]:
    """Run this many processes that compute endlessly."""
    processes = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def build(stage: str, batch: int, threads: int) -> Step:
    """Return a training step in float32, with this many threads."""
    torch.manual_seed(0)
    return STAGES[stage]("fp32", batch, threads=threads)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with and without other programs")
    parser.add_argument("--toy", action="store_true", help="one step each, to check that it runs")
    arguments = parser.parse_args()
    rounds, steps, batch = (1, 1, 4) if arguments.toy else (arguments.rounds, 10, 32)
    usual = torch.get_num_threads()
    taken = max(1, usual // 2)
    with others(taken):
        chosen, why = choose_threads(usual)
    print(f"{chosen} of {usual} threads chosen: {why or 'all'}")
    print(f"{'':40} {'alone, ms':>10} {'beside others, ms':>18} {'kept':>6}")
    for stage in STAGES:
        cases = {"all threads": (usual, {}), "all, OMP_WAIT_POLICY=passive": (usual, {"OMP_WAIT_POLICY": "passive"})}
        cases["as chosen"] = (chosen, {})
        contenders = {}
        for name, (threads, variables) in cases.items():
            with environment(**variables):
                contenders[name] = Contender(build, stage, batch, threads)
        for contender in contenders.values():
            contender.run(2)
        seconds: dict[tuple[str, int], list[float]] = {(name, count): [] for name in cases for count in (0, taken)}
        for _ in range(rounds):
            for count in (0, taken):
                with others(count):
                    for name, contender in contenders.items():
                        seconds[name, count] += contender.run(steps)
        alone = median(seconds["all threads", 0])
        for name, contender in contenders.items():
            contender.stop()
            quiet, busy = median(seconds[name, 0]), median(seconds[name, taken])
            print(f"{f'{stage}, {name}':40} {1e3 * quiet:10.0f} {1e3 * busy:18.0f} {alone / busy:6.0%}")


if __name__ == "__main__":
    main()
