"""Settings of how codes are drawn, by the commands that draw. Nothing here imports torch."""

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

import tyro

from codegrid.errors import InputError
from codegrid.limits import REJECT_KEEP, RejectKeep
from codegrid.sampling_config import (
    ChoiceTemperature,
    GuidanceSchedule,
    InferenceSteps,
    MaskSchedule,
    SamplingConfig,
    Solver,
    UnmaskOrder,
    sampling_configs,
)

from .settings import Backend, Compute

DRAWING = tuple(field.name for field in fields(SamplingConfig))


@dataclass(frozen=True, kw_only=True)
class Drawing(Compute):
    """Settings of how codes are drawn: one value for all priors, or one for each, coarse to fine."""

    title: ClassVar[str] = "drawing"

    temperature: tuple[float, ...] = (1.0,)
    """Below 1: likelier samples; 0: the likeliest code at each site."""
    top_k: tuple[int, ...] = (0,)
    """Draw only among this many likeliest codes at each site. 0: among all."""
    top_p: tuple[float, ...] = (1.0,)
    """Draw only among the fewest codes whose probabilities add up to this. 1: among all."""
    guidance_scale: tuple[float, ...] = (1.0,)
    """Above 1: follow the class or prompt more closely, with priors trained with --label-dropout or --caption-dropout.
    1: no guidance."""
    guidance_schedule: tuple[GuidanceSchedule, ...] = ()
    """How a guidance scale above 1 applies to the steps of priors that draw many sites at once: constant, or growing
    from 1 to it. By default the prior's own."""
    num_inference_steps: tuple[InferenceSteps, ...] = ()
    """Steps of a prior that draws many sites at once, or removes noise. By default the prior's own number."""
    choice_temperature: tuple[ChoiceTemperature, ...] = ()
    """Randomness of which sites are drawn first, if many are drawn at once by confidence. By default the prior's
    own."""
    unmask_order: tuple[UnmaskOrder, ...] = ()
    """Which sites are drawn first, if many are drawn at once: those of the likeliest codes, sites spread evenly over
    the grid, or any at random. By default the prior's own."""
    mask_schedule: tuple[MaskSchedule, ...] = ()
    """How the number of sites that are not drawn yet falls to 0, if many are drawn at once. By default the prior's
    own."""
    solver: tuple[Solver, ...] = ()
    """How a step of removing noise is taken: straight (ddim), or bent by the step before (dpm-solver), which needs
    fewer steps. By default the prior's own."""
    backend: Backend = "auto"
    """How the prior computes. plain: one forward pass per step; torch: with a cache; native: the same in C++, on a
    CPU; graph: the same in CUDA graphs, on a GPU; compiled: by torch.compile; auto: native or graph if possible,
    else torch. A continued run keeps its backend."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for place in range(max(len(getattr(self, name)) for name in DRAWING)):
            SamplingConfig(**{name: values[place] for name in DRAWING if len(values := getattr(self, name)) > place})

    def configs(self, num_priors: int) -> tuple[SamplingConfig, ...]:
        """Return how each of `num_priors` priors draws.

        Raises `InputError` if a setting has neither one value nor one for each prior.
        """
        return sampling_configs(num_priors, **{name: values for name in DRAWING if (values := getattr(self, name))})


@dataclass(frozen=True, kw_only=True)
class Rejecting(Drawing):
    """Settings of commands that can draw each sample several times and keep the best."""

    title: ClassVar[str] = Drawing.title

    reject_with: Annotated[str | None, tyro.conf.arg(metavar="classifier|likelihood|FOLDER")] = None
    """Draw each sample several times, and keep the draw whose class a classifier finds likeliest: the folder of a saved
    one, or the word classifier to train one first on the data set of the tokenizer. Or the word likelihood, to keep the
    draw whose likelihood under the prior its label or prompt raises most. The results say who rejected."""
    reject_keep: RejectKeep | None = None
    """Share of the draws that --reject-with keeps, by default 0.25: each sample is the best of 4 draws."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reject_keep is not None and self.reject_with is None:
            raise InputError("`reject_keep` needs `reject_with`: give it a classifier")
        if self.reject_with is not None and self.reject_keep is None:
            object.__setattr__(self, "reject_keep", REJECT_KEEP)
