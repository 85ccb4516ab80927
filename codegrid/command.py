"""The `codegrid` command: lists the commands, and runs one of them.

codegrid train-tokenizer --dataset mnist5k --output runs/digits/tokenizer
"""

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

from .console import steady_streams

COMMANDS = {
    "demo": "both stages on handwritten digits, in minutes",
    "train-tokenizer": "stage 1: learn to turn images into codes and back",
    "export-codes": "encode a data set into codes",
    "train-prior": "stage 2: learn which codes follow which",
    "sample": "draw new images, or complete given ones",
    "decode-codes": "turn codes back into images",
    "evaluate": "measure tokenizer, prior and samples",
    "plot": "draw reconstructions, codes, codebook, curves, samples",
    "doctor": "say which stage of a run is at fault",
    "view": "look at everything in the browser",
}


def main() -> None:
    """Run the command that the first word names."""
    steady_streams()
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
    elif words[0] in ("--version", "-V"):
        print(f"codegrid {version('codegrid')}")
    elif (name := words[0].replace("_", "-")) in COMMANDS:
        sys.argv = [f"codegrid-{name}", *words[1:]]
        # of this package by its name: the ground floor imports no room above it
        import_module(f"{__package__}.pipelines.{name.replace('-', '_')}").main()
    else:
        close = get_close_matches(name, COMMANDS, n=1)
        meant = f": did you mean {close[0]}?" if close else "; `codegrid --help` lists them"
        print(f"error: there is no command {words[0]}{meant}", file=sys.stderr)
        sys.exit(2)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: codegrid COMMAND [FLAGS]",
            "",
            "Two-stage discrete image models: image → codes → prior → codes → image.",
            "",
            *lines,
            "",
            "`codegrid COMMAND --help` explains the flags of each; `codegrid --version` tells the version.",
        ]
    )
