"""Small pictures of what a job's latents promise, without the VAE's decoder.

A VAE's latents are close to a small picture in another colour space, so that a linear map of their channels gives its
colours, one pixel for each latent (as found by users of Stable Diffusion in 2022). The map is fitted to the very VAE,
by least squares over a chart of colours.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from app.model import transfer
from app.pixels import Pixels

_TILES = 16
"""On each side of the chart: as many colours as fit, each over several latents."""


@dataclass(eq=False)
class Preview:
    """A preview on its way from the device: `uint8[h, w, 3]`, on the host once `ready`."""

    rgb: torch.Tensor
    arrival: Any

    @property
    def ready(self) -> bool:
        """Whether it has arrived, so that nobody has to wait for it."""
        return transfer.passed(self.arrival)

    def pixels(self) -> Pixels:
        """The picture, waited for if it is not `ready`."""
        transfer.wait(self.arrival)
        height, width, _ = self.rgb.shape
        return Pixels(width, height, self.rgb.contiguous().numpy().tobytes())


class Previews:
    """Makes previews of latents.

    Args:
        encode: a picture's latents without noise, `[1, c, h, w]`, scaled as the UNet takes them.
    """

    def __init__(self, encode: Callable[[Pixels], torch.Tensor]) -> None:
        self._encode = encode
        self._map: torch.Tensor | None = None

    def of(self, latents: torch.Tensor, width: int, height: int) -> Preview:
        """A preview of `[1, c, h, w]`, latents of a picture of so many pixels. The first one waits for the device."""
        if self._map is None:
            self._map = self._fitted(width, height).to(latents.device)
        rgb = _rows(latents) @ self._map
        _, _, h, w = latents.shape
        small = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).view(h, w, 3)
        return Preview(transfer.download(small), transfer.mark(latents.device))

    def _fitted(self, width: int, height: int) -> torch.Tensor:
        """`[c + 1, 3]`, from a latent and a one to a colour."""
        pixels = chart(width, height)
        latents = self._encode(pixels).cpu()
        picture = torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8).view(1, height, width, 3)
        h, w = latents.shape[2:]
        colours = torch.nn.functional.adaptive_avg_pool2d(picture.permute(0, 3, 1, 2) / 255.0, (h, w))
        found: torch.Tensor = torch.linalg.lstsq(_rows(latents), colours[0].flatten(1).T).solution
        return found


def _rows(latents: torch.Tensor) -> torch.Tensor:
    """`[h * w, c + 1]`, the last column ones."""
    rows = latents[0].float().flatten(1).T
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)


def chart(width: int, height: int) -> Pixels:
    """Tiles of colours from all over the cube, always the same ones."""
    draw = random.Random(0)  # noqa: S311  colours, no secrets
    colours = [[bytes(draw.randrange(256) for _ in range(3)) for _ in range(_TILES)] for _ in range(_TILES)]
    rows = [b"".join(colours[y * _TILES // height][x * _TILES // width] for x in range(width)) for y in range(height)]
    return Pixels(width, height, b"".join(rows))
