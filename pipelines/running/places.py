"""The places of a run's parts: `tokenizer/`, `codes/`, `codes_test/`, `prior/` below one folder.

Nothing here imports torch.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from codegrid.errors import InputError

PARTS = {"tokenizer": "tokenizer", "codes": "codes", "validation_codes": "codes_test"}  # setting → folder
PLAIN_CODES = ("codes.npz", "codes.parquet")
MADE_BY = {"tokenizer": "train-tokenizer", "codes": "export-codes", "prior": "train-prior"}  # setting → command
MAX_TOKENIZERS = 10  # each over the codes of the one before
RUNS = "runs"  # where results go by default
OF_PRIORS = re.compile(r"prior(-(0|[1-9]\d{0,2}))?")


def find_part(run: str | Path, setting: str) -> str | tuple[str, ...]:
    """Return the folder below `run` for a setting; several for `prior` and `tokenizer`; empty if there is none.

    Codes that were exported as plain arrays are a file in that folder.
    """
    if setting == "prior":
        return tuple(find_priors(run))
    if setting == "tokenizer":
        return tuple(find_tokenizers(run))
    folder = Path(run) / PARTS[setting]
    if not folder.is_dir():
        return ""
    plain = [folder / name for name in PLAIN_CODES if (folder / name).is_file()]
    return str(plain[0] if plain and not (folder / "manifest.json").exists() else folder)


def find_tokenizers(run: str | Path) -> list[str]:
    """Return the folder tokenizer/ below `run`, or tokenizer-0/, tokenizer-1/, ..., each over the codes of the last."""
    numbered = (Path(run) / name for name in map(tokenizer_name, range(MAX_TOKENIZERS)))
    found = [str(folder) for folder in numbered if folder.is_dir()]
    whole = Path(run) / PARTS["tokenizer"]
    return [str(whole)] if whole.is_dir() else found


def tokenizer_name(number: int) -> str:
    """Return the folder's name of one of several tokenizers below a run."""
    return f"{PARTS['tokenizer']}-{number}"


def find_priors(run: str | Path) -> list[str]:
    """Return the folders of the priors below `run`: prior/, or prior-0/, prior-1/, ... coarse to fine.

    Raises `InputError` if there are both.
    """
    names = list_priors(run)
    if "prior" in names[:-1]:
        raise InputError(f"{run} holds {', '.join(f'{name}/' for name in names)}: name those to use as `prior`")
    return [str(Path(run) / name) for name in names]


def list_priors(run: str | Path) -> list[str]:
    """Return the names of all folders of priors below `run`, in order."""
    folders = [path.name for path in Path(run).glob("prior*") if OF_PRIORS.fullmatch(path.name) and path.is_dir()]
    return sorted(folders, key=lambda name: int(name.removeprefix("prior").removeprefix("-") or -1))


def prior_of(grids: Sequence[int]) -> str:
    """Return the folder's name, below a run, of a prior of these grids, prior-1 if 1 is the first, or of all grids."""
    return f"prior-{min(grids)}" if grids else "prior"
