"""Write models in the form of another library: `codegrid export-model --run runs/mine --to onnx`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Folder, Folders, Leaves, TakesPretrained


@dataclass(frozen=True, kw_only=True)
class ExportModel(TakesPretrained, Leaves):
    """Write a tokenizer of images, or for diffusers also a prior over its codes, in the form of another library.

    codegrid export-model --tokenizer runs/sharp/tokenizer --to diffusers --output runs/sharp/vq_model
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer",)
    place: ClassVar[str] = "exported"

    run: Folder | None = None
    """Folder that holds tokenizer/."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer of images, or hf:owner/name."""
    prior: Folder | None = None
    """Folder of a diffusion prior over its codes, or hf:owner/name, for --to diffusers: a whole LDMPipeline is written,
    which draws what `codegrid sample --solver ddim` draws from the same noise. The prior must be --unconditional and
    --one-scale."""
    to: Literal["diffusers", "onnx", "torch"] = "torch"
    """Form. diffusers: the folder of a VQModel, for --network resnet or vqgan with a single codebook; onnx: the files
    encoder.onnx and decoder.onnx; torch: encoder.pt2 and decoder.pt2, programs of torch.export. The last two take any
    number of images, of the trained size, in [-1, 1]."""
    output: Folder = ""
    """Folder for the files. By default exported/ in --run or runs/, or exported-2/ and so on."""


def main() -> None:
    """Run the command line."""
    run_command(ExportModel, "codegrid.pipelines.exporting.run:export_into")


if __name__ == "__main__":
    main()
