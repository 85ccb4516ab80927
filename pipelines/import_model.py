"""Turn a checkpoint of another project into a model folder: `codegrid import-model --from FILE --output FOLDER`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from codegrid.errors import InputError
from codegrid.limits import MAX_SIDE, Range
from codegrid.pipelines.importing.names import SOURCES
from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Folder, Leaves


@dataclass(frozen=True, kw_only=True)
class ImportModel(Leaves):
    """Turn a checkpoint of another project into a model folder, which every command takes. Nothing in it is run.

    If the checkpoint holds a tokenizer and a prior, their folders go into --output, as in that of a run.

    codegrid import-model --from vqgan_imagenet_f16_1024.ckpt --output runs/vqgan/tokenizer
    """

    place: ClassVar[str] = "imported"

    from_: Annotated[str, tyro.conf.arg(name="from", metavar="FILE|FOLDER")] = ""
    """Checkpoint: a file of torch.save, .safetensors or .npz; or a folder of diffusers, or of DALL·E's two files."""
    source: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(SOURCES) + "}")] = ""
    """Project that it comes from. By default it is found by the names of the tensors."""
    model_config: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """YAML or JSON file with the configuration of the model, if the checkpoint does not tell enough. By default the one
    that lies where the project puts it."""
    size: tuple[Annotated[int, Range(1, MAX_SIDE)], ...] = ()
    """Side of the images, or their height and width. By default that of the checkpoint's config, or the one that the
    project trains on."""
    run: Folder | None = None
    """Folder of a whole run, below which the model goes."""
    output: Folder = ""
    """Folder for the model. By default imported/ in --run or runs/, or imported-2/ and so on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.from_:
            raise InputError("`from_`: give the file or folder of a checkpoint")


def main() -> None:
    """Run the command line."""
    run_command(ImportModel, "codegrid.pipelines.importing.run:import_into")


if __name__ == "__main__":
    main()
