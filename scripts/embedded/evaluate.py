"""What the finished checkpoint can do, by numbers: made by diffusers' own pipeline from the shipped files."""

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
"""Both pictures are compared at this height and width."""


def load(folder: Path) -> StableDiffusionXLImg2ImgPipeline:
    """The checkpoint in float32."""
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(
    pipe: StableDiffusionXLImg2ImgPipeline,
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    strength: float,
    steps: int = 4,
) -> Tensor:
    """Pictures (B, 3, 512, 512) in [-1, 1]; each has the seed of its place in the batch."""
    made = pipe(
        prompt=list(prompts),
        image=list(pictures),
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=0.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
        output_type="pt",
    ).images
    return made * 2 - 1  # type: ignore[no-any-return]


def square(pixels: Pixels) -> Image.Image:
    """A picture's middle at 512 x 512."""
    side = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return Image.fromarray(pixels[top : top + side, left : left + side]).resize((512, 512), Image.Resampling.BICUBIC)


def scribble() -> Image.Image:
    """What somebody draws in ten seconds: a house, a sun, grass."""
    picture = Image.new("RGB", (512, 512), (198, 226, 255))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 360, 512, 512), fill=(120, 180, 90))
    draw.ellipse((380, 40, 470, 130), fill=(255, 221, 80))
    draw.rectangle((150, 240, 350, 420), fill=(214, 120, 92), outline=(60, 40, 40), width=6)
    draw.polygon([(130, 240), (250, 120), (370, 240)], fill=(150, 60, 60), outline=(60, 40, 40))
    return picture


def starts(sources: Sources, demo: Path) -> dict[str, Image.Image]:
    """Three very different start pictures: a photograph, an icon and a scribble."""
    (cat,) = sources.photographs(("chelsea",))
    with Image.open(demo) as picture:
        icon = picture.convert("RGB").resize((512, 512))
    return {"photograph": square(cat), "icon": icon, "scribble": scribble()}


@dataclass
class Followed:
    """How many pictures show what was asked for.

    Attributes:
        first: the share whose concept the judge ranks first.
        five: the share whose concept it ranks among its first five.
        missed: what was asked for in vain, by the start picture.
    """

    first: float
    five: float
    missed: list[str]


def follows(
    pipe: StableDiffusionXLImg2ImgPipeline,
    judge: Judge,
    pictures: dict[str, Image.Image],
    wanted: Sequence[tuple[str, str]],
    strength: float,
) -> Followed:
    """Asks for each word with each start picture; `wanted` holds words and the names of the concepts they mean."""
    names = [concept.name for concept in CONCEPTS]
    first = five = 0
    missed = []
    for kind, picture in pictures.items():
        for at in track(range(0, len(wanted), 10), f"strength {strength}, {kind}"):
            part = wanted[at : at + 10]
            made = edit(pipe, [picture] * len(part), [f"a {word}" for word, _ in part], strength)
            with torch.inference_mode():
                best = judge(look(made)).topk(5).indices.tolist()
            for (word, name), ranks in zip(part, best, strict=True):
                first += names[ranks[0]] == name
                if names.index(name) in ranks:
                    five += 1
                else:
                    missed.append(f"{word} ({kind})")
    total = len(wanted) * len(pictures)
    return Followed(first / total, five / total, missed)


def common() -> list[tuple[str, str]]:
    """The hundred names."""
    return [(name, name) for name in COMMON]


def kept_back() -> list[tuple[str, str]]:
    """The words that training never saw."""
    return [(word, concept.name) for concept in CONCEPTS for word in concept.kept_back]


def layout(one: Image.Image, other: Tensor) -> float:
    """The correlation of two pictures' colours at 16 x 16; `other` is (3, 512, 512) in [-1, 1]."""
    small = np.asarray(one.resize((GRID, GRID), Image.Resampling.BOX), np.float32).transpose(2, 0, 1)
    made = torch.nn.functional.interpolate(other[None], size=(GRID, GRID), mode="area")[0].numpy()
    return float(np.corrcoef(small.ravel(), made.ravel())[0, 1])


def keeps(
    pipe: StableDiffusionXLImg2ImgPipeline, pictures: Sequence[Image.Image], prompts: Sequence[str], strength: float
) -> float:
    """The median, over all pictures with all prompts, of how far the layout is kept."""
    found = []
    for picture in pictures:
        made = edit(pipe, [picture] * len(prompts), prompts, strength)
        found += [layout(picture, one) for one in made]
    return float(np.median(found))


def kept_pictures(sources: Sources, demo: Path) -> list[Image.Image]:
    """Photographs and drawings that training never saw."""
    return [square(one) for one in sources.photographs(HELD_OUT)] + list(starts(sources, demo).values())[1:]
