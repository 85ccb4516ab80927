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
from typing import Any

import torch

from codegrid import load
from codegrid.codes import Layout, Moment
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
# name → quantizer and options: at about 576 bits per image of 8×8 sites, at about 1,152, and some others
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rotation-512": ("ema", {"estimator": "rotation"}),
    "sim-512": ("sim", {}),
    "gumbel-512": ("gumbel", {}),
    "fsq-8x8x8": ("fsq", {"fsq_levels": (8, 8, 8)}),
    "lfq-512": ("lfq", {"num_embeddings": 512}),
    "bsq-512": ("bsq", {"num_embeddings": 512}),
    "residual-3x8": ("residual", {"num_quantizers": 3, "num_embeddings": 8}),
    "product-3x8": ("product", {"num_quantizers": 3, "num_embeddings": 8, "embedding_dim": 66}),
    "multiscale-128": ("multiscale", {"num_embeddings": 128}),  # 1 + 4 + 16 + 64 codes: 595 bits
    "residual-2x512": ("residual", {}),
    "product-2x512": ("product", {}),
    "fsq-8x8x8x8x8x8": ("fsq", {"fsq_levels": (8,) * 6}),
    "lfq-262144": ("lfq", {"num_embeddings": 2**18}),
    "bsq-262144": ("bsq", {"num_embeddings": 2**18}),
    "multiscale-8192": ("multiscale", {"num_embeddings": 8192}),  # 1,105 bits
    "residual-2x32": ("residual", {"num_embeddings": 32}),
    "residual-4x512-shared": ("residual", {"num_quantizers": 4, "shared": True}),
    "sim-8192": ("sim", {"num_embeddings": 8192}),
}


def make_runs(data_root: str, output: Path, toy: bool, seed: int = 0) -> dict[str, TrainTokenizer]:
    """Return the settings of every row, by name: the authors' with a little revival and without any, then the defaults.

    The perplexity that the authors print is an average over training batches; ours is over the whole test part.
    """
    steps, options = (20, {"hidden_channels": 16}) if toy else (10_000, {})
    common = TrainTokenizer(
        output="", dataset="imagefolder", data_root=data_root, steps=steps, batch_size=BATCH, save_every=2500,
        seed=seed, options=options,
    )  # fmt: skip
    authors = replace(common, lr=3e-4, lr_schedule="constant")
    runs = {"authors-512": replace(authors, options={**options, "revival_threshold": 0.1})}
    runs["authors-no-revival-512"] = replace(authors, options={**options, "revival_threshold": 0.0})
    for size in SIZES:
        for kind in KINDS:
            runs[f"{kind}-{size}"] = replace(common, quantizer=kind, options={**options, "num_embeddings": size})
    for name, (kind, more) in OTHERS.items():
        runs[name] = replace(common, quantizer=kind, options={**options, **more})
    return {name: replace(run, output=str(output / name)) for name, run in runs.items()}


def bits_of(layout: Layout) -> float:
    """Return the bits of an image's codes, each of the same length."""
    return sum(prod(grid.shape) * log2(grid.num_embeddings) for grid in layout)


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

    figure = Figure(figsize=(12, 6), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, (name, history) in enumerate(histories.items()):
        line = "-" if number < 10 else "--" if number < 20 else ":"
        style = {"color": f"C{number % 10}", "linestyle": line, "label": name.replace("-", " ")}
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
    parser.add_argument("--only", nargs="+", help="train these runs and stop")
    parser.add_argument("--seed", type=int, default=0, help="of the runs; another one needs another --output")
    parser.add_argument("--toy", action="store_true", help="20 steps of narrow networks, to check that it runs")
    flags = parser.parse_args()
    runs = make_runs(flags.data_root, flags.output, flags.toy, flags.seed)
    for name, run in runs.items():
        if not flags.only or name in flags.only:
            train_tokenizer(run)
    if flags.only:
        return
    told = {name: read_json(Path(run.output) / "config.json")["provenance"] for name, run in runs.items()}
    speeds = time_steps(runs, load_images("imagefolder", flags.data_root, "train"), 1 if flags.toy else 5)
    heading = f"{'quantizer':24} {'bits':>5} {'error':>7} {'PSNR':>6} {'never used':>10} {'images/s':>9}"
    print(f"{heading}  perplexity of each grid")
    for name, provenance in told.items():
        at, bits = provenance["metrics"], bits_of(load(runs[name].output).layout)
        each = ", ".join(f"{grid['perplexity']:.1f}" for grid in at["grids"])
        print(
            f"{name:24} {bits:5.0f} {at['reconstruction_error']:7.4f} {at['psnr']:6.2f} "
            f"{at['unused_entries']:10} {speeds[name]:9.0f}  {each}"
        )
    save_curves(flags.output / "curves.png", {name: provenance["history"] for name, provenance in told.items()})


if __name__ == "__main__":
    main()
