"""Loading a tokenizer, from one folder, or several of which each encodes the codes of the one before; encoding with it.

Shapes: n images, b batch, c channels, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from codegrid.codes import Codes
from codegrid.devices import Device
from codegrid.errors import InputError
from codegrid.model_config import read_model_config
from codegrid.model_folder import load_model
from codegrid.pipelines.running.places import PARTS
from codegrid.pipelines.running.run_folder import read_record, read_setting
from codegrid.protocols import Tokenizer
from codegrid.stage1_vqvae.stacked import StackedTokenizer

LOWER = "lower_tokenizer"  # in run.json: the folder of the tokenizer whose codes were learnt


def load_tokenizer(sources: str | Path | Sequence[str | Path], device: Device = "cpu") -> Tokenizer:
    """Load a tokenizer of images from a folder, or from several: that of images, and those over codes in turn.

    A tokenizer over codes that comes first is put on the one that it was trained on, if that is still there.

    Raises `InputError` if a folder is missing or damaged, or one was not trained on the codes of the one before.
    """
    folders = [sources] if isinstance(sources, str | Path) else list(sources)
    loaded = [load_model(folder, device, "tokenizer") for folder in folders]
    while loaded[0].signal.kind == "codes":
        lower = find_lower(loaded[0])
        if not lower:
            raise InputError(
                f"{folders[0]} encodes the codes of another tokenizer, which is not found: give `tokenizer` both "
                "folders, that one first"
            )
        loaded.insert(0, load_model(lower, device, "tokenizer"))
    return reduce(StackedTokenizer, loaded)


@torch.no_grad()
def encode_batches(tokenizer: Tokenizer, batches: Iterable[torch.Tensor]) -> Codes:
    """Return the codes (n, *shape), on the CPU, of images or sound (b, c, *size) in [-1, 1] that come in batches."""
    encoded = [[grid.cpu() for grid in tokenizer.encode(batch.to(tokenizer.device))] for batch in batches]
    return tuple(torch.cat(grids) for grids in zip(*encoded, strict=True))


def need_images(tokenizer: Tokenizer, use: str) -> None:
    """Raise `InputError`, saying what `use` does, if a tokenizer is not one of images."""
    if tokenizer.signal.kind != "image":
        raise InputError(f"`tokenizer` is one of {tokenizer.signal.kind}, but {use} images only: give one of images")


def find_lower(upper: Any) -> str:
    """Return the folder of the tokenizer whose codes another one was trained on; empty if it is no longer there."""
    folder: Path | None = upper.loaded_from
    records = [read_record(place, "train-tokenizer") for place in (folder, folder.parent)] if folder else []
    places = [record[LOWER] for record in records if isinstance(record.get(LOWER), str)]
    return next((place for place in places if _is(place, upper.provenance.get("tokenizer_fingerprint"))), "")


def made_by(codes: Path, fingerprint: str) -> str:
    """Return the folder of the tokenizer that made exported codes, as far as their folder tells; else empty."""
    told = read_setting(codes, "tokenizer")
    places = [*(told if isinstance(told, list) else [told]), codes.parent / PARTS["tokenizer"]]
    return next((str(Path(place).resolve()) for place in places if place and _is(place, fingerprint)), "")


def _is(place: str | Path, fingerprint: object) -> bool:
    """Return whether a folder holds the model of this fingerprint."""
    try:
        return read_model_config(Path(place), "tokenizer")["fingerprint"] == fingerprint
    except (InputError, OSError):
        return False
