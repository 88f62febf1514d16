"""Evaluation of the finished checkpoint: images by diffusers' pipeline from the shipped files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image, ImageDraw
from rich.progress import track
from torch import Tensor

from scripts.embedded.judge import Judge, look
from scripts.embedded.sources import HELD_OUT, Pixels, Sources
from scripts.embedded.vocabulary import COMMON, CONCEPTS

GRID = 16
"""Images are compared at this height and width."""


def load(folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    """The checkpoint in float32."""
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(
    pipe: StableDiffusionXLImg2ImgPipeline,
    images: Sequence[Image.Image],
    prompts: Sequence[str],
    strength: float,
    steps: int = 4,
) -> Tensor:
    """Edited images (B, 3, 512, 512) in [-1, 1]; the seed of each is its index in the batch."""
    made = pipe(
        prompt=list(prompts),
        image=list(images),
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        output_type="pt",
    ).images
    return made * 2 - 1  # type: ignore[no-any-return]


def square(pixels: Pixels) -> Image.Image:
    """The centre of an image at 512 x 512."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return Image.fromarray(pixels[top : top + side, left : left + side]).resize((512, 512), Image.Resampling.BICUBIC)


def scribble() -> Image.Image:
    """A scribble: a house, a sun, grass."""
    image = Image.new("RGB", (512, 512), (198, 226, 255))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 360, 512, 512), fill=(120, 180, 90))
    draw.ellipse((380, 40, 470, 130), fill=(255, 221, 80))
    draw.rectangle((150, 240, 350, 420), fill=(214, 120, 92), outline=(60, 40, 40), width=6)
    draw.polygon([(130, 240), (250, 120), (370, 240)], fill=(150, 60, 60), outline=(60, 40, 40))
    return image


def starts(sources: Sources, demo: Path) -> dict[str, Image.Image]:
    """Three very different start images: a photograph, an icon and a scribble."""
    (cat,) = sources.photographs(("chelsea",))
    with Image.open(demo) as image:
        icon = image.convert("RGB").resize((512, 512))
    return {"photograph": square(cat), "icon": icon, "scribble": scribble()}


@dataclass
class Followed:
    """How many images show the requested concept.

    Attributes:
        first: the share whose concept the judge ranks first.
        five: the share whose concept it ranks among its first five.
        missed: words whose image does not show their concept, with the start image.
    """

    first: float
    five: float
    missed: list[str]


def follows(
    pipe: StableDiffusionXLImg2ImgPipeline,
    judge: Judge,
    images: dict[str, Image.Image],
    wanted: Sequence[tuple[str, str]],
    strength: float,
) -> Followed:
    """Make an image for each word and start image; `wanted` has words and the names of their concepts."""
    names = [concept.name for concept in CONCEPTS]
    first = five = 0
    missed = []
    for kind, image in images.items():
        for at in track(range(0, len(wanted), 10), f"strength {strength}, {kind}"):
            part = wanted[at : at + 10]
            made = edit(pipe, [image] * len(part), [f"a {word}" for word, _ in part], strength)
            with torch.inference_mode():
                best = judge(look(made)).topk(5).indices.tolist()
            for (word, name), ranks in zip(part, best, strict=True):
                first += names[ranks[0]] == name
                if names.index(name) in ranks:
                    five += 1
                else:
                    missed.append(f"{word} ({kind})")
    total = len(wanted) * len(images)
    return Followed(first / total, five / total, missed)


def common() -> list[tuple[str, str]]:
    """The hundred names."""
    return [(name, name) for name in COMMON]


def kept_back() -> list[tuple[str, str]]:
    """The words that are not in the training data."""
    return [(word, concept.name) for concept in CONCEPTS for word in concept.kept_back]


def layout(one: Image.Image, other: Tensor) -> float:
    """The correlation of two images' colours at 16 x 16; `other` is (3, 512, 512) in [-1, 1]."""
    small = np.asarray(one.resize((GRID, GRID), Image.Resampling.BOX), np.float32).transpose(2, 0, 1)
    made = torch.nn.functional.interpolate(other[None], size=(GRID, GRID), mode="area")[0].numpy()
    return float(np.corrcoef(small.ravel(), made.ravel())[0, 1])


def keeps(
    pipe: StableDiffusionXLImg2ImgPipeline, images: Sequence[Image.Image], prompts: Sequence[str], strength: float
) -> float:
    """The median layout correlation over all images and prompts."""
    found = []
    for image in images:
        made = edit(pipe, [image] * len(prompts), prompts, strength)
        found += [layout(image, one) for one in made]
    return float(np.median(found))


def held_out_images(sources: Sources, demo: Path) -> list[Image.Image]:
    """Photographs and drawings that are not in the training data."""
    return [square(one) for one in sources.photographs(HELD_OUT)] + list(starts(sources, demo).values())[1:]
