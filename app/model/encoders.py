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
    """What the text encoders make of a prompt.

    Attributes:
        hidden: `[1, 77, d]`, both encoders' penultimate layers side by side.
        pooled: `[1, p]`, the second one's projection.
        tokens_cut: the prompt's tokens beyond the 77th.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor
    tokens_cut: int


class Encoders:
    """The text encoders and the VAE's encoder of a pipeline, with what they made lately. Not thread-safe.

    Args:
        pipe: the pipeline; all its parts on `device`.
        device: where the tensors live.
        cache_bytes: how much may be kept there.
    """

    def __init__(self, pipe: StableDiffusionXLImg2ImgPipeline, device: torch.device, cache_bytes: int) -> None:
        self.pipe = pipe
        self.device = device
        # Half of it for each: a prompt takes five times the room of a picture, and would push many out.
        self._prompts = LRUCache[bytes, Prompt](
            cache_bytes // 2, lambda prompt: prompt.hidden.nbytes + prompt.pooled.nbytes
        )
        self._images = LRUCache[bytes, torch.Tensor](cache_bytes // 2, lambda moments: moments.nbytes)

    def prompt(self, prompt: str) -> tuple[Prompt, bool]:
        """A prompt's embeddings, and whether they were there already."""
        key = _digest(prompt.encode(errors="surrogatepass"))
        return cached(self._prompts, key, lambda: self._encode_prompt(prompt))

    def image(self, pixels: Pixels) -> tuple[torch.Tensor, bool]:
        """A picture's moments, and whether they were there already.

        They are the parameters of the VAE's posterior, `[1, 2c, height / f, width / f]`, or a tiny one's latents, which
        have half of the channels.
        """
        return cached(self._images, _digest(pixels.data), lambda: self._encode_image(pixels))

    def clear_cache(self) -> None:
        """Drop all cached values: some may be broken."""
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
        # On the CPU, since CUDA divides by multiplying with the reciprocal, which is not what diffusers feeds its VAE;
        # and a view in channels-last order, as diffusers has it: convolutions round differently in another.
        image = 2.0 * (raw.permute(0, 3, 1, 2).float() / 255.0) - 1.0
        encoded = vae.encode(image.to(device=self.device, dtype=self.pipe.unet.dtype).to(vae.dtype))
        moments: torch.Tensor = encoded.latent_dist.parameters if hasattr(encoded, "latent_dist") else encoded.latents
        return moments


def cached(cache: "LRUCache[bytes, Value]", key: bytes, make: Callable[[], Value]) -> tuple[Value, bool]:
    """The value of `key`, and whether it was in the cache. Otherwise `make` makes it; an error of `make` is raised."""
    if key in cache:
        return cache[key], True
    value = make()
    # A value that is larger than the whole cache is not kept.
    with suppress(ValueError):
        cache[key] = value
    return value, False


def _digest(data: bytes) -> bytes:
    """Stands for a prompt or a picture: callers' own words and pictures are not kept."""
    return hashlib.blake2b(data, digest_size=16).digest()
