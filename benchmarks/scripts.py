"""Whole training commands: the time before their first step, and their speed compared with the bare step's.

python -m benchmarks.scripts
python -m benchmarks.scripts --data-root CIFAR --against OTHER/.venv/bin/python

Each command runs in its own process, on the demo's digits, and with --data-root also on a folder of pictures.
The bare step is that of the same process on a batch that is ready, after the command has ended. The time of 2,000
steps is computed from these parts: the start, so many steps and saved states, ten validations, and the end.

--against names the Python of another checkout, which takes turns with this one. This file imports nothing but
`codegrid`, so that it measures either.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from statistics import median
from typing import Any

STEPS, VALIDATIONS = 2000, 10  # of the run that is computed
SECONDS_A_STATE = 9.0
# what is timed until the first step: a name in the list, and functions that are called from the module of a command
PARTS = {"data": ("load_parts", "open_codes_to_learn", "hold_out"), "model": ("build_tokenizer", "build_prior")}
COMMANDS = {
    "tokenizer": ("codegrid.pipelines.train_tokenizer", "TrainTokenizer"),
    "prior": ("codegrid.pipelines.train_prior", "TrainPrior"),
}


def measure_command(kind: str, started: float, bare_steps: int, settings: dict[str, Any]) -> dict[str, float]:
    """Train in this process, which began at the clock time `started`, and return the seconds of every part."""
    times: dict[str, list[float]] = {"python": [time.time() - started]}
    timed("torch", times, import_module)("torch")
    body = timed("other imports", times, import_module)(f"codegrid.pipelines.training.{kind}")
    trainer = import_module("codegrid.pipelines.training.trainer").Trainer
    loop = import_module("codegrid.pipelines.training.loop")
    for part, names in PARTS.items():
        for name in names:
            if hasattr(body, name):
                setattr(body, name, timed(part, times, getattr(body, name)))
    loop.Checkpoints.save = timed("state", times, loop.Checkpoints.save)
    loop.Watch._validate = timed("validation", times, loop.Watch._validate)
    begun, ended, seen = [], [], []

    def find_gradients(self: Any, batch: Any, step: int) -> Any:
        begun.append(time.time())
        seen[:] = self, batch
        return find(self, batch, step)

    def update(self: Any, step: int) -> None:
        move(self, step)
        ended.append(time.time())

    find, move = trainer.find_gradients, trainer.update
    trainer.find_gradients, trainer.update = find_gradients, update
    module, name = COMMANDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        command = getattr(import_module(module), name)(output=f"{folder}/model", **settings)
        getattr(body, f"train_{kind}")(command)
    whole = time.time()
    parts = {name: sum(values) for name, values in times.items() if name not in ("state", "validation")}
    parts["the rest"] = begun[0] - started - sum(parts.values())
    player, batch = seen
    bare = []
    for step in range(bare_steps):
        start = time.perf_counter()
        find(player, batch, step)
        player.limit_gradients(step)
        move(player, step)
        bare.append(time.perf_counter() - start)
    periods = [after - before for before, after in pairwise(begun)]
    return {
        **parts,
        "first step": begun[0] - started,
        "bare step": median(bare),
        "step": median(periods),
        "validation": median(times["validation"][:-1] or times["validation"]),
        "state": median(times["state"]),
        "end": whole - ended[-1] - times["validation"][-1] - times["state"][-1],
        "whole": whole - started,
    }


def timed(name: str, times: dict[str, list[float]], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that records its times under a name."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        times.setdefault(name, []).append(time.perf_counter() - start)
        return result

    return call


def run_child(python: str, kind: str, bare_steps: int, settings: dict[str, Any]) -> dict[str, float]:
    """Measure a command in its own process."""
    job = json.dumps([kind, time.time(), bare_steps, settings])
    done = subprocess.run([python, __file__, "--child", job], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_tables(found: dict[str, list[dict[str, float]]], taken: int) -> None:
    """Print the seconds up to the first step, and the shares of a long run and of the measured run of `taken` steps."""
    rows = {
        name: {part: median(each[part] for each in runs) for part in runs[0] if part in runs[-1]}
        for name, runs in found.items()
    }
    print("\nseconds up to the first step")
    for name, row in rows.items():
        parts = ", ".join(f"{part} {row[part]:.2f}" for part in list(row)[: list(row).index("first step")])
        print(f"{name:32} {row['first step']:6.2f}: {parts}")
    print(f"\n{'':32} {'bare step':>9} {'step':>7} {'state':>7} {'validation':>10} {'end':>6} {'loop':>7} "
          f"{'whole, of ' + format(STEPS, ',') + ' steps':>22} {f'run, of {taken:,} steps':>22}")  # fmt: skip
    for name, row in rows.items():
        steps = STEPS * row["step"]
        whole = row["first step"] + steps * (1 + row["state"] / SECONDS_A_STATE) + row["end"]
        whole += VALIDATIONS * row["validation"]
        bare = STEPS * row["bare step"]
        print(f"{name:32} {row['bare step']:9.4f} {row['step']:7.4f} {row['state']:7.3f} {row['validation']:10.2f} "
              f"{row['end']:6.2f} {bare / steps:7.1%} {bare / whole:22.1%} "
              f"{taken * row['bare step'] / row['whole']:22.1%}", flush=True)  # fmt: skip


def main() -> None:
    """Measure both commands, in turn with those of another checkout if given, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="a folder of pictures, for example CIFAR-10")
    parser.add_argument("--against", help="Python of another checkout's environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="steps of each run; the shares are computed for more")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to check that it runs; the times mean nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        print("\n" + json.dumps(measure_command(*json.loads(flags.child))))
        return
    steps, batch, rounds = (4, 8, 1) if flags.toy else (flags.steps, flags.batch_size, flags.rounds)
    pythons = {"": sys.executable} | ({", before": flags.against} if flags.against else {})
    common = {"steps": steps, "batch_size": batch, "validate_every": steps // 2, "save_every": steps // 2}
    jobs = {"digits, train-tokenizer": ("tokenizer", {"dataset": "mnist5k", **common})}
    if flags.data_root:
        jobs["pictures, train-tokenizer"] = ("tokenizer", {"dataset": flags.data_root, **common})
    with tempfile.TemporaryDirectory() as folder:
        for name, more in (("train_tokenizer", ["--steps=4"]), ("export_codes", ["--tokenizer", f"{folder}/t"])):
            output = f"{folder}/{'t' if name == 'train_tokenizer' else 'codes'}"
            subprocess.run(
                [sys.executable, "-m", f"codegrid.pipelines.{name}", "--dataset=mnist5k", "--output", output, *more],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        layers = {"options": {"num_layers": 2}} if flags.toy else {}
        jobs["codes of digits, train-prior"] = ("prior", {"codes": f"{folder}/codes", **common, **layers})
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(rounds):
            for name, (kind, settings) in jobs.items():
                for label, python in pythons.items():
                    found.setdefault(name + label, []).append(run_child(python, kind, max(3, steps // 2), settings))
    print_tables(found, steps)


if __name__ == "__main__":
    main()
