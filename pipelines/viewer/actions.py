"""Actions of the viewer: encode, edit, sample, complete.

Shapes: n samples, c channels, H W image, *shape the sites of each grid, h w a grid laid out in the plane.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from codegrid.codes import NO_LABEL, Codes, Condition, Layout
from codegrid.file_names import printable
from codegrid.limits import NumSamples, check_value, check_whole
from codegrid.pipelines.drawing.colours import index_of, plane_shape
from codegrid.pipelines.generation.kept_part import Masks, keep_pixels, top_rows
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.request import Request, complete_codes, make_request
from codegrid.protocols import NO_CONDITION, Prior, Tokenizer
from codegrid.sampling_config import SamplingConfig

MAX_PICTURES = 32  # previews of unfinished samples


class Encoded(NamedTuple):
    """An image, or sound, with its original codes and its edited ones."""

    image: torch.Tensor  # (1, c, *size) in [-1, 1]
    reconstruction: torch.Tensor  # (1, c, *size) in [-1, 1]
    original: Codes  # (1, *shape) int64
    codes: Codes  # (1, *shape) int64, edited
    speaker: int = NO_LABEL  # who is to say what the edited codes stand for

    @property
    def edits(self) -> tuple[torch.Tensor, ...]:
        """Masks (1, *shape) bool of the edited sites of each grid."""
        return tuple(grid != before for grid, before in zip(self.codes, self.original, strict=True))


class Partial(NamedTuple):
    """Samples while they are being drawn."""

    images: torch.Tensor  # (n, c, H, W) in [-1, 1]; 0, grey, where nothing is drawn yet
    codes: Codes  # (n, *shape) int64; the last one's are the result
    done: float  # 0 ... 1
    labels: torch.Tensor | None  # (n,) int64, -1 for no particular class; None without classes
    prompts: tuple[str, ...] = ()  # of each; empty without texts

    @property
    def finished(self) -> bool:
        """Whether this is the result."""
        return self.done > 1 - 1e-6  # thirds do not add up to 1


def encode(tokenizer: Tokenizer, image: torch.Tensor, speaker: int = NO_LABEL) -> Encoded:
    """Encode an image or sound (1, c, *size) in [-1, 1]; `speaker` is who speaks, if that is known."""
    codes = tuple(grid.cpu() for grid in tokenizer.encode(image.to(tokenizer.device)))
    return Encoded(image, decode(tokenizer, codes, speaker), codes, codes, speaker)


def decode(tokenizer: Tokenizer, codes: Codes, speaker: int = NO_LABEL) -> torch.Tensor:
    """Return the images or sounds (n, c, *size) in [-1, 1] of codes (n, *shape), on the CPU.

    `speaker` is a label of a tokenizer that knows speakers, by default nobody in particular.
    """
    codes = tuple(grid.to(tokenizer.device) for grid in codes)
    given = NO_CONDITION
    if speakers_of(tokenizer):
        given = Condition(torch.full((len(codes[0]),), speaker, device=tokenizer.device))
    return tokenizer.decode(codes, given=given).clamp(-1, 1).cpu()


def speakers_of(tokenizer: Tokenizer) -> list[str]:
    """Return the names of the speakers that a decoder tells apart, in the order of their labels; often none."""
    names, count = tokenizer.provenance.get("classes", []), getattr(tokenizer, "num_classes", 0)
    return [printable(names[number]) if number < len(names) else str(number) for number in range(count)]


def edit(layout: Layout, codes: Codes, number: int, row: int, column: int, code: int) -> Codes:
    """Return a copy of codes (1, *shape) with another code at a site of the plane of grid `number`."""
    check_site(layout, number, row, column)
    check_whole("code", code, 0, layout[number].num_embeddings - 1)
    edited = codes[number].clone()
    site = (0, *index_of(layout[number].shape, row, column))
    edited[site] = code
    return (*codes[:number], edited, *codes[number + 1 :])


def check_site(layout: Layout, number: int, row: int, column: int) -> None:
    """Raise `InputError` if the plane of grid `number` has no such site."""
    check_whole("grid", number, 0, len(layout) - 1)
    height, width = plane_shape(layout[number].shape)
    check_whole("row", row, 0, height - 1)
    check_whole("column", column, 0, width - 1)


def controls_of(prior: Prior) -> set[str]:
    """Return the fields of `SamplingConfig` that change what a prior draws."""
    return {name for name in prior.controls if not name.startswith("guidance") or prior.conditions.unlabelled}


def configs_for(pipeline: TwoStagePipeline, values: dict[str, Any]) -> list[SamplingConfig]:
    """Return how each prior draws, using the values that it supports."""
    return [
        SamplingConfig(**{name: value for name, value in values.items() if name in controls_of(prior)})
        for prior in pipeline.priors
    ]


def sample(
    pipeline: TwoStagePipeline,
    num_samples: int,
    labels: Sequence[int | str] = (),
    seed: int = 0,
    of_class: int | None = None,
    **values: Any,
) -> Iterator[Partial]:
    """Draw new images, and yield their progress. Labels are used in turn; if there are none, all classes.

    Of priors over texts, `labels` are prompts; if there are none, no text; `of_class` is the label of all, if they know
    classes, too. Raises `InputError` at once if that cannot be drawn.
    """
    check_value("num_samples", num_samples, NumSamples)
    in_turn = [labels[i % len(labels)] for i in range(num_samples)] if labels else None
    configs, asked = configs_for(pipeline, values), asked_for(pipeline, in_turn, of_class)
    return watch(pipeline, make_request(pipeline.priors, num_samples, seed=seed, configs=configs, **asked))


def asked_for(
    pipeline: TwoStagePipeline, asked: Sequence[int | str] | None, of_class: int | None = None
) -> dict[str, Any]:
    """Return what is asked for, labels or prompts and a label for all, by the names of the parameters."""
    return {"prompts": asked, "labels": of_class} if pipeline.conditions.num_words else {"labels": asked}


def complete(
    pipeline: TwoStagePipeline,
    codes: Codes,
    keep_rows: int,
    num_completions: int,
    label: int | str | None = None,
    seed: int = 0,
    of_class: int | None = None,
    **values: Any,
) -> Iterator[Partial]:
    """Keep the upper rows of codes (1, *shape), draw the others, and yield their progress. `label` may be a prompt.

    Raises `InputError` at once if that cannot be drawn.
    """
    masks = top_rows(pipeline.layout, keep_rows, "keep_rows")
    return _complete(pipeline, codes, masks, num_completions, (label, of_class), seed, values)


def _complete(
    pipeline: TwoStagePipeline,
    codes: Codes,
    masks: Masks,
    num_completions: int,
    labels: tuple[int | str | None, int | None],
    seed: int,
    values: dict[str, Any],
) -> Iterator[Partial]:
    label, of_class = labels
    asked = asked_for(pipeline, None if label in (None, "") else [label], of_class)
    configs = configs_for(pipeline, values)
    request = complete_codes(pipeline.priors, codes, masks, num_completions, seed=seed, configs=configs, **asked)
    return watch(pipeline, request)


def fill_in(
    pipeline: TwoStagePipeline,
    encoded: Encoded,
    box: Sequence[int],
    num_completions: int,
    label: int | str | None = None,
    seed: int = 0,
    of_class: int | None = None,
    **values: Any,
) -> Iterator[Partial]:
    """Hide a box of the image, (top, left, height, width) in pixels, draw its codes anew, and yield their progress.

    Edited codes beside it are kept. Raises `InputError` at once if that cannot be drawn.
    """
    top, left, height, width = box
    known = torch.ones(1, *pipeline.tokenizer.signal.size, dtype=torch.bool)
    known[:, top : top + height, left : left + width] = False
    part = keep_pixels(pipeline.tokenizer, known, "box")
    found = pipeline.encode(part.of_known(encoded.image))
    codes = tuple(map(torch.where, encoded.edits, encoded.codes, found))
    return _complete(pipeline, codes, part.masks, num_completions, (label, of_class), seed, values)


def watch(pipeline: TwoStagePipeline, request: Request) -> Iterator[Partial]:
    """Draw a request's samples, and yield them about once for each row of the finest grid. Closing it stops the priors.

    The last ones equal those of `TwoStagePipeline.answer`.
    """
    rows, shown = range(request.num_samples), 0
    count = num_pictures(pipeline.layout)
    for progress in pipeline.sample_steps(request, rows):
        reached = int(progress.done * count + 1e-6)  # thirds do not add up to 1
        if reached > shown:
            shown = reached
            codes = tuple(grid.cpu() for grid in progress.codes)
            if reached < count:
                images = pipeline.tokenizer.preview(progress.codes, progress.drawn).clamp(-1, 1)
            else:
                images = pipeline.decode_samples(progress.codes, request, rows)
            yield Partial(images.cpu(), codes, progress.done, request.labels, request.prompts)


def num_pictures(layout: Layout) -> int:
    """Return how often unfinished samples are shown: once for each row of the finest grid, if it has some."""
    planes = [plane_shape(grid.shape) for grid in layout]
    return min(max(height if height > 1 else width for height, width in planes), MAX_PICTURES)
