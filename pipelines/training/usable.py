"""Models that can be used while their training runs, or after it was stopped: `codegrid.usable` finds them."""

import os
import shutil
from pathlib import Path

from codegrid.files import remove_folder, write_folder
from codegrid.model_card import CARD
from codegrid.usable import BEST, CONFIG, LAST, WEIGHTS

from .objective import Metrics, Objective


def write_usable(folder: Path, objective: Objective, history: list[Metrics], is_best: bool) -> None:
    """Write what was validated as the last model of a run, and if it is the best so far, as the best one."""
    objective.save(folder / LAST, history)
    if is_best:
        with write_folder(folder / BEST, index=CONFIG) as staging:
            for name in (CONFIG, WEIGHTS):
                _link(folder / LAST / name, staging / name)


def remove_usable(folder: Path) -> None:
    """Remove these models from the folder of a finished run, and nothing that someone laid beside them."""
    for place in (folder / LAST, folder / BEST):
        remove_folder(place, (CONFIG, WEIGHTS, CARD))


def _link(path: Path, other: Path) -> None:
    """Give a file a second name, which costs nothing, or a copy where the disk has no such thing."""
    try:
        os.link(path, other)  # no file of a model folder is ever changed: it is replaced
    except OSError:
        shutil.copyfile(path, other)
