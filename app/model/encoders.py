"""Encodes prompts and images, and caches the results: no random draw has a part in them."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from cachetools import LRUCache
from diffusers import StableDiffusionXLImg2ImgPipeline

from app.pixels import Pixels

Value = TypeVar("Value")


@dataclass(frozen=True)
class Prompt:
    """A prompt's embeddings.

    Attributes:
        hidden: `[1, 77, d]`, the penultimate hidden states of both encoders, concatenated (d = 768 + 1280 for SDXL).
        pooled: `[1, p]`, the projection of the second encoder (p = 1280 for SDXL).
        tokens_cut: the number of the prompt's tokens beyond the 77th.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    tokens_cut: int


class Encoders:
    """A pipeline's text encoders and VAE encoder, with a cache of their latest results. Not thread-safe.

    Args:
        pipe: the pipeline; all its parts are on `device`.
        device: the device of all tensors.
        cache_bytes: the most bytes of results that the caches hold there; 0 to cache nothing.
    """

    def __init__(self, pipe: StableDiffusionXLImg2ImgPipeline, device: torch.device, cache_bytes: int) -> None:
        self.pipe = pipe
        self.device = device
        # Half for each: a prompt takes five times the memory of an image and would evict many of them.
        self._prompts = LRUCache[bytes, Prompt](
            cache_bytes // 2, lambda prompt: prompt.hidden.nbytes + prompt.pooled.nbytes
        )
        self._images = LRUCache[bytes, torch.Tensor](cache_bytes // 2, lambda moments: moments.nbytes)

    def prompt(self, prompt: str) -> tuple[Prompt, bool]:
        """A prompt's embeddings, and whether they were in the cache."""
        key = _digest(prompt.encode(errors="surrogatepass"))
        return cached(self._prompts, key, lambda: self._encode_prompt(prompt))

    def image(self, pixels: Pixels) -> tuple[torch.Tensor, bool]:
        """An image's moments, and whether they were in the cache.

        Moments are the parameters of the VAE's posterior, `[1, 2c, height / f, width / f]`. A tiny VAE has none; then
        they are its latents, with c channels.
        """
        return cached(self._images, _digest(pixels.data), lambda: self._encode_image(pixels))

    def clear_cache(self) -> None:
        """Drop all cached values, to free memory or because some may hold NaN."""
        self._prompts.clear()
        self._images.clear()

    def _encode_prompt(self, prompt: str) -> Prompt:
        pipe, hidden = self.pipe, []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            length = tokenizer.model_max_length
            tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            output = encoder(tokens.input_ids.to(self.device), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        tokens_cut = max(0, len(tokenizer(prompt).input_ids) - length)
        return Prompt(torch.concat(hidden, dim=-1).to(encoder.dtype), output[0], tokens_cut)

    def _encode_image(self, pixels: Pixels) -> torch.Tensor:
        vae = self.pipe.vae
        raw = torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8).view(1, pixels.height, pixels.width, 3)
        # Two conditions for bit-equality with diffusers. Divide on the CPU: CUDA multiplies by the reciprocal. Keep the
        # channels-last memory order of this view: convolutions round differently in another order.
        image = 2.0 * (raw.permute(0, 3, 1, 2).float() / 255.0) - 1.0
        encoded = vae.encode(image.to(device=self.device, dtype=self.pipe.unet.dtype).to(vae.dtype))
        moments: torch.Tensor = encoded.latent_dist.parameters if hasattr(encoded, "latent_dist") else encoded.latents
        return moments


def cached(cache: "LRUCache[bytes, Value]", key: bytes, make: Callable[[], Value]) -> tuple[Value, bool]:
    """The value of `key`, and whether it was in the cache. If not, `make` computes it; its exceptions propagate."""
    if key in cache:
        return cache[key], True
    value = make()
    # A value that is larger than the whole cache is not kept.
    with suppress(ValueError):
        cache[key] = value
    return value, False


def _digest(data: bytes) -> bytes:
    """A cache key, so that the cache holds no prompts and no images of callers."""
    return hashlib.blake2b(data, digest_size=16).digest()
