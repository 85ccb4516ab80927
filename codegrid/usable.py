"""The usable model of a training run's folder: the finished one, else the best so far, else the last.

OUTPUT/best and OUTPUT/last are model folders, rewritten at each validation and removed when the finished model is in
OUTPUT itself.
"""

import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TypeVar

from .errors import InputError
from .extra_files import EXTRAS
from .files import STAGING, stamp_of

BEST, LAST = "best", "last"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_FILES = (CONFIG, WEIGHTS, *EXTRAS)
# folders in a model folder from which other libraries load parts of the model, and their files
PARTS = {
    "unet": ("config.json", "diffusion_pytorch_model.safetensors"),
    "scheduler": ("scheduler_config.json",),
}
AUTOENCODER = "vqvae"  # the folder of a tokenizer in a pipeline of diffusers, beside those of `PARTS`
TRIES, PAUSE = 5, 0.3  # seconds: a folder is replaced in less

Loaded = TypeVar("Loaded")


def find_usable(folder: Path) -> Path:
    """Return `folder` if it holds a complete model, else its `best`, else its `last`; `folder` if there is none."""
    places = (folder, folder / BEST, folder / LAST)
    return next((place for place in places if all((place / name).is_file() for name in (CONFIG, WEIGHTS))), folder)


def load_usable(folder: Path, load: Callable[[Path], Loaded]) -> Loaded:
    """Return what `load` returns for the folder that `find_usable` finds. Tries again if it was replaced meanwhile.

    Prints which model that is, unless it is the finished one.
    """
    for tries in count(1):
        place = find_usable(folder)
        before = stamp_of(place / CONFIG)
        try:
            loaded = load(place)
            break
        except (InputError, OSError):
            is_being_written = any((each / STAGING).exists() for each in (folder, folder / BEST, folder / LAST))
            if tries == TRIES or (stamp_of(place / CONFIG) == before and not is_being_written):
                raise
            time.sleep(PAUSE)
    if place != folder:
        print(f"{folder} is not finished: using its {place.name} model so far", file=sys.stderr)
    return loaded
