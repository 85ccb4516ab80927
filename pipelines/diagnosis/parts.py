"""What the doctor is given: the folders of a run, as far as there are such.

Shapes: n grids, h w code grid.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from codegrid.data import CodeDataset
from codegrid.data.held_out import Part
from codegrid.data.sources import Images, load_images
from codegrid.data.splits import split_indices
from codegrid.errors import InputError
from codegrid.pipelines.running.use_configs import Doctor
from codegrid.stage1_vqvae import VQVAE
from codegrid.stage2_prior import GatedPixelCNN

# the place of each part in a run as the demo leaves it
PLACES = {"tokenizer": "tokenizer", "prior": "prior", "codes": "codes", "validation_codes": "codes_test"}
AT_HAND = ("mnist5k",)  # data sets that are there without a download


class Parts(NamedTuple):
    """The parts of a run; None where one is missing."""

    tokenizer: VQVAE | None
    prior: GatedPixelCNN | None
    codes: CodeDataset | None
    validation: CodeDataset | None
    images: Images | None  # the test part
    folders: dict[str, str]  # where each part is, under the name of its flag
    left_out: list[str]  # sentences: what is missing, and what follows
    device: torch.device

    def fingerprints(self) -> dict[str, str]:
        """Of the tokenizer that each part goes back to."""
        prints = {}
        if self.tokenizer is not None:
            prints["tokenizer"] = self.tokenizer.fingerprint()
        for name, codes in (("codes", self.codes), ("validation_codes", self.validation)):
            if codes is not None:
                prints[name] = codes.header.tokenizer_fingerprint
        if self.prior is not None:
            prints["prior"] = str(self.prior.provenance.get("tokenizer_fingerprint"))
        return prints

    def facts(self) -> dict[str, Any]:
        """What the figures depend on beside the settings."""
        return {
            "tokenizer": self.tokenizer and self.tokenizer.fingerprint(),
            "prior": self.prior and self.prior.fingerprint(),
            "codes": None if self.codes is None else self.codes.identity(),
            "validation_codes": None if self.validation is None else self.validation.identity(),
            "data": None if self.images is None else self.images.identity(),
        }

    def grids(self) -> tuple[CodeDataset | Part | None, CodeDataset | Part | None]:
        """Grids that the prior learnt from, and held-out ones; None where there are none that fit it."""
        training = self.codes if self._fits(self.codes, "codes") else None
        if self.validation is not None:
            return training, self.validation if self._fits(self.validation, "validation_codes") else None
        if training is None:
            return None, None
        parts = [Part(training, split_indices(training.labels, len(training), split)) for split in ("train", "test")]
        return (parts[0], parts[1]) if all(len(part) for part in parts) else (training, None)

    def _fits(self, codes: CodeDataset | None, name: str) -> bool:
        if codes is None or self.prior is None:
            return False
        prints = self.fingerprints()
        if prints[name] != prints["prior"] or codes.num_embeddings != self.prior.num_embeddings:
            return False
        if list(codes.grid_shape) != self.prior.provenance.get("grid_shape", list(codes.grid_shape)):
            return False
        return not self.prior.num_classes or codes.classes == self.prior.provenance.get("classes")


def load_parts(settings: Doctor, device: torch.device) -> Parts:
    """Load what the settings name. Raises `InputError` where nothing is there, or something is damaged."""
    folders, left_out = _locate(settings)
    tokenizer = prior = codes = validation = None
    if "tokenizer" in folders:
        tokenizer = VQVAE.from_pretrained(folders["tokenizer"], device)
    if "prior" in folders:
        prior = GatedPixelCNN.from_pretrained(folders["prior"], device)
    if "codes" in folders:
        codes = CodeDataset(folders["codes"])
    if "validation_codes" in folders:
        validation = CodeDataset(folders["validation_codes"])
    images = _load_images(settings, tokenizer, left_out)
    return Parts(tokenizer, prior, codes, validation, images, folders, left_out, device)


def _locate(settings: Doctor) -> tuple[dict[str, str], list[str]]:
    """The folder of each part, and what is to be said of those that are missing."""
    if settings.run is not None and not Path(settings.run).is_dir():
        raise InputError(f"no folder {settings.run}: give --run the folder that holds tokenizer/, prior/ and codes/")
    folders, missing = {}, {}
    for name, place in PLACES.items():
        given, flag = getattr(settings, name), "--" + name.replace("_", "-")
        if given is not None:
            folders[name] = given
        elif settings.run is not None and (Path(settings.run) / place).is_dir():
            folders[name] = str(Path(settings.run) / place)
        else:
            missing[name] = f"no {place}/ (give {flag})"
    if not folders:
        raise InputError(
            f"there is nothing to look at in {settings.run or 'what was given'}: give --run FOLDER that holds "
            "tokenizer/, prior/ or codes/, or name them by --tokenizer, --prior and --codes"
        )
    losses = {name: _loss_of(name, "prior" in folders, "codes" in folders) for name in missing}
    return folders, [f"{words}: {losses[name]}" for name, words in missing.items() if losses[name]]


def _loss_of(name: str, has_prior: bool, has_codes: bool) -> str:
    """What cannot be looked at without a part; empty where that follows from another part that is missing."""
    if name == "tokenizer":
        return "the decoder is not looked at"
    if name == "prior":
        return "neither the prior nor its samples are looked at"
    if name == "codes":
        bits = "; what the prior saves on training grids, and copies of them, are not looked at" if has_prior else ""
        return "the codebook is judged by images, if there are any" + bits
    stands_in = "every tenth grid of codes/ stands in, though the prior may have learnt it"
    return (stands_in if has_codes else "there are no held-out grids") if has_prior else ""


def _load_images(settings: Doctor, tokenizer: VQVAE | None, left_out: list[str]) -> Images | None:
    if tokenizer is None:
        return None
    learnt = tokenizer.provenance.get("dataset")
    dataset = settings.dataset or (learnt if learnt in AT_HAND else None)
    if dataset is None:
        name = f"--dataset {learnt}" if isinstance(learnt, str) else "--dataset"
        left_out.append(f"no images (give {name}, and --data-root where they are): the decoder is not looked at")
        return None
    try:
        return load_images(dataset, settings.data_root, "test", tokenizer.image_size, tokenizer.in_channels)
    except InputError as error:
        if settings.dataset:
            raise
        left_out.append(f"no images ({error}): the decoder is not looked at")
        return None
