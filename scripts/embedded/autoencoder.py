"""The VAE: 512 x 512 pixels to 32 x 32 latents of 8 channels and back, an `AutoencoderTiny`.

It is trained in two stages: all of it on any icon, then its decoder alone on the icons of the vocabulary.

It has no normalisation, so training on crops is valid for complete images. Its full-resolution level, which takes most
of the time, has no blocks. Training gives the latents about zero mean and unit variance.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from scripts.embedded import scenes
from scripts.embedded.latents import BUSY, IMAGE_SIDE, SUBJECT
from scripts.embedded.sources import PHOTOGRAPHS, Pixels, Sources
from scripts.embedded.state import Stage, fast_precision
from scripts.embedded.vocabulary import CONCEPTS

FACTOR = 16
CHANNELS = 8
CROP = 160
BATCH = 5
PEAK_RATE = 2e-3
SHARPENING_RATE = 1e-3
SCALE = 1.15
"""One over the standard deviation of the trained latents."""

NOISE = 0.1
"""Standard deviation of the noise on the latents in training: the decoder must tolerate a denoiser's errors."""


def build() -> AutoencoderTiny:
    """The untrained autoencoder, a linear pyramid.

    Its encoder averages the colours over 16 x 16 pixels, its decoder spreads them out again, and every residual block
    is an identity. Training starts from there and not from noise.
    """
    model = AutoencoderTiny(
        encoder_block_out_channels=(24,) * 5,
        decoder_block_out_channels=(32,) * 5,
        num_encoder_blocks=(0, 0, 1, 3, 4),
        num_decoder_blocks=(8, 6, 3, 1, 0),
        latent_channels=CHANNELS,
    )
    with torch.no_grad():
        for block in model.modules():
            if type(block).__name__ == "AutoencoderTinyBlock":
                nn.init.zeros_(block.conv[-1].weight)
                nn.init.zeros_(block.conv[-1].bias)
        _start_encoder([layer for layer in model.encoder.layers if isinstance(layer, nn.Conv2d)])
        _start_decoder([layer for layer in model.decoder.layers if isinstance(layer, nn.Conv2d)])
    return model


def _carry(conv: nn.Conv2d, kernel: Tensor, gain: float = 1.0, offset: float = 0.0) -> None:
    """Make the first three channels of `conv` the first three of its input, each filtered with `kernel`."""
    for channel in range(3):
        conv.weight[channel] = 0
        conv.weight[channel, channel] = kernel * gain
        if conv.bias is not None:
            conv.bias[channel] = offset


def _delta() -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    return kernel


def _start_encoder(convs: list[nn.Conv2d]) -> None:
    first, *strided, last = convs
    # A strided 3 x 3 convolution with padding 1 sees the two pixels of its block at taps 1 and 2.
    box = torch.tensor([0.0, 0.5, 0.5])
    _carry(first, _delta())
    for conv in strided:
        _carry(conv, torch.outer(box, box))
    _carry(last, _delta(), gain=4.0, offset=-2.0)  # colours in [0, 1] to latents in [-2, 2]


def _start_decoder(convs: list[nn.Conv2d]) -> None:
    first, *spread, last = convs
    blur = torch.tensor([0.25, 0.5, 0.25])
    _carry(first, _delta(), gain=0.25, offset=0.5)
    for conv in spread:
        _carry(conv, torch.outer(blur, blur))
    _carry(last, _delta())


def batch(sources: Sources, photographs: list[Pixels], step: int, seed: int) -> Tensor:
    """The crops of one step, (B, 3, 160, 160) in [-1, 1]: icons of 240 to 520 pixels on backgrounds."""
    rng = np.random.default_rng((seed, 1, step))
    behind = scenes.to_tensor([scenes.background(rng, CROP, photographs) for _ in range(BATCH)])
    icons = scenes.icon_batch(sources.pixels, rng.integers(len(sources.icons), size=BATCH).tolist())
    scale = torch.from_numpy(rng.uniform(240, 520, BATCH)).float()
    # The crop lies somewhere in the icon's square; one in six is far away from it and shows the background alone.
    reach = torch.from_numpy(rng.uniform(-0.5, 0.5, (BATCH, 2))).float() * scale[:, None]
    away = torch.from_numpy(rng.random(BATCH) < 1 / 6).float()[:, None] * 4000
    return scenes.place(icons, behind, scale, CROP / 2 + reach + away) / 127.5 - 1


def targets(sources: Sources, photographs: list[Pixels], step: int, seed: int) -> Tensor:
    """Crops of the UNet's targets, (B, 3, 160, 160) in [-1, 1]; latents of a crop equal those of the image."""
    rng = np.random.default_rng((seed, 7, step))
    behind = scenes.to_tensor([scenes.background(rng, CROP, photographs, BUSY) for _ in range(BATCH)])
    rows = [sources.icons[CONCEPTS[int(one)].icon] for one in rng.integers(len(CONCEPTS), size=BATCH)]
    icons = scenes.icon_batch(sources.pixels, rows)
    corner = FACTOR * torch.from_numpy(rng.integers(2, (IMAGE_SIDE - CROP) // FACTOR - 1, (BATCH, 2)))
    scale, shift = torch.full((BATCH,), float(SUBJECT)), IMAGE_SIDE / 2 - corner.float()
    return scenes.place(icons, behind, scale, shift) / 127.5 - 1


def difference(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute difference of two images, in their pixels and edges, and in their pixels alone."""
    error = one - other
    down, across = error.diff(dim=2), error.diff(dim=3)
    pixel = error.abs().mean()
    return pixel + 0.5 * (down.abs().mean() + across.abs().mean()), pixel


def loss(model: AutoencoderTiny, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The training loss, and the mean absolute error of the pixels in it."""
    latents = model.encode(images).latents
    spread = latents.var((0, 2, 3)) + 1e-4
    unit = (latents.mean((0, 2, 3)) ** 2 + spread.log() ** 2).mean()
    noise = torch.randn(latents.shape, generator=generator) * NOISE
    error, pixel = difference(model.decode(latents + noise).sample, images)
    return error + 0.003 * unit, pixel


def train(sources: Sources, state: Path, steps: int, seed: int = 0) -> AutoencoderTiny:
    """The trained autoencoder; resumes where an earlier run stopped."""
    model = build().to(memory_format=torch.channels_last)
    photographs = sources.photographs(PHOTOGRAPHS)
    stage = Stage("autoencoder", state, model, steps, PEAK_RATE)
    for step in stage.steps():
        images = batch(sources, photographs, step, seed).contiguous(memory_format=torch.channels_last)
        with fast_precision():
            total, pixel = loss(model, images, torch.Generator().manual_seed(step))
        stage.learn(total, {"L1": pixel})
    stage.finish()
    # The pipeline multiplies latents by this; the UNet then sees them at unit variance.
    model.register_to_config(scaling_factor=SCALE)
    return model.eval()


def sharpen(model: AutoencoderTiny, sources: Sources, state: Path, steps: int, seed: int = 0) -> AutoencoderTiny:
    """The autoencoder after the second stage, which trains the decoder; the latents do not change."""
    model.encoder.requires_grad_(False)
    photographs = sources.photographs(PHOTOGRAPHS)
    stage = Stage("decoder", state, model, steps, SHARPENING_RATE)
    for step in stage.steps():
        images = targets(sources, photographs, step, seed).contiguous(memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(step)
        with fast_precision():
            with torch.no_grad():
                latents = model.encode(images).latents
            noise = torch.randn(latents.shape, generator=generator) * NOISE
            error, pixel = difference(model.decode(latents + noise).sample, images)
        stage.learn(error, {"L1": pixel})
    stage.finish()
    return model.eval()
