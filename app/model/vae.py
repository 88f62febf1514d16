"""The VAE: images to latents in the UNet's scale, and back."""

import copy
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from app.model.graphs import Graphs
from app.model.transfer import upload
from app.pixels import Pixels


class Vae:
    """A pipeline's VAE of factor f, in its own dtype.

    Args:
        vae: diffusers' `AutoencoderKL` or `AutoencoderTiny`, on `device`.
        device: the device of all tensors.
        dtype: the UNet's dtype.
        graphs: the model's CUDA graphs, of which the VAE's are a part.
    """

    def __init__(self, vae: Any, device: torch.device, dtype: torch.dtype, graphs: Graphs) -> None:
        self.vae = vae
        self.device = device
        self.dtype = dtype
        self._moments = graphs.part(self._compute_moments)
        self._decode = graphs.part(self._compute_image)
        self._float32: Any = None
        # Each of the 256 values of a channel as diffusers feeds it to the VAE. Divided on the CPU, because CUDA
        # multiplies by the reciprocal.
        levels = 2.0 * (torch.arange(256, dtype=torch.uint8).float() / 255.0) - 1.0
        self._levels = levels.to(dtype).to(vae.dtype).to(device)
        self._scale: float = vae.config.scaling_factor
        self._statistics = _latent_statistics(vae.config, device)

    def moments(self, pixels: Pixels) -> torch.Tensor:
        """The parameters of the posterior of an image's latents, `[1, 2c, h / f, w / f]`.

        A tiny VAE has none. Then they are the latents, with c channels.
        """
        raw = torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8).view(1, pixels.height, pixels.width, 3)
        (moments,) = self._moments(upload(raw, self.device))
        return moments

    def _compute_moments(self, rgb: torch.Tensor) -> tuple[torch.Tensor]:
        """As `moments`, from `uint8[1, height, width, 3]`."""
        # Indexed before the permutation, so that the memory order is channels-last, as diffusers has it: convolutions
        # round differently in another order.
        encoded = self.vae.encode(self._levels[rgb.int()].permute(0, 3, 1, 2))
        return (encoded.latent_dist.parameters if hasattr(encoded, "latent_dist") else encoded.latents,)

    def sample(self, moments: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Latents `[1, c, h / f, w / f]` in the UNet's dtype and scale, sampled from an image's moments."""
        # A tiny VAE is deterministic and draws nothing.
        tiny = moments.shape[1] == self.vae.config.latent_channels
        latents = moments if tiny else _draw(DiagonalGaussianDistribution(moments), generator)
        latents = latents.to(self.dtype)
        if self._statistics:
            mean, std = (tensor.to(self.dtype) for tensor in self._statistics)
            latents = (latents - mean) * self._scale / std
        else:
            latents = latents * self._scale
        return latents

    def decode(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Decode latents `[1, c, h, w]` in the UNet's scale.

        Returns:
            `uint8[h * f, w * f, 3]`, and `bool[2]`: whether all values of the image, and of the latents, are finite.
        """
        return self._decode(latents)

    def decode_in_float32(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `decode`, in float32.

        The VAE itself stays as it is, because compiled code and graphs hold its weights. A copy without the encoder is
        made when it is first needed.
        """
        if self._float32 is None:
            # Inference tensors cannot become parameters.
            with torch.inference_mode(False), torch.no_grad():
                self._float32 = copy.deepcopy(self.vae, {id(self.vae.encoder): None}).float()
        return self._image(self._float32, latents)

    def _compute_image(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._image(self.vae, latents)

    def _image(self, vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        latents = latents.to(vae.dtype)
        if self._statistics:
            mean, std = (tensor.to(vae.dtype) for tensor in self._statistics)
            scaled = latents * std / self._scale + mean
        else:
            scaled = latents / self._scale
        image = vae.decode(scaled, return_dict=False)[0]
        rgb = ((image * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float() * 255).round().to(torch.uint8)
        return rgb, torch.stack([torch.isfinite(image).all(), torch.isfinite(latents).all()])


def _draw(posterior: Any, generator: torch.Generator) -> torch.Tensor:
    """As diffusers' `DiagonalGaussianDistribution.sample`, without waiting for the upload of the noise."""
    mean: torch.Tensor = posterior.mean
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    std: torch.Tensor = posterior.std
    return mean + std * upload(noise, mean.device)


def _latent_statistics(config: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and standard deviation by channel, float32 `[1, c, 1, 1]`, of a VAE's config; None if it has none."""
    values = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if None in values:
        return None
    mean, std = (torch.tensor(value).view(1, -1, 1, 1).to(device) for value in values)
    return mean, std
