"""Previews of latents without the VAE's decoder: small images with one pixel for each latent.

A VAE's latents are close to a small image in another colour space, so a linear map of their channels gives RGB (found
by users of Stable Diffusion in 2022). The map is fitted to the loaded VAE by least squares over a colour chart.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch

from app.model.transfer import Download
from app.pixels import Pixels

_TILES = 16
"""Tiles on each side of the chart: many colours, each of which covers several latents."""


@dataclass(eq=False)
class Preview:
    """A preview on its way from the device: `uint8[h, w, 3]`."""

    download: Download

    @property
    def ready(self) -> bool:
        """Whether the download is finished, so that `pixels` does not wait."""
        return self.download.ready

    def pixels(self) -> Pixels:
        """The image; waits for the download.

        Raises:
            TransferError: it has not arrived when it should have.
        """
        (rgb,) = self.download.result()
        height, width, _ = rgb.shape
        return Pixels(width, height, rgb.contiguous().numpy().tobytes())


class Previews:
    """Makes previews of latents.

    Args:
        encode: encodes an image to latents `[1, c, h, w]` without noise, in the UNet's scale.
    """

    def __init__(self, encode: Callable[[Pixels], torch.Tensor]) -> None:
        self._encode = encode
        self._map: torch.Tensor | None = None

    def of(self, latents: torch.Tensor, width: int, height: int) -> Preview:
        """A preview `uint8[h, w, 3]` of the latents `[1, c, h, w]` of a `width` x `height` image.

        The first call fits the map, unless `fit` has been called.
        """
        matrix = self._map if self._map is not None else self.fit(width, height)
        rgb = _rows(latents) @ matrix
        _, _, h, w = latents.shape
        small = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).view(h, w, 3)
        return Preview(Download(latents.device, [small]))

    def fit(self, width: int, height: int) -> torch.Tensor:
        """Fit the map `[c + 1, 3]` from the channels of a latent, followed by a one, to RGB in 0 to 1.

        It is fitted to a chart of `width` x `height` pixels, and waits for the device.
        """
        pixels = chart(width, height)
        encoded = self._encode(pixels)
        latents = encoded.cpu()
        image = torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8).view(1, height, width, 3)
        h, w = latents.shape[2:]
        colours = torch.nn.functional.adaptive_avg_pool2d(image.permute(0, 3, 1, 2) / 255.0, (h, w))
        solution: torch.Tensor = torch.linalg.lstsq(_rows(latents), colours[0].flatten(1).T).solution
        self._map = solution.to(encoded.device)
        return self._map


def _rows(latents: torch.Tensor) -> torch.Tensor:
    """Latents `[1, c, h, w]` as rows `[h * w, c + 1]`, float32; the last column is 1."""
    rows = latents[0].float().flatten(1).T
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)


def chart(width: int, height: int) -> Pixels:
    """A colour chart: tiles of random colours from the RGB cube, with a fixed seed."""
    draw = random.Random(0)  # noqa: S311  colours, not secrets
    colours = [[bytes(draw.randrange(256) for _ in range(3)) for _ in range(_TILES)] for _ in range(_TILES)]
    rows = [b"".join(colours[y * _TILES // height][x * _TILES // width] for x in range(width)) for y in range(height)]
    return Pixels(width, height, b"".join(rows))
