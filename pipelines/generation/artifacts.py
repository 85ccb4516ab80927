"""Artifacts of a run: models, codes and images, loaded for the commands that look at them.

`load_artifacts` is for parts that must belong together, `find_artifacts` for a run's folder in whatever state it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from codegrid.data.code_files import CodeArray, open_codes
from codegrid.data.codes import CodeDataset
from codegrid.data.names import AT_HAND, find_data
from codegrid.data.sources import Images, load_images
from codegrid.data.splits import warn_of_few
from codegrid.errors import InputError
from codegrid.model_folder import load_model
from codegrid.pipelines.running.places import PARTS, find_part, find_priors
from codegrid.protocols import Prior, Tokenizer

from .chosen_data import learnt_data, recorded_data
from .pairing import check_pairing, prior_names
from .pipeline import TwoStagePipeline


@dataclass
class Artifacts:
    """Parts of a run. None, or an empty tuple, where a part is missing."""

    tokenizer: Tokenizer | None = None
    priors: tuple[Prior, ...] = ()  # coarse to fine
    codes: CodeDataset | CodeArray | None = None
    validation: CodeDataset | None = None  # codes that the priors did not learn
    images: Images | None = None
    device: torch.device | str = "cpu"
    # where each part is: tokenizer, codes, validation_codes, images, and prior, or prior-0, prior-1, ... of several
    folders: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # sentences: what is missing, and what follows

    @cached_property
    def pipeline(self) -> TwoStagePipeline:
        """Both stages together. Raises `InputError` where one is missing, or they do not belong together."""
        if self.tokenizer is None or not self.priors:
            raise InputError("both stages are needed: give `tokenizer` and `prior`")
        return TwoStagePipeline(self.tokenizer, *self.priors)

    @property
    def prior_names(self) -> list[str]:
        """The keys of the priors in `folders`: prior, or prior-0, prior-1, ... of several."""
        return prior_names(len(self.priors))

    def tokenizer_fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of the tokenizer that each part goes back to, by the keys of `folders`."""
        prints = {} if self.tokenizer is None else {"tokenizer": self.tokenizer.fingerprint()}
        for name, codes in (("codes", self.codes), ("validation_codes", self.validation)):
            if isinstance(codes, CodeDataset):  # plain arrays do not tell
                prints[name] = codes.header.tokenizer_fingerprint
        for name, prior in zip(self.prior_names, self.priors, strict=True):
            prints[name] = str(prior.provenance.get("tokenizer_fingerprint"))
        return prints

    def facts(self) -> dict[str, Any]:
        """Return the fingerprints of all parts: what results depend on beside the settings."""
        parts = {
            "tokenizer": self.tokenizer, "codes": self.codes, "validation_codes": self.validation, "data": self.images,
        }  # fmt: skip
        prints = {name: None if part is None else part.fingerprint() for name, part in parts.items()}
        return {**prints, "priors": [prior.fingerprint() for prior in self.priors]}


def load_artifacts(
    device: torch.device, tokenizer: str, prior: Sequence[str] = (), codes: str | None = None
) -> Artifacts:
    """Load parts that must belong together; images are loaded by `load_images_for`, once it is known which.

    Raises `InputError` where a part is missing or damaged, or they do not belong together.
    """
    model = load_model(tokenizer, device, "tokenizer")
    found = Artifacts(model, tuple(load_model(folder, device, "prior") for folder in prior), device=device)
    found.folders = {"tokenizer": tokenizer, **dict(zip(found.prior_names, prior, strict=True))}
    if found.priors:
        check_pairing(model, found.priors)  # now, before anything is read that takes long
    if codes is not None:
        found.codes = open_codes(codes, model)
        found.folders["codes"] = codes
    return found


def find_artifacts(
    device: torch.device,
    run: str | None = None,
    tokenizer: str | None = None,
    prior: Sequence[str] = (),
    codes: str | None = None,
    validation_codes: str | None = None,
    dataset: str | None = None,
    data_root: str | None = None,
    skip_unreadable: bool = False,
) -> Artifacts:
    """Load whatever is there, whether it belongs together or not; `left_out` tells what is missing.

    Args:
        run: a folder that holds tokenizer/, prior/ (or prior-0/, prior-1/, ...), codes/ and codes_test/, or some of
            them.
        tokenizer, prior, codes, validation_codes: folders in the place of those.
        dataset, data_root, skip_unreadable: the images, of which the test part is loaded. By default those that the
            tokenizer was trained on, where they are at hand.

    Raises `InputError` where nothing is there, or something is damaged.
    """
    if run is not None and not Path(run).is_dir():
        raise InputError(f"no folder {run}: give `run`, the folder that holds tokenizer/, prior/ and codes/")
    given = {"tokenizer": tokenizer, "codes": codes, "validation_codes": validation_codes}
    places = {name: given[name] or (find_part(run, name) if run is not None else "") for name in PARTS}
    folders = {name: str(place) for name, place in places.items() if place}
    priors = list(prior) or (find_priors(run) if run is not None else [])
    if not folders and not priors:
        raise InputError(
            f"there is nothing to look at in {run or 'what was given'}: give `run`, a folder that holds tokenizer/, "
            "prior/ or codes/, or name them by `tokenizer`, `prior` and `codes`"
        )
    found = Artifacts(device=device, left_out=_missing(folders, bool(priors)))
    found.folders = {**folders, **dict(zip(prior_names(len(priors)), priors, strict=True))}
    if "tokenizer" in folders:
        found.tokenizer = load_model(folders["tokenizer"], device, "tokenizer")
    found.priors = tuple(load_model(folder, device, "prior") for folder in priors)
    found.codes = CodeDataset(folders["codes"]) if "codes" in folders else None
    found.validation = CodeDataset(folders["validation_codes"]) if "validation_codes" in folders else None
    if found.codes and found.validation and found.codes.header.split == "all" != found.validation.header.split:
        folder = found.folders.pop("validation_codes")
        found.left_out.append(f"{folder}: codes/ has its images, too; some grids of codes/ stand in")
        found.validation = None
    if found.tokenizer is not None:
        found.images = _find_images(found, found.tokenizer, dataset, data_root, skip_unreadable)
    return found


def load_images_for(
    tokenizer: Tokenizer, dataset: str, data_root: str | None, split: str, skip_unreadable: bool = False
) -> Images:
    """Load one part of a data set, brought to the tokenizer's size and channels."""
    return load_images(dataset, data_root, split, tokenizer.signal.size, tokenizer.signal.channels, skip_unreadable)


def _missing(folders: dict[str, str], has_prior: bool) -> list[str]:
    """Return what cannot be looked at without the parts that are missing."""
    told = []
    if "tokenizer" not in folders:
        told.append("no tokenizer/ (give `tokenizer`): the decoder is not looked at")
    if not has_prior:
        told.append("no prior/ (give `prior`): neither the prior nor its samples are looked at")
    if "codes" not in folders:
        bits = "; what the prior saves on training grids, and copies of them, are not looked at" if has_prior else ""
        told.append("no codes/ (give `codes`): the codebook is judged by images, if there are any" + bits)
    if "validation_codes" not in folders and has_prior:
        stands_in = "some grids of codes/ stand in, though the prior may have learnt them"
        words = stands_in if "codes" in folders else "there are no held-out grids"
        told.append(f"no {PARTS['validation_codes']}/ (give `validation_codes`): {words}")
    return told


def _find_images(
    found: Artifacts, tokenizer: Tokenizer, dataset: str | None, data_root: str | None, skip_unreadable: bool
) -> Images | None:
    """Load the test part of what was named, or of what the tokenizer learnt; where it is not there, say so."""
    is_named = dataset is not None or data_root is not None
    at_hand = tokenizer.provenance.get("dataset") in AT_HAND or recorded_data(tokenizer) is not None
    if not is_named and not at_hand:  # nothing is downloaded that nobody asked for
        learnt = tokenizer.provenance.get("dataset")
        name = f"`dataset` {learnt}" if isinstance(learnt, str) else "`dataset`"
        found.left_out.append(f"no images (give {name}, and `data_root` where they are): the decoder is not looked at")
        return None
    try:
        chosen, place = find_data(dataset, data_root) if dataset else learnt_data(tokenizer, data_root)
        images = load_images_for(tokenizer, chosen, place, "test", skip_unreadable)
    except InputError as error:
        if is_named:
            raise
        found.left_out.append(f"no images ({error}): the decoder is not looked at")
        return None
    found.folders["images"] = place or chosen
    found.left_out += warn_of_few(len(images), "images")
    return images
