"""Training images: an icon on a background."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from torch.nn import functional

from scripts.embedded.sources import Pixels

Rng = np.random.Generator


def colour(rng: Rng) -> tuple[int, int, int]:
    """A random colour; more often a pastel or a grey, as usual for backgrounds, than a pure colour."""
    base = rng.uniform(0, 1, 3)
    grey = base.mean()
    base = grey + (base - grey) * rng.uniform(0, 1.2)
    if rng.random() < 0.5:
        base = 1 - (1 - base) * rng.uniform(0.1, 0.6)
    red, green, blue = np.clip(base * 255, 0, 255).astype(int)
    return int(red), int(green), int(blue)


def background(rng: Rng, size: int, photographs: Sequence[Pixels], busy: float = 0.5) -> Pixels:
    """A background without a subject, (size, size, 3): flat, a gradient, part of a photograph, or dead leaves.

    `busy` is the share of the last two.
    """
    kind = rng.random()
    if kind < (1 - busy) / 2:
        image = Image.new("RGB", (size, size), colour(rng))
    elif kind < 1 - busy:
        image = _gradient(rng, size)
    elif kind < 1 - busy / 2:
        image = _photograph(rng, size, photographs)
    else:
        image = _leaves(rng, size)
    if kind >= 1 - busy and rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 0.03 * size))))
    return np.asarray(image)


def _gradient(rng: Rng, size: int) -> Image.Image:
    """A bilinear gradient between the colours of four corners."""
    first, second = colour(rng), colour(rng)
    corners = np.array([[first, second if rng.random() < 0.5 else first], [second, colour(rng)]], np.uint8)
    if rng.random() < 0.5:
        corners[1, 1] = second
    # The middle of a gradient of twice the size: the corners' colours then reach the image's corners.
    wide = Image.fromarray(corners).resize((2 * size, 2 * size), Image.Resampling.BILINEAR)
    return wide.crop((size // 2, size // 2, size // 2 + size, size // 2 + size))


def _photograph(rng: Rng, size: int, photographs: Sequence[Pixels]) -> Image.Image:
    """A random part of a random photograph, mirrored half of the time."""
    source = photographs[int(rng.integers(len(photographs)))]
    height, width = source.shape[:2]
    side = int(min(height, width) * rng.uniform(0.3, 1.0))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    part = Image.fromarray(source[top : top + side, left : left + side]).resize((size, size), Image.Resampling.BICUBIC)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def _leaves(rng: Rng, size: int) -> Image.Image:
    """Dead leaves: overlapping shapes, many small and few large, with edges and areas like those of photographs."""
    image = Image.new("RGB", (size, size), colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 60))):
        radius = float(np.clip(size * 0.03 / rng.uniform(0.05, 1) ** 1.2, 3, size * 0.6))
        x, y = rng.uniform(0, size, 2)
        box = (x - radius, y - radius * rng.uniform(0.3, 1), x + radius, y + radius * rng.uniform(0.3, 1))
        shape = rng.random()
        if shape < 0.4:
            draw.ellipse(box, fill=colour(rng))
        elif shape < 0.6:
            draw.rectangle(box, fill=colour(rng))
        else:
            corners = rng.uniform(-radius, radius, (int(rng.integers(3, 6)), 2))
            draw.polygon([(float(x + a), float(y + b)) for a, b in corners], fill=colour(rng))
    return image


def place(icons: Tensor, behind: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Compose icons onto backgrounds.

    Args:
        icons: (B, 4, 256, 256) uint8 or float in [0, 255], RGB and straight alpha.
        behind: (B, 3, H, W) in [0, 255].
        scale: (B,) height of the icon's square in pixels of the image.
        shift: (B, 2) x and y of the square's centre in pixels of the image.

    Returns:
        (B, 3, H, W) float32 in [0, 255].
    """
    image = icons.float()
    alpha = image[:, 3:] / 255
    # Premultiplied alpha: otherwise the colour of transparent pixels bleeds into the edge.
    premultiplied = torch.cat([image[:, :3] * alpha, alpha], 1)
    count, _, height, width = behind.shape
    size = torch.tensor([width, height], dtype=torch.float32)
    theta = torch.zeros(count, 2, 3)
    ratio = size / scale[:, None]
    theta[:, 0, 0], theta[:, 1, 1] = ratio[:, 0], ratio[:, 1]
    theta[:, :, 2] = (size / 2 - shift) * 2 / scale[:, None]
    grid = functional.affine_grid(theta, [count, 4, height, width], align_corners=False)
    placed = functional.grid_sample(premultiplied, grid, mode="bicubic", align_corners=False)
    cover = placed[:, 3:].clamp(0, 1)
    return (placed[:, :3] + behind * (1 - cover)).clamp(0, 255)


def to_tensor(images: Sequence[Pixels]) -> Tensor:
    """Images (H, W, C) as one float32 batch (B, C, H, W), same range."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().contiguous()


def icon_batch(pixels: Pixels, rows: Sequence[int]) -> Tensor:
    """Icons of those rows, (B, 4, 256, 256), float32 in [0, 255]."""
    return to_tensor([pixels[row] for row in rows])
