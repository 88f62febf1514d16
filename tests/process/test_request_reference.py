"""The number of steps that run is the one of diffusers' pipeline."""

from types import SimpleNamespace

import pytest
from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

from app.request import MAX_STEPS, steps_run
from tests.support.fields import accepted

AWKWARD = [(49, 1 / 49), (50, 0.58), (10, 0.1), (3, 1 / 3), (6, 1 / 6), (50, 0.02), (3, 0.33), (7, 0.14), (10, 0.7)]


def diffusers_steps(steps: int, strength: float) -> int:
    """How many timesteps the real pipeline is left with."""
    scheduler = EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    pipe = SimpleNamespace(scheduler=scheduler)
    timesteps, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipe, steps, strength, None)
    return len(timesteps)


@pytest.mark.parametrize("steps", range(1, MAX_STEPS + 1))
def test_steps_run_agree_with_diffusers_over_the_grid(steps: int) -> None:
    scheduler = EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    pipe = SimpleNamespace(scheduler=scheduler)
    for thousandths in range(1, 1001):
        strength = thousandths / 1000
        timesteps, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipe, steps, strength, None)
        assert steps_run(steps, strength) == len(timesteps)
        assert accepted(steps, strength) == (len(timesteps) >= 1)


@pytest.mark.parametrize(("steps", "strength"), AWKWARD)
def test_steps_run_agree_with_diffusers_at_awkward_products(steps: int, strength: float) -> None:
    assert steps_run(steps, strength) == diffusers_steps(steps, strength)
    assert accepted(steps, strength) == (diffusers_steps(steps, strength) >= 1)
