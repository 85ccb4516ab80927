"""Training figures and pictures for the trackers that accelerate knows: TensorBoard, Weights & Biases and others.

Nothing that is learnt depends on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, tracking
from accelerate.utils import ProjectConfiguration
from torchvision.utils import make_grid
from typing_extensions import Self

from codegrid.data.images import evenly_spaced, to_float, to_uint8
from codegrid.errors import InputError
from codegrid.pipelines.drawing.colours import colours_by_number, paint
from codegrid.pipelines.running.device import without_compiling
from codegrid.stage2_prior import sample_cached

if TYPE_CHECKING:
    import numpy as np

    from codegrid.pipelines.running.run_folder import Run
    from codegrid.stage1_vqvae import VQVAE
    from codegrid.stage2_prior import GatedPixelCNN

Figures = dict[str, "float | torch.Tensor"]
Pages = dict[str, torch.Tensor]

FOLDER = "logs"  # below --output
PROJECT = "codegrid"
WIDTH = 900  # pixels of a logged page, about
# how each tracker that shows images takes one, an array (H, W, 3) of uint8
IMAGE_FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensorboard": lambda page: page[None],
    "wandb": lambda page: [page],
    "swanlab": lambda page: [page],
    "clearml": lambda page: page,
    "aim": lambda page: page,
}


def tracker_options(settings: Any) -> dict[str, Any]:
    """What `Accelerator` must be told for `--log-with`; `InputError` where the tracker's package is not installed."""
    name = settings.log_with
    if name == "none":
        return {}
    if name not in map(str, tracking.get_available_trackers()):
        known = name in tracking.LOGGER_TYPE_TO_CLASS
        package = name.replace("_", "-") if known else f"--upgrade accelerate {name}"
        raise InputError(f"--log-with {name} needs a package: pip install {package}, or leave --log-with out")
    folder = Path(settings.output)
    return {"log_with": name, "project_config": ProjectConfiguration(str(folder), logging_dir=str(folder / FOLDER))}


class Log:
    """The trackers of one training run, from `with` to its end; without a tracker it does nothing.

    Args:
        accelerator: made with `tracker_options`.
        run: whose folder holds the logs.
        start: steps that are done already: what was logged after them is of work that was lost, and is replaced.
    """

    def __init__(self, accelerator: Accelerator, run: Run, settings: Any, start: int) -> None:
        self.accelerator = accelerator
        name = settings.log_with
        if name == "none" or not accelerator.is_main_process:
            return
        folder = run.folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard would make each resumption a run of its own of them; they are in run.json
        config = None if name == "tensorboard" else {key: _plain(value) for key, value in asdict(settings).items()}
        options = {name: _continuation(name, folder, run.identity[:16], start)}
        accelerator.init_trackers(PROJECT, config=config, init_kwargs=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []  # they are not to be finished again at the end of all

    def log(self, step: int, figures: Figures, group: str) -> None:
        """Note figures of the first `step` steps, under `group/name`."""
        if self.accelerator.trackers:
            named = {f"{group}/{name.replace('/s', '_per_second')}": float(value) for name, value in figures.items()}
            self.accelerator.log(named, step=step)

    def show(self, step: int, draw: Callable[[torch.nn.Module], Pages], model: torch.nn.Module) -> None:
        """Note the pages (3, H, W) in [-1, 1] that `draw` makes of the model, where a tracker shows images."""
        showing = [tracker for tracker in self.accelerator.trackers if tracker.name in IMAGE_FORMS]
        if not showing:
            return
        with torch.no_grad(), without_compiling():
            pages = {name: to_uint8(page.cpu()).permute(1, 2, 0).numpy() for name, page in draw(model.eval()).items()}
        for tracker in showing:
            shape = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            values = {name: IMAGE_FORMS[tracker.name](page) for name, page in pages.items()}
            tracker.log_images(values, step=step, **shape)


def _continuation(name: str, folder: Path, identity: str, start: int) -> dict[str, Any]:
    """What makes a tracker write below the run's folder, and go on in the curves that it has begun."""
    if name == "tensorboard":
        return {"purge_step": start + 1}
    if name == "wandb":
        return {"dir": str(folder), "id": identity, "resume": "allow"}
    if name == "swanlab":
        return {"logdir": str(folder), "id": identity, "resume": "allow"}
    if name == "dvclive":
        return {"dir": str(folder / name), "resume": start > 0}
    if name == "trackio":
        return {"name": identity, "resume": "allow"}
    return {}


def _plain(value: Any) -> bool | int | float | str:
    return value if isinstance(value, bool | int | float | str) else str(value)


def draw_reconstructions(images: Any) -> Callable[[VQVAE], Pages]:
    """What draws, for a tokenizer, eight of these images above their reconstructions, always the same ones."""

    def draw(tokenizer: VQVAE) -> Pages:
        originals = to_float(images.__getitems__(evenly_spaced(len(images), 8)).images)
        codes = tokenizer.encode(originals.to(next(tokenizer.parameters()).device))
        again = tokenizer.decode(codes, tokenizer.image_size).cpu().clamp(-1, 1)
        page = make_grid(torch.cat([originals, again]), nrow=len(originals), pad_value=1.0)
        scale = max(1, WIDTH // page.shape[2])  # small images are enlarged by a whole factor, so that they stay sharp
        return {"reconstructions": page.repeat_interleave(scale, 1).repeat_interleave(scale, 2)}

    return draw


def draw_samples(grid_shape: tuple[int, int], seed: int) -> Callable[[GatedPixelCNN], Pages]:
    """What draws, for a prior, 16 code grids (h, w) of its classes in turn: each code in a colour of its own."""

    def draw(prior: GatedPixelCNN) -> Pages:
        labels = [i % prior.num_classes for i in range(16)] if prior.num_classes else None
        codes = sample_cached(prior, 16, *grid_shape, labels, seed)
        colours = colours_by_number(prior.num_embeddings)
        painted = paint(codes, colours, scale=max(1, WIDTH // (8 * grid_shape[1])))
        return {"samples": make_grid(painted * 2 - 1, nrow=8, padding=4, pad_value=1.0)}

    return draw
