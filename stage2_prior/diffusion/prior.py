"""Latent diffusion (Rombach et al. 2022, arXiv 2112.10752) over the vectors that codes stand for.

Noise is added to x_0, the standardised vectors, by x_t = √ᾱ_t x_0 + √(1−ᾱ_t) ε, and a UNet learns to predict
v = √ᾱ_t ε − √(1−ᾱ_t) x_0 (Salimans and Ho 2022, arXiv 2202.00512). At the last level ᾱ is 0, so that drawing starts
from nothing but noise (Lin et al. 2023, arXiv 2305.08891). UNet and noise levels are those of diffusers.

Shapes: b batch, h w code grid, D embedding_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from codegrid.codes import Codes, Condition, Grid, Known, Losses, Moment, Progress
from codegrid.files import write_folder
from codegrid.noise import Noise
from codegrid.protocols import NO_CONDITION, Keeps, Likelihood
from codegrid.sampling_config import SamplingConfig, Solver
from codegrid.stage2_prior.labelled import HidesLabels
from codegrid.stage2_prior.options import DiffusionOptions
from codegrid.stage2_prior.sampling.denoising import sample_denoising
from codegrid.stage2_prior.site_codes import check_one_shape
from codegrid.usable import PARTS

from .network import DenoisingNetwork, import_diffusers
from .vectors import CodeVectors, entries_of, random_entries

LEVELS = 1000  # of noise
MEASURED = 4  # noise levels at which the error of a sample is measured: one in each quarter
NOISE_LEVELS: dict[str, Any] = {
    "num_train_timesteps": LEVELS, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
}  # fmt: skip
ORDERS: dict[Solver | None, int] = {"ddim": 1, "dpm-solver": 2}  # DDIM is DPM-Solver++ of the first order


class DiffusionPrior(HidesLabels):
    """A latent diffusion: draws the vectors of all codes at once, by removing noise step by step, and ends with codes.

    It has no likelihood. It needs the vectors that codes stand for, and keeps a copy of them.

    Args:
        layout: grids (h, w) of one shape, as `Grid`s or as their JSON values.
        grids: their indices in the tokenizer's layout; by default 0, 1, ...
        num_classes: labels are 0 ... num_classes-1; 0 makes an unconditional prior.
        tables: those of the codes, by name: `CodeDataset.tables()`. By default random vectors.
        embedding_dim: D, if there are no tables.
        num_words: the size of the vocabulary of texts; 0: it is not conditioned on texts.
        text_length: the most words of a text.
        options: the fields of `DiffusionOptions`.

    Raises `InputError` if diffusers is not installed, an option is unknown or out of range, or the prior cannot learn
    such grids.

    Examples:
        >>> from codegrid.stage2_prior import sample
        >>> prior = DiffusionPrior((Grid((7, 7), 512),), num_classes=10, channels=16).eval()
        >>> (codes,) = sample(prior, 4, labels=[3], num_inference_steps=4, guidance_scale=2.0)
        >>> codes.shape
        torch.Size([4, 7, 7])
    """

    options: ClassVar[type] = DiffusionOptions
    called: ClassVar[str] = "the diffusion prior"
    package: ClassVar[str] = "diffusers"  # which may be missing
    likelihood: ClassVar[Likelihood] = "none"
    criterion: ClassVar[str] = "denoising_error"
    keeps: ClassVar[Keeps] = "any"
    controls: ClassVar[frozenset[str]] = frozenset(
        {"guidance_scale", "guidance_schedule", "num_inference_steps", "solver"}
    )
    condition_table: ClassVar[str] = "class_embedding"
    max_inference_steps: ClassVar[int] = LEVELS
    network: DenoisingNetwork

    def __init__(
        self,
        layout: Sequence[Grid | dict[str, Any]],
        grids: Sequence[int] | None = None,
        num_classes: int = 0,
        tables: Mapping[str, Tensor] | None = None,
        embedding_dim: int = 8,
        num_words: int = 0,
        text_length: int = 0,
        **options: Any,
    ) -> None:
        texts = {"num_words": num_words, "text_length": text_length}
        super().__init__(layout, grids, num_classes, **texts, **options)
        check_one_shape(self.layout, "diffusion")
        if tables is None:
            entries = random_entries(self.layout, embedding_dim)
        else:
            entries = entries_of(tables, self.grids, self.layout)
        self.vectors = CodeVectors(entries, self.chosen.one_scale)
        self.config["embedding_dim"] = dim = self.vectors.embedding_dim
        self.scheduler = import_diffusers().DDPMScheduler(**NOISE_LEVELS, clip_sample=False)
        self.network = DenoisingNetwork(dim, self.layout[-1].shape, self.chosen, self.num_conditions, **texts)

    @property
    def own_settings(self) -> SamplingConfig:
        """How it draws unless told otherwise."""
        return SamplingConfig(num_inference_steps=self.chosen.num_inference_steps, solver=self.chosen.solver)

    def prepare(self, batches: Iterable[Codes]) -> None:
        """Take the mean of each channel, and the standard deviations, from training codes (b, h, w) of each grid."""
        self.vectors.standardise(batches)

    def forward(self, codes: Codes, given: Condition = NO_CONDITION, moment: Moment | None = None) -> Losses:
        """Return the loss, the mean squared error of v, for codes (b, h, w), each sample at a random level of noise.

        A moment hides labels and texts. Without one, the noise is always the same.
        """
        count = len(codes[0])
        noise = Noise(0, 0, count) if moment is None else moment.noise
        asked = self._asked(given, count, moment)
        error = self._errors(codes, asked, noise.uniforms("noise level"), noise.of("denoising"))
        return Losses({"denoising_loss": error.mean()}, {})

    @torch.no_grad()
    def errors(self, codes: Codes, given: Condition = NO_CONDITION, noise: Noise | None = None) -> Tensor:
        """Return the mean squared error of v (b,) at a few noise levels; 1 is that of knowing nothing.

        Levels and noise follow from `noise`, so that two measurements of the same samples agree.
        """
        count = len(codes[0])
        noise, asked = noise or Noise(0, 0, count), self._asked(given, count)
        parts = [noise.of("quarter", number) for number in range(MEASURED)]
        levels = [(number + part.uniforms("noise level")) / MEASURED for number, part in enumerate(parts)]
        errors = [self._errors(codes, asked, *each) for each in zip(levels, parts, strict=True)]
        return torch.stack(errors).mean(0)

    def _errors(self, codes: Codes, asked: tuple[Any, ...], levels: Tensor, noise: Noise) -> Tensor:
        """Return the squared error of v (b,), a mean over sites and channels, at noise levels (b,) in [0, 1)."""
        clean = self.vectors(codes)
        timesteps = (levels * LEVELS).long().to(clean.device)
        added = noise.normals("noise", *clean.shape[1:]).to(clean)
        noisy, wanted = (
            change(clean, added, timesteps) for change in (self.scheduler.add_noise, self.scheduler.get_velocity)
        )
        found = self.network(noisy, timesteps, *asked)
        exact = torch.promote_types(found.dtype, torch.float32)
        return (found.to(exact) - wanted.to(exact)).square().flatten(1).mean(1)

    def _asked(self, given: Condition, count: int, moment: Moment | None = None) -> tuple[Any, ...]:
        """Return what the network is given besides noisy vectors and their level of noise."""
        rows, words = self.condition_rows(given, count, moment), self.texts(given, count, moment)
        return rows, self.network.encode(words)

    def latents(self, codes: Codes) -> Tensor:
        """Return the standardised vectors (b, D, h, w) of codes (b, h, w)."""
        vectors: Tensor = self.vectors(codes)
        return vectors

    def nearest(self, latents: Tensor, known: Known | None = None) -> Codes:
        """Return the codes (b, h, w) of each grid that are nearest to vectors (b, D, h, w); known codes stay."""
        return self.vectors.nearest(latents, known)

    def denoiser(self, given: Condition, batch_size: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function of noisy vectors (b, D, h, w) and a noise level () that predicts v (b, D, h, w)."""
        asked = self._asked(given, batch_size)
        return lambda noisy, timestep: self.network(noisy, timestep, *asked)

    def make_solver(self, solver: Solver | None) -> Any:
        """Return a new scheduler of diffusers for one drawing: they remember how far it is."""
        return import_diffusers().DPMSolverMultistepScheduler(**NOISE_LEVELS, solver_order=ORDERS[solver])

    def nll(
        self,
        codes: Codes,
        given: Condition = NO_CONDITION,
        noise: Noise | None = None,
        num_inference_steps: int | None = None,
    ) -> None:
        """Return None: there is no likelihood."""

    def sample(
        self,
        given: Condition,
        noise: Noise,
        config: SamplingConfig,
        known: Known | None = None,
        backend: str = "auto",
        watch: bool = False,
    ) -> Iterator[Progress]:
        """Draw `noise.count` samples in a few steps; see `sample_denoising`."""
        return sample_denoising(self, given, noise, config, known, backend, watch)

    def save_pretrained(self, folder: str | Path, picture: bytes = b"") -> None:
        """Write the model folder and in it, for diffusers, the folders `unet` and `scheduler`."""
        super().save_pretrained(folder, picture)
        for name, part in zip(PARTS, (self.network.unet, self.scheduler), strict=True):
            with write_folder(Path(folder) / name) as staging:
                part.save_pretrained(staging)
