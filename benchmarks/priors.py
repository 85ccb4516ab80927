"""Priors side by side, each trained for the same minutes of two cores: likelihood, samples, speed and memory.

python -m benchmarks.priors --data-root CIFAR --mnist MNIST --output runs/priors
python -m benchmarks.priors --data-root CIFAR --output runs/priors --codes cifar-8x8 cifar-16x16 --rows pixelcnn \\
    pixelsnail --num-samples 0

CIFAR holds train/CLASS/* and test/CLASS/*, MNIST holds MNIST/raw. The tokenizers are trained first. Bits are those of
the codes of the test images, given their labels, and bits/dim bound those of the images under both stages. next-scale
learns the codes of a tokenizer of its own, so only its bits/dim are shown; diffusion has neither. Samples are judged
without guidance and at each scale of --guidance, by a classifier and, for CIFAR, by the features of lite0. Leaves
quality.png, the Fréchet distance over the seconds of drawing. Finished parts are not computed again; only seconds and
memory are.
"""

import argparse
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from codegrid import TwoStagePipeline, load, sample
from codegrid.files import write_json
from codegrid.pipelines.evaluate import Evaluate
from codegrid.pipelines.evaluation.run import evaluate
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_codes
from codegrid.pipelines.train_prior import TrainPrior
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.tensors import read_json

from . import digits
from .interleaved import Contender, Here, Timing, measure
from .judges import Reference
from .minutes import train_for


class Codes(NamedTuple):
    """Images, how they become codes, and by which features samples are compared with them."""

    dataset: str
    steps: int  # of the tokenizer
    options: dict[str, Any]  # of the tokenizer
    agreement: str  # features that tell classes
    distance: str  # features of the Fréchet distance


SHARED = "ema"  # the quantizer of the codes that all rows learn but those with another


class Row(NamedTuple):
    """A prior, and how it is drawn from."""

    model: str
    sampling: dict[str, Any]
    quantizer: str = SHARED


OF_DIGITS, OF_CLASSES = "benchmarks.digits:classifier", "benchmarks.judges:classifier"
DIGITS = {"hidden_channels": 64, "num_embeddings": 256}
CODES = {
    "mnist-7x7": Codes("mnist", 2400, DIGITS, OF_DIGITS, OF_DIGITS),
    "cifar-8x8": Codes("imagefolder", 10_000, {}, OF_CLASSES, "lite0"),
    "cifar-16x16": Codes("imagefolder", 10_000, {"downsampling": 2}, OF_CLASSES, "lite0"),
}
ROWS = {
    "pixelcnn": Row("pixelcnn", {}),
    "pixelsnail": Row("pixelsnail", {}),
    "transformer": Row("transformer", {}),
    **{f"maskgit-{steps}": Row("maskgit", {"num_inference_steps": steps}) for steps in (1, 4, 8, 16)},
    "maskgit-random": Row("maskgit", {"num_inference_steps": 16, "unmask_order": "random"}),
    "next-scale": Row("next-scale", {}, "multiscale"),
    **{
        f"diffusion-{steps}": Row("diffusion", {"num_inference_steps": steps, "solver": "dpm-solver"})
        for steps in (10, 20, 50)
    },
}
SAMPLES, TIMED = 2000, 1000  # judged; drawn in the seconds that are shown
WHOLE_GRIDS = ("mnist-7x7", "cifar-8x8")


def make_codes(folder: Path, codes: Codes, data_root: str, quantizer: str, toy: bool) -> dict[str, Any]:
    """Train a tokenizer, export the codes of both parts, and return the settings that name it and its images."""
    images: dict[str, Any] = {"dataset": codes.dataset, "data_root": data_root}
    train_tokenizer(TrainTokenizer(
        **images, output=str(folder / "tokenizer"), steps=20 if toy else codes.steps, batch_size=32,
        quantizer=quantizer, options={**codes.options, **({"hidden_channels": 16} if toy else {})},
    ))  # fmt: skip
    images["tokenizer"] = (str(folder / "tokenizer"),)
    for split, name in (("train", "codes"), ("test", "codes_test")):
        export_codes(ExportCodes(**images, split=split, output=str(folder / name)))
    return images


def judge(
    folder: Path,
    prior: Path,
    row: Row,
    images: dict[str, Any],
    scale: float,
    num: int,
    reference: Callable[[], Reference],
) -> Any:
    """Return the figures of a prior's samples at a guidance scale; without guidance also its bits."""
    note = folder / f"{scale}.json"
    if not note.exists():
        found: dict[str, Any] = {}
        if scale == 1.0:
            settings = {name: (value,) for name, value in row.sampling.items()}
            found = evaluate(Evaluate(**images, prior=(str(prior),), output=str(folder / "bits"), **settings))
        if num:
            pipeline = TwoStagePipeline.from_parts(images["tokenizer"][0], prior)
            judged = reference().judge(pipeline.sample(num, seed=0, guidance_scale=scale, **row.sampling))
            found |= {"class_agreement": judged.agreement, "gfid": judged.distances[0]}
        write_json(note, found)
    return read_json(note)


def drawer(prior: str, count: int, settings: dict[str, Any]) -> Callable[[], object]:
    """Return a function that draws `count` samples of all classes in turn, 128 at once."""
    model = load(prior).eval()
    return lambda: sample(model, count, batch_size=128, **settings)


def save_quality(path: Path, points: dict[str, dict[str, tuple[float, float]]]) -> None:
    """Plot the Fréchet distance of each row's samples over the seconds of drawing them, a panel for each codes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(6.5 * len(points), 4.2), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        for number, (row, place) in enumerate(sorted(rows.items(), key=lambda item: item[1])):
            axes.plot(*place, "o", color=f"C{list(rows).index(row) % 10}")
            # above and below in turn, or the names of neighbours would meet
            axes.annotate(row, place, xytext=(0, (-15, 7)[number % 2]), textcoords="offset points", ha="center", size=9)
        axes.set(title=name, xscale="log", xlabel=f"seconds for {TIMED:,} samples without guidance")
        axes.set_ylabel("Fréchet distance at the best guidance")
        axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=StrMethodFormatter("{x:g}"))
        axes.xaxis.set(minor_locator=NullLocator())
        axes.margins(x=0.15, y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def compare(name: str, flags: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Train and judge what is missing for one kind of codes, print its rows, and return seconds and distance."""
    codes = CODES[name]
    if flags.toy:
        codes = codes._replace(agreement=OF_DIGITS, distance=OF_DIGITS)  # is soon trained
    data_root = flags.mnist if codes.dataset == "mnist" else flags.data_root
    small: dict[str, Any] = {"batch_size": 8, "options": {"channels": 8}} if flags.toy else {"batch_size": 64}
    told: dict[str, tuple[dict[str, float], list[Any]]] = {}
    contenders: dict[str, Contender | Here] = {}
    kind = Here if flags.toy else Contender
    reference = cache(partial(Reference, codes.dataset, data_root, codes.agreement, codes.distance))
    for row_name in flags.rows:
        row = ROWS[row_name]
        folder = flags.output / name / row.quantizer
        images = make_codes(folder, codes, data_root, row.quantizer, flags.toy)
        prior = TrainPrior(
            codes=str(folder / "codes"), validation_codes=str(folder / "codes_test"), model=row.model,
            output=str(folder / row.model), **small,
        )  # fmt: skip
        trained = train_for(0 if flags.toy else flags.minutes, prior, least=3 if flags.toy else 100)
        scales = [1.0, *flags.guidance] if flags.num_samples else [1.0]
        place = folder / row_name
        place.mkdir(exist_ok=True)
        figures = [
            judge(place, folder / row.model, row, images, scale, flags.num_samples, reference) for scale in scales
        ]
        told[row_name] = trained, figures
        contenders[row_name] = kind(drawer, str(folder / row.model), 20 if flags.toy else TIMED, row.sampling)
    timings = {} if flags.untimed else measure(contenders, rounds=1 if flags.toy else 3, steps=1)
    for row_name, (trained, figures) in told.items():
        print_row(name, row_name, trained, figures, [1.0, *flags.guidance], timings.get(row_name))
    return {row: (timing.seconds, min(map(_distance, told[row][1]))) for row, timing in timings.items()}


def _distance(figures: dict[str, Any]) -> float:
    return figures.get("gfid", float("nan"))


def print_row(
    codes: str, row: str, trained: dict[str, float], figures: list[Any], scales: list[float], timing: Timing | None
) -> None:
    """Print a row of the table."""
    plain = figures[0]
    best = min(range(len(figures)), key=lambda number: _distance(figures[number]))
    kind = plain["measured_on"].get("bits_per_image", {}).get("likelihood", "none")
    shared = ROWS[row].quantizer == SHARED  # else its bits tell nothing beside those of the others
    bits = plain.get("bits_per_image", float("nan")) if shared else float("nan")
    per_dim = plain.get("bound_bits_per_dim", float("nan"))
    text = f"{codes:12} {row:15} {bits:7.1f} {kind:6} {per_dim:8.3f} {trained['steps']:6}"
    for number in (0, best):
        agreement = 100 * figures[number].get("class_agreement", float("nan"))
        text += f" {scales[number]:6} {agreement:6.1f} % {_distance(figures[number]):8.2f}"
    print(text + (f" {timing.seconds:8.2f} {timing.megabytes:7.0f}" if timing else ""))


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder of CIFAR with train/ and test/")
    parser.add_argument("--mnist", help="folder that holds MNIST/raw")
    parser.add_argument("--output", type=Path, default=Path("runs/priors"), help="folder of the runs")
    parser.add_argument("--codes", nargs="+", choices=CODES, default=WHOLE_GRIDS, help="codes to learn")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="priors to compare")
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each prior")
    parser.add_argument("--guidance", nargs="*", type=float, default=[1.5, 2.0, 3.0], help="scales beside 1")
    parser.add_argument("--num-samples", type=int, default=SAMPLES, help="judged at each scale; 0: no picture either")
    parser.add_argument("--untimed", action="store_true", help="leave out seconds, memory and the picture")
    parser.add_argument("--toy", action="store_true", help="a few steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    if flags.toy:
        digits.STEPS, flags.codes, flags.guidance, flags.num_samples = 20, ["cifar-8x8"], [1.5], 20
        torch.set_num_threads(1)
    print(
        f"{'codes':12} {'prior':15} {'bits':>7} {'':6} {'bits/dim':>8} {'steps':>6} {'scale':>6} {'agreed':>8} "
        f"{'distance':>8} {'best':>6} {'agreed':>8} {'distance':>8} {'seconds':>8} {'MB':>7}"
    )
    points = {name: compare(name, flags) for name in flags.codes}
    if flags.num_samples and not flags.untimed:  # without samples there are no distances
        save_quality(flags.output / "quality.png", points)


if __name__ == "__main__":
    main()
