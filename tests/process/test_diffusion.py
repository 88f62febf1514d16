"""Our loop against diffusers' pipeline with the same weights, seed and image, in float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLImg2ImgPipeline,
)

from app.engine.messages import Job, Result
from app.model.diffusion import SdxlDiffusion
from app.model.load import load
from app.pixels import Pixels
from app.settings import Settings
from tests.support.models import INFO, LONG, MIXED, PROMPTS, array, by_diffusers, finished, job, start_image, together


@pytest.fixture(scope="module")
def diffusion(tiny_checkpoint: Path) -> SdxlDiffusion:
    return load(Settings(model=str(tiny_checkpoint)), "cpu")


@pytest.mark.parametrize(
    ("steps", "strength"), [(1, 1.0), (2, 0.5), (3, 0.34), (4, 0.25), (4, 0.9), (10, 0.1), (10, 1.0)]
)
def test_single_job_is_bit_equal_to_diffusers(
    oracle: StableDiffusionXLImg2ImgPipeline, diffusion: SdxlDiffusion, steps: int, strength: float
) -> None:
    """A selection of steps and strengths; tests/slow/test_diffusion_grid.py has all."""
    each = job(steps=steps, strength=strength, seed=steps)
    assert np.array_equal(together(diffusion, [each])[0], by_diffusers(oracle, each))


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    ("guidance", "negative"), [(0.0, None), (1.0, "blurry"), (1.5, None), (4.0, "blurry"), (4.0, LONG)]
)
def test_prompts_and_guidance_are_bit_equal_to_diffusers(
    oracle: StableDiffusionXLImg2ImgPipeline,
    diffusion: SdxlDiffusion,
    prompt: str,
    guidance: float,
    negative: str | None,
) -> None:
    each = job(prompt, seed=2, guidance=guidance, negative=negative)
    assert np.array_equal(together(diffusion, [each])[0], by_diffusers(oracle, each))


def test_image_of_the_real_size_is_bit_equal_to_diffusers(
    oracle: StableDiffusionXLImg2ImgPipeline, diffusion: SdxlDiffusion
) -> None:
    each = Job("big", Pixels(512, 512, start_image().resize((512, 512)).tobytes()), "x", None, 4, 0.9, 0.0, 3, 1e12)
    assert np.array_equal(together(diffusion, [each])[0], by_diffusers(oracle, each))


@pytest.mark.parametrize("seed", range(6))
def test_random_jobs_in_one_batch_differ_by_at_most_one(diffusion: SdxlDiffusion, seed: int) -> None:
    chosen = np.random.default_rng(seed)
    jobs = [
        job(
            PROMPTS[chosen.integers(len(PROMPTS))],
            steps=int(chosen.integers(2, 11)),
            strength=float(chosen.choice([0.5, 0.8, 0.9, 1.0])),
            seed=int(chosen.integers(100)),
            guidance=float(chosen.choice([0.0, 0.0, 1.5, 3.0])),
            image=int(chosen.integers(10)),
        )
        for _ in range(4)
    ]
    for shared, each in zip(together(diffusion, jobs), jobs, strict=True):
        assert np.abs(shared - together(diffusion, [each])[0]).max() <= 1


def test_jobs_in_one_batch_differ_from_single_results_by_at_most_one(
    oracle: StableDiffusionXLImg2ImgPipeline, diffusion: SdxlDiffusion
) -> None:
    for shared, each in zip(together(diffusion, MIXED), MIXED, strict=True):
        assert np.abs(shared - by_diffusers(oracle, each)).max() <= 1


def test_job_that_joins_a_running_batch_gets_its_own_image(
    oracle: StableDiffusionXLImg2ImgPipeline, diffusion: SdxlDiffusion
) -> None:
    first, second = diffusion.admit(MIXED[4]), None
    diffusion.tick([first])
    second = diffusion.admit(MIXED[0])
    while not (first.done and second.done):
        diffusion.tick([state for state in (first, second) if not state.done])
    for result, each in zip(finished(diffusion, [first, second]), (MIXED[4], MIXED[0]), strict=True):
        assert np.abs(array(result) - by_diffusers(oracle, each)).max() <= 1


def test_each_of_seed_prompt_image_and_strength_changes_the_result(diffusion: SdxlDiffusion) -> None:
    variants = [job(), job(seed=9), job(prompt="cat"), job(image=7), job(strength=0.5)]
    results = [together(diffusion, [each])[0].tobytes() for each in variants]
    assert len(set(results)) == len(variants)


@pytest.mark.parametrize(
    "scheduler", [EulerDiscreteScheduler, DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler]
)
def test_scheduler_of_the_config_is_bit_equal_to_diffusers(
    tiny_checkpoint: Path, oracle: StableDiffusionXLImg2ImgPipeline, scheduler: Any
) -> None:
    """Schedulers of Lightning and base checkpoints: deterministic, multistep, and with other timestep spacings."""
    other = load(Settings(model=str(tiny_checkpoint)), "cpu").pipe
    other.set_progress_bar_config(disable=True)
    other.scheduler = scheduler.from_config(oracle.scheduler.config)
    each = job(steps=5, strength=0.7)
    ours = together(SdxlDiffusion(other, torch.device("cpu"), INFO), [each])[0]
    assert np.array_equal(ours, by_diffusers(other, each))


def test_vae_with_latent_statistics_is_bit_equal_to_diffusers(tiny_checkpoint: Path) -> None:
    other = load(Settings(model=str(tiny_checkpoint)), "cpu").pipe
    other.set_progress_bar_config(disable=True)
    other.vae.register_to_config(latents_mean=[-1.6, 0.2, 2.8, 0.1], latents_std=[8.4, 6.0, 5.3, 5.7])
    ours = together(SdxlDiffusion(other, torch.device("cpu"), INFO), [job()])[0]
    assert np.array_equal(ours, by_diffusers(other, job()))


def test_result_has_steps_start_timestep_and_cut_tokens(diffusion: SdxlDiffusion) -> None:
    states = [diffusion.admit(job(LONG)), diffusion.admit(job("short", steps=4, strength=0.5))]
    assert [state.steps_run for state in states] == [3, 2]
    while running := [state for state in states if not state.done]:
        diffusion.tick(running)
    long, short = finished(diffusion, states)
    assert long is not None
    assert short is not None
    assert (long.steps_run, long.start_timestep, short.start_timestep) == (3, 749.0, 499.0)
    words = len(LONG.split())
    assert long.tokens_cut == words + 2 - 77
    assert short.tokens_cut == 0
    assert all(seconds >= 0 for seconds in vars_of(long))
    assert not long.redecoded


def vars_of(result: Result) -> list[float]:
    timings = result.timings
    return [timings.encode_prompt, timings.encode_image, timings.denoise, timings.vae]


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_cached_prompt_and_image_give_the_same_result(tiny_checkpoint: Path, guidance: float) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint)), "cpu")
    each = replace(job(), guidance_scale=guidance, negative_prompt="blurry")
    first, again, other = (
        run_alone(diffusion, one) for one in (each, each, replace(each, prompt="cat", pixels=job(image=7).pixels))
    )
    assert {known for _, known in first.lookups} == {False}
    assert {known for _, known in again.lookups} == {True}
    assert [what for what, _ in again.lookups] == ["prompt"] * (1 + (guidance > 1)) + ["image"]
    assert again.pixels == first.pixels
    assert other.pixels != first.pixels
    assert other.lookups == (("prompt", False), *[("prompt", True)] * (guidance > 1), ("image", False))


def run_alone(diffusion: SdxlDiffusion, each: Job) -> Result:
    state = diffusion.admit(each)
    while not state.done:
        diffusion.tick([state])
    (result,) = finished(diffusion, [state])
    assert result is not None
    return result


def test_cache_of_zero_bytes_encodes_every_time(tiny_checkpoint: Path) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint), cache_bytes=0), "cpu")
    assert [run_alone(diffusion, job()).lookups for _ in range(2)] == [(("prompt", False), ("image", False))] * 2


def test_cache_is_cleared_after_a_non_finite_image(tiny_checkpoint: Path) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint)), "cpu")
    state = diffusion.admit(job())
    state.latents, state.index = state.latents * float("nan"), state.steps_run
    assert finished(diffusion, [state]) == [None]
    assert run_alone(diffusion, job()).lookups == (("prompt", False), ("image", False))


def test_non_finite_latents_give_no_image_and_leave_other_jobs_intact(diffusion: SdxlDiffusion) -> None:
    good, bad = diffusion.admit(job()), diffusion.admit(job(seed=1))
    bad.latents = bad.latents * float("nan")
    while not good.done:
        diffusion.tick([good, bad])
    results = finished(diffusion, [good, bad])
    assert results[1] is None
    assert np.abs(array(results[0]) - together(diffusion, [job()])[0]).max() <= 1


def test_decode_that_overflows_in_float16_is_repeated_in_float32(tiny_checkpoint: Path) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint), dtype="bfloat16"), "cpu")
    state = diffusion.admit(job())
    while not state.done:
        diffusion.tick([state])
    vae = diffusion.pipe.vae
    with torch.no_grad():
        # Overflows in float16 but not in float32, like the activations of SDXL's VAE.
        vae.to(torch.float16)
        vae.decoder.conv_in.weight.mul_(60000)
        vae.decoder.conv_in.bias.fill_(60000)
    weights = {name: (weight.data_ptr(), weight.dtype, weight.clone()) for name, weight in vae.named_parameters()}
    results = [finished(diffusion, [state])[0] for _ in range(2)]
    assert all(result is not None and result.redecoded for result in results)
    for name, weight in vae.named_parameters():
        address, dtype, before = weights[name]
        assert (weight.data_ptr(), weight.dtype) == (address, dtype), "compiled code and graphs hold these weights"
        assert torch.equal(weight, before)


def test_latents_that_are_not_finite_are_not_decoded_again(tiny_checkpoint: Path) -> None:
    diffusion = load(Settings(model=str(tiny_checkpoint), dtype="bfloat16"), "cpu")
    state = diffusion.admit(job())
    diffusion.pipe.vae.to(torch.float16)
    state.latents, state.index = state.latents * float("nan"), state.steps_run
    assert finished(diffusion, [state]) == [None]
    assert not state.redecoded
    assert diffusion.pipe.vae.dtype == torch.float16


def test_release_memory_clears_the_cache(diffusion: SdxlDiffusion) -> None:
    def known() -> set[bool]:
        return {found for _, found in diffusion.admit(job()).lookups}

    known()
    assert known() == {True}
    diffusion.release_memory()
    assert known() == {False}
    assert diffusion.fault(MemoryError()) == "memory"
    # A CPU reports no device memory.
    assert diffusion.memory() == {}
