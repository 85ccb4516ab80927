"""A checkpoint of another project as a model folder: the body of `codegrid import-model`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex

from codegrid.devices import Device, find_device
from codegrid.errors import InputError, reason_of
from codegrid.limits import check_sides
from codegrid.locks import releasing
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.import_model import ImportModel
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.run_folder import Run
from codegrid.tensors import digest_of_file
from codegrid.usable import CONFIG, WEIGHTS

from .checkpoint import read_checkpoint
from .sources import recognise


def import_model(
    path: str | Path,
    source: str = "",
    size: int | Sequence[int] | None = None,
    device: Device = "cpu",
    model_config: str | Path = "",
) -> Any:
    """Load a checkpoint of another project as a model of this one, in eval mode. Nothing in it is run.

    It is a tokenizer or, if the checkpoint also holds a prior, a `TwoStagePipeline`.

    Args:
        path: a file of torch.save, .safetensors or .npz; or a folder, of diffusers' `VQModel`.
        source: `taming`, `diffusers`, `llamagen`, `var`, ... By default it is found by the names of the tensors.
        size: sides of the images, one number or (height, width). By default those of the config, or those that the
            project trains on; the networks take others, too.
        device: the device to load onto.
        model_config: a YAML or JSON file with the configuration of the model. By default the one that lies where the
            project puts it.

    Raises `InputError` if no source knows the checkpoint, it is damaged or holds code, or its shapes do not fit.

    Examples:
        >>> tokenizer = import_model("vqgan_imagenet_f16_1024.ckpt")  # doctest: +SKIP
        >>> tokenizer.save_pretrained("runs/vqgan/tokenizer")  # doctest: +SKIP
    """
    place, sides = find_device(device), _sides(size)
    name, known, checkpoint = recognise(read_checkpoint(path, model_config), source)
    try:
        made = known.convert(checkpoint, sides)
    except InputError:
        raise
    except Exception as error:  # shapes of all kinds can fail in all places
        raise InputError(f"{path}: it is another variant of this model ({reason_of(error)})") from error
    models = made if isinstance(made, tuple) else (made,)
    for model in models:
        model.provenance |= {"imported_from": f"{known.about} ({name})", "file": Path(path).name}
        model.to(place).eval()
    return TwoStagePipeline(*models) if len(models) > 1 else models[0]


def _sides(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return (height, width). Raises `InputError` if these are not one or two sides of an image."""
    if size is None:
        return None
    sides = [size] if not isinstance(size, Sequence) else list(size)
    if len(sides) not in (1, 2) or not all(isinstance(side, SupportsIndex) for side in sides):
        raise InputError(f"`size` {' '.join(map(str, sides)) or 'of none'}: give one side, or height and width")
    height, width = index(sides[0]), index(sides[-1])
    check_sides("size", [height, width])
    return height, width


@releasing()
def import_into(settings: ImportModel) -> dict[str, Any]:
    """Write the model into a folder, or several into folders in it. Returns what each is: its source and config."""
    path, config = Path(settings.from_), settings.model_config
    files = _files_of(path, "from_") + (_files_of(Path(config), "model_config") if config else [])
    convert = partial(import_model, path, settings.source, settings.size or None, model_config=config)
    model = convert() if settings.overwrite else None  # no folder must be emptied for a checkpoint that is refused
    digests = {each.name: digest_of_file(each) for each in files}
    run = Run(settings.output, settings, files=digests)
    if run.finished:
        print_once(f"{run.shown} is finished: nothing to do")
        return {}
    model = model or convert()
    parts = parts_of(model)
    for part in parts.values():
        part.provenance["sha256"] = digests
    run.start()
    model.save_pretrained(run.folder)
    run.finish_with(written=[f"{place}{file}" for place in parts for file in (CONFIG, WEIGHTS)])
    print_once(f"{run.shown}: {' and '.join(map(describe, parts.values()))}")
    return {
        part.kind: {"imported_from": part.provenance["imported_from"], "config": part.config} for part in parts.values()
    }


def parts_of(model: Any) -> dict[str, Any]:
    """Return the models of an imported one, by the prefix of their files' names in its folder."""
    return {"tokenizer/": model.tokenizer, "prior/": model.priors[0]} if hasattr(model, "priors") else {"": model}


def _files_of(path: Path, parameter: str) -> list[Path]:
    if not path.exists():
        raise InputError(f"`{parameter}` {path}: there is no such file or folder")
    return sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]


def describe(model: Any) -> str:
    """Return one line about an imported model."""
    grids = ", ".join(f"{'×'.join(map(str, grid.shape))} codes out of {grid.num_embeddings:,}" for grid in model.layout)
    numbers = sum(weight.numel() for weight in model.parameters())
    return f"a {model.kind} from {model.provenance['imported_from']}, {numbers:,} weights, {grids}"
