"""Both stages from Python: codes out of the priors, images out of the tokenizer.

Shapes: n samples, b samples of a batch, c channels, H W image, *shape the sites of each grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from typing_extensions import Self

from codegrid.codes import Codes, Condition, Layout, Progress
from codegrid.data.loading import in_order
from codegrid.errors import InputError
from codegrid.limits import BatchSize, check_value
from codegrid.model_folder import load_model
from codegrid.noise import Noise
from codegrid.pipelines.running.places import find_priors
from codegrid.protocols import NO_CONDITION, Prior, Tokenizer
from codegrid.sampling_config import sampling_configs
from codegrid.stage2_prior.conditions import Conditions, Labels
from codegrid.stage2_prior.sampling.draw import draw

from .request import Keep, Request, complete_codes, conditions_of, kept_masks, make_request

Source = str | Path
Setting = float | Sequence[float]  # one value, or one for each prior, coarse to fine


class Samples(NamedTuple):
    """Samples of a pipeline."""

    images: torch.Tensor  # (n, c, H, W), float in [-1, 1]
    codes: Codes  # (n, *shape) int64, one for each grid
    labels: torch.Tensor | None  # (n,) int64, -1 for no particular class


class TwoStagePipeline:
    """A tokenizer, and priors that were trained on its codes and draw all of its grids together.

    Args:
        tokenizer: any tokenizer.
        priors: one, or several that draw a grid or some of them each, coarse to fine.

    Raises `InputError` where a prior learnt the codes of another tokenizer (the shapes would fit, and the pictures
    would be garbage), or where the priors' grids are not those of the tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, *priors: Prior) -> None:
        check_pairing(tokenizer, priors)
        self.tokenizer = tokenizer
        self.priors = priors

    @classmethod
    def from_pretrained(cls, folder: Source, device: str | torch.device = "cpu") -> Self:
        """Load a folder that holds `tokenizer/` and `prior/` (or `prior-0/`, `prior-1/`, ... coarse to fine)."""
        return cls.from_parts(Path(folder) / "tokenizer", find_priors(folder) or Path(folder) / "prior", device)

    @classmethod
    def from_parts(
        cls, tokenizer: Source, priors: Source | Sequence[Source], device: str | torch.device = "cpu"
    ) -> Self:
        """Load model folders, or hub names `hf:owner/name`; several priors coarse to fine."""
        several = [priors] if isinstance(priors, str | Path) else priors
        return cls(
            load_model(tokenizer, device, "tokenizer"), *(load_model(prior, device, "prior") for prior in several)
        )

    @property
    def layout(self) -> Layout:
        """The grids of a sample, coarse to fine."""
        return self.tokenizer.layout

    @property
    def conditions(self) -> Conditions:
        """The conditions by which labels are understood."""
        return conditions_of(self.priors)

    @property
    def classes(self) -> list[str]:
        """The names of the labels; empty where no prior has classes."""
        return list(self.conditions.classes)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.tokenizer.device

    def sample(
        self,
        num_samples: int = 1,
        labels: Labels | None = None,
        seed: int = 0,
        batch_size: int = 128,
        temperature: Setting = 1.0,
        top_k: Setting = 0,
        top_p: Setting = 1.0,
        guidance_scale: Setting = 1.0,
        num_inference_steps: int | Sequence[int] | None = None,
        backend: str = "auto",
    ) -> Samples:
        """Draw new images. Settings from `temperature` on may be lists with one value for each prior, coarse to fine.

        Args:
            num_samples: n.
            labels: numbers or names of classes, or `none`; one for each sample or one for all. None: all classes in
                turn.
            seed: sample i follows from (seed, i) alone.
            batch_size: samples drawn at once.
            temperature: below 1 for likelier samples, 0 for the likeliest code at each site.
            top_k: draw among so many codes only, the likeliest at each site. 0: among all.
            top_p: draw among the fewest codes that have this probability together. 1: among all.
            guidance_scale: above 1 for more of what makes the class, where a prior also learnt grids without a label.
            num_inference_steps: of priors that draw many sites at once. None: the prior's own number.
            backend: how the priors compute; it changes no code, but for rounding.

        Raises `InputError` where a prior cannot follow.
        """
        configs = sampling_configs(
            len(self.priors), temperature=temperature, top_k=top_k, top_p=top_p, guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
        )  # fmt: skip
        request = make_request(self.priors, num_samples, labels, seed, configs)
        return self.answer(request, batch_size, backend)

    def complete(
        self,
        images: torch.Tensor,
        keep: Keep,
        num_completions: int = 1,
        labels: Labels | None = None,
        seed: int = 0,
        batch_size: int = 128,
        temperature: Setting = 1.0,
        top_k: Setting = 0,
        top_p: Setting = 1.0,
        guidance_scale: Setting = 1.0,
        num_inference_steps: int | Sequence[int] | None = None,
        backend: str = "auto",
    ) -> Samples:
        """Keep a part of images and draw the rest.

        Args:
            images: (p, c, H, W) in [-1, 1], of the tokenizer's size.
            keep: how many rows of codes, from the top, of the coarsest grid; or a mask over the sites of grids that are
                all of one shape; or a mask (H, W) over the pixels that are known.
            num_completions: of each image; they stand behind each other.
            labels: as for `sample`, one for each image or one for all. None: of no particular class, where the prior
                learnt such.
            seed, batch_size, temperature, top_k, top_p, guidance_scale, num_inference_steps, backend: as for `sample`.

        Raises `InputError` where the images are of another size, or a prior cannot keep these codes.
        """
        configs = sampling_configs(
            len(self.priors), temperature=temperature, top_k=top_k, top_p=top_p, guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
        )  # fmt: skip
        masks = kept_masks(self.tokenizer, keep)
        codes = self.encode(images, batch_size)
        request = complete_codes(self.priors, codes, masks, num_completions, labels, seed, configs)
        return self.answer(request, batch_size, backend)

    def answer(self, request: Request, batch_size: int = 128, backend: str = "auto") -> Samples:
        """Draw all samples of a request; they are left on the CPU."""
        check_value("batch_size", batch_size, BatchSize)
        batches = [self.sample_rows(request, rows, backend) for rows in in_order(request.num_samples, batch_size)]
        images = torch.cat([batch.images.cpu() for batch in batches])
        codes = tuple(torch.cat(grids).cpu() for grids in zip(*[batch.codes for batch in batches], strict=True))
        return Samples(images, codes, request.labels)

    def sample_rows(self, request: Request, rows: range, backend: str = "auto") -> Samples:
        """Draw some samples of a request; they are left where the models are."""
        codes = self.sample_codes(request, rows, backend)
        given = request.given(rows).to(self.device)
        images = self.decode(codes, given, self.noise_of(request, rows).of("decoder"))
        return Samples(images, codes, request.given(rows).labels)

    def sample_codes(self, request: Request, rows: range, backend: str = "auto") -> Codes:
        """Draw the codes (b, *shape) of some samples of a request, where the priors are."""
        *_, last = self.sample_steps(request, rows, backend, watch=False)
        return last.codes

    def sample_steps(
        self, request: Request, rows: range, backend: str = "auto", watch: bool = True
    ) -> Iterator[Progress]:
        """Draw some samples of a request, and yield how far they are after each step; the last one is the result."""
        noise, known = self.noise_of(request, rows), request.known_of(rows)
        return draw(self.priors, request.given(rows), noise, request.configs, known, backend, watch)

    def noise_of(self, request: Request, rows: range) -> Noise:
        """Return the random numbers that some samples of a request follow from."""
        return Noise(request.seed, rows.start, len(rows), self.device)

    def encode(self, images: torch.Tensor, batch_size: int = 128) -> Codes:
        """Return the codes of images (n, c, H, W) in [-1, 1], on the CPU. Raises `InputError` for another size."""
        expected = self.tokenizer.signal.shape
        if tuple(images.shape[1:]) != expected:
            raise InputError(f"`images` of shape {tuple(images.shape)}: this tokenizer takes (n, *{expected})")
        batches = [self.tokenizer.encode(batch.to(self.device)) for batch in images.split(batch_size)]
        return tuple(torch.cat(grids).cpu() for grids in zip(*batches, strict=True))

    def decode(self, codes: Codes, given: Condition = NO_CONDITION, noise: Noise | None = None) -> torch.Tensor:
        """Return the images (n, c, H, W) in [-1, 1] of codes (n, *shape)."""
        return self.tokenizer.decode(codes, given=given, noise=noise).clamp(-1, 1)

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Return images (n, c, H, W) in [-1, 1], encoded and decoded again, on the CPU."""
        return self.tokenizer.reconstruct(images.to(self.device)).clamp(-1, 1).cpu()


def check_pairing(tokenizer: Tokenizer, priors: Sequence[Prior]) -> None:
    """Raise `InputError` where priors are not of this tokenizer's codes, or do not draw each of its grids once."""
    if not priors:
        raise InputError("`prior`: at least one is needed to draw codes")
    fingerprint, layout = tokenizer.fingerprint(), tokenizer.layout
    names = ["this prior"] if len(priors) == 1 else [f"prior {number}" for number in range(len(priors))]
    for name, prior in zip(names, priors, strict=True):
        if prior.provenance.get("tokenizer_fingerprint") != fingerprint:
            raise InputError(
                f"{name} was trained on the codes of another tokenizer (the fingerprints differ): give the tokenizer "
                "that made them, or train a prior on this one's codes"
            )
        for number, grid in zip(prior.grids, prior.layout, strict=True):
            if number >= len(layout) or layout[number] != grid:
                there = f"has {layout[number]}" if number < len(layout) else f"has {len(layout)} grids only"
                raise InputError(
                    f"{name} draws {grid} as grid {number}, where the tokenizer {there}: train a prior on this "
                    "tokenizer's codes"
                )
    drawn = [number for prior in priors for number in prior.grids]
    for number, grid in enumerate(layout):
        if drawn.count(number) != 1:
            which = "no prior draws" if number not in drawn else "several priors draw"
            raise InputError(f"{which} grid {number} of the tokenizer ({grid}): give the priors that draw each once")
    if drawn != sorted(drawn):
        raise InputError("the priors are not in order: give them coarse to fine, as their grids are numbered")
    learnt = [prior.conditions.classes for prior in priors if prior.conditions.num_classes]
    if any(classes != learnt[0] for classes in learnt):
        raise InputError("the priors learnt different classes: train them on the same codes")
