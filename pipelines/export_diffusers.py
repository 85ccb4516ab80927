"""Export a diffusion prior and its tokenizer for diffusers: `codegrid export-diffusers --run runs/mine`."""

from dataclasses import dataclass
from typing import ClassVar

from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Folder, Folders, Leaves, ReadsData


@dataclass(frozen=True, kw_only=True)
class ExportDiffusers(ReadsData, Leaves):
    """Export a tokenizer and a diffusion prior as a folder that diffusers loads by itself, without Codegrid.

    The tokenizer must have --network resnet, and the prior --unconditional and --one-scale. The folder is that of an
    LDMPipeline, which draws what `codegrid sample --solver ddim` draws from the same noise.

    codegrid export-diffusers --run runs/mine
    """

    needs: ClassVar[tuple[str, ...]] = ("tokenizer", "prior")
    place: ClassVar[str] = "diffusers"

    run: Folder | None = None
    """Folder that holds tokenizer/ and prior/, for whichever is not given."""
    tokenizer: Folders = ()
    """Folder of a trained tokenizer, or hf:owner/name."""
    prior: Folders = ()
    """Folder of a diffusion prior trained on this tokenizer's codes, or hf:owner/name."""
    output: Folder = ""
    """Folder for the pipeline. By default diffusers/ in --run or runs/, or diffusers-2/ and so on."""


def main() -> None:
    """Run the command line."""
    run_command(ExportDiffusers, "codegrid.pipelines.generation.diffusers_folder:export_diffusers")


if __name__ == "__main__":
    main()
