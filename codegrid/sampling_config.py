"""Settings of how codes are drawn. Nothing here imports torch: command lines are built from it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from .errors import InputError
from .limits import Range, check_fields

Setting = float | Sequence[float]  # one value, or one for each prior, coarse to fine


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of how codes are drawn from logits. Guidance comes first, then temperature, top-k and top-p.

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
    """Above 1 to follow the class more closely, in priors trained with label dropout. 1: no guidance."""
    num_inference_steps: Annotated[int, Range(1, 10**6)] | None = None
    """Steps of priors that draw many sites at once. None: the prior's own number."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def guided(self) -> bool:
        """Whether two sets of logits are needed."""
        return self.guidance_scale != 1

    def changed(self) -> dict[str, float | int | None]:
        """Return the fields that differ from their defaults, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) != each.default}

    def check_controls(self, controls: frozenset[str], prior: str) -> None:
        """Raise `InputError` if a field is set that is not one of the `controls` of a prior of the class `prior`."""
        for name in self.changed():
            if name not in controls:
                raise InputError(f"`{name}` has no effect on this prior, a {prior}: leave it out")


def sampling_configs(
    num_priors: int,
    temperature: Setting = 1.0,
    top_k: Setting = 0,
    top_p: Setting = 1.0,
    guidance_scale: Setting = 1.0,
    num_inference_steps: Setting | None = None,
) -> tuple[SamplingConfig, ...]:
    """Return the sampling settings of each prior, coarse to fine.

    Each setting is a field of `SamplingConfig`: one value, or a list or tuple with one for each prior.

    Raises `InputError` if the number of values is wrong, or one is out of range.
    """
    settings = (temperature, top_k, top_p, guidance_scale, num_inference_steps)
    columns: list[list[Any]] = []
    for name, value in zip((field.name for field in fields(SamplingConfig)), settings, strict=True):
        several = list(value) if isinstance(value, list | tuple) else [value]
        if len(several) not in (1, num_priors):
            raise InputError(f"`{name}`: {len(several)} values for {num_priors} priors: give one, or one for each")
        columns.append(several * num_priors if len(several) == 1 else several)
    return tuple(SamplingConfig(*values) for values in zip(*columns, strict=True))
