"""A tokenizer and a diffusion prior as a pipeline of diffusers: the body of `codegrid export-diffusers`.

LDMPipeline draws noise, removes it with a UNet2DModel, divides by a number, and lets a VQModel find the nearest entries
and decode them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codegrid.errors import InputError, import_extra
from codegrid.files import write_folder
from codegrid.locks import releasing
from codegrid.pipelines.export_diffusers import ExportDiffusers
from codegrid.pipelines.running.cli import print_once, print_plan
from codegrid.pipelines.running.run_folder import Run
from codegrid.stage1_vqvae.vq_model import as_vq_model, check_tokenizer
from codegrid.stage2_prior.diffusion.unet_model import as_unet_model, check_prior
from codegrid.tensors import read_json
from codegrid.usable import AUTOENCODER

from .pipeline import TwoStagePipeline

INDEX = "model_index.json"
CLASS = "LDMPipeline"


@releasing()
def export_diffusers(settings: ExportDiffusers) -> None:
    """Write the folder of a pipeline of diffusers into `settings.output`.

    Raises `InputError` if this tokenizer or prior cannot be one, or the folder holds another pipeline of diffusers.
    """
    pipeline = TwoStagePipeline.from_parts(settings.tokenizer, settings.prior)
    check_pipeline(pipeline)
    check_folder(Path(settings.output))
    facts = {"tokenizer": pipeline.tokenizer.fingerprint(), "priors": [pipeline.priors[0].fingerprint()]}
    run = Run(settings.output, settings, **facts)
    if run.finished:
        return print_once(f"{run.shown} is finished: nothing to do")
    if settings.dry_run:
        return print_plan(f"a {CLASS} of diffusers")
    run.start()
    save_diffusers(pipeline, run.folder)
    run.finish_with(lambda folder: None)
    print_once(f"{run.shown}: load it with diffusers.DiffusionPipeline.from_pretrained")


def save_diffusers(pipeline: TwoStagePipeline, folder: str | Path) -> None:
    """Write the folder of a pipeline of diffusers that draws, from the same noise, what ours draws by DDIM.

    Raises `InputError` if this tokenizer or prior cannot be one, or the folder holds another pipeline of diffusers.
    """
    check_pipeline(pipeline)
    tokenizer, prior, folder = check_tokenizer(pipeline.tokenizer), check_prior(pipeline.priors[0]), Path(folder)
    check_folder(folder)
    diffusers: Any = import_extra("diffusers", "a pipeline of diffusers", "diffusion")
    (entries,), vectors = prior.vectors.entries, prior.vectors
    parts = {
        AUTOENCODER: as_vq_model(tokenizer, entries, vectors.mean, 1 / float(vectors.spread[0])),
        "unet": as_unet_model(prior),
        "scheduler": diffusers.DDIMScheduler.from_config(prior.scheduler.config),
    }
    for name, part in parts.items():
        with write_folder(folder / name) as staging:
            part.save_pretrained(staging)
    with write_folder(folder) as staging:
        getattr(diffusers, CLASS)(**parts).save_config(staging)


def check_pipeline(pipeline: TwoStagePipeline) -> None:
    """Raise `InputError` if diffusers has no pipeline like this one."""
    if len(pipeline.priors) > 1 or len(pipeline.tokenizer.stack) > 1:
        what = "priors" if len(pipeline.priors) > 1 else "tokenizers"
        raise InputError(
            f"`{what[:-1]}`: there are several {what}, but {CLASS} of diffusers has one: give a single one"
        )
    check_prior(pipeline.priors[0])
    check_tokenizer(pipeline.tokenizer)


def check_folder(folder: Path) -> None:
    """Raise `InputError` if a folder holds another pipeline of diffusers."""
    if (folder / INDEX).is_file():
        found = read_json(folder / INDEX).get("_class_name")
        if found != CLASS:
            raise InputError(f"`output` {folder} holds a {found} of diffusers: choose another folder")
