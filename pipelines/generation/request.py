"""What a user asks a prior for: how many samples, of which classes, drawn how.

Shapes: n samples, m known sites.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from codegrid.errors import InputError
from codegrid.pipelines.running.checks import check_ranges
from codegrid.stage2_prior import NO_LABEL, Controls, GatedPixelCNN

LEARNT_NONE_WITHOUT = "this prior learnt no grids without a label: train it with --label-dropout 0.1"


class Request(NamedTuple):
    """Checked, and the same for every process that draws a part of it."""

    num_samples: int
    labels: list[int] | None  # a number for each sample; None for an unconditional prior
    seed: int
    controls: dict[str, Any]  # the arguments of `Controls`
    # the first codes in raster order, which are kept: (pictures, m), of each picture for `of_each` samples in turn
    known: torch.Tensor | None = None
    of_each: int = 1

    @property
    def num_known(self) -> int:
        """m, the codes of each sample that are kept."""
        return 0 if self.known is None else self.known.shape[1]

    def known_of(self, rows: range) -> torch.Tensor | None:
        """The kept codes (b, m) of some samples."""
        return None if self.known is None else self.known[torch.arange(rows.start, rows.stop) // self.of_each]


def make_request(
    prior: GatedPixelCNN,
    num_samples: int,
    labels: Sequence[int | str] | torch.Tensor | None,
    seed: int,
    controls: dict[str, Any],
    things: str = "samples",
) -> Request:
    """Raises `InputError` where the prior cannot follow; `things` is what it calls the samples."""
    check_ranges({"num_samples": num_samples, "seed": seed, **controls})
    guidance_scale = Controls(**controls).guidance_scale
    if guidance_scale != 1 and not prior.num_classes:
        raise InputError(f"--guidance-scale {guidance_scale}: this prior is unconditional; leave it out")
    if guidance_scale != 1 and not prior.label_dropout:
        raise InputError(f"--guidance-scale {guidance_scale}: {LEARNT_NONE_WITHOUT}")
    given = () if labels is None else labels.tolist() if isinstance(labels, torch.Tensor) else list(labels)
    numbers = number_labels(given, num_samples, prior, things)
    if guidance_scale != 1 and set(numbers) == {NO_LABEL}:
        raise InputError(f"--guidance-scale {guidance_scale}: guidance needs --labels to guide to")
    return Request(num_samples, numbers, seed, controls)


def number_labels(
    labels: Sequence[int | str], num_samples: int, prior: GatedPixelCNN, things: str = "samples"
) -> list[int] | None:
    """Class numbers for every sample from what the user wrote: numbers or names, one for each sample or one for all.

    `none` asks for no particular class. Without any label, all classes in turn; None for an unconditional prior.
    """
    if not prior.num_classes:
        if labels:
            raise InputError("--labels: this prior is unconditional; leave them out")
        return None
    if not labels:
        return [i % prior.num_classes for i in range(num_samples)]
    if len(labels) not in (1, num_samples):
        raise InputError(
            f"--labels: {len(labels)} labels for {num_samples} {things}: give one for each, or one for all"
        )
    numbers = [_number_label(label, prior) for label in labels]
    return numbers * num_samples if len(numbers) == 1 else numbers


def _number_label(label: int | str, prior: GatedPixelCNN) -> int:
    classes = prior.provenance.get("classes", [])
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if str(label).isdecimal() and int(label) < prior.num_classes:
        return int(label)
    if label in ("none", NO_LABEL):
        if not prior.label_dropout:
            raise InputError(f"label {label}: {LEARNT_NONE_WITHOUT}")
        return NO_LABEL
    names = f" ({', '.join(classes[:20])})" if classes else ""
    raise InputError(f"label {label}: there are classes 0 to {prior.num_classes - 1}{names}")


def complete_codes(
    prior: GatedPixelCNN,
    codes: torch.Tensor,
    keep: int | torch.Tensor,
    num_completions: int,
    labels: Sequence[int | str] | torch.Tensor | None,
    seed: int,
    controls: dict[str, Any],
) -> Request:
    """Ask for completions of grids (n, h, w); those of one grid stand behind each other.

    Args:
        keep: how many rows, from the top, or a mask (h, w) of the sites that are kept.
        labels: one for each grid or one for all; by default none.

    Raises `InputError` where what is kept is not what comes first in raster order, or the prior cannot follow.
    """
    check_ranges({"num_completions": num_completions})
    num_known = count_known(keep, *codes.shape[1:])
    if labels is None or not len(labels):
        if prior.num_classes and not prior.label_dropout:
            raise InputError(f"--labels is needed to complete pictures: {LEARNT_NONE_WITHOUT}")
        labels = ["none"] if prior.num_classes else None
    of_grids = make_request(prior, len(codes), labels, seed, controls, "pictures")
    of_all = None if of_grids.labels is None else [label for label in of_grids.labels for _ in range(num_completions)]
    return of_grids._replace(
        num_samples=len(codes) * num_completions, labels=of_all, known=codes.flatten(1)[:, :num_known],
        of_each=num_completions,
    )  # fmt: skip


def count_known(keep: int | torch.Tensor, height: int, width: int) -> int:
    """How many sites of an (h, w) grid are kept, for rows from the top or for a mask of the kept ones."""
    if not isinstance(keep, torch.Tensor):
        if height == 1:
            raise InputError("grids have a single row of codes: with that kept, nothing would be left to draw")
        if not 0 < keep < height:
            raise InputError(f"--keep-rows {keep}: it must be at least 1 and below the {height} rows of codes")
        return keep * width
    if tuple(keep.shape) != (height, width):
        raise InputError(f"the mask has the shape {tuple(keep.shape)}, but grids have {height}×{width} codes")
    in_order = keep.flatten().bool()
    count = int(in_order.sum())
    if not in_order[:count].all():
        raise InputError(
            f"the mask keeps site {int(in_order.nonzero().max())} in raster order, but not all before it: "
            "codes are drawn in that order, so only the first ones can be kept"
        )
    return count
