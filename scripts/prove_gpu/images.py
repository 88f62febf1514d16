"""The images that are compared: what is asked for, and how far two answers are apart."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from app.engine.messages import Job
from app.model.diffusion import SdxlDiffusion
from app.pixels import IMAGE_SIZE, Pixels
from scripts.benchmarks import likeness
from scripts.benchmarks.report import ROOT

Images = NDArray[np.uint8]
"""`[n, 512, 512, 3]`."""

PHOTO = ROOT / "scripts" / "demo.png"
IDENTICAL_DB = 99.0
"""What is written for images without any difference."""

_ASKED = (
    ("dog wizard, gandalf, Pixar, 8k", 4, 0.9),
    ("a castle on a hill at night", 2, 0.5),
    ("a bowl of strawberries, oil painting", 1, 1.0),
    ("an astronaut in a jungle", 8, 0.7),
)
"""Prompt, steps and strength of each image."""


def photo(shift: int = 0) -> Image.Image:
    """A photograph of 512 x 512, different for each `shift`."""
    with Image.open(PHOTO) as image:
        pixels = np.roll(np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE))), shift, axis=(0, 1))
    return Image.fromarray(pixels)


def jobs() -> list[Job]:
    """One job for each image."""
    return [job(index, *asked) for index, asked in enumerate(_ASKED)]


def job(index: int, prompt: str, steps: int, strength: float) -> Job:
    """A job without guidance, whose image and seed are by its number."""
    pixels = Pixels(IMAGE_SIZE, IMAGE_SIZE, photo(37 * index).tobytes())
    return Job(f"{prompt}-{index}", pixels, prompt, None, steps, strength, 0.0, index, float("inf"))


def ours(diffusion: SdxlDiffusion) -> Images:
    """The images, each made alone."""
    found = []
    for each in jobs():
        state = diffusion.admit(each)
        while not state.done:
            diffusion.tick([state])
        result = diffusion.collect(*diffusion.finish([state]))
        if result is None:
            raise ValueError("an image holds NaN or infinity")
        pixels = result.pixels
        found.append(np.frombuffer(pixels.data, np.uint8).reshape(pixels.height, pixels.width, 3))
    return np.stack(found)


def by_diffusers(pipe: Any) -> Images:
    """The same images by diffusers' pipeline."""
    return np.stack([np.asarray(call(pipe, each)) for each in jobs()])


def call(pipe: Any, job: Job) -> Image.Image:
    """One image by diffusers' pipeline."""
    start = Image.frombytes("RGB", (job.pixels.width, job.pixels.height), job.pixels.data)
    answer = pipe(
        job.prompt,
        image=start,
        num_inference_steps=job.num_inference_steps,
        strength=job.strength,
        guidance_scale=job.guidance_scale,
        generator=torch.Generator("cpu").manual_seed(job.seed),
    )
    image: Image.Image = answer.images[0]
    return image


def psnr(images: Images, exact: Images) -> list[float]:
    """Peak signal-to-noise ratio of each image in dB; `IDENTICAL_DB` at most."""
    return [min(IDENTICAL_DB, likeness.psnr(*pair)) for pair in zip(images, exact, strict=True)]


def save(file: Path, images: Images) -> None:
    """Keep images for the stage `quality`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, images)


def load(file: Path) -> Images:
    """Images that `save` has kept."""
    kept: Images = np.load(file)
    return kept
