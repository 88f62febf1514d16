"""Shared code of the batching peers: diffusers' pipeline, called for jobs that can share a call.

`MODEL` is the checkpoint's folder, `VAE` that of another VAE (by default the checkpoint's own), `DEVICE` the device (by
default the CPU). The peers' environments import this, so it imports nothing of our service.
"""

import io
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoPipelineForImage2Image
from PIL import Image

BATCH = 4
WAIT_SECONDS = 0.01


@dataclass(frozen=True)
class Job:
    """One image to make, with our service's defaults."""

    image: Image.Image
    prompt: str
    steps: int = 4
    strength: float = 0.9
    seed: int = 0


def load() -> Any:
    """The pipeline, in float16 on a GPU and in float32 on the CPU."""
    folder, device = Path(os.environ["MODEL"]), os.environ.get("DEVICE", "cpu")
    dtype = torch.float32 if device == "cpu" else torch.float16
    variant = "fp16" if any(folder.rglob("*.fp16.safetensors")) else None
    replaced = {"vae": AutoencoderKL.from_pretrained(vae, dtype=dtype)} if (vae := os.environ.get("VAE")) else {}
    pipe = AutoPipelineForImage2Image.from_pretrained(folder, variant=variant, dtype=dtype, **replaced)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def read(data: bytes) -> Image.Image:
    """The image in the form that the pipeline takes."""
    return Image.open(io.BytesIO(data)).convert("RGB").resize((512, 512))


def draw(pipe: Any, jobs: Sequence[Job]) -> list[Image.Image]:
    """One call for all jobs of equal steps and strength: a pipeline call takes one value of each."""
    results: dict[int, Image.Image] = {}
    groups: dict[tuple[int, float], list[int]] = defaultdict(list)
    for index, job in enumerate(jobs):
        groups[job.steps, job.strength].append(index)
    for (steps, strength), members in groups.items():
        images = pipe(
            [jobs[index].prompt for index in members],
            image=[jobs[index].image for index in members],
            num_inference_steps=steps,
            strength=strength,
            guidance_scale=0.0,
            generator=[torch.Generator().manual_seed(jobs[index].seed) for index in members],
        ).images
        results.update(zip(members, images, strict=True))
    return [results[index] for index in range(len(jobs))]


def png(image: Image.Image) -> bytes:
    """The PNG file, with Pillow's default settings."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
