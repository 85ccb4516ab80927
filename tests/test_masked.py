"""Priors that draw many sites at once, in any order: their settings, their sampler, their network and their bound."""

import pytest

from codegrid.errors import InputError
from codegrid.sampling_config import SamplingConfig, sampling_configs

# Settings.


@pytest.mark.parametrize("schedule", [None, "constant", "growing"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_scale_of_1_is_no_guidance_and_one_of_0_no_condition_at_every_step(schedule, steps):
    for scale in (0.0, 0.5, 1.0):
        config = SamplingConfig(guidance_scale=scale, guidance_schedule=schedule)
        assert {config.guidance_at(step, steps) for step in range(steps)} == {scale}
    strong = SamplingConfig(guidance_scale=3.0, guidance_schedule=schedule)
    scales = [strong.guidance_at(step, steps) for step in range(steps)]
    expected = [1 + 2 * step / (steps - 1) for step in range(steps)] if steps > 1 else [3.0]
    assert scales == (expected if schedule == "growing" else [3.0] * steps)


@pytest.mark.parametrize(
    "settings,reason",
    [
        ({"unmask_order": "raster"}, "`unmask_order` 'raster': choose one of confidence, halton, random"),
        ({"mask_schedule": 3}, "`mask_schedule` 3"),
        ({"guidance_schedule": "up"}, "`guidance_schedule` 'up': choose one of constant, growing"),
        ({"choice_temperature": -1.0}, "`choice_temperature` -1"),
        ({"num_inference_steps": 0}, "`num_inference_steps` 0"),
        ({"unmask_order": ["random"] * 3}, "`unmask_order`: 3 values for 2 priors"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, reason):
    with pytest.raises(InputError, match=reason):
        sampling_configs(2, **settings)
