"""From what `viewing.py` gives to what gradio shows: what happens when something on the page is used.

Shapes: n samples, c channels, H W image, h w code grid.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np
import torch

from codegrid.errors import InputError
from codegrid.pipelines.drawing.code_picture import colours_of, draw_codes, site_at
from codegrid.pipelines.drawing.pictures import make_page
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.pipelines.viewer import actions as viewing

from .examples import Examples

COLUMNS = 10  # of a page of samples
NONE = "none"


def told(act: Callable) -> Callable:
    """The same function; an `InputError` appears on the page."""

    @wraps(act)
    def tell(*args: Any) -> Any:
        try:
            return act(*args)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return tell


def told_of_each(act: Callable[..., Iterator]) -> Callable[..., Iterator]:
    """The same for a generator."""

    @wraps(act)
    def tell(*args: Any) -> Iterator:
        try:
            yield from act(*args)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return tell


def to_pixels(images: torch.Tensor, columns: int | None = None) -> np.ndarray:
    """Images (n, c, H, W) in [-1, 1] → a picture of all (height, width, 3) uint8; a single one without a margin."""
    page = make_page(images, columns)
    if len(images) == 1:  # torchvision leaves no margin then
        page = page.expand(3, -1, -1)
    return (page * 255).round().byte().permute(1, 2, 0).numpy()


class Actions:
    """What the page does, for one pipeline. It keeps nothing: the codes (1, h, w) are in each visitor's own page."""

    def __init__(self, pipeline: TwoStagePipeline, examples: Examples) -> None:
        self.pipeline, self.examples = pipeline, examples
        self.colours = colours_of(pipeline.tokenizer)
        self.grid_shape = pipeline.tokenizer.grid_shape

    def pick(self, number: int) -> tuple:
        """An example → what `show` gives, and its label as the page names it."""
        labels = self.examples.labels
        label = gr.skip() if labels is None or not self.pipeline.classes else self._name(int(labels[number]))
        return *self.show(self.examples.images[number : number + 1]), label

    def upload(self, path: str) -> tuple:
        """A picture's file → what `show` gives."""
        return self.show(viewing.read_picture(self.pipeline, path))

    def show(self, image: torch.Tensor) -> tuple:
        """An image (1, c, H, W) → codes as encoded, codes, input, reconstruction, and what `point` and `edit` give."""
        codes = viewing.encode(self.pipeline, image)
        reconstruction = to_pixels(viewing.decode(self.pipeline, codes))
        row, column = self.grid_shape[0] // 2, self.grid_shape[1] // 2
        at = (row, column, *self.point(codes, row, column))
        return codes, codes, to_pixels(image), reconstruction, *at, reconstruction

    def point(self, codes: torch.Tensor, row: int | None, column: int | None) -> tuple:
        """A site → its code, and the grid with a frame there."""
        if row is None or column is None:  # a field that is being typed into
            return gr.skip(), gr.skip()
        viewing.check_site(codes, row, column)
        return int(codes[0, row, column]), draw_codes(codes[0].numpy(), self.colours, (row, column))

    def click(self, codes: torch.Tensor, event: gr.SelectData) -> tuple:
        """A click on the grid → row, column, and what `point` gives."""
        row, column = site_at(*event.index, self.grid_shape)
        return row, column, *self.point(codes, row, column)

    def edit(self, codes: torch.Tensor, row: int, column: int, code: int | None) -> tuple:
        """A new code at a site → codes, the grid and the picture that they make."""
        if code is None:
            return gr.skip(), gr.skip(), gr.skip()
        edited = viewing.edit(self.pipeline, codes, row, column, code)
        picture = to_pixels(viewing.decode(self.pipeline, edited))
        return edited, draw_codes(edited[0].numpy(), self.colours, (row, column)), picture

    def undo(self, encoded: torch.Tensor, row: int, column: int) -> tuple:
        """All codes as encoded → codes, the site's code, the grid and the picture."""
        return encoded, *self.point(encoded, row, column), to_pixels(viewing.decode(self.pipeline, encoded))

    def sample(self, labels: list[str], num_samples: int, *controls: Any) -> Iterator[tuple]:
        """New images → a page of them, and how far they are, after each row of codes."""
        for partial in viewing.sample(self.pipeline, num_samples, labels, **_named(controls)):
            yield to_pixels(partial.images, min(num_samples, COLUMNS)), self._progress(partial)

    def complete(
        self, codes: torch.Tensor, keep_rows: int, num_completions: int, label: str | None, *controls: Any
    ) -> Iterator[tuple]:
        """The codes' upper rows, completed → a page, and how far it is, after each row of codes."""
        drawn = viewing.complete(self.pipeline, codes, keep_rows, num_completions, label or None, **_named(controls))
        for partial in drawn:
            yield to_pixels(partial.images, min(num_completions, COLUMNS)), self._progress(partial)

    def label_choices(self) -> list[str]:
        """What may be asked for: the classes, and none where the prior can do without."""
        names = [self._name(number) for number in range(self.pipeline.prior.num_classes)]
        return [*names, NONE] if names and self.pipeline.prior.label_dropout else names

    def _name(self, number: int) -> str:
        return self.pipeline.classes[number] if self.pipeline.classes else str(number)

    def _progress(self, partial: viewing.Partial) -> str:
        return f"{partial.rows} of {self.grid_shape[0]} rows of codes"


def _named(controls: tuple) -> dict[str, Any]:
    """The values of the controls, in the order in which the page has them, as the samplers' arguments."""
    temperature, top_k, top_p, guidance_scale, seed = controls
    return {
        "temperature": temperature, "top_k": top_k or None, "top_p": top_p, "guidance_scale": guidance_scale,
        "seed": seed or 0,
    }  # fmt: skip
