"""Answers of the page: what each of its controls does, as values of what it shows.

Shapes: n samples, c channels, H W image, *shape the sites of each grid.
"""

import io
import secrets
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import gradio as gr
import numpy as np
import torch

from codegrid.codes import NO_LABEL, Codes
from codegrid.data.npz import code_names
from codegrid.errors import InputError
from codegrid.pipelines.drawing.colours import as_plane, colours_of, picture_of, plane_shape, site_at
from codegrid.pipelines.drawing.images import class_names
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.protocols import Tokenizer
from codegrid.sampling_config import SamplingConfig

from . import actions
from .actions import Encoded, Partial
from .examples import Examples
from .pictures import as_link, figure_of, figures_of, png_of

COLUMNS = 10  # of a sheet of samples that is downloaded
NO_CLASS = "no class"
STALE = "The codes or the rows to keep have changed since: draw the completions again."


class Answers:
    """Everything that the page does, for one tokenizer and, where there is one, its pipeline.

    It remembers nothing: an `Encoded` and what is drawn, each a `Partial`, are in each visitor's own page.
    """

    def __init__(self, tokenizer: Tokenizer, pipeline: TwoStagePipeline | None, examples: Examples) -> None:
        self.tokenizer, self.pipeline, self.examples = tokenizer, pipeline, examples
        self.layout = tokenizer.layout
        self.colours = colours_of(tokenizer)
        priors = () if pipeline is None else pipeline.priors
        self.classes = class_names(priors)
        there = {name for prior in priors for name in actions.controls_of(prior)}
        self.controls = [field.name for field in fields(SamplingConfig) if field.name in there]

    def pick(self, number: int) -> tuple:
        """Take an example: what `show` gives, and its label."""
        labels, names = self.examples.labels, self.examples.names
        label = gr.skip() if labels is None or not self.classes else int(labels[number])
        return *self.show(self.examples.images[number : number + 1], names[number] if names else ""), label

    def upload(self, path: str) -> tuple:
        """Take a picture's file: what `show` gives."""
        return self.show(actions.read_picture(self.tokenizer, path))

    def show(self, image: torch.Tensor, name: str = "") -> tuple:
        """Encode (1, c, H, W): what is encoded, input, reconstruction, grid, what `choose` gives, edited, in words."""
        encoded = actions.encode(self.tokenizer, image)
        return (
            encoded,
            figure_of(image, f"Input: {name}" if name else "Input"),
            figure_of(encoded.reconstruction, "Reconstruction"),
            0,
            *self.choose(encoded, 0),
            *self._edited(encoded),
        )

    def choose(self, encoded: Encoded, number: int) -> tuple:
        """Choose a grid: row, column and code, in the grid's ranges, and the grid's picture."""
        height, width = plane_shape(self.layout[number].shape)
        row, column = height // 2, width // 2
        code, picture = self.point(encoded, number, row, column)
        return (
            gr.update(value=row, info=f"0 to {height - 1}, from the top", visible=height > 1),
            gr.update(value=column, info=f"0 to {width - 1}"),
            gr.update(value=code, maximum=self.layout[number].num_embeddings - 1),
            picture,
        )

    def point(self, encoded: Encoded, number: int, row: int | None, column: int | None) -> tuple:
        """Point at a site: its code, and the grid's picture with a frame there."""
        if row is None or column is None:  # a field that is being typed into
            return gr.skip(), gr.skip()
        actions.check_site(self.layout, number, row, column)
        return int(as_plane(encoded.codes[number])[0, row, column]), self._picture(encoded, number, row, column)

    def click(self, encoded: Encoded, number: int, x: int, y: int) -> tuple:
        """Click on a pixel of a grid's picture: row, column, and what `point` gives."""
        row, column = site_at(x, y, self.layout[number].shape)
        return row, column, *self.point(encoded, number, row, column)

    def edit(self, encoded: Encoded, number: int, row: int, column: int, code: int | None) -> tuple:
        """Put a new code at a site: what is encoded, the grid's picture, the image that they make, in words."""
        if code is None:
            return (gr.skip(),) * 4
        encoded = encoded._replace(codes=actions.edit(self.layout, encoded.codes, number, row, column, code))
        return encoded, self._picture(encoded, number, row, column), *self._edited(encoded)

    def undo(self, encoded: Encoded, number: int, row: int, column: int) -> tuple:
        """Take all edits back: what is encoded, the site's code, the grid's picture, the image, in words."""
        encoded = encoded._replace(codes=encoded.original)
        return encoded, *self.point(encoded, number, row, column), *self._edited(encoded)

    def sample(self, labels: list[int], num_samples: int, *values: Any) -> Iterator[tuple]:
        """Draw new images: how they look, the same for downloads, and how far they are, again and again."""
        for partial in actions.sample(self._drawing(), num_samples, labels, **self._named(values)):
            yield self._drawn(partial, "sample")

    def complete(
        self, encoded: Encoded, keep_rows: int, num_completions: int, label: int | None, *values: Any
    ) -> Iterator[tuple]:
        """Complete the codes' upper rows: what `sample` gives."""
        pipeline, named = self._drawing(), self._named(values)
        for partial in actions.complete(pipeline, encoded.codes, keep_rows, num_completions, label, **named):
            yield self._drawn(partial, "completion")

    def new_seed(self) -> int:
        """Return a seed at random."""
        return secrets.randbelow(2**31)

    def forget(self, drawn: Partial | None) -> tuple:
        """Remove completions that are no longer of the codes above: what `complete` gives."""
        return (gr.skip(),) * 3 if drawn is None else ("", None, STALE)

    def stop(self, progress: str) -> str:
        """Say that drawing was stopped where it was."""
        under_way = progress.endswith("drawn") and not progress.startswith(("100%", "Stopped"))
        return f"Stopped: {progress}" if under_way else progress

    def download_image(self, encoded: Encoded) -> str:
        """Return the image after all edits as a PNG file that the browser saves."""
        return as_link(png_of(actions.decode(self.tokenizer, encoded.codes)))

    def download_edited(self, encoded: Encoded) -> str:
        """Return the codes after all edits as an npz file that the browser saves."""
        return _as_npz(encoded.codes, None)

    def download_sheet(self, drawn: Partial | None) -> str:
        """Return what is drawn as a PNG file that the browser saves."""
        if drawn is None:
            raise InputError("nothing is drawn yet")
        return as_link(png_of(drawn.images, min(len(drawn.images), COLUMNS)))

    def download_codes(self, drawn: Partial | None) -> str:
        """Return the codes of what is drawn as an npz file that the browser saves."""
        if drawn is None or not drawn.finished:
            raise InputError("these codes are not drawn to the end: draw them first")
        return _as_npz(drawn.codes, drawn.labels)

    def label_choices(self) -> list[tuple[str, int]]:
        """Return what may be asked for: the classes by name, and none where the priors can do without."""
        numbered = [(name, number) for number, name in enumerate(self.classes)]
        unlabelled = bool(numbered) and self._drawing().conditions.unlabelled
        return [*numbered, (NO_CLASS, NO_LABEL)] if unlabelled else numbered

    def can_complete(self) -> bool:
        """Whether there are priors that keep codes they are given, and grids with more than one row."""
        priors = () if self.pipeline is None else self.pipeline.priors
        return bool(priors) and self.layout[0].shape[0] > 1 and all(prior.keeps != "none" for prior in priors)

    def _drawing(self) -> TwoStagePipeline:
        if self.pipeline is None:
            raise InputError("only a prior draws codes: start the viewer with one")
        return self.pipeline

    def _named(self, values: tuple) -> dict[str, Any]:
        """Return the values of the controls on the page, and of the seed after them, as arguments of `sample`."""
        named = dict(zip([*self.controls, "seed"], values, strict=True))
        if "num_inference_steps" in named:
            named["num_inference_steps"] = named["num_inference_steps"] or None
        return {**named, "seed": named["seed"] or 0}

    def _picture(self, encoded: Encoded, number: int, row: int, column: int) -> np.ndarray:
        codes, edits = encoded.codes[number][0], encoded.edits[number][0]
        return picture_of(codes, self.colours[number], (row, column), edits)

    def _edited(self, encoded: Encoded) -> tuple[str, str]:
        image = actions.decode(self.tokenizer, encoded.codes)
        counts = [int(edits.sum()) for edits in encoded.edits]
        sites = sum(grid.num_sites for grid in self.layout)
        words = f"PSNR of the reconstruction: {actions.psnr(encoded.image, encoded.reconstruction):.1f} dB"
        if any(counts):
            after = actions.psnr(encoded.image, image)
            by_grid = ", ".join(f"grid {number}: {count}" for number, count in enumerate(counts) if count)
            where = f" ({by_grid})" if len(counts) > 1 else ""
            words += f"; after your edits: {after:.1f} dB. {sum(counts)} of {sites} codes edited{where}, "
            words += "marked by a corner."
        return figure_of(image, "After your edits"), words

    def _drawn(self, partial: Partial, what: str) -> tuple[str, Partial, str]:
        labels = [NO_LABEL] * len(partial.images) if partial.labels is None else partial.labels.tolist()
        names = ["" if label == NO_LABEL else self.classes[label] for label in labels]
        return figures_of(partial.images, names, what), partial, f"{partial.done:.0%} drawn"


def _as_npz(codes: Codes, labels: torch.Tensor | None) -> str:
    """Return codes (n, *shape), and labels (n,), as an npz file that `decode-codes` reads, for the browser to save."""
    content = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(code_names(len(codes)), (grid.numpy() for grid in codes), strict=True))
    if labels is not None:
        arrays["labels"] = labels.numpy()
    np.savez_compressed(content, **arrays)
    return as_link(content.getvalue(), "application/zip")
