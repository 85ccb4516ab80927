"""Settings of how codes are drawn. Nothing here imports torch: command lines are built from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, get_args, get_type_hints

from typing_extensions import Unpack

from .errors import InputError
from .limits import Range, check_fields

if TYPE_CHECKING:
    from .protocols import Prior

GuidanceSchedule = Literal["constant", "growing"]
UnmaskOrder = Literal["confidence", "halton", "random"]
Solver = Literal["ddim", "dpm-solver"]
MaskSchedule = Literal["cosine", "arccos", "linear", "square", "cubic", "root"]
InferenceSteps = Annotated[int, Range(1, 10**6)]
ChoiceTemperature = Annotated[float, Range(0)]


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of how codes are drawn from logits. Guidance comes first, then temperature, top-k and top-p.

    A prior may have settings of its own, which hold where a field is None.

    Raises `InputError` if a value is out of range.

    Examples:
        >>> SamplingConfig(temperature=0.9, top_k=50).changed()
        {'temperature': 0.9, 'top_k': 50}
    """

    temperature: Annotated[float, Range(0)] = 1.0
    """Below 1 for likelier samples, 0 for the likeliest code at each site."""
    top_k: Annotated[int, Range(0, 10**12)] = 0
    """Draw only among this many codes, the likeliest at each site. 0: among all."""
    top_p: Annotated[float, Range(above=0, high=1)] = 1.0
    """Draw only among the fewest codes whose probabilities add up to this. 1: among all."""
    guidance_scale: Annotated[float, Range()] = 1.0
    """Above 1 to follow the class or text more closely, in priors trained to draw without it, too. 1: no guidance."""
    guidance_schedule: GuidanceSchedule | None = None
    """How a guidance scale above 1 applies to the steps: constant, or growing from 1 to it."""
    num_inference_steps: InferenceSteps | None = None
    """Steps of a prior that draws many sites at once, or removes noise."""
    choice_temperature: ChoiceTemperature | None = None
    """Randomness of which sites are drawn first, if many are drawn at once by confidence; it falls to 0 at the last
    step. 0: those of the likeliest codes."""
    unmask_order: UnmaskOrder | None = None
    """Which sites are drawn first, if many are drawn at once: those of the likeliest codes (confidence), sites spread
    evenly over the grid (halton), or sites at random, which samples from the prior's distribution."""
    mask_schedule: MaskSchedule | None = None
    """How the number of sites that are not drawn yet falls to 0 over the steps, if many are drawn at once."""
    solver: Solver | None = None
    """How a step of removing noise is taken: straight (ddim), or bent by the step before (dpm-solver), which needs
    fewer steps."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def guided(self) -> bool:
        """Whether two sets of logits are needed."""
        return self.guidance_scale != 1

    def guidance_at(self, step: int, steps: int) -> float:
        """Return the guidance scale at one of several steps, numbered from 0. Scales up to 1 are always constant."""
        if self.guidance_schedule != "growing" or self.guidance_scale <= 1 or step + 1 >= steps:
            return self.guidance_scale
        return 1 + (self.guidance_scale - 1) * step / (steps - 1)

    def changed(self) -> dict[str, float | int | str | None]:
        """Return the fields that differ from their defaults, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}

    def check_controls(self, prior: Prior) -> None:
        """Raise `InputError` if a field has no effect on a prior but is set, or there are too many steps."""
        for name in self.changed():
            if name not in prior.controls:
                raise InputError(f"`{name}` has no effect on this prior, a {type(prior).__name__}: leave it out")
        check_steps(self.num_inference_steps, prior)

    def completed_by(self, prior: Prior) -> SamplingConfig:
        """Return the settings with those of the prior's own, its `own_settings`, in place of None."""
        own = getattr(prior, "own_settings", None)
        if own is None:
            return self
        return replace(self, **{name: value for name, value in own.changed().items() if getattr(self, name) is None})


def check_steps(num_inference_steps: int | None, prior: Prior) -> None:
    """Raise `InputError` if there are more steps than a prior can take, its `max_inference_steps`."""
    most = getattr(prior, "max_inference_steps", None)
    if num_inference_steps is not None and most is not None and num_inference_steps > most:
        raise InputError(
            f"`num_inference_steps` {num_inference_steps}: this prior can take at most {most:,} steps, one for each "
            "site or level of noise"
        )


def choices_of(name: str) -> tuple[str, ...]:
    """Return the values that a field of `SamplingConfig` can have if it is one of a few words; empty for numbers."""
    literal, _ = get_args(get_type_hints(SamplingConfig)[name])
    return get_args(literal)


class DrawingSettings(TypedDict, total=False):
    """The fields of `SamplingConfig`: each one value, or a list with one for each prior, coarse to fine."""

    temperature: float | Sequence[float]
    top_k: int | Sequence[int]
    top_p: float | Sequence[float]
    guidance_scale: float | Sequence[float]
    guidance_schedule: str | Sequence[str | None] | None
    num_inference_steps: int | Sequence[int | None] | None
    choice_temperature: float | Sequence[float | None] | None
    unmask_order: str | Sequence[str | None] | None
    mask_schedule: str | Sequence[str | None] | None
    solver: str | Sequence[str | None] | None


def sampling_configs(num_priors: int, **settings: Unpack[DrawingSettings]) -> tuple[SamplingConfig, ...]:
    """Return the sampling settings of each prior, coarse to fine.

    Each setting is a field of `SamplingConfig`: one value, or a list or tuple with one for each prior.

    Raises `InputError` if there is no such setting, the number of values is wrong, or one is out of range.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(num_priors)]
    known = {field.name for field in fields(SamplingConfig)}
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"`{name}`: there is no such setting; there are {', '.join(sorted(known))}")
        several = list(value) if isinstance(value, list | tuple) else [value]
        if len(several) not in (1, num_priors):
            raise InputError(f"`{name}`: {len(several)} values for {num_priors} priors: give one, or one for each")
        for row, own in zip(rows, several * num_priors if len(several) == 1 else several, strict=True):
            row[name] = own
    return tuple(SamplingConfig(**row) for row in rows)
