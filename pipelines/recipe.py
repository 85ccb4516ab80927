"""Run a whole recipe, from images to figures: `codegrid recipe digits`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Flag, Folder, GivesFigures


@dataclass(frozen=True, kw_only=True)
class Recipe(GivesFigures):
    """Run a recipe: both stages on a data set, from images to figures.

    Without a name it lists the recipes and the figures of each. Run the same command again to continue a stopped run.

    codegrid recipe digits
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = ""
    """Recipe to run."""
    output: Folder | None = None
    """Folder for tokenizer/, codes/, prior/ (of several: prior-0/, prior-1/, ...), samples/ and figures/. By default a
    folder in runs/."""
    data_root: str | None = None
    """Folder of the data set. By default the download folder below $XDG_CACHE_HOME or ~/.cache."""
    dry_run: Flag = False
    """Print the commands of all steps, and run none of them."""


def main() -> None:
    """Run the command line."""
    run_command(Recipe, "codegrid.recipes.run:run_recipe")


if __name__ == "__main__":
    main()
