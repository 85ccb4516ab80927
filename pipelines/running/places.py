"""The places of a run's parts: `tokenizer/`, `codes/`, `codes_test/`, `prior/` below one folder.

Nothing here imports torch.
"""

from pathlib import Path

PARTS = {"tokenizer": "tokenizer", "codes": "codes", "validation_codes": "codes_test"}  # setting → folder
MADE_BY = {"tokenizer": "train-tokenizer", "codes": "export-codes", "prior": "train-prior"}  # setting → command
RUNS = "runs"  # where results go by default


def find_part(run: str | Path, setting: str) -> str | tuple[str, ...]:
    """Return the folder below `run` for a setting; several for `prior`; empty if there is none."""
    if setting == "prior":
        return tuple(find_priors(run))
    folder = Path(run) / PARTS[setting]
    return str(folder) if folder.is_dir() else ""


def find_priors(run: str | Path) -> list[str]:
    """Return the folders of the priors below `run`: prior/, or prior-0/, prior-1/, ... coarse to fine."""
    if (Path(run) / "prior").is_dir():
        return [str(Path(run) / "prior")]
    found: list[str] = []
    while (Path(run) / f"prior-{len(found)}").is_dir():
        found.append(str(Path(run) / f"prior-{len(found)}"))
    return found
