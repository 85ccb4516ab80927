"""Actions of the viewer: encode, edit, sample, complete, and what the page shows of it.

Shapes: n samples, c channels, H W image, *shape the sites of each grid, h w a grid laid out in the plane.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import torch

from codegrid.codes import Codes, Layout
from codegrid.data.folder import FolderImages
from codegrid.data.images import to_float
from codegrid.errors import InputError
from codegrid.limits import NumSamples, check_value, check_whole
from codegrid.pipelines.drawing.colours import as_plane, colours_of, index_of, picture_of, plane_shape, site_at
from codegrid.pipelines.drawing.images import class_names
from codegrid.pipelines.drawing.sheets import make_sheet, to_pixels
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.generation.request import Request, complete_codes, make_request, top_rows
from codegrid.protocols import Prior
from codegrid.sampling_config import SamplingConfig

from .examples import Examples

COLUMNS = 10  # of a sheet of samples
MAX_PICTURES = 32  # of samples that are not finished
NONE = "none"


class Partial(NamedTuple):
    """Samples while they are drawn."""

    images: torch.Tensor  # (n, c, H, W) in [-1, 1]; 0, grey, where nothing is drawn yet
    codes: Codes  # (n, *shape) int64; the last one's are the result
    done: float  # 0 ... 1


def read_picture(pipeline: TwoStagePipeline, path: str | Path) -> torch.Tensor:
    """Read a picture's file as (1, c, H, W) in [-1, 1], brought to the tokenizer's size and channels."""
    path, channels = Path(path), pipeline.tokenizer.signal.channels
    height, width = pipeline.tokenizer.signal.size
    return to_float(FolderImages(path.parent, [path], None, [], (height, width), channels).batch([0]).images)


def edit(layout: Layout, codes: Codes, number: int, row: int, column: int, code: int) -> Codes:
    """Return codes (1, *shape) with another code at a site of the plane of grid `number`; the given ones stay."""
    check_site(layout, number, row, column)
    check_whole("code", code, 0, layout[number].num_embeddings - 1)
    edited = codes[number].clone()
    site = (0, *index_of(layout[number].shape, row, column))
    edited[site] = code
    return (*codes[:number], edited, *codes[number + 1 :])


def check_site(layout: Layout, number: int, row: int, column: int) -> None:
    """Raise `InputError` where the plane of grid `number` has no such site."""
    check_whole("grid", number, 0, len(layout) - 1)
    height, width = plane_shape(layout[number].shape)
    check_whole("row", row, 0, height - 1)
    check_whole("column", column, 0, width - 1)


def controls_of(prior: Prior) -> set[str]:
    """Return the fields of `SamplingConfig` that change what a prior draws."""
    return {name for name in prior.controls if name != "guidance_scale" or prior.conditions.unlabelled}


def configs_for(pipeline: TwoStagePipeline, values: dict[str, Any]) -> list[SamplingConfig]:
    """Return how each prior draws: by those of the values that mean something to it."""
    return [
        SamplingConfig(**{name: value for name, value in values.items() if name in controls_of(prior)})
        for prior in pipeline.priors
    ]


def sample(
    pipeline: TwoStagePipeline, num_samples: int, labels: Sequence[int | str] = (), seed: int = 0, **values: Any
) -> Iterator[Partial]:
    """Draw new images, and yield how far they are. Labels are taken in turn; none given: all classes.

    Raises `InputError` at once where that cannot be drawn.
    """
    check_value("num_samples", num_samples, NumSamples)
    in_turn = [labels[i % len(labels)] for i in range(num_samples)] if labels else None
    configs = configs_for(pipeline, values)
    return watch(pipeline, make_request(pipeline.priors, num_samples, in_turn, seed, configs))


def complete(
    pipeline: TwoStagePipeline,
    codes: Codes,
    keep_rows: int,
    num_completions: int,
    label: int | str | None = None,
    seed: int = 0,
    **values: Any,
) -> Iterator[Partial]:
    """Keep the upper rows of codes (1, *shape), draw the others, and yield how far they are.

    Raises `InputError` at once where that cannot be drawn.
    """
    masks = top_rows(pipeline.layout, keep_rows, "keep_rows")
    labels, configs = None if label is None else [label], configs_for(pipeline, values)
    return watch(pipeline, complete_codes(pipeline.priors, codes, masks, num_completions, labels, seed, configs))


def watch(pipeline: TwoStagePipeline, request: Request) -> Iterator[Partial]:
    """Draw a request's samples, and yield them about once for each row of the first grid. Closing it stops the priors.

    The last ones are those of `TwoStagePipeline.answer`.
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
                noise = pipeline.noise_of(request, rows).of("decoder")
                images = pipeline.decode(progress.codes, request.given(rows).to(pipeline.device), noise)
            yield Partial(images.cpu(), codes, progress.done)


def num_pictures(layout: Layout) -> int:
    """Return how often unfinished samples are shown: once for each row of the first grid, if it has some."""
    height, width = plane_shape(layout[0].shape)
    return min(height if height > 1 else width, MAX_PICTURES)


def told(act: Callable) -> Callable:
    """Decorate a function or a generator: an `InputError` is shown on the page."""

    @wraps(act)
    def tell(*args: Any) -> Any:
        try:
            return act(*args)
        except InputError as error:
            raise gr.Error(str(error).replace("`", ""), print_exception=False) from error

    @wraps(act)
    def tell_of_each(*args: Any) -> Iterator:
        try:
            yield from act(*args)
        except InputError as error:
            raise gr.Error(str(error).replace("`", ""), print_exception=False) from error

    return tell_of_each if inspect.isgeneratorfunction(act) else tell


def as_pixels(images: torch.Tensor, columns: int | None = None) -> np.ndarray:
    """Lay images (n, c, H, W) in [-1, 1] out as one picture (height, width, 3) uint8."""
    return to_pixels(make_sheet(images, columns))


class Actions:
    """Everything that the page does, for one pipeline.

    It remembers nothing: the codes (1, *shape) of each grid are in each visitor's own page. Outputs stand in the order
    of `page.Editor`.
    """

    def __init__(self, pipeline: TwoStagePipeline, examples: Examples) -> None:
        self.pipeline, self.examples = pipeline, examples
        self.layout = pipeline.layout
        self.colours = colours_of(pipeline.tokenizer)
        self.classes = class_names(pipeline.priors)
        there = {name for prior in pipeline.priors for name in controls_of(prior)}
        self.controls = [field.name for field in fields(SamplingConfig) if field.name in there]

    def pick(self, number: int) -> tuple:
        """Take an example: what `show` gives, and its label as the page names it."""
        labels = self.examples.labels
        label = gr.skip() if labels is None or not self.classes else self.classes[int(labels[number])]
        return *self.show(self.examples.images[number : number + 1]), label

    def upload(self, path: str) -> tuple:
        """Take a picture's file: what `show` gives."""
        return self.show(read_picture(self.pipeline, path))

    def show(self, image: torch.Tensor) -> tuple:
        """Encode (1, c, H, W): codes as encoded, codes, input, reconstruction, grid, what `choose` gives, edited."""
        codes = self.pipeline.encode(image)
        reconstruction = self._decoded(codes)
        return codes, codes, as_pixels(image), reconstruction, 0, *self.choose(codes, 0), reconstruction

    def choose(self, codes: Codes, number: int) -> tuple:
        """Choose a grid: row, column and code, in the grid's ranges, and the grid's picture."""
        height, width = plane_shape(self.layout[number].shape)
        row, column = height // 2, width // 2
        code, picture = self.point(codes, number, row, column)
        return (
            gr.update(value=row, info=f"0 to {height - 1}, from the top", visible=height > 1),
            gr.update(value=column, info=f"0 to {width - 1}"),
            gr.update(value=code, maximum=self.layout[number].num_embeddings - 1),
            picture,
        )

    def point(self, codes: Codes, number: int, row: int | None, column: int | None) -> tuple:
        """Point at a site: its code, and the grid's picture with a frame there."""
        if row is None or column is None:  # a field that is being typed into
            return gr.skip(), gr.skip()
        check_site(self.layout, number, row, column)
        return int(as_plane(codes[number])[0, row, column]), self._picture(codes, number, row, column)

    def click(self, codes: Codes, number: int, x: int, y: int) -> tuple:
        """Click on a pixel of a grid's picture: row, column, and what `point` gives."""
        row, column = site_at(x, y, self.layout[number].shape)
        return row, column, *self.point(codes, number, row, column)

    def edit(self, codes: Codes, number: int, row: int, column: int, code: int | None) -> tuple:
        """Put a new code at a site: codes, the grid's picture and the image that they make."""
        if code is None:
            return gr.skip(), gr.skip(), gr.skip()
        edited = edit(self.layout, codes, number, row, column, code)
        return edited, self._picture(edited, number, row, column), self._decoded(edited)

    def undo(self, encoded: Codes, number: int, row: int, column: int) -> tuple:
        """Take all edits back: codes, the site's code, the grid's picture and the image."""
        return encoded, *self.point(encoded, number, row, column), self._decoded(encoded)

    def sample(self, labels: list[str], num_samples: int, *values: Any) -> Iterator[tuple]:
        """Draw new images: a sheet of them, and how far they are, again and again."""
        for partial in sample(self.pipeline, num_samples, labels, **self._named(values)):
            yield as_pixels(partial.images, min(num_samples, COLUMNS)), f"{partial.done:.0%} drawn"

    def complete(
        self, codes: Codes, keep_rows: int, num_completions: int, label: str | None, *values: Any
    ) -> Iterator[tuple]:
        """Complete the codes' upper rows: a sheet, and how far it is, again and again."""
        named = self._named(values)
        for partial in complete(self.pipeline, codes, keep_rows, num_completions, label or None, **named):
            yield as_pixels(partial.images, min(num_completions, COLUMNS)), f"{partial.done:.0%} drawn"

    def label_choices(self) -> list[str]:
        """Return what may be asked for: the classes, and none where the priors can do without."""
        return [*self.classes, NONE] if self.classes and self.pipeline.conditions.unlabelled else self.classes

    def can_complete(self) -> bool:
        """Whether the priors keep codes that they are given, and grids have more than one row."""
        return self.layout[0].shape[0] > 1 and all(prior.keeps != "none" for prior in self.pipeline.priors)

    def _named(self, values: tuple) -> dict[str, Any]:
        """Return the values of the controls on the page, and of the seed after them, as arguments of `sample`."""
        named = dict(zip([*self.controls, "seed"], values, strict=True))
        if "num_inference_steps" in named:
            named["num_inference_steps"] = named["num_inference_steps"] or None
        return {**named, "seed": named["seed"] or 0}

    def _picture(self, codes: Codes, number: int, row: int, column: int) -> np.ndarray:
        return picture_of(codes[number][0], self.colours[number], (row, column))

    def _decoded(self, codes: Codes) -> np.ndarray:
        return as_pixels(self.pipeline.decode(tuple(grid.to(self.pipeline.device) for grid in codes)).cpu())
