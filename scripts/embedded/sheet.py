"""The contact sheet: images of the shipped checkpoint by start image, strength and prompt."""

from collections.abc import Sequence
from pathlib import Path

from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from scripts.embedded.evaluate import edit

PROMPTS = ("a wizard", "a dog", "a pizza", "a castle", "a rocket", "a rose")
STRENGTHS = (0.5, 0.9, 1.0)
TILE = 160
LABEL = 22


def to_image(image: Tensor) -> Image.Image:
    """An image (3, H, W) in [-1, 1]."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


def draw(
    pipe: StableDiffusionXLImg2ImgPipeline,
    starts: dict[str, Image.Image],
    prompts: Sequence[str] = PROMPTS,
    strengths: Sequence[float] = STRENGTHS,
) -> Image.Image:
    """One row for each start image and strength, one column for each prompt; the first column is the start image."""
    columns, rows = len(prompts) + 1, len(starts) * len(strengths)
    sheet = Image.new("RGB", (columns * TILE, LABEL + rows * TILE), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for column, prompt in enumerate(("start image", *prompts)):
        pen.text((column * TILE + TILE / 2, LABEL / 2), prompt, fill="black", font=font, anchor="mm")
    row = 0
    for start in starts.values():
        for strength in strengths:
            top = LABEL + row * TILE
            tiles = [start, *(to_image(made) for made in edit(pipe, [start] * len(prompts), prompts, strength))]
            for column, tile in enumerate(tiles):
                sheet.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), (column * TILE, top))
            pen.text((5, top + 3), f"strength {strength}", fill="black", font=font, stroke_width=2, stroke_fill="white")
            row += 1
    return sheet


def write(pipe: StableDiffusionXLImg2ImgPipeline, starts: dict[str, Image.Image], path: Path) -> None:
    """Saves the sheet as a small WebP file, for the docs."""
    draw(pipe, starts).save(path, quality=88, method=6)
