"""A tokenizer and a diffusion prior as a folder that diffusers loads: `DiffusionPipeline.from_pretrained(folder)`.

Its LDMPipeline draws noise, removes it with a UNet2DModel, divides by a number, and lets a VQModel find the nearest
entries and decode them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codegrid.codes import describe_layout
from codegrid.errors import InputError, import_extra
from codegrid.files import write_json
from codegrid.stage2_prior.diffusion.unet_model import as_unet_model, check_prior
from codegrid.usable import AUTOENCODER

from .vq_model import as_vq_model, check_whole_sites

INDEX = "model_index.json"
PARTS = {AUTOENCODER: "VQModel", "unet": "UNet2DModel", "scheduler": "DDIMScheduler"}


def write(tokenizer: Any, prior: Any, folder: Path) -> None:
    """Write a pipeline that draws, from the same noise, what ours draws by DDIM.

    Raises `InputError` if this tokenizer or prior cannot be in one.
    """
    check_grid(tokenizer)
    prior = check_prior(prior)
    diffusers: Any = import_extra("diffusers", "a pipeline of diffusers", "diffusion")
    (entries,), vectors = prior.vectors.entries, prior.vectors
    autoencoder = as_vq_model(tokenizer, entries, vectors.mean, 1 / float(vectors.spread[0]))
    (folder / AUTOENCODER).mkdir()
    autoencoder.write(folder / AUTOENCODER)
    as_unet_model(prior).save_pretrained(folder / "unet")
    diffusers.DDIMScheduler.from_config(prior.scheduler.config).save_pretrained(folder / "scheduler")
    parts = {name: ["diffusers", kind] for name, kind in PARTS.items()}
    write_json(folder / INDEX, {"_class_name": "LDMPipeline", "_diffusers_version": diffusers.__version__, **parts})


def check_grid(tokenizer: Any) -> None:
    """Raise `InputError` if diffusers cannot draw the codes of a tokenizer."""
    shape = tokenizer.layout[0].shape
    if len(tokenizer.layout) > 1 or shape[0] != shape[1]:
        raise InputError(
            f"`tokenizer`: {describe_layout(tokenizer.layout)}: diffusers needs one grid, and a square one"
        )
    check_whole_sites(tokenizer)
