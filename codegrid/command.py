"""The `codegrid` command: list all commands, or run one of them.

codegrid train-tokenizer --dataset mnist5k --output runs/digits/tokenizer
"""

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

from .console import steady_streams

COMMANDS = {
    "demo": "both stages on handwritten digits, in minutes",
    "recipe": "run a whole recipe, from images to figures, or list them",
    "train-tokenizer": "stage 1: learn to turn images into codes and back",
    "export-codes": "encode a data set into codes",
    "train-prior": "stage 2: learn which codes follow which",
    "sample": "draw new images, or complete given ones",
    "decode-codes": "turn codes back into images",
    "evaluate": "measure tokenizer, prior and samples",
    "doctor": "say which stage of a run is at fault",
    "plot": "draw reconstructions, codes, codebook, curves, samples",
    "view": "look at everything in the browser",
    "rank-captions": "say which of several captions fits a picture best",
    "compress": "turn images into one small file, with a prior as the model",
    "decompress": "turn such a file back into images",
    "convert": "repeat recordings in another speaker's voice",
    "import-model": "turn a checkpoint of another project into a model",
    "export-model": "write a tokenizer, or both stages, in the form of another library",
}

# For bash. Each command is asked for its flags when they are first needed; exit code 124 makes bash try again.
COMPLETION = """\
_codegrid_load() { eval "$("$1" --tyro-print-completion bash 2> /dev/null)" && return 124; }
_codegrid() {
  if [ "$COMP_CWORD" -le 1 ]; then
    COMPREPLY=($(compgen -W "NAMES --completion --help --version" -- "$2"))
    return
  fi
  local name="codegrid-${COMP_WORDS[1]//_/-}"
  local complete="_tyro_${name//-/_}"
  declare -F "$complete" > /dev/null || _codegrid_load "$name"
  COMP_WORDS=("$name" "${COMP_WORDS[@]:2}")
  COMP_CWORD=$((COMP_CWORD - 1))
  declare -F "$complete" > /dev/null && "$complete"
}
complete -F _codegrid codegrid
for name in NAMES; do complete -F _codegrid_load "codegrid-$name"; done
unset name"""

OVERVIEW = """\
usage: codegrid COMMAND [FLAGS]

Two-stage discrete image models: image → codes → prior → codes → image.

COMMANDS

`codegrid COMMAND --help` explains the flags of each; `codegrid --version` prints the version.
To complete them in bash: eval "$(codegrid --completion)\""""


def main() -> None:
    """Run the command that the first word names."""
    steady_streams()
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
        print(OVERVIEW.replace("COMMANDS", lines))
    elif words[0] in ("--version", "-V"):
        print(f"codegrid {version('codegrid')}")
    elif words[0] == "--completion":
        print(COMPLETION.replace("NAMES", " ".join(COMMANDS)))
    elif (name := words[0].replace("_", "-")) in COMMANDS:
        sys.argv = [f"codegrid-{name}", *words[1:]]
        # imported by name: the base layer must not depend on the layers above it
        import_module(f"{__package__}.pipelines.{name.replace('-', '_')}").main()
    else:
        close = [each for each in COMMANDS if each.startswith(f"{name}-")] or get_close_matches(name, COMMANDS, n=1)
        meant = f": did you mean {' or '.join(close)}?" if close else "; `codegrid --help` lists them"
        print(f"error: there is no command {words[0]}{meant}", file=sys.stderr)
        sys.exit(2)
