"""A tokenizer, alone or with a prior, in the form of another library: the body of `codegrid export-model`.

A new form is a function that writes files of a tokenizer into a folder, and a line in `FORMS`. If the form can also
hold a prior, there is a second function, of a tokenizer and a prior.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from codegrid.codes import describe_layout
from codegrid.errors import InputError
from codegrid.files import write_folder, write_json
from codegrid.limits import check_name
from codegrid.locks import releasing
from codegrid.model_folder import load_model
from codegrid.pipelines.export_model import ExportModel
from codegrid.pipelines.generation.pairing import check_pairing
from codegrid.pipelines.generation.tokenizers import load_tokenizer
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.run_folder import Run

# form → what writes a tokenizer, and what writes a tokenizer and a prior
FORMS = {
    "diffusers": ("vq_model:write", "ldm_pipeline:write"),
    "onnx": ("programs:write_onnx", ""),
    "torch": ("programs:write_torch", ""),
}
ABOUT = "model.json"  # what the files take and return


def export_model(tokenizer: Any, to: str, folder: str | Path, prior: Any = None) -> None:
    """Write a tokenizer of images in the form of another library, and model.json, which says what they take and return.

    Args:
        to: `diffusers`, `onnx` or `torch`.
        folder: for the files; others of these names are replaced.
        prior: a diffusion prior over its codes, for `diffusers`: a whole pipeline is written.

    Raises `InputError` if the form does not exist, or the tokenizer or the prior cannot have it.
    """
    _write(tokenizer, prior, to, Path(folder))


def _write(tokenizer: Any, prior: Any, to: str, folder: Path) -> list[str]:
    """Write all files, or none if the models are refused. Returns their names."""
    check_name("to", to, tuple(FORMS))
    if not hasattr(tokenizer, "to_outputs"):
        raise InputError("`tokenizer`: only a single tokenizer of images can be exported, not one over another's codes")
    alone, paired = FORMS[to]
    models = [tokenizer.eval()]
    if prior is not None:
        if not paired:
            raise InputError(f"`prior`: the form {to} is of a tokenizer alone: leave it out")
        check_pairing(tokenizer, [prior])
        models.append(prior.eval())
    module, _, function = (alone if prior is None else paired).partition(":")
    about = {
        "images": tokenizer.signal.as_json(),
        "range": [-1, 1],
        "codes": [{"shape": list(grid.shape), "num_embeddings": grid.num_embeddings} for grid in tokenizer.layout],
        "fingerprint": tokenizer.fingerprint(),
    }
    with write_folder(folder) as staging:
        getattr(import_module(f"{__package__}.{module}"), function)(*models, staging)
        write_json(staging / ABOUT, about)
        return sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())


@releasing()
def export_into(settings: ExportModel) -> dict[str, Any]:
    """Write the files into a folder. Returns the names of the files."""
    tokenizer = load_tokenizer(settings.tokenizer, "cpu")
    prior = load_model(settings.prior, "cpu", "prior") if settings.prior else None
    if settings.overwrite:  # the folder must not be emptied for models that are refused
        with TemporaryDirectory() as trial:
            _write(tokenizer, prior, settings.to, Path(trial))
    run = Run(
        settings.output,
        settings,
        tokenizer=tokenizer.fingerprint(),
        priors=[] if prior is None else [prior.fingerprint()],
    )
    if run.finished:
        print_once(f"{run.shown} is finished: nothing to do")
        return {}
    names = _write(tokenizer, prior, settings.to, run.folder)
    run.start()  # only now: models that are refused leave no record of a run
    run.finish_with(written=names)
    print_once(f"{run.shown}: {', '.join(names)}, for {describe_layout(tokenizer.layout)}")
    return {"files": names}
