"""A checkpoint of another project as a model folder: the body of `codegrid import-model`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codegrid.devices import Device, find_device
from codegrid.errors import InputError, reason_of
from codegrid.limits import check_sides
from codegrid.locks import releasing
from codegrid.pipelines.import_model import ImportModel
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.run_folder import Run
from codegrid.tensors import digest_of_file
from codegrid.usable import CONFIG, WEIGHTS

from .checkpoint import read_checkpoint
from .sources import recognise


def import_model(
    path: str | Path, source: str = "", size: int | Sequence[int] | None = None, device: Device = "cpu"
) -> Any:
    """Load a checkpoint of another project as a model of this one, in eval mode. Nothing in it is run.

    Args:
        path: a file of torch.save, .safetensors or .npz; or a folder, of diffusers' `VQModel`.
        source: `taming`, `diffusers`, `llamagen`, `var`, ... By default it is found by the names of the tensors.
        size: sides of the images, one number or (height, width). By default those of the config, or those that the
            project trains on; the networks take others, too.
        device: the device to load onto.

    Raises `InputError` if no source knows the checkpoint, it is damaged or holds code, or its shapes do not fit.

    Examples:
        >>> tokenizer = import_model("vqgan_imagenet_f16_1024.ckpt")  # doctest: +SKIP
        >>> tokenizer.save_pretrained("runs/vqgan/tokenizer")  # doctest: +SKIP
    """
    place, sides = find_device(device), _sides(size)
    name, known, checkpoint = recognise(read_checkpoint(path), source)
    try:
        model = known.convert(checkpoint, sides)
    except InputError:
        raise
    except Exception as error:  # shapes of all kinds can fail in all places
        raise InputError(f"{path}: it is another variant of this model ({reason_of(error)})") from error
    model.provenance = {"imported_from": f"{known.about} ({name})", "file": Path(path).name}
    return model.to(place).eval()


def _sides(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Return (height, width). Raises `InputError` if these are not one or two sides of an image."""
    if size is None:
        return None
    sides = [size] if isinstance(size, int) else list(size)
    if len(sides) not in (1, 2):
        raise InputError(f"`size` {' '.join(map(str, sides)) or 'of none'}: give one side, or height and width")
    check_sides("size", [sides[0], sides[-1]])
    return sides[0], sides[-1]


@releasing()
def import_into(settings: ImportModel) -> dict[str, Any]:
    """Write the model into a folder. Returns what it is: its source, kind, name and sizes."""
    path = Path(settings.from_)
    digests = {each.name: digest_of_file(each) for each in _files_of(path)}
    run = Run(settings.output, settings, files=digests)
    if run.finished:
        print_once(f"{run.shown} is finished: nothing to do")
        return {}
    model = import_model(path, settings.source, settings.size or None)
    model.provenance["sha256"] = digests
    run.start()
    model.save_pretrained(run.folder)
    run.finish_with(written=(CONFIG, WEIGHTS))
    found = {"imported_from": model.provenance["imported_from"], "kind": model.kind, "config": model.config}
    print_once(f"{run.shown}: {describe(model)}")
    return found


def _files_of(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"`from_` {path}: there is no such file or folder")
    return sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]


def describe(model: Any) -> str:
    """Return one line about an imported model."""
    grids = ", ".join(f"{'×'.join(map(str, grid.shape))} codes out of {grid.num_embeddings:,}" for grid in model.layout)
    numbers = sum(weight.numel() for weight in model.parameters())
    return f"a {model.kind} from {model.provenance['imported_from']}, {numbers:,} weights, {grids}"
