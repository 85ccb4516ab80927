"""A tokenizer in the form of another library: the body of `codegrid export-model`.

A new form is a function that writes files of a tokenizer into a folder, and a line in `FORMS`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from codegrid.codes import describe_layout
from codegrid.errors import InputError
from codegrid.files import write_folder, write_json
from codegrid.limits import check_name
from codegrid.locks import releasing
from codegrid.pipelines.export_model import ExportModel
from codegrid.pipelines.generation.tokenizers import load_tokenizer
from codegrid.pipelines.running.cli import print_once
from codegrid.pipelines.running.run_folder import Run

FORMS = {"diffusers": "vq_model:write", "onnx": "programs:write_onnx", "torch": "programs:write_torch"}
ABOUT = "model.json"  # what the files take and return


def export_model(tokenizer: Any, to: str, folder: str | Path) -> None:
    """Write a tokenizer of images in the form of another library, and model.json, which says what they take and return.

    Args:
        to: `diffusers`, `onnx` or `torch`.
        folder: for the files; others of these names are replaced.

    Raises `InputError` if the form does not exist, or the tokenizer cannot have it.
    """
    with write_folder(folder) as staging:
        _write(tokenizer, to, staging)


def _write(tokenizer: Any, to: str, folder: Path) -> None:
    check_name("to", to, tuple(FORMS))
    if not hasattr(tokenizer, "to_outputs"):
        raise InputError("`tokenizer`: only a single tokenizer of images can be exported, not one over another's codes")
    module, _, function = FORMS[to].partition(":")
    getattr(import_module(f"{__package__}.{module}"), function)(tokenizer.eval(), folder)
    about = {
        "images": tokenizer.signal.as_json(),
        "range": [-1, 1],
        "codes": [{"shape": list(grid.shape), "num_embeddings": grid.num_embeddings} for grid in tokenizer.layout],
        "fingerprint": tokenizer.fingerprint(),
    }
    write_json(folder / ABOUT, about)


@releasing()
def export_into(settings: ExportModel) -> dict[str, Any]:
    """Write the files into a folder. Returns the names of the files."""
    tokenizer = load_tokenizer(settings.tokenizer, "cpu")
    run = Run(settings.output, settings, tokenizer=tokenizer.fingerprint())
    if run.finished:
        print_once(f"{run.shown} is finished: nothing to do")
        return {}
    with write_folder(run.folder) as staging:
        _write(tokenizer, settings.to, staging)
        names = sorted(path.name for path in staging.iterdir())
    run.start()  # only now: a tokenizer that is refused leaves no record of a run
    run.finish_with(written=names)
    print_once(f"{run.shown}: {', '.join(names)}, for {describe_layout(tokenizer.layout)}")
    return {"files": names}
