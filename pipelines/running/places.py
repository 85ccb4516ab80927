"""The places of a run's parts: `tokenizer/`, `codes/`, `codes_test/`, `prior/` below one folder.

Nothing here imports torch.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from codegrid.errors import InputError

PARTS = {"tokenizer": "tokenizer", "codes": "codes", "validation_codes": "codes_test"}  # setting → folder
MADE_BY = {"tokenizer": "train-tokenizer", "codes": "export-codes", "prior": "train-prior"}  # setting → command
RUNS = "runs"  # where results go by default
OF_PRIORS = re.compile(r"prior(-(0|[1-9]\d{0,2}))?")


def find_part(run: str | Path, setting: str) -> str | tuple[str, ...]:
    """Return the folder below `run` for a setting; several for `prior`; empty if there is none."""
    if setting == "prior":
        return tuple(find_priors(run))
    folder = Path(run) / PARTS[setting]
    return str(folder) if folder.is_dir() else ""


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
