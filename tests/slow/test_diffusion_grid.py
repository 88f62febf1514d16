"""Our loop against diffusers' own pipeline, over a grid of steps and strengths."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionXLImg2ImgPipeline

from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.settings import Settings
from tests.support.models import by_diffusers, job, together


@pytest.fixture(scope="module")
def diffusion(tiny_checkpoint: Path) -> SdxlDiffusion:
    return load(Settings(model=str(tiny_checkpoint)), "cpu")


GRID = [
    (steps, strength)
    for steps, strength in itertools.product(range(1, 11), (0.1, 0.25, 0.34, 0.5, 0.6, 0.75, 0.9, 1.0))
    if int(steps * strength) >= 1
]


@pytest.mark.parametrize(("steps", "strength"), GRID)
def test_one_job_alone_is_bit_equal_to_diffusers(
    oracle: StableDiffusionXLImg2ImgPipeline, diffusion: SdxlDiffusion, steps: int, strength: float
) -> None:
    each = job(steps=steps, strength=strength, seed=steps)
    assert np.array_equal(together(diffusion, [each])[0], by_diffusers(oracle, each))
