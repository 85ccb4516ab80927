"""Artifacts of a run: models, codes and images, loaded for the commands that inspect them.

`load_artifacts` loads parts that must belong together, `find_artifacts` whatever a run's folder holds.
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
from codegrid.data.names import AT_HAND, Places, find_data, kind_of
from codegrid.data.sources import Images, load_images
from codegrid.data.splits import warn_of_few
from codegrid.errors import InputError
from codegrid.model_folder import load_model
from codegrid.pipelines.running.places import PARTS, find_part, find_priors
from codegrid.protocols import Prior, Tokenizer

from .chosen_data import learnt_data, recorded_data, skips_unreadable
from .pairing import check_pairing, prior_names
from .pipeline import TwoStagePipeline
from .tokenizers import load_tokenizer


@dataclass
class Artifacts:
    """Parts of a run. A missing part is None, or an empty tuple."""

    tokenizer: Tokenizer | None = None
    priors: tuple[Prior, ...] = ()  # coarse to fine
    codes: CodeDataset | CodeArray | None = None
    validation: CodeDataset | None = None  # codes that the priors were not trained on
    images: Images | None = None
    device: torch.device | str = "cpu"
    # where each part is: tokenizer, codes, validation_codes, images, and prior, or prior-0, prior-1, ... of several
    folders: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # sentences: what is missing, and what follows

    @cached_property
    def pipeline(self) -> TwoStagePipeline:
        """Both stages as one pipeline. Raises `InputError` if one is missing, or they do not belong together."""
        if self.tokenizer is None or not self.priors:
            raise InputError("both stages are needed: give `tokenizer` and `prior`")
        return TwoStagePipeline(self.tokenizer, *self.priors)

    @property
    def prior_names(self) -> list[str]:
        """The keys of the priors in `folders`: prior, or prior-0, prior-1, ... if there are several."""
        return prior_names(len(self.priors))

    def tokenizer_fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of the tokenizer that each part was made with, by the keys of `folders`."""
        prints = {} if self.tokenizer is None else {"tokenizer": self.tokenizer.fingerprint()}
        for name, codes in (("codes", self.codes), ("validation_codes", self.validation)):
            if isinstance(codes, CodeDataset):  # plain arrays do not record it
                prints[name] = codes.header.tokenizer_fingerprint
        for name, prior in zip(self.prior_names, self.priors, strict=True):
            prints[name] = str(prior.provenance.get("tokenizer_fingerprint"))
        return prints

    def facts(self) -> dict[str, Any]:
        """Return the fingerprints of all parts: what results depend on besides the settings."""
        parts = {
            "tokenizer": self.tokenizer, "codes": self.codes, "validation_codes": self.validation, "data": self.images,
        }  # fmt: skip
        prints = {name: None if part is None else part.fingerprint() for name, part in parts.items()}
        return {**prints, "priors": [prior.fingerprint() for prior in self.priors]}


def load_artifacts(
    device: torch.device, tokenizer: str | Sequence[str], prior: Sequence[str] = (), codes: str | None = None
) -> Artifacts:
    """Load parts that must belong together, without images: `load_images_for` loads those once they are known.

    Raises `InputError` if a part is missing or damaged, or they do not belong together.
    """
    model = load_tokenizer(tokenizer, device)
    found = Artifacts(model, tuple(load_model(folder, device, "prior") for folder in prior), device=device)
    found.folders = {"tokenizer": upper_of(tokenizer), **dict(zip(found.prior_names, prior, strict=True))}
    if found.priors:
        check_pairing(model, found.priors)  # now, before anything slow is read
    if codes is not None:
        found.codes = open_codes(codes, model)
        found.folders["codes"] = codes
    return found


def find_artifacts(
    device: torch.device,
    run: str | None = None,
    tokenizer: str | Sequence[str] = (),
    prior: Sequence[str] = (),
    codes: str | None = None,
    validation_codes: str | None = None,
    dataset: str | None = None,
    data_root: str | Places = (),
    skip_unreadable: bool = False,
) -> Artifacts:
    """Load whatever is there, whether it belongs together or not; `left_out` says what is missing.

    Args:
        run: a folder that holds tokenizer/, prior/ (or prior-0/, prior-1/, ...), codes/ and codes_test/, or some of
            them.
        tokenizer, prior, codes, validation_codes: folders to use in place of those.
        dataset, data_root, skip_unreadable: the images; their test part is loaded. By default those that the
            tokenizer was trained on, if they are on this machine.

    Raises `InputError` if nothing is there, or something is damaged.
    """
    if run is not None and not Path(run).is_dir():
        raise InputError(f"`run` {run}: there is no such folder: give one that holds tokenizer/, prior/ or codes/")
    given = {"tokenizer": tokenizer, "codes": codes, "validation_codes": validation_codes}
    places = {name: given[name] or (find_part(run, name) if run is not None else "") for name in PARTS}
    tokenizers = places["tokenizer"]
    folders = {name: upper_of(place) for name, place in places.items() if place}
    priors = list(prior) or (find_priors(run) if run is not None else [])
    if not folders and not priors:
        raise InputError(
            f"there is nothing to check in {run or 'what was given'}: give `run`, a folder that holds tokenizer/, "
            "prior/ or codes/, or name them with `tokenizer`, `prior` and `codes`"
        )
    plain = [name for name in ("codes", "validation_codes") if Path(folders.get(name, "")).is_file()]
    unchecked = [f"{folders.pop(name)}: arrays do not say enough to be checked; a code dataset does" for name in plain]
    found = Artifacts(device=device, left_out=_missing(folders, bool(priors)) + unchecked)
    found.folders = {**folders, **dict(zip(prior_names(len(priors)), priors, strict=True))}
    if "tokenizer" in folders:
        found.tokenizer = load_tokenizer(tokenizers, device)
    found.priors = tuple(load_model(folder, device, "prior") for folder in priors)
    found.codes = CodeDataset(folders["codes"]) if "codes" in folders else None
    found.validation = CodeDataset(folders["validation_codes"]) if "validation_codes" in folders else None
    if found.codes and found.validation and found.codes.header.split == "all" != found.validation.header.split:
        folder = found.folders.pop("validation_codes")
        found.left_out.append(f"{folder}: codes/ holds its images too; some grids of codes/ are used instead")
        found.validation = None
    if getattr(found.tokenizer, "draws", False):
        found.left_out.append("images: the decoder draws them, which evaluate measures; it is not checked here")
    elif found.tokenizer is not None and found.tokenizer.signal.kind != "image":
        found.left_out.append("sound: the doctor looks at images; evaluate measures sound, and codes are checked here")
    elif found.tokenizer is not None:
        found.images = _find_images(found, found.tokenizer, dataset, data_root, skip_unreadable)
    return found


def upper_of(folders: str | Sequence[str]) -> str:
    """Return the folder of the last of several tokenizers, whose codes the other parts have."""
    return folders if isinstance(folders, str) else folders[-1]


def load_images_for(
    tokenizer: Tokenizer,
    dataset: str,
    data_root: str | Places,
    split: str,
    skip_unreadable: bool = False,
    captions: str | None = None,
) -> Images:
    """Load one part of a data set, converted to the tokenizer's size, channels and sampling rate.

    Raises `InputError` if it holds another kind of signal.
    """
    signal, held = tokenizer.signal, kind_of(find_data(dataset, data_root)[0])
    if held != signal.kind:
        raise InputError(f"`dataset` {dataset} holds {held}s, but the tokenizer is one of {signal.kind}s: give another")
    shortest = getattr(tokenizer.stack[0], "hop", 1)  # samples of a code
    form = (signal.size, signal.channels, skip_unreadable, captions, signal.rate, shortest)
    return load_images(dataset, data_root, split, *form)


def _missing(folders: dict[str, str], has_prior: bool) -> list[str]:
    """Return sentences on what cannot be checked without the missing parts."""
    told = []
    if "tokenizer" not in folders:
        told.append("no tokenizer/ (give `tokenizer`): the decoder is not checked")
    if not has_prior:
        told.append("no prior/ (give `prior`): neither the prior nor its samples are checked")
    if "codes" not in folders:
        bits = "; the prior's bits on training grids, and copies of them, are not checked" if has_prior else ""
        told.append("no codes/ (give `codes`): the codebook is judged by images, if there are any" + bits)
    if "validation_codes" not in folders and has_prior:
        stands_in = "some grids of codes/ are used instead, though the prior may have learnt them"
        words = stands_in if "codes" in folders else "there are no held-out grids"
        told.append(f"no {PARTS['validation_codes']}/ (give `validation_codes`): {words}")
    return told


def _find_images(
    found: Artifacts, tokenizer: Tokenizer, dataset: str | None, data_root: str | Places, skip_unreadable: bool
) -> Images | None:
    """Load the test part of the named data set, or of the tokenizer's; if it is not there, note that in `left_out`."""
    is_named = dataset is not None or bool(data_root)
    at_hand = tokenizer.provenance.get("dataset") in AT_HAND or recorded_data(tokenizer) is not None
    if not is_named and not at_hand:  # download nothing that nobody asked for
        learnt = tokenizer.provenance.get("dataset")
        name = f"`dataset` {learnt}" if isinstance(learnt, str) else "`dataset`"
        found.left_out.append(f"no images (give {name}, and their place as `data_root`): the decoder is not checked")
        return None
    try:
        chosen, places = find_data(dataset, data_root) if dataset else learnt_data(tokenizer, data_root)
        skip = skip_unreadable or (not dataset and skips_unreadable(tokenizer))
        images = load_images_for(tokenizer, chosen, places, "test", skip)
    except InputError as error:
        if is_named:
            raise
        found.left_out.append(f"no images ({error}): the decoder is not checked")
        return None
    found.folders["images"] = " ".join(places) or chosen
    found.left_out += warn_of_few(len(images), "images")
    return images
