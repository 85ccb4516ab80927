"""Run both stages on 5,000 real handwritten digits: `codegrid demo`."""

from dataclasses import dataclass

from codegrid.pipelines.running.cli import run_command
from codegrid.pipelines.running.settings import Folder, GivesFigures


@dataclass(frozen=True, kw_only=True)
class Demo(GivesFigures):
    """Run both stages on 5,000 real handwritten digits, in minutes: tokenizer, codes, prior, samples, metrics.

    codegrid demo
    """

    output: Folder = "runs/demo"
    """Folder for tokenizer/, codes/, prior/, samples/ and the figures."""


def main() -> None:
    """Run the command line."""
    run_command(Demo, "codegrid.recipes.run:demo")


if __name__ == "__main__":
    main()
