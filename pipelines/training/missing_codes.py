"""Exporting the codes that a run lacks when its prior is to be trained, with the run's tokenizer; and their views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codegrid.data.manifest import VIEWS, is_whole
from codegrid.errors import InputError
from codegrid.pipelines.export_codes import ExportCodes
from codegrid.pipelines.generation.encoding import export_with
from codegrid.pipelines.running.places import PARTS

if TYPE_CHECKING:
    from accelerate import Accelerator

    from codegrid.data.code_files import AnyCodes
    from codegrid.pipelines.running.settings import Split
    from codegrid.pipelines.train_prior import TrainPrior
    from codegrid.protocols import Tokenizer


def missing_codes(settings: TrainPrior) -> dict[Split, str]:
    """Return the splits to export, and the folder of each; empty if the run has its codes."""
    if settings.run is None or Path(settings.codes) != Path(settings.run) / PARTS["codes"] or is_whole(settings.codes):
        return {}
    held_out = str(Path(settings.run) / PARTS["validation_codes"])
    # the training codes are exported last: if they are complete, all are
    own: dict[Split, str] = {"train": settings.codes}
    is_own = settings.validation_codes in (None, held_out) and not settings.dry_run
    return {"test": held_out, **own} if is_own else own


def export_missing(
    tokenizer: Tokenizer, settings: TrainPrior, missing: dict[Split, str], accelerator: Accelerator
) -> TrainPrior:
    """Export these splits of the images that the tokenizer was trained on, and return settings that name the codes.

    Raises `InputError` if the images are no longer there.
    """
    for split, output in missing.items():
        of_split = ExportCodes(
            run=settings.run,
            tokenizer=settings.tokenizer,
            output=output,
            split=split,
            captions=settings.captions,
            **({name: getattr(settings, name) for name in VIEWS} if split == "train" else {}),
            dry_run=settings.dry_run,
            skip_unreadable=True,  # if there are any, the tokenizer's training skipped them too
        )
        try:
            export_with(tokenizer, of_split, accelerator)
        except InputError as error:
            remedy = "`codegrid export-codes` can also encode other images"
            raise InputError(f"{settings.run} has no codes, and none can be made: {error}; {remedy}") from error
    return replace(settings, validation_codes=missing.get("test", settings.validation_codes))


def views_of(codes: AnyCodes, settings: TrainPrior) -> dict[str, Any]:
    """Return how the views of these codes were made, by the names of the settings, for the record of the training.

    Raises `InputError` if the settings ask for other ones, or for the end of views where there is one of each image.
    """
    views: dict[str, Any] = {name: getattr(codes.header, name) for name in VIEWS}
    if settings.views_until < 1 and codes.views == 1:
        raise InputError(
            f"`views_until` {settings.views_until:g}: {settings.codes} has one view of each image: leave it out, or "
            "export several (`views`)"
        )
    if settings.views > 1 and any(getattr(settings, name) != value for name, value in views.items()):
        held = ", ".join(f"{name} {value}" for name, value in codes.header.how_viewed.items()) or "one of each image"
        raise InputError(
            f"`views` {settings.views}: {settings.codes} has others ({held}): leave `views` out to train on these, or "
            "export the codes again with `codegrid export-codes`"
        )
    if settings.lr_schedule == "constant" and (until := end_of_views(settings)) is not None:
        views["images_as_views"] = until  # a longer run would leave the views later
    return views


def end_of_views(settings: TrainPrior) -> int | None:
    """Return how many images training reads until it leaves all views but the images themselves; None: to the end."""
    return None if settings.views_until == 1 else round(settings.views_until * settings.steps) * settings.batch_size
