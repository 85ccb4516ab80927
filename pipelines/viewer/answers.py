"""Answers of the page: what each of its controls does, as new values for its parts.

Shapes: n samples, c channels, H W image, *shape the sites of each grid.
"""

import io
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
import torch.nn.functional as F

from codegrid.codes import NO_LABEL, Codes
from codegrid.data.npz import code_names
from codegrid.errors import InputError
from codegrid.file_names import printable
from codegrid.limits import short
from codegrid.pipelines.drawing.colours import as_plane, colours_of, paint, picture_of, plane_shape, site_at
from codegrid.pipelines.drawing.images import class_names
from codegrid.pipelines.generation.kept_part import check_keeps, keepable_rows, top_rows
from codegrid.pipelines.generation.pipeline import TwoStagePipeline
from codegrid.protocols import Tokenizer
from codegrid.sampling_config import SamplingConfig, choices_of

from . import actions
from .actions import Encoded, Partial
from .examples import Examples
from .media import medium_of
from .pictures import as_link

NO_CLASS, NOBODY = "no class", "nobody in particular"
OF_CLASS = "of_class"  # the control of a prior that is asked in words, and knows classes, too
OWN = "prior's own"  # what an empty control means
STALE = "The codes or the part to keep have changed since: draw the completions again."


class Answers:
    """Everything that the page does, for one tokenizer and, if there is one, its pipeline.

    It stores nothing: the `Encoded` image and the samples, a `Partial`, are kept in each visitor's own page.
    """

    def __init__(self, tokenizer: Tokenizer, pipeline: TwoStagePipeline | None, examples: Examples) -> None:
        self.tokenizer, self.pipeline, self.examples = tokenizer, pipeline, examples
        self.layout, self.medium = tokenizer.layout, medium_of(tokenizer.signal)
        self.speakers = actions.speakers_of(tokenizer)
        self.colours = colours_of(tokenizer)
        self.first = next((number for number, grid in enumerate(self.layout) if grid.num_sites > 1), 0)  # that is shown
        priors = () if pipeline is None else pipeline.priors
        self.classes = class_names(priors)
        there = {name for prior in priors for name in actions.controls_of(prior)}
        self.controls = [field.name for field in fields(SamplingConfig) if field.name in there]
        if self.reads_texts and self.classes:
            self.controls.insert(0, OF_CLASS)

    def pick(self, number: int) -> tuple:
        """Pick an example. Returns the values of `show`, and the example's label."""
        labels, names = self.examples.labels, self.examples.names
        is_known = self.classes and not self.reads_texts
        label = gr.skip() if labels is None or not is_known else int(labels[number])
        speaker = NO_LABEL if self.examples.speakers is None else int(self.examples.speakers[number])
        return *self.show(self.examples.images[number : number + 1], names[number] if names else "", speaker), label

    def upload(self, path: str) -> tuple:
        """Read an uploaded file. Returns the values of `show`."""
        return self.show(self.medium.read(Path(path)))

    def show(self, image: torch.Tensor, name: str = "", speaker: int = NO_LABEL) -> tuple:
        """Encode an image, or a sound by a speaker, (1, c, *size).

        Returns the `Encoded`, input, reconstruction, grid, values of `choose`, image, text; and the speaker, if the
        tokenizer knows any.
        """
        encoded = actions.encode(self.tokenizer, image, speaker)
        drawn = ", drawn" * getattr(self.tokenizer, "draws", False)
        strip = self._strip(encoded.original)
        return (
            encoded,
            self.medium.figure(image, f"Input: {name}" if name else "Input", strip),
            self.medium.figure(encoded.reconstruction, f"Reconstruction{drawn}", strip),
            self.first,
            *self.choose(encoded, self.first),
            *self._edited(encoded),
            *([speaker] if self.speakers else []),
        )

    def speak(self, encoded: Encoded, speaker: int) -> tuple:
        """Let another speaker say what the codes stand for. Returns the `Encoded`, what is said, and a text."""
        encoded = encoded._replace(speaker=speaker)
        return encoded, *self._edited(encoded)

    def choose(self, encoded: Encoded, number: int) -> tuple:
        """Choose a grid. Returns row, column and code, with the grid's ranges, and the grid's picture."""
        height, width = plane_shape(self.layout[number].shape)
        row, column = height // 2, width // 2
        code, picture = self.point(encoded, number, row, column)
        return (
            gr.update(value=row, info=f"0 to {height - 1}, from the top", visible=height > 1),
            gr.update(value=column, info=f"0 to {width - 1}", visible=width > 1),
            gr.update(value=code, maximum=self.layout[number].num_embeddings - 1),
            picture,
        )

    def point(self, encoded: Encoded, number: int, row: int | None, column: int | None) -> tuple:
        """Point at a site. Returns its code, and the grid's picture with a frame around it."""
        if row is None or column is None:  # a field that is being typed into
            return gr.skip(), gr.skip()
        actions.check_site(self.layout, number, row, column)
        return int(as_plane(encoded.codes[number])[0, row, column]), self._picture(encoded, number, row, column)

    def click(self, encoded: Encoded, number: int, x: int, y: int) -> tuple:
        """Click on a pixel of a grid's picture. Returns row, column, and the values of `point`."""
        row, column = site_at(x, y, self.layout[number].shape)
        return row, column, *self.point(encoded, number, row, column)

    def edit(self, encoded: Encoded, number: int, row: int, column: int, code: int | None) -> tuple:
        """Put a new code at a site. Returns the `Encoded`, the grid's picture, the edited image and a text."""
        if code is None:
            return (gr.skip(),) * 4
        encoded = encoded._replace(codes=actions.edit(self.layout, encoded.codes, number, row, column, code))
        return encoded, self._picture(encoded, number, row, column), *self._edited(encoded)

    def undo(self, encoded: Encoded, number: int, row: int, column: int) -> tuple:
        """Undo all edits. Returns the `Encoded`, the site's code, the grid's picture, the image and a text."""
        encoded = encoded._replace(codes=encoded.original)
        return encoded, *self.point(encoded, number, row, column), *self._edited(encoded)

    def sample(self, asked: list[int] | str, num_samples: int, *values: Any) -> Iterator[tuple]:
        """Draw new images, of labels or of a prompt in each line.

        Yields, again and again, their HTML, the `Partial` for downloads, and the progress.
        """
        labels = [line for line in asked.splitlines() if line.strip()] if isinstance(asked, str) else asked
        for partial in actions.sample(self._drawing(), num_samples, labels, **self.named(values)):
            yield self._drawn(partial, "sample")

    def complete(
        self, encoded: Encoded, keep_rows: int, num_completions: int, label: int | str | None, *values: Any
    ) -> Iterator[tuple]:
        """Complete the codes below their upper rows. Yields the values of `sample`."""
        pipeline, named = self._drawing(), self.named(values)
        for partial in actions.complete(pipeline, encoded.codes, keep_rows, num_completions, label, **named):
            yield self._drawn(partial, "completion")

    def fill_in(self, encoded: Encoded, *values: Any) -> Iterator[tuple]:
        """Hide a box of pixels and draw its codes anew. Yields the values of `sample`.

        Its four numbers come first, then the number of completions, the label and the values of the controls.
        """
        box, (number, label), controls = values[:4], values[4:6], values[6:]
        for partial in actions.fill_in(self._drawing(), encoded, box, number, label, **self.named(controls)):
            yield self._drawn(partial, "completion")

    def new_seed(self) -> int:
        """Return a random seed."""
        return secrets.randbelow(2**31)

    def forget(self, drawn: Partial | None) -> tuple:
        """Remove completions of codes that have changed since. Returns the values of `complete`."""
        return (gr.skip(),) * 3 if drawn is None else ("", None, STALE)

    def stop(self, progress: str) -> str:
        """Return the progress line after drawing was stopped."""
        under_way = progress.endswith("drawn") and not progress.startswith(("100%", "Stopped"))
        return f"Stopped: {progress}" if under_way else progress

    def download_image(self, encoded: Encoded) -> str:
        """Return the image, or sound, after all edits as a file that the browser saves."""
        return as_link(*self.medium.content(actions.decode(self.tokenizer, encoded.codes, encoded.speaker)))

    def download_edited(self, encoded: Encoded) -> str:
        """Return the codes after all edits as an npz file that the browser saves."""
        return _as_npz(encoded.codes, None)

    def download_sheet(self, drawn: Partial | None) -> str:
        """Return the drawn images, or sounds, as a file that the browser saves."""
        if drawn is None:
            raise InputError("nothing is drawn yet: draw first")
        return as_link(*self.medium.contents(drawn.images))

    def download_codes(self, drawn: Partial | None) -> str:
        """Return the codes of the drawn images as an npz file that the browser saves."""
        if drawn is None or not drawn.finished:
            raise InputError("these codes are not finished: draw them to the end first")
        return _as_npz(drawn.codes, drawn.labels)

    def label_choices(self) -> list[tuple[str, int]]:
        """Return the choices of labels: the classes by name, and no class if the priors allow that."""
        numbered = [(name, number) for number, name in enumerate(self.classes)]
        unlabelled = bool(numbered) and self._drawing().conditions.unlabelled
        return [*numbered, (NO_CLASS, NO_LABEL)] if unlabelled else numbered

    def speaker_choices(self) -> list[tuple[str, int]]:
        """Return the choices of who speaks: the speakers by name, and nobody in particular."""
        return [*((name, number) for number, name in enumerate(self.speakers)), (NOBODY, NO_LABEL)]

    @property
    def reads_texts(self) -> bool:
        """Whether samples are asked for in words."""
        return self.pipeline is not None and self.pipeline.conditions.num_words > 0

    def rows_to_keep(self) -> range:
        """Return how many rows of codes a completion may keep; none if a prior cannot keep rows of all its grids."""
        rows, priors = keepable_rows(self.layout), () if self.pipeline is None else self.pipeline.priors
        try:
            for prior in priors:
                check_keeps(prior, top_rows(self.layout, rows.start))
        except InputError:
            return range(0)
        return rows if priors else range(0)

    def fills_any(self) -> bool:
        """Return whether all priors can keep any codes, so that any box of pixels can be drawn anew.

        If one hidden pixel leaves no code to keep, as with codes for a whole image, there is nothing to choose.
        """
        if self.pipeline is None or not all(prior.keeps in ("any", "roughly") for prior in self.pipeline.priors):
            return False
        if len(self.tokenizer.signal.size) != 2:
            return False
        known = torch.ones(self.tokenizer.signal.size, dtype=torch.bool, device=self.tokenizer.device)
        known[0, 0] = False
        return any(bool(sites.any()) for sites in self.tokenizer.kept_sites(known))

    def keeps_roughly(self) -> bool:
        """Return whether kept codes may become others that show as much of the image."""
        return self.pipeline is not None and any(prior.keeps == "roughly" for prior in self.pipeline.priors)

    def named(self, values: tuple) -> dict[str, Any]:
        """Return the values of the page's controls, followed by the seed, as arguments of `sample`."""
        named = dict(zip([*self.controls, "seed"], values, strict=True))
        named = {name: read_control(name, value) for name, value in named.items() if value not in (None, "")}
        return {"seed": 0, **named}

    def _drawing(self) -> TwoStagePipeline:
        if self.pipeline is None:
            raise InputError("only a prior draws codes: start the viewer with one")
        return self.pipeline

    def _picture(self, encoded: Encoded, number: int, row: int, column: int) -> np.ndarray:
        codes, edits = encoded.codes[number][0], encoded.edits[number][0]
        return picture_of(codes, self.colours[number], (row, column), edits)

    def _edited(self, encoded: Encoded) -> tuple[str, str]:
        image = actions.decode(self.tokenizer, encoded.codes, encoded.speaker)
        counts = [int(edits.sum()) for edits in encoded.edits]
        sites = sum(grid.num_sites for grid in self.layout)
        words = self.medium.compare(encoded.image, encoded.reconstruction, image if any(counts) else None)
        if any(counts):
            by_grid = ", ".join(f"grid {number}: {count}" for number, count in enumerate(counts) if count)
            where = f" ({by_grid})" if len(counts) > 1 else ""
            words += f" {sum(counts)} of {sites} codes edited{where}, marked by a corner."
        said = {number: name for name, number in self.speaker_choices()}[encoded.speaker] if self.speakers else ""
        name = f"After your edits, said by {said}" if said else "After your edits"
        return self.medium.figure(image, name, self._strip(encoded.codes)), words.strip()

    def _strip(self, codes: Codes) -> torch.Tensor:
        """Return codes (1, t) of all grids in colours, (3, grids, t); of grids in the plane nothing that is shown."""
        finest = max(grid.num_sites for grid in self.layout)
        painted = (paint(grid.flatten(1), its) for grid, its in zip(codes, self.colours, strict=True))
        return torch.cat([F.interpolate(row, (1, finest)) for row in painted], 2)[0]

    def _drawn(self, partial: Partial, what: str) -> tuple[str, Partial, str]:
        labels = [NO_LABEL] * len(partial.images) if partial.labels is None else partial.labels.tolist()
        of_class = ["" if label == NO_LABEL else self.classes[label] for label in labels]
        prompts = list(map(printable, partial.prompts)) or [""] * len(labels)
        names = [", ".join(filter(None, pair)) for pair in zip(prompts, of_class, strict=True)]
        return self.medium.figures(partial.images, names, what), partial, f"{partial.done:.0%} drawn"


def read_control(name: str, value: Any) -> Any:
    """Return the value of a control: a number, or one of its words. Raises `InputError` if it is neither."""
    if not isinstance(value, str) or choices_of(name):
        return value
    for number in (int, float):
        with suppress(ValueError):
            return number(value)
    raise InputError(f"`{name}` {short(value)}: it must be a number; leave it empty for the {OWN}")


def _as_npz(codes: Codes, labels: torch.Tensor | None) -> str:
    """Return codes (n, *shape), and labels (n,), as an npz file that `decode-codes` reads, for the browser to save."""
    content = io.BytesIO()
    arrays: dict[str, Any] = dict(zip(code_names(len(codes)), (grid.numpy() for grid in codes), strict=True))
    if labels is not None:
        arrays["labels"] = labels.numpy()
    np.savez_compressed(content, **arrays)
    return as_link(content.getvalue(), "application/zip")
