"""Jobs for a tiny checkpoint, by our loop and by diffusers' pipeline."""

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image

from app.engine.messages import Job, ModelInfo, Result
from app.model.diffusion import SdxlDiffusion
from app.model.states import State
from app.pixels import Pixels

SIDE = 64
INFO = ModelInfo("tiny", "", "checkpoint", "cpu", "float32", "it is a test", "EulerAncestralDiscreteScheduler")
LONG = "a very long prompt about wizards and dogs and hats and stars " * 12
PROMPTS = ["", "dog wizard, gandalf, 8k", LONG, "собака-волшебник 犬の魔法使い 🐕 مرحبا"]


def start_image(seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((SIDE, SIDE))


def job(
    prompt: str = PROMPTS[1],
    steps: int = 4,
    strength: float = 0.9,
    seed: int = 0,
    guidance: float = 0.0,
    negative: str | None = None,
    image: int = 0,
) -> Job:
    pixels = Pixels(SIDE, SIDE, start_image(image).tobytes())
    return Job(f"{prompt[:9]}-{seed}", pixels, prompt, negative, steps, strength, guidance, seed, 1e12)


def by_diffusers(pipe: StableDiffusionXLImg2ImgPipeline, job: Job) -> np.ndarray:
    image = Image.frombytes("RGB", (job.pixels.width, job.pixels.height), job.pixels.data)
    result = pipe(
        job.prompt,
        image=image,
        negative_prompt=job.negative_prompt,
        num_inference_steps=job.num_inference_steps,
        strength=job.strength,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(job.seed),
    )
    return np.asarray(result.images[0]).astype(int)


def finished(diffusion: SdxlDiffusion, states: Sequence[State]) -> list[Result | None]:
    """The images of finished states."""
    return [diffusion.collect(decoding) for decoding in diffusion.finish(states)]


def together(diffusion: SdxlDiffusion, jobs: Sequence[Job]) -> list[np.ndarray]:
    """Run all jobs at once, sharing every UNet call until each is done."""
    states = [diffusion.admit(each) for each in jobs]
    while running := [state for state in states if not state.done]:
        diffusion.tick(running)
    return [array(result) for result in finished(diffusion, states)]


def array(result: Result | None) -> np.ndarray:
    assert result is not None
    pixels = result.pixels
    return np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3).astype(int)


MIXED = [
    job(PROMPTS[1], steps=4, strength=0.9, seed=1),
    job(PROMPTS[0], steps=2, strength=0.5, seed=2, image=1),
    job(PROMPTS[2], steps=10, strength=0.5, seed=3, guidance=3.0, negative="blurry", image=2),
    job(PROMPTS[3], steps=1, strength=1.0, seed=4, image=3),
    job(PROMPTS[1], steps=7, strength=0.8, seed=5, guidance=2.0),
]
