"""Drawing some samples of a request at a time: codes out of the priors, images out of the tokenizer.

Shapes: n samples, b samples of a batch, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from codegrid.codes import Codes, Condition, Layout, Progress
from codegrid.limits import is_list_of
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, Prior, Tokenizer
from codegrid.stage2_prior.conditions import Conditions, conditions_of
from codegrid.stage2_prior.sampling.draw import draw

from .pairing import check_pairing, spoken_by
from .rejection import Tell
from .request import Request
from .samples import Samples


class Drawer:
    """A tokenizer, and priors that draw all of its grids together, coarse to fine.

    Raises `InputError` if they do not belong together.
    """

    def __init__(self, tokenizer: Tokenizer, *priors: Prior) -> None:
        check_pairing(tokenizer, priors)
        self.tokenizer = tokenizer
        self.priors = priors

    @property
    def layout(self) -> Layout:
        """The grids of a sample, coarse to fine."""
        return self.tokenizer.layout

    @property
    def conditions(self) -> Conditions:
        """The conditions that turn labels into what the priors are given."""
        return conditions_of(self.priors)

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty if no prior has classes."""
        return list(self.conditions.classes)

    @property
    def prompts(self) -> list[str]:
        """Prompts to try: those that the card of a prior over texts shows; empty without texts."""
        for prior in self.priors:
            told = prior.provenance.get("prompts")
            if prior.conditions.num_words and isinstance(told, list) and is_list_of(told, str):
                return told
        return []

    @property
    def device(self) -> torch.device:
        """The device that the models are on."""
        return self.tokenizer.device

    def sample_rows(self, request: Request, rows: range, backend: str = "auto", tell: Tell | None = None) -> Samples:
        """Draw some samples of a request, on the models' device. `tell` is called with the share that is done."""
        if request.rejection and request.rejection.judge.needs_images:
            return request.rejection.best(
                request, rows, lambda once, tell: self.sample_rows(once, rows, backend, tell), tell
            )
        codes, given = self.sample_codes(request, rows, backend, tell), request.given(rows)
        images = self.decode_samples(codes, request, rows)
        if request.paste:
            images = request.paste.onto(images, request.pictures_of(rows))
        return Samples(
            images, codes, given.labels, request.seed, tuple(self.classes), request.prompts[rows.start : rows.stop]
        )

    def decode_samples(self, codes: Codes, request: Request, rows: range) -> torch.Tensor:
        """Return what the codes (b, *shape) of some samples of a request stand for, on the models' device."""
        spoken = spoken_by(self.tokenizer, request.given(rows), self.classes)
        return self.decode(codes, spoken.to(self.device), self.noise_of(request, rows).of("decoder"))

    def sample_codes(self, request: Request, rows: range, backend: str = "auto", tell: Tell | None = None) -> Codes:
        """Draw the codes (b, *shape) of some samples of a request, on the priors' device."""
        if request.rejection and request.rejection.judge.needs_images:
            return self.sample_rows(request, rows, backend, tell).codes
        if request.rejection:

            def draw_codes(once: Request, tell: Tell | None) -> Samples:
                return Samples(None, self.sample_codes(once, rows, backend, tell), None, once.seed)

            return request.rejection.best(request, rows, draw_codes, tell).codes
        for step in self.sample_steps(request, rows, backend, watch=tell is not None):
            if tell:
                tell(step.done)
        return step.codes

    def sample_steps(
        self, request: Request, rows: range, backend: str = "auto", watch: bool = True
    ) -> Iterator[Progress]:
        """Draw some samples of a request, and yield their progress after each step; the last one is the result."""
        noise, known = self.noise_of(request, rows), request.known_of(rows)
        return draw(self.priors, request.given(rows), noise, request.configs, known, backend, watch)

    def noise_of(self, request: Request, rows: range) -> Noise:
        """Return the random numbers that some samples of a request are drawn with."""
        noise = Noise(request.seed, rows.start, len(rows), self.device)
        return noise.of("draw", request.draw) if request.draw else noise

    def decode(self, codes: Codes, given: Condition = NO_CONDITION, noise: Noise | None = None) -> torch.Tensor:
        """Decode codes (n, *shape) into images (n, c, H, W) in [-1, 1]."""
        here = tuple(grid.to(self.device) for grid in codes)
        return self.tokenizer.decode(here, given=given, noise=noise).clamp(-1, 1)
