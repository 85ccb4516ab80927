"""All quantizers side by side on CIFAR-10, 10,000 steps of 32 images each.

python -m benchmarks.codebooks --data-root CIFAR --output runs/codebooks

CIFAR holds train/CLASS/* and test/CLASS/*. Prints a table over the whole test part and leaves curves.png. Compare by
bits per image: K says little if a site has several codes, or if there is no codebook. Finished runs are not trained
again; `--only ema-512` trains one run, so that several can train side by side.
"""

import argparse
import time
from dataclasses import replace
from math import log2, prod
from pathlib import Path
from statistics import median

import torch

from codegrid import load
from codegrid.codes import Moment
from codegrid.data.images import to_float
from codegrid.data.sources import Images, load_images
from codegrid.noise import Noise
from codegrid.pipelines.running.device import autocast, channels_last, choose_precision, place
from codegrid.pipelines.train_tokenizer import TrainTokenizer
from codegrid.pipelines.training.tokenizer import train_tokenizer
from codegrid.pipelines.training.trainer import fused_adam, set_lr
from codegrid.tensors import read_json

KINDS = ("gradient", "ema", "clustered")
SIZES = (512, 1024)
BATCH = 32  # images a step


def make_runs(data_root: str, output: Path, toy: bool) -> dict[str, TrainTokenizer]:
    """Return the settings of every row, by name: the authors' with a little revival and without any, then the defaults.

    The perplexity that the authors print is an average over training batches; ours is over the whole test part.
    """
    steps, options = (20, {"hidden_channels": 16}) if toy else (10_000, {})
    common = TrainTokenizer(
        output="", dataset="imagefolder", data_root=data_root, steps=steps, batch_size=BATCH, save_every=2500,
        options=options,
    )  # fmt: skip
    authors = replace(common, lr=3e-4, lr_schedule="constant")
    runs = {"authors-512": replace(authors, options={**options, "revival_threshold": 0.1})}
    runs["authors-no-revival-512"] = replace(authors, options={**options, "revival_threshold": 0.0})
    for size in SIZES:
        for kind in KINDS:
            runs[f"{kind}-{size}"] = replace(common, quantizer=kind, options={**options, "num_embeddings": size})
    runs["fsq-8x8x8"] = replace(common, quantizer="fsq", options={**options, "fsq_levels": (8, 8, 8)})
    for size in (32, 512):
        settings = {**options, "num_quantizers": 2, "num_embeddings": size}
        runs[f"residual-2x{size}"] = replace(common, quantizer="residual", options=settings)
    return {name: replace(run, output=str(output / name)) for name, run in runs.items()}


def time_steps(runs: dict[str, TrainTokenizer], images: Images, repeats: int = 5) -> dict[str, float]:
    """Return images/s of the training step of trained tokenizers: the median of interleaved repeats of 20 steps."""
    device = torch.device("cpu")
    precision = choose_precision("auto", device)
    batch = channels_last(to_float(images.batch(range(BATCH)).images))
    models = {name: place(load(run.output), device).train() for name, run in runs.items()}
    optimizers = {name: fused_adam(model.parameters()) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, model in models.items():
            set_lr(optimizers[name], 1e-6)
            start = time.perf_counter()
            for step in range(20):
                with autocast(precision, device):
                    losses = model(batch, moment=Moment(step, 20, Noise(0, 0, BATCH))).losses
                losses.total.backward()
                optimizers[name].step()
                optimizers[name].zero_grad()
                model.after_step(step, 0)
            seconds[name].append(time.perf_counter() - start)
    return {name: 20 * BATCH / median(times[1:]) for name, times in seconds.items()}  # the first warms up


def save_curves(path: Path, histories: dict[str, list[dict[str, float]]]) -> None:
    """Plot reconstruction error and perplexity over the steps, on 1,000 test images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    colours = {"gradient": "#c8553d", "ema": "#3b6ea5", "clustered": "#4c9f70", "authors": "#777777",
               "fsq": "#8e6bbf", "residual": "#c79a2b"}  # fmt: skip
    for name, history in histories.items():
        kind, size = name.split("-")[0], name.rpartition("-")[2]
        line = ":" if "no-revival" in name else "--" if size in ("1024", "2x32") else "-"
        style = {"color": colours[kind], "linestyle": line, "label": name.replace("-", " ")}
        steps = [report["step"] for report in history]
        for axes, figure_name in zip(panels, ("reconstruction_error", "perplexity"), strict=True):
            axes.plot(steps, [report[figure_name] for report in history], **style)
    panels[0].set(xlabel="steps of 32 images", ylabel="reconstruction error (MSE / variance)", yscale="log")
    panels[0].set_yticks([0.05, 0.07, 0.1, 0.15], labels=["0.05", "0.07", "0.10", "0.15"])
    panels[0].minorticks_off()
    panels[1].set(xlabel="steps of 32 images", ylabel="perplexity", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train the missing runs, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder with train/ and test/")
    parser.add_argument("--output", type=Path, default=Path("runs/codebooks"), help="folder of the runs")
    parser.add_argument("--only", help="train this run and stop")
    parser.add_argument("--toy", action="store_true", help="20 steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    runs = make_runs(flags.data_root, flags.output, flags.toy)
    for name, run in runs.items():
        if flags.only in (None, name):
            train_tokenizer(run)
    if flags.only:
        return
    told = {name: read_json(Path(run.output) / "config.json")["provenance"] for name, run in runs.items()}
    speeds = time_steps(runs, load_images("imagefolder", flags.data_root, "train"), 1 if flags.toy else 5)
    print(
        f"{'quantizer':22} {'bits':>5} {'error':>7} {'PSNR':>6} {'perplexity':>10} {'never used':>10} {'images/s':>9}"
    )
    for name, provenance in told.items():
        at, layout = provenance["metrics"], load(runs[name].output).layout
        bits = sum(prod(grid.shape) * log2(grid.num_embeddings) for grid in layout)
        print(
            f"{name:22} {bits:5.0f} {at['reconstruction_error']:7.4f} {at['psnr']:6.2f} {at['perplexity']:10.1f} "
            f"{at['unused_entries']:10} {speeds[name]:9.0f}"
        )
    save_curves(flags.output / "curves.png", {name: provenance["history"] for name, provenance in told.items()})


if __name__ == "__main__":
    main()
